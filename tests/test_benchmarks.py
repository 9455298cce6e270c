"""Every benchmark runs, at its smallest size, and writes what it measured; the commands that are documented parse."""

import importlib
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from browser import needs_chromium
from two_runs import ROWS, captured

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
RUNNABLE = {path.stem for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
APART = {"scale"}  # its stub must come to Ray's actors by value, as what a script defines does
KEPT_EARLIER = {"explore.json", "tap_overhead.json"}  # before there was a shape

TWO_MEANS = ("ours", "scikit-learn, same starts", "scikit-learn, n_init=4")
ARMS = ("ours", "bootstrap", "plain")
JACCARD = ("pair_overlap", "sets", "sparse", "dense")
SMALLEST: dict[str, tuple[str, set[str], set[str]]] = {
    # Options, some of the rows, and the rows that others are compared with.
    "analyses": (
        "--cells 2 --theirs 1 --side 8 --channels 16 --samples 1 --rounds 2",
        {f"{kind}: {name}" for kind in ("subject", "noise") for name in TWO_MEANS}
        | {"streaming: reading", "streaming: reading and measuring"},
        {"subject: ours", "noise: ours", "streaming: reading"},
    ),
    "capture_overhead": (
        "--rounds 2 --captures 1 --tasks 1 --batch 1 --steps 1 --threads 1 --actors 1",
        {"plain", "taps", "task", "plain processes", "capture"},
        {"plain", "plain processes"},
    ),
    "explore": (
        "--samples 16 --layers 3 --moves 2",
        {"opened", "gallery, first image", "sample, first map", "a slider's move", "by hand"},
        {"by hand"},
    ),
    "first_answer": ("RUN --rounds 1", {"plain DuckDB", "sql", "query"}, {"plain DuckDB"}),
    "gpu": (
        "--rounds 1 --forwards 1 --heads 1 --dual 1 --single 1 --pixels 32 --steps 1 --batch 1 --tasks 1 --threads 1",
        {
            "kernel: fused",
            *(f"batch {n}: {name}" for n in (1, 4) for name in ("plain", "today's", "fused")),
            "batch 1: copying hook",
            *(f"capture: {name}" for name in ("plain", "taps", "task", "capture")),
            "placed: balanced",
            "analysis: CPU",
        },
        {"kernel: today's", "batch 1: plain", "batch 4: plain", "capture: taps", "analysis: CPU"},
    ),
    "interval_coverage": (
        "--trials 20 --prompts 5,8 --seeds 2",
        {f"{kind}, {n} prompts, 2 seeds: {arm}" for kind in ("normal", "pairs") for n in (5, 8) for arm in ARMS},
        {"normal, 5 prompts, 2 seeds: plain", "normal, 8 prompts, 2 seeds: plain"},
    ),
    "manifest_ingest": ("--rows 400 --rounds 1", {"ingest, a quarter", "ingest", "pandas"}, {"pandas"}),
    "number_formats": (
        "--cells 2 --rounds 2",
        {f"{kind}: {name}" for kind in ("real", "flux") for name in ("float32 raw", "bfloat16 lz4 bitshuffle 5")},
        {"real: float32 raw", "flux: float32 raw"},
    ),
    "pairwise_jaccard": (
        "--samples 50 --rounds 2 --threads 1",
        {f"{kind}: {arm}" for kind in ("massive", "fewer", "uniform", "hardest") for arm in JACCARD},
        {f"{kind}: pair_overlap" for kind in ("massive", "fewer", "uniform", "hardest")},
    ),
    "queries": (
        "--samples 8 --rounds 1",
        {"massive_channels", "massive_channels, small run", "massive_channels, pandas", "sample_outliers"},
        {f"{name}, small run" for name in ("massive_channels", "layer_profile", "step_profile")},
    ),
    "scale actors": ("--most 1 --seconds 0.1 --per-actor 2", {"1 actors", "1 actors, ideal"}, {"1 actors, ideal"}),
    "scale tasks": ("--tasks 5", {"5 tasks"}, {"5 tasks"}),
    "sizes": (
        "--samples 1",
        {"FLUX.1-dev, 1024 px: top 12, all steps", "FLUX.1-dev, 1024 px: the same, last step"},
        {"FLUX.1-dev, 1024 px: top 12, all steps"},
    ),
    "startup": (
        "--rounds 1 --samples 2 --steps 1 --only finished explore",
        {"import torch, diffusers", "an empty Ray", "capture, finished", "explore, first page"},
        {"import torch, diffusers"},
    ),
    "store_read": (
        "--samples 16 --rounds 1",
        {f"{asked}: {name}" for asked in ("massive_value", "mean_abs", "sample") for name in ("HDF5", "ours, xarray")},
        {f"{asked}: .npy per sample" for asked in ("massive_value", "mean_abs", "sample")},
    ),
    "store_scale memory": ("--samples 10", {"after 0 samples", "after 10 samples"}, {"after 10 samples"}),
    "store_scale resume": ("--tasks 2 --rounds 1", {"fewchannels capture", "prepare", "imports"}, {"imports"}),
    "store_write": (
        "--rounds 1 --threads 1",
        {f"{kind}: {name}" for kind in ("random", "bfloat16", "real") for name in ("ours", "safetensors")},
        {f"{kind}: one file" for kind in ("random", "bfloat16", "real")},
    ),
    "sweep_cost": ("--rows 3 --steps 1 --rounds 2", {"plain", "sweep", "replay"}, {"plain"}),
    "tap_overhead": ("--heads 1 --pixels 32 --rounds 2", {"plain", "taps", "copying hook"}, {"plain"}),
}


@pytest.fixture
def benchmark_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that imports a benchmark as its own folder's scripts see each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in RUNNABLE | {"measurement"}:
        sys.modules.pop(name, None)


def test_every_benchmark_is_run_here() -> None:
    assert {name.split()[0] for name in SMALLEST} == RUNNABLE


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_chromium) if n == "explore" else n for n in SMALLEST])
def test_a_benchmark_runs_and_writes_what_it_measured(
    name: str, tmp_path: Path, tiny_model: Path, benchmark_of: Any
) -> None:
    options, wanted, plain = SMALLEST[name]
    script, *what = name.split()
    out, words = tmp_path / "out.json", [*what, *options.split()]
    if "RUN" in words:
        words[words.index("RUN")] = str(captured(tmp_path, "RUN", tiny_model, ROWS))
    words += ["--json", str(out)]
    if script in APART:
        command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    else:
        benchmark_of(script).main(words)
    written = json.loads(out.read_text(encoding="utf-8"))
    check_shape(written)
    assert wanted <= set(written["rows"])
    assert plain <= {each["to"] for each in written["ratios"]}


