"""Installs the wheel with sets of versions, each in a new environment, and uses it in an empty folder.

    python tests/helpers/versions.py --python python3.11 python3.12 python3.13   # the table of docs/install.md
    python tests/helpers/versions.py --set lowest --quick --links .venv          # as in CI

The sets are ``lowest``, each lower bound of ``pyproject.toml`` itself; ``pinned``, ``constraints.txt``; and ``newest``,
what pip chooses. All of them have the PyTorch of ``constraints.txt``, and no development tools.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from explorer import explorer, layout_of
from packaging.requirements import Requirement
from sent import ROOT, send

FAIL = "**fail**"
SETS = ("lowest", "pinned", "newest")
SHOWN = ("torch", "ray", "diffusers", "transformers", "numpy", "pandas", "zarr", "duckdb", "dash")
LARGE = {"lowest": ("torch", "ray"), "pinned": ("torch", "ray"), "newest": ("torch",)}  # of equal version in other sets
# Without the last, each module is compiled once, not by each command.
_LEFT_OUT = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
SETTINGS = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# In one process, since importing PyTorch and diffusers takes most of the time.
COMMANDS = (
    "demo --out demo --prompts 4",
    "query demo/run massive_channels --param top=3",
    "analyze stability demo/run",
    "probe disruption --manifest demo/manifest.parquet --out sweep --k 4 --num-inference-steps 2",
    "report demo/run sweep -o report.html",
    "runs verify demo/run",
)
WITH_RAY = "capture --model demo --manifest demo/manifest.parquet --out actors --actors 2 --num-inference-steps 2"
CALLS = """
import sys
import fewchannels as fc
from fewchannels.cli import application
from fewchannels.settings.environment import settle_environment

settle_environment()
for line in sys.argv[1:]:
    words = line.split()
    try:
        application(words[0])(words)
    except SystemExit as ended:
        assert not ended.code, line
pipe = fc.load("demo")
with fc.record(pipe) as seen:
    pipe("a small pink star", num_inference_steps=2)
assert len(seen.top(layer=3, step=-1)) == 12
assert seen.activations.mean_abs.sel(layer=3, step=1).shape == (1, 128)
data = fc.open_run("demo/run").activations
assert data.massive_value.sel(layer=3, step=19, k=0).values.shape == (4, 64)
assert data.mean_abs.isel(step=-1).mean("sample").values.min() >= 0
"""
INSTALLED = """
import fewchannels, importlib.metadata, json, sys
assert fewchannels.__file__.startswith(sys.prefix), fewchannels.__file__
print(json.dumps({each.name: each.version for each in importlib.metadata.distributions()}))
"""


def lowest() -> list[str]:
    """Every direct dependency at its lower bound, except PyTorch."""
    found = []
    for each in map(Requirement, PROJECT["dependencies"]):
        (bound,) = [part.version for part in each.specifier if part.operator == ">="]
        extras = f"[{','.join(each.extras)}]" if each.extras else ""
        found.append(f"{each.name}{extras}=={bound}")
    return [line for line in found if not line.startswith("torch==")]


def pinned() -> dict[str, str]:
    """The lines of ``constraints.txt``, by normalized name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split("\n")
    return {plain(line.split("==")[0]): line for line in lines if line and not line.startswith("#")}


def plain(name: str) -> str:
    """A distribution's name as indexes normalize it."""
    return name.lower().replace("_", "-").replace(".", "-")


def link(environment: Path, donor: Path, names: Sequence[str]) -> None:
    """Use distributions of another environment of the same Python, instead of installing them again."""
    (there,), (here,) = (place.glob("lib/python*/site-packages") for place in (donor, environment))
    for name in names:
        (about,) = there.glob(f"{name}-*.dist-info")
        tops = {line.split(",")[0].split("/")[0] for line in (about / "RECORD").read_text(encoding="utf-8").split("\n")}
        for top in tops - {"", ".."}:
            (here / top).symlink_to(there.resolve() / top)


