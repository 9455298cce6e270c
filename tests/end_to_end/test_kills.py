"""Captures that are killed, in each way once, lose nothing; ``kill_harness.py`` does it at many random moments."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import kill_harness
import pytest
from kill_harness import CLEAN, Blow, Findings, Kill, Round, Stage, play

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


def test_the_long_version_prints_its_table_writes_it_and_keeps_what_is_wrong(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two rounds that were played, one of them not clean."""
    blow = Blow(Kill("actor", "recording", 2), 3, ["an actor"], 0, False)
    rounds = [Round([blow], 1, True, 0, 0, findings, 9.0) for findings in (CLEAN, Findings(2, 0, 0, 0, 0))]

    def played(stage: Stage, run: Path, kills: object) -> Round:
        run.mkdir()
        return rounds[int(run.name[3:])]

    monkeypatch.setattr(kill_harness, "play", played)
    monkeypatch.setattr(kill_harness, "Stage", lambda folder, model: None)
    monkeypatch.setattr(kill_harness, "build_pipeline", lambda *given, **named: SimpleNamespace(save_pretrained=str))
    monkeypatch.setattr(kill_harness.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["kill_harness.py", "--rounds", "2", "--json", str(tmp_path / "kills.json")])
    with pytest.raises(SystemExit, match="what is wrong is kept in"):
        kill_harness.main()
    (row, all_of_them) = json.loads((tmp_path / "kills.json").read_text(encoding="utf-8"))["table"]
    assert row["rounds"] == all_of_them["rounds"] == 2
    assert not (tmp_path / "run000").exists()
    assert (tmp_path / "run001").exists()
    assert "actor" in capsys.readouterr().out


def shard_of(run: Path, task: int) -> Path:
    (path,) = (run / "activations.zarr" / "mean_abs").glob(f"c.{task}.*")
    return path


def replace(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())
