"""The house rules that can be read off the sources."""

import ast
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from fewchannels.tables import schema

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "engine"

# Each may import what stands above it.
ORDER = [
    "errors",
    "sizes",
    "storage",
    "documents",
    "replaced",
    "resources",
    "tables",
    "runfile",
    "lease",
    "turns",
    "statistics",
    "channels",
    "draws",
    "config",
    "demo.world",
    "manifest",
    "models.family",
    "models",
    "plan",
    "budget",
    "embeddings",
    "noised",
    "stages",
    "sampler",
    "taps",
    "transfer",
    "recorder",
    "shards",
    "store",
    "ledger",
    "parts",
    "results",
    "agreement",
    "verify",
    "job",
    "encode",
    "pictures",
    "loaded",
    "worker",
    "estimate",
    "recompute",
    "cluster",
    "telemetry",
    "actors",
    "run",
    "jobs",
    "query",
    "answer",
    "catalog",
    "copying",
    "huggingface",
    "reader",
    "figures",
    "demo",
    "masks",
    "metrics",
    "analyses",
    "interventions",
    "report",
    "explore",
    "cli",
]
ONLY_IMPORTERS = {
    "pyarrow": {"manifest", "tables"},
    "diffusers": {"models", "sampler", "demo"},
    "zarr": {"store"},
    "obstore": {"storage"},
    "fcntl": {"lease", "turns"},
    "xarray": {"store", "reader"},
    "ray": {"cluster", "telemetry", "actors", "jobs", "run"},
    "duckdb": {"answer", "catalog"},
    "typer": {"cli"},
    "plotly": {"figures"},
    "jinja2": {"report"},
    "dash": {"explore"},
    "flask": {"explore"},
}


def place(module: str) -> str:
    """The name in ORDER that a module such as ``models.load`` belongs to."""
    parts = module.split(".")
    return next((name for n in (2, 1) if (name := ".".join(parts[:n])) in ORDER), parts[0])


def imports() -> list[tuple[str, str]]:
    """Every (module of engine, imported module) pair, imports inside functions included."""
    found = []
    for path in ENGINE.rglob("*.py"):
        module = ".".join(path.relative_to(ENGINE).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(module, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                found += [(module, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def test_imports_run_one_way() -> None:
    wrong = []
    for module, imported in imports():
        if not imported.startswith("engine.") or module == "__init__":
            continue
        target = imported.removeprefix("engine.")
        if target in ("open_run", "Run"):
            target = "reader"
        if ORDER.index(place(target)) > ORDER.index(place(module)):
            wrong.append(f"engine.{module} imports {imported}")
    assert not wrong


@pytest.mark.parametrize("library", ONLY_IMPORTERS)
def test_each_library_has_its_own_module(library: str) -> None:
    importers = {place(module) for module, imported in imports() if imported.split(".")[0] == library}
    assert importers <= ONLY_IMPORTERS[library]


def test_files_are_of_a_length_that_can_be_read() -> None:
    too_long = {
        str(path.relative_to(ROOT)): n
        for path in [*ENGINE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
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


def test_a_wheel_carries_schemas_and_queries(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "fewchannels/schemas/cells.yaml",
        "fewchannels/schemas/store.md",
        "fewchannels/queries/massive_channels.sql",
    } <= names
    assert "engine/fewchannels/demo/model/model_index.json" in names


def test_the_cluster_file_fits_rays_schema() -> None:
    import jsonschema
    import ray

    rules = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    jsonschema.validate(yaml.safe_load(text), rules)
    assert text.count("FILL IN:") == 3
