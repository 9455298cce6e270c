"""Every command that writes, started twice at the same moment in real processes: as if one had been alone."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import together
from made_sweep import make_sweep
from planted_edits import planted
from two_runs import ROWS, captured

from fewchannels.cli import app
from fewchannels.errors import RunConflictError
from fewchannels.runs.lease import hold
from fewchannels.runs.storage import open_storage

# The place that each holds, where a second one is refused; else it waits, or both write the same file.
COMMANDS = {
    "manifest ingest A.csv -o made.parquet": "",
    "sql A 'select sample, prompt from samples order by all' -o made.parquet": "",
    "report A -o made.md": "",
    "runs export A --out made": "made",
    "runs export A --as parquet --out made": "made",
    "runs merge A B --out made": "made",
    "runs compact A": "A",
    "runs verify A --repair": "A",
    "compare A B --out made --workers 1": "made",
    "analyze stability A --workers 1": "A/results/stability",
    "analyze concentration A --k 3 --workers 1": "A/results/concentration",
    "analyze masks A --from saliency --workers 1": "A/results/masks",
    "plot S": "",
    "plot S --of mse --out made.svg": "",
}
# Fields that no two calls have in common.
_TIMES = {"seconds", "created", "crc32c", "n_bytes"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Two runs and a sweep, and what they were made of."""
    made = tmp_path_factory.mktemp("twice")
    captured(made, "A", tiny_model, ROWS)
    captured(made, "B", tiny_model, [row.replace("night", "day") for row in ROWS])
    settings = [{"selection": word, "k": k} for k in (4, 8) for word in ("top", "bottom")]
    make_sweep(made / "S", planted(settings, {"top": 0.01, "bottom": 0.0}, n_prompts=3))
    return made


def content(folder: Path) -> dict[str, Any]:
    """Every file; documents without the times in them."""
    found: dict[str, Any] = {}
    for path in folder.rglob("[!.]*"):
        if path.is_file():
            data: Any = path.read_bytes()
            found[str(path.relative_to(folder))] = without_times(json.loads(data)) if path.suffix == ".json" else data
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in _TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_started_twice_leaves_what_one_leaves(command: str, folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(folder, tmp_path / name)
    (alone,) = together([shlex.split(command)], tmp_path / "one", tmp_path)
    assert alone[0] == 0, alone
    ended = together([shlex.split(command)] * 2, tmp_path / "two", tmp_path)
    codes = sorted(code for code, _ in ended)
    assert codes in ([[0, 0], [0, 3]] if COMMANDS[command] else [[0, 0]]), ended  # one may have ended before the other
    for code, said in ended:
        assert code == 0 or "another command is writing to" in said
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert not list((tmp_path / "two").rglob("*.tmp"))


@pytest.mark.parametrize("command", [command for command, place in COMMANDS.items() if place])
def test_a_command_is_refused_while_another_writes_to_its_place(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    with hold(open_storage(COMMANDS[command])):
        before = content(Path())
        with pytest.raises(
            RunConflictError, match=rf"another command is writing to .*{COMMANDS[command]}.*process \d+ on"
        ):
            app(shlex.split(command), standalone_mode=False)
    assert content(Path()) == before