@contextmanager
def installed(python: str, versions: str, donor: Path | None, folder: Path) -> Iterator[Path]:
    """A new environment with the wheel and one of the sets."""
    environment, constraints, wheels = folder / "environment", folder / "constraints.txt", folder / "wheels"
    send(folder / "checkout")
    run([python, "-m", "venv", str(environment)])
    if donor:
        link(environment, donor, LARGE[versions])
    pip = [str(environment / "bin" / "pip"), "--disable-pip-version-check"]
    run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(folder / "checkout")])
    (wheel,) = wheels.glob("*.whl")
    lines = pinned()
    constraints.write_text("\n".join(lines.values() if versions == "pinned" else [lines["torch"]]), encoding="utf-8")
    options = ["--quiet", "--no-compile", "--only-binary", ":all:", "--constraint", str(constraints)]
    run([*pip, "install", *options, str(wheel), *(lowest() if versions == "lowest" else [])])
    yield environment
    shutil.rmtree(environment)


def run(command: Sequence[str], folder: Path | None = None) -> str:
    """What a command prints, which must succeed."""
    done = subprocess.run(command, cwd=folder, env=SETTINGS, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise RuntimeError(f"{' '.join(command)[:300]}\nexit code {done.returncode}\n{said}")
    return done.stdout


def check(environment: Path, versions: str) -> dict[str, str]:
    """The installed versions, after a check that the wheel, and all of the lowest set, are what Python imports."""
    about = json.loads(run([str(environment / "bin" / "python"), "-c", INSTALLED], environment))
    found = {plain(name): version for name, version in about.items()}
    for wanted in map(Requirement, lowest() if versions == "lowest" else []):
        assert wanted.specifier.contains(found[plain(wanted.name)]), (str(wanted), found[plain(wanted.name)])
    return found


def use(environment: Path, folder: Path, lines: Sequence[str]) -> None:
    """Run the help, the commands and calls from Python, and the explorer in an empty folder."""
    folder.mkdir()
    python, command = (str(environment / "bin" / name) for name in ("python", "fewchannels"))
    run([command, "--help"], folder)
    run([python, "-c", CALLS, *lines], folder)
    with explorer([command, "explore", "demo/run"], folder, SETTINGS) as (_, address):
        assert "dash_core_components" in layout_of(address), "the explorer's first page"


def row(python: str, versions: str, donor: Path | None, lines: Sequence[str]) -> list[str]:
    """Install and use one set with one Python; return a row of the table."""
    label = run([python, "-c", "import platform; print(platform.python_version())"]).strip()
    report(f"{label}, {versions}")
    began, found, result = time.monotonic(), {}, "pass"
    try:
        with tempfile.TemporaryDirectory() as name, installed(python, versions, donor, Path(name)) as environment:
            report(f"  installed: {time.monotonic() - began:.0f} s")
            found = check(environment, versions)
            use(environment, Path(name) / "empty", lines)
    except (RuntimeError, AssertionError, OSError) as error:
        result = FAIL
        report(str(error))
    report(f"  {result}: {time.monotonic() - began:.0f} s")
    return [label, versions, *(found.get(each, "-") for each in SHOWN), result, f"{datetime.now(UTC):%Y-%m-%d}"]


def report(line: str) -> None:
    """Print progress, apart from the table."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Try every set with every Python, and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters (default: this one)")
    options.add_argument("--set", nargs="+", default=SETS, choices=SETS, help="sets of versions (default: all)")
    options.add_argument("--quick", action="store_true", help="without a capture by Ray's actors")
    options.add_argument("--links", type=Path, help="environment whose PyTorch and Ray are used, not installed again")
    given = options.parse_args()
    rows = [
        row(python, versions, given.links, COMMANDS if given.quick else (*COMMANDS, WITH_RAY))
        for python in given.python
        for versions in given.set
    ]
    for line in [["Python", "set", *SHOWN, "result", "date"], ["---"] * (len(SHOWN) + 4), *rows]:
        print("| " + " | ".join(line) + " |")
    return int(any(FAIL in line for line in rows))


if __name__ == "__main__":
    sys.exit(main())
