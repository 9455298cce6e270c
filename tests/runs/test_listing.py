"""``fewchannels runs list``: what is below a folder, without what is inside of runs."""

import json
from pathlib import Path

import pytest
from made_run import RESULTS, make_run
from made_sweep import make_sweep
from planted_edits import planted
from typer.testing import CliRunner

from fewchannels.cli import app
from fewchannels.errors import InputError
from fewchannels.runs.listing import listed

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 samples, of which one task of three is recorded; a sweep two folders below; a damaged run."""
    folder = tmp_path_factory.mktemp("runs")
    cells = [{"sample": i, "top_channels": [3]} for i in range(40)]
    made = make_run(folder / "a", cells, unrecorded=[1, 2], results={"masks": {}}, created="2026-01-02T03:04:05+00:00")
    make_run(made / "copy of a run inside of a run", cells[:1])
    edits = planted(
        [{"selection": word, "k": 4} for word in ("top", "random")], {"top": 0.01, "random": 0.0}, n_prompts=2
    )
    (folder / "b" / "c").mkdir(parents=True)
    make_sweep(folder / "b" / "c" / "sweep", edits)
    (folder / "z").mkdir()
    (folder / "z" / "run.json").write_text("{", encoding="utf-8")
    return folder


def test_runs_and_sweeps_are_listed_with_their_progress_and_results(folder: Path) -> None:
    assert RESULTS
    run, sweep, damaged = listed(str(folder))
    assert (run.place, run.kind, run.model, run.n_samples) == (str(folder / "a"), "run", "demo", 40)
    assert (run.n_tasks, run.n_tasks_done, run.results) == (3, 1, ("masks",))
    assert run.created.startswith("2026-01-02")
    assert (sweep.place, sweep.kind) == (str(folder / "b" / "c" / "sweep"), "sweep")
    assert (sweep.n_samples, sweep.n_tasks_done, sweep.results) == (4, 1, ("effects",))
    assert damaged.place == str(folder / "z")
    assert damaged.error


def test_the_command_prints_one_line_each_and_names_what_cannot_be_read(folder: Path) -> None:
    done = CliRunner().invoke(app, ["runs", "list", str(folder)])
    assert done.exit_code == 0
    assert "1 of 3" in done.stdout
    assert done.stdout.rstrip().endswith("1 run, 1 sweep")
    assert f"{folder / 'z'} cannot be read" in done.stderr
    found = json.loads(CliRunner().invoke(app, ["runs", "list", str(folder), "--json"]).stdout)
    assert [each["kind"] for each in found] == ["run", "sweep", "run"]
    assert [
        each["kind"]
        for each in json.loads(CliRunner().invoke(app, ["runs", "list", str(folder / "a"), "--json"]).stdout)
    ] == ["run"]


def test_a_folder_without_runs_and_no_folder_say_so(tmp_path: Path) -> None:
    assert "no run, sweep or comparison in" in CliRunner().invoke(app, ["runs", "list", str(tmp_path)]).stdout
    with pytest.raises(InputError, match="there is no folder"):
        listed(str(tmp_path / "nowhere"))
