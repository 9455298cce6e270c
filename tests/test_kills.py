"""Captures that are killed, in each way once, lose nothing; ``kill_harness.py`` does it at many random moments."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kill_harness import CLEAN, Findings, Kill, Stage, play

N_ARRAYS = 7


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"), tiny_model)


# Two captures of each run are killed, the first so that it cannot go on: starting Ray is what takes the time.
@pytest.mark.parametrize(
    "kills",
    [
        (Kill("driver", "begun", delay=0.01), Kill("raylet", "recording", 2)),
        (Kill("driver, met", "recording", 3, 0.01), Kill("actor", "recording", 2, 0.02)),
        (Kill("everything", "recording", 5, 0.015), Kill("group", "recording", 1)),
    ],
    ids=lambda kills: " and ".join(kill.kind for kill in kills),
)
def test_a_killed_capture_goes_on_and_nothing_is_lost_doubled_or_changed(
    kills: tuple[Kill, ...], stage: Stage, tmp_path: Path
) -> None:
    played = play(stage, tmp_path / "run", kills)
    assert all(blow.killed for blow in played.blows)
    assert played.complete
    assert played.findings == CLEAN
    assert played.redone == 0
    for number, blow in enumerate(played.blows):
        said = (tmp_path / f"run.{number}.log").read_text(encoding="utf-8")
        assert "Traceback" not in said
        assert blow.exit_code in (0, None) or "run again to resume" in said
    # Workers whose driver is gone are waited for, not overrun.
    assert played.met == sum(blow.kill.kind == "driver, met" for blow in played.blows)


@pytest.mark.parametrize(
    ("harm", "findings"),
    [
        (lambda run: None, CLEAN),
        (lambda run: (run / "ledger" / "00003.json").unlink(), Findings(2, 0, 2, 0, 2 + N_ARRAYS)),
        (lambda run: (run / "cells" / ".00000.parquet.host-1-1.tmp").touch(), Findings(0, 0, 0, 0, 1)),
        (lambda run: replace(shard_of(run, 0), shard_of(run, 1)), Findings(0, 0, 2, 1, 0)),
        (lambda run: replace(run / "samples" / "00000.parquet", run / "samples" / "00001.parquet"), None),
        (lambda run: shard_of(run, 0).write_bytes(b"torn"), None),
    ],
    ids=["nothing", "a record is lost", "an unfinished file is left", "samples are changed", "doubled", "torn"],
)
def test_the_harness_finds_what_is_wrong(
    harm: Callable[[Path], object], findings: Findings | None, stage: Stage, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stage.undisturbed, run)
    harm(run)
    found = stage.check(run)
    assert found == findings if findings else found != CLEAN


def test_the_long_version_prints_its_table_and_writes_it(tmp_path: Path) -> None:
    harness = [sys.executable, str(Path(__file__).parent / "kill_harness.py")]
    done = subprocess.run(
        [*harness, "--rounds", "1", "--seed", "0", "--json", str(tmp_path / "kills.json")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (row, all_of_them) = json.loads((tmp_path / "kills.json").read_text(encoding="utf-8"))["table"]
    assert row["rounds"] == all_of_them["rounds"] == 1
    assert {all_of_them[name] for name in ("lost", "duplicated", "differing", "stray")} == {0}
    assert "duplicated" in done.stdout


def shard_of(run: Path, task: int) -> Path:
    (path,) = (run / "activations.zarr" / "mean_abs").glob(f"c.{task}.*")
    return path


def replace(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())
