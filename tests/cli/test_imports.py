"""Which of the heavy libraries each command imports in its own process: they are what its first second goes to."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from made_sweep import make_sweep
from planted_edits import planted
from two_runs import ROWS, captured

HEAVY = ("torch", "diffusers", "transformers", "ray", "duckdb", "zarr", "plotly", "matplotlib")
TABLES = {"duckdb", "zarr"}
LOADS = {"torch", "diffusers", "transformers"}
NOWHERE = "http://127.0.0.1:9"  # nothing listens at port 9
RUN = """
import atexit, json, pathlib, sys

@atexit.register
def tell():
    found = [name for name in HEAVY if name in sys.modules]
    pathlib.Path(OUT).write_text(json.dumps(found), encoding="utf-8")

from fewchannels.cli import main
main()
"""


@dataclass(frozen=True)
class Places:
    """What commands are given.

    Attributes:
        folder: for what they write.
        manifest: of eight samples.
        model: a pipeline's folder.
        runs: two captures of it.
        rest: a capture of other samples, with the first one's settings.
        sweep: a sweep that is done.
    """

    folder: Path
    manifest: Path
    model: Path
    runs: tuple[Path, Path]
    rest: Path
    sweep: Path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Places:
    folder = tmp_path_factory.mktemp("imports")
    runs = captured(folder, "RUN", tiny_model, ROWS), captured(folder, "OTHER", tiny_model, ROWS, top_k=4)
    rest = captured(folder, "REST", tiny_model, ["a green moon,7", "a green moon,8"])
    edits = planted([{"selection": word, "k": 4} for word in ("top", "random")], {"top": 0.012, "random": 0.0})
    return Places(folder, folder / "RUN.parquet", tiny_model, runs, rest, make_sweep(folder / "SWEEP", edits))


# What a command imports in its own process, that is not a worker; what it does not list, it does without.
COMMANDS: dict[str, tuple[set[str], Callable[[Places], list[object]]]] = {
    "--help": (set(), lambda p: ["--help"]),
    "manifest ingest": (set(), lambda p: ["manifest", "ingest", p.folder / "RUN.csv", "-o", p.folder / "new.parquet"]),
    "manifest show": (set(), lambda p: ["manifest", "show", p.manifest]),
    "models list": (set(), lambda p: ["models", "list"]),
    "models show": (set(), lambda p: ["models", "show", p.model]),
    "models inspect": (
        LOADS,
        lambda p: ["models", "inspect", p.model, "--height", 32, "--width", 48, "-o", p.folder / "family.yaml"],
    ),
    "capture": (LOADS | {"zarr"}, lambda p: _capture(p, "captured")),
    "capture by two actors": (
        {"ray", "zarr"},
        lambda p: [*_capture(p, "by_two"), "--shard-samples", 4, "--actors", 2],
    ),
    "capture, refused": (set(), lambda p: [*_capture(p, "refused"), "--layers", "999"]),
    "capture --dry-run": (LOADS | {"zarr"}, lambda p: [*_capture(p, "dry"), "--dry-run"]),
    "runs list": (set(), lambda p: ["runs", "list", p.folder]),
    "manifest ingest, chosen": (
        {"duckdb"},
        lambda p: ["manifest", "ingest", p.folder / "RUN.csv", "-o", p.folder / "some.parquet", "--where", "seed >= 0"],
    ),
    "runs show": ({"duckdb"}, lambda p: ["runs", "show", p.runs[0]]),
    "runs verify": ({"zarr"}, lambda p: ["runs", "verify", p.runs[0]]),
    "runs merge": ({"zarr"}, lambda p: ["runs", "merge", p.runs[0], p.rest, "-o", p.folder / "merged"]),
    "runs compact": (set(), lambda p: ["runs", "compact", p.rest]),
    "runs export": ({"zarr", "duckdb"}, lambda p: ["runs", "export", p.runs[0], "--out", p.folder / "exported"]),
    "runs push, refused": (set(), lambda p: ["runs", "push", p.runs[0], "no-owner"]),
    "runs pull, refused": (set(), lambda p: ["runs", "pull", "no-owner", p.folder / "pulled"]),
    "query": ({"duckdb"}, lambda p: ["query", p.runs[0], "massive_channels"]),
    "sql": ({"duckdb"}, lambda p: ["sql", p.runs[0], "select count(*) from samples"]),
    "analyze stability": (
        TABLES | {"torch", "matplotlib"},
        lambda p: ["analyze", "stability", p.runs[0], "--k", 2, "--workers", 1],
    ),
    "analyze concentration": (
        TABLES | {"torch", "matplotlib"},
        lambda p: ["analyze", "concentration", p.runs[0], "--k", 2, "--workers", 1],
    ),
    "analyze masks": (
        TABLES | {"torch"},
        lambda p: ["analyze", "masks", p.runs[0], "--from", "saliency", "--workers", 1],
    ),
    "compare": (TABLES | {"torch", "matplotlib"}, lambda p: ["compare", *p.runs, "--out", p.folder / "compared"]),
    "probe disruption": (TABLES | LOADS | {"matplotlib"}, lambda p: _sweep(p, "probe", "disruption", "disrupted")),
    "probe disruption, refused": (
        TABLES,
        lambda p: [*_sweep(p, "probe", "disruption", "no"), "--layers", "999"],
    ),
    "plot": (
        TABLES | {"matplotlib"},
        lambda p: ["plot", p.sweep, "--of", "mse", "--axis", "k", "--out", p.folder / "mse.png"],
    ),
    "report": (
        TABLES | {"matplotlib", "plotly"},
        lambda p: ["report", p.runs[0], "-o", p.folder / "report.html"],
    ),
    "explore, refused": (TABLES | {"matplotlib", "plotly"}, lambda p: ["explore", p.folder / "nowhere"]),
    "submit": ({"ray"}, lambda p: ["submit", "--address", NOWHERE, "--", "runs", "show", "s3://bucket/run"]),
    "status": ({"ray"}, lambda p: ["status", "--address", NOWHERE]),
}


def _sweep(places: Places, group: str, name: str, out: str) -> list[object]:
    words = [group, name, "--model", places.model, "--manifest", places.manifest, "--out", places.folder / out]
    settings = ["--num-inference-steps", 2, "--k", 2, "--selection", "top", "--actors", 1]
    return [*words, *settings]


def _capture(places: Places, name: str) -> list[object]:
    words = ["capture", "--model", places.model, "--manifest", places.manifest, "--out", places.folder / name]
    return [*words, "--num-inference-steps", 2, "--actors", 1]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_imports_no_more_than_it_needs(name: str, places: Places, tmp_path: Path) -> None:
    allowed, words = COMMANDS[name]
    out = tmp_path / "modules.json"
    code = RUN.replace("HEAVY", repr(HEAVY)).replace("OUT", repr(str(out)))
    command = [sys.executable, "-c", code, *map(str, words(places))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == (1 if NOWHERE in command else 2 if "refused" in name else 0), done.stderr
    assert set(json.loads(out.read_text(encoding="utf-8"))) == allowed
