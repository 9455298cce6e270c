"""The house rules that can be read off the sources."""

import ast
import json
import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml
from recipes import RECIPES, blocks
from sent import send

from fewchannels import _PLACES
from fewchannels.tables import schema

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "engine"
PACKAGE = SOURCES / "fewchannels"

# Rooms: a package or a module at the top. Each may import what stands above it.
ORDER = (
    "errors",
    "files",
    "machine",
    "settings",
    "tables",
    "demo",
    "manifest",
    "measures",
    "models",
    "runs",
    "cluster",
    "captures",
    "analyses",
    "interventions",
    "views",
    "api",
    "cli",
    "__main__",
)
APART = {("analyses", "captures")}  # the first must not import the second, although that is above it

# Modules that import each other, inside functions.
CIRCLES = {
    frozenset({"runs.storage", "runs.storage.base", "runs.storage.folder", "runs.storage.objects"}),
}
ONLY_IMPORTERS = {
    "pyarrow": {"manifest", "runs.sql", "tables"},
    "diffusers": {"models", "demo", "api"},
    "zarr": {"runs.arrays"},
    "obstore": {"runs.storage"},
    "huggingface_hub": {
        "analyses.masks.checkpoints",
        "interventions.metrics.specifications",
        "models.source",
        "runs.upkeep.hub",
    },
    "fcntl": {"files.file_system"},
    "xarray": {"runs.arrays", "runs.run", "api"},
    "ray": {"cluster"},
    "duckdb": {"runs.sql"},
    "typer": {"cli"},
    "matplotlib": {"analyses.figures", "api"},
    "plotly": {"analyses.figures", "api.result"},
    "jinja2": {"views.report"},
    "dash": {"views.explore"},
    "flask": {"views.explore"},
    "triton": {"measures.fused"},
}


def named(path: Path) -> str:
    """The name of a module below the package; ``""`` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {named(path): path for path in PACKAGE.rglob("*.py")}


@cache
def imports(module: str) -> set[str]:
    """Whatever a module imports, by full name, imports inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports hide where a module is"
            assert not node.level, "relative imports hide where a module is"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


PUBLIC = {name: place for place, names in _PLACES.items() for name in names}
"""Names of the package itself, and where it has them from."""