def check_shape(written: dict[str, Any]) -> None:
    """Rows have names and finite numbers; ratios are what they say they are made of; the plain way is 1 of itself."""
    assert set(written) == {"machine", "versions", "settings", "rows", "ratios"}
    assert written["machine"]["cpus"] >= 1
    assert all(re.match(r"\d", version) for version in written["versions"].values())
    assert "json" not in written["settings"]
    assert written["settings"]
    for name, row in written["rows"].items():
        assert name
        assert row
        numbers = [each for value in row.values() for each in listed(value) if not isinstance(each, str)]
        assert numbers
        assert all(math.isfinite(each) and each >= 0 for each in numbers), (name, row)
    found = {(each["row"], each["to"], each["of"]): each for each in written["ratios"]}
    assert len(found) == len(written["ratios"])
    for (name, to, of), each in found.items():
        above, below = (listed(written["rows"][row][of]) for row in (name, to))
        assert min(*above, *below) > 0
        if each["by"] == "rounds":
            of_rounds = [a / b for a, b in zip(above, below, strict=True)]
            assert each["least"] == pytest.approx(min(of_rounds))
            assert each["most"] == pytest.approx(max(of_rounds))
            expected = statistics.median(of_rounds)
        else:
            one = {"median": statistics.median, "least": min}[each["by"]]
            expected = one(above) / one(below)
        assert each["ratio"] == pytest.approx(expected)
        assert found[to, to, of]["ratio"] == 1
    assert found


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def documented() -> list[tuple[str, str, list[str]]]:
    """Every command with a benchmark in it, in code of a page: the page, the script's name and the words after it."""
    found = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", BENCHMARKS / "README.md", *ROOT.glob("docs/**/*.md")]:
        text = page.read_text(encoding="utf-8")
        for command in re.findall(r"python benchmarks/(\w+\.py[^`\n]*)", text):
            script, *words = shlex.split(command, comments=True)
            found.append((str(page.relative_to(ROOT)), script.removesuffix(".py"), words))
    return found


def test_every_benchmark_has_a_documented_command() -> None:
    assert {script for _, script, _ in documented()} == RUNNABLE


@pytest.mark.parametrize(("page", "script", "words"), documented(), ids=lambda value: str(value))
def test_a_documented_command_parses(page: str, script: str, words: list[str], benchmark_of: Any) -> None:
    benchmark: ModuleType = benchmark_of(script)
    chosen = benchmark.parser().parse_args(words)
    given = [word for word in words if word.startswith("--")]
    assert all(option in benchmark.parser().format_help() for option in given), page
    if chosen.json:
        assert (ROOT / chosen.json).exists(), f"{page} says that {chosen.json} is written by this"


@pytest.mark.parametrize("script", sorted(RUNNABLE))
def test_help_says_what_is_compared_with_what(script: str, benchmark_of: Any) -> None:
    benchmark: ModuleType = benchmark_of(script)
    shown = benchmark.parser().format_help()
    assert benchmark.__doc__.strip() in shown
    assert f"python benchmarks/{script}.py" in benchmark.__doc__.partition("\n")[0]


def test_kept_measurements_have_the_shape() -> None:
    kept = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in BENCHMARKS.glob("*.json")}
    assert set(kept) >= KEPT_EARLIER
    for name, written in kept.items():
        if name not in KEPT_EARLIER:
            check_shape(written)


def test_rounds_begin_with_another_work_each(benchmark_of: Any) -> None:
    done: list[str] = []
    found = benchmark_of("measurement").rotated({"a": "a", "b": "b", "c": "c"}, 4, lambda work: done.append(work))
    assert {name: len(each) for name, each in found.items()} == {"a": 4, "b": 4, "c": 4}
    assert ["".join(done[i:j]) for i, j in pairwise(range(0, 13, 3))] == ["abc", "bca", "cab", "abc"]
