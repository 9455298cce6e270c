"""Every command and line of Python of the README, run as a user would, on the bundled model.

In one process, but for those that show that a process of its own does the same: a capture, the explorer, and Python.
"""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import line as run
from explorer import explorer, layout_of
from pages import BIN, blocks, process, shell

LINES = shell("In the shell")
EXPLORE = [line for line in LINES if line.startswith("fewchannels explore")]
COMMANDS = [line for line in LINES if line not in EXPLORE]
# In a process of its own.
CAPTURE = "fewchannels capture --manifest prompts.parquet --out FIRST --steps 9,19"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which commands are run."""
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def main_path(folder: Path) -> dict:
    """The README's commands, run once in one folder."""
    done = {line: (process if line == CAPTURE else run)(line, folder) for line in COMMANDS}
    return {"folder": folder} | done


def test_every_command_of_the_main_path_works(main_path: dict) -> None:
    assert len(COMMANDS) == 9
    assert CAPTURE in COMMANDS
    for line in COMMANDS:
        assert main_path[line].code == 0, (line, main_path[line].stderr)
        assert "Traceback" not in main_path[line].stderr


def test_the_report_holds_what_was_asked(main_path: dict) -> None:
    first = (main_path["folder"] / "first.html").read_text(encoding="utf-8")
    assert all(name in first for name in ("FIRST", "ABLATED", "PATCHED"))


@pytest.mark.parametrize("line", EXPLORE)
def test_the_explorer_answers_where_it_says_until_it_is_interrupted(main_path: dict, line: str) -> None:
    words = shlex.split(line)
    with explorer([str(BIN / words[0]), *words[1:]], main_path["folder"]) as (process, address):
        assert "fewchannels" in layout_of(address)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_the_python_of_the_readme_runs(main_path: dict) -> None:
    code = "\n".join(line for each in blocks("In Python") for line in each)
    code += "\nprint(maps.dims, maps.shape)"
    code += "\nprint(before != after, after.size, len(seen.top(3)))"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=main_path["folder"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, read, edited = done.stdout.splitlines()
    assert "layer  step  channel" in done.stdout
    assert read == "('sample', 'token') (8, 64)"
    assert edited == "True (64, 64) 12"


def test_the_demo_command_shows_tables_and_draws_a_sheet(folder: Path) -> None:
    done = run("fewchannels demo --out here --prompts 6", folder)
    assert done.code == 0, done.stderr
    assert "Top channels" in done.stdout
    assert "Stability" in done.stdout
    told = done.stdout.split("Findings:\n")[1].split("\nContact sheet: ")[0]
    for text in ("The largest channel scores", "most often among the top", "of the squared values"):
        assert told.count(text) == 1
    assert "Contact sheet: here/contact_sheet.png\n" in done.stdout
    assert (folder / "here" / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    explore, report = (line.strip() for line in done.stdout.split("Next:\n")[1].splitlines())
    assert explore == "fewchannels explore here/run"
    assert run(report, folder).code == 0
    assert (folder / "here" / "report.html").exists()