def own_imports(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    found = set()
    for name in imports(module):
        if name.split(".")[0] == "fewchannels":
            assert name != "fewchannels", f"{module}: name what is imported, so that its room is known"
            target = name.removeprefix("fewchannels.")
            target = PUBLIC.get(target, target)
            while target not in MODULES:
                target = target.rpartition(".")[0]
            found.add(target)
    return found - {module}


def is_within(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_every_room_has_its_place_in_the_order() -> None:
    assert sorted({module.split(".")[0] for module in MODULES if module}) == sorted(ORDER)


def test_imports_run_one_way() -> None:
    against = set()
    for module in set(MODULES) - {""}:
        for target in own_imports(module):
            rooms = module.split(".")[0], target.split(".")[0]
            if ORDER.index(rooms[1]) > ORDER.index(rooms[0]) or rooms in APART:
                against.add((module, target))
    assert not against


def test_no_modules_import_each_other() -> None:
    graph = {module: own_imports(module) for module in MODULES}
    found = set()
    while True:
        try:
            TopologicalSorter(graph).prepare()
            break
        except CycleError as error:
            circle = next((each for each in CIRCLES if set(error.args[1]) <= each), frozenset(error.args[1]))
            found.add(circle)
            for module in circle:
                graph[module] -= circle
    assert found == CIRCLES


PACKAGES = tuple(room for room in ORDER if MODULES[room].name == "__init__.py")


def faces(package: str) -> str:
    """The lines of a package's docstring that say what others import of it, and what it imports itself."""

    def room(module: str) -> str:
        return module.split(".")[0]

    edges = [(module, target) for module in MODULES for target in own_imports(module)]
    mine = {target for module, target in edges if room(target) == package != room(module)}
    theirs = {room(target) for module, target in edges if room(module) == package != room(target)}
    known = sorted(target.removeprefix(f"{package}.") if target != package else "itself" for target in mine)
    lines = (
        ("Imported by others", sorted(known, key=lambda name: (name != "itself", name))),
        ("Imports", sorted(theirs, key=ORDER.index)),
    )
    return "\n".join(
        textwrap.fill(f"{label}: {', '.join(names)}.", 120, subsequent_indent="    ", break_long_words=False)
        for label, names in lines
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_others_import_of_it(package: str) -> None:
    """Mend it by putting the lines that it prints into the docstring of the package's ``__init__``."""
    said = ast.get_docstring(ast.parse(MODULES[package].read_text(encoding="utf-8"))) or ""
    assert len(said.splitlines()) > 3, "what is it for?"
    assert said.endswith(f"\n\n{faces(package)}"), f"the docstring must end with\n{faces(package)}"


@pytest.mark.parametrize("library", ONLY_IMPORTERS)
def test_each_library_has_its_own_module(library: str) -> None:
    importers = {module for module in MODULES if library in {name.split(".")[0] for name in imports(module)}}
    assert {module for module in importers if not is_within(module, ONLY_IMPORTERS[library])} == set()
    assert all(any(is_within(module, {place}) for module in importers) for place in ONLY_IMPORTERS[library])


TEXTS = [
    *sorted(ROOT.glob("*.md")),
    *(path for folder in ("benchmarks", "docs", "engine", "schemas") for path in sorted((ROOT / folder).rglob("*.md"))),
]
ENDINGS = {"csv", "json", "parquet", "py", "yaml"}
_FOLDERS = "benchmarks|docs|engine|queries|schemas|tests"


@cache
def names(module: str) -> dict[str, str]:
    """Whatever a module or a class in it defines (``Class.name``), and what it imports, with whence."""
    found: dict[str, str] = {}

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found.update({prefix + each.id: "" for each in targets if isinstance(each, ast.Name)})
            if isinstance(node, ast.Import):
                found.update({(each.asname or each.name).split(".")[0]: each.name for each in node.names})
            elif isinstance(node, ast.ImportFrom):
                found.update({each.asname or each.name: f"{node.module}.{each.name}" for each in node.names})
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[prefix + node.name] = ""
            if isinstance(node, ast.ClassDef):
                add(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.If):
                add(node.body, prefix)

    add(ast.parse(MODULES[module].read_text(encoding="utf-8")).body, "")
    return found


def is_there(name: str) -> bool:
    """Whether a dotted name below the package is a module, or what one defines or hands out; others' names are."""
    module, parts = name, list[str]()
    while module and module not in MODULES:
        module, _, part = module.rpartition(".")
        parts.insert(0, part)
    if not parts or ".".join(parts) in names(module) or (not module and name in ("__version__", *PUBLIC)):
        return True
    whence = names(module).get(parts[0])
    if not whence or (not module and parts[0] not in PUBLIC):
        return False
    root, *others = whence.split(".")
    return root != "fewchannels" or is_there(".".join([*others, *parts[1:]]))


def is_example(path: str) -> bool:
    """Whether a path holds a word in capitals, for which a reader puts another: ``queries/NAME.sql``."""
    return bool(re.search(r"\b[A-Z]{2,}\b", path))


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_only_what_exists(text: Path) -> None:
    words = text.read_text(encoding="utf-8")
    made = {block.path for block in blocks() if block.how == "new"} if text == RECIPES else set()
    for path in made:  # an example's own files and names
        own = path.removeprefix("engine/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        words = re.sub(rf"{re.escape(path)}|{re.escape(own)}(?:\.\w+)*", "", words)
    dotted = re.findall(r"\bfewchannels((?:\.\w+)+)", words)
    short = [each for each in re.findall(r"`((?:\w+)(?:\.\w+)+)[(`]", words) if each.split(".")[0] in ORDER]
    missing = [name for name in (each.removeprefix(".") for each in dotted) if not is_there(name)]
    missing += [name for name in short if name.rpartition(".")[2] not in ENDINGS and not is_there(name)]
    paths = re.findall(rf"(?<![\w/.-])(?:{_FOLDERS})/[\w./*-]*[\w*/]", words)
    links = [each for each in re.findall(r"\]\(([^)#\s]+)", words) if not re.match(r"https?:", each)]
    missing += [path for path in paths if not is_example(path) and not list(ROOT.glob(path))]
    missing += [link for link in links if not (text.parent / link).exists()]
    assert not missing


def test_documents_name_only_commands_that_exist() -> None:
    from fewchannels.cli import application

    app = application()
    known = {(command.name, "") for command in app.registered_commands}
    groups = {group.name: group.typer_instance.registered_commands for group in app.registered_groups}
    for name, commands in groups.items():
        known |= {(name, ""), *((name, each.name or each.callback.__name__) for each in commands)}
    found = set()
    for text in TEXTS:
        words = text.read_text(encoding="utf-8")
        for name, word in re.findall(r"(?:^ *|`)fewchannels ([a-z]+)(?: ([a-z]+))?", words, re.MULTILINE):
            found.add((name, word if name in groups else ""))
    assert found - known == set()


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_refer_only_to_what_exists(module: str) -> None:
    """``:func:`` and the like name something in full, or of their own module or class."""
    own = {part.partition(".")[2] or part for part in names(module)} | set(names(module))
    missing = []
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = str(node.value.value)
            referred = re.findall(r":(?:class|data|func|meth|mod):`([^`]+)`", text)
            missing += [name for name in referred if "fewchannels." not in name and name not in own]
            full = [name for name in referred if "fewchannels." in name] + re.findall(
                r"``(fewchannels\.[\w.]+)``", text
            )
            missing += [name for name in full if not is_there(name.removeprefix("fewchannels."))]
    assert not [name for name in missing if not is_there(f"{module}.{name}")]


def test_files_are_of_a_length_that_can_be_read() -> None:
    too_long = {
        str(path.relative_to(ROOT)): n
        for path in [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]
        if (n := len(path.read_text(encoding="utf-8").splitlines())) > 450
    }
    assert not too_long


def test_nothing_heavy_is_imported_to_show_help() -> None:
    code = (
        "import sys, fewchannels.cli; print(sorted({'torch', 'ray', 'diffusers', 'duckdb', 'zarr'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("table", sorted(path.stem for path in (ROOT / "schemas").glob("*.yaml")))
def test_every_column_is_documented(table: str) -> None:
    described = yaml.safe_load((ROOT / "schemas" / f"{table}.yaml").read_text(encoding="utf-8"))
    assert described["table"] == table
    assert all(len(column["doc"]) > 5 for column in described["columns"])
    assert set(described["key"]) <= set(schema(table).names)


def test_the_specification_names_every_array_of_the_store() -> None:
    from fewchannels.models.family import Block
    from fewchannels.runs.layout import Layout

    text = (ROOT / "schemas" / "store.md").read_text(encoding="utf-8")
    for array in Layout(1, (0,), (Block(0, "b", "dual"),), 4, 4, 2, 1, controls=("bottom",)).arrays():
        assert re.search(rf"`{array.name}`.*\| {', '.join(array.dims)} \| {array.dtype}", text), array.name


def test_a_wheel_is_the_package_and_nothing_else(tmp_path: Path) -> None:
    """Built from what a node of a cluster is sent, so that this is known to be enough."""
    send(tmp_path / "node")
    wheels = ["-w", str(tmp_path), str(tmp_path / "node")]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", *wheels]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"fewchannels", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}
    expected = {f"fewchannels/{path.relative_to(PACKAGE)}" for path in MODULES.values()}
    for folder, kinds in (("schemas", ("*.yaml", "*.md")), ("queries", ("*.sql",))):
        expected |= {f"fewchannels/{folder}/{path.name}" for kind in kinds for path in (ROOT / folder).glob(kind)}
    assert expected - names == set()
    assert {"fewchannels/demo/model/model_index.json", "fewchannels/views/explore/assets/explorer.js"} <= names
    assert sum(name.endswith(".py") for name in names) == len(MODULES)


def test_no_constraint_names_a_build_that_only_one_index_has() -> None:
    """``torch==2.13.0`` takes the builds for CPUs and for any CUDA; ``2.13.0+cpu`` is on PyTorch's own index alone."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    names = [re.sub("[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins]
    assert len(set(names)) == len(names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in ("dev", "docs", "lora") for each in project["optional-dependencies"][extra]),
    ]  # the other extras are installed by nobody who tests
    assert {re.sub("[-_.]+", "-", re.match(r"[\w.-]+", each)[0]).lower() for each in wanted} - set(names) == set()


def test_the_cluster_file_fits_rays_schema() -> None:
    import jsonschema
    import ray

    rules = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    jsonschema.validate(yaml.safe_load(text), rules)
    assert text.count("FILL IN:") == 3
