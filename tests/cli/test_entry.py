"""The ways in: the name that is imported, the command, and ``python -m``."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fewchannels
from fewchannels.cli import app

ROOT = Path(__file__).parents[2]


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert fewchannels.__version__ == project["version"]


def test_the_public_names_are_listed_and_others_are_refused() -> None:
    assert {"Run", "open_run", "__version__"} <= set(dir(fewchannels))
    with pytest.raises(AttributeError, match="module 'fewchannels' has no attribute 'opne_run'"):
        _ = fewchannels.opne_run


def test_the_earlier_name_is_gone(tmp_path: Path) -> None:
    code = "import importlib.util; print(importlib.util.find_spec('engine'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys; before = set(sys.modules); import fewchannels; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names) == {"fewchannels"}


@pytest.mark.parametrize("line", ["--help", "query nowhere massive_channels", "capture --layers"])
def test_python_m_does_what_the_command_does(line: str, tmp_path: Path) -> None:
    done = [
        subprocess.run([*command, *line.split()], cwd=tmp_path, capture_output=True, text=True, check=False)
        for command in ([str(Path(sys.executable).parent / "fewchannels")], [sys.executable, "-m", "fewchannels"])
    ]
    assert done[0].returncode == done[1].returncode == (0 if line == "--help" else 2)
    for texts in zip(*((each.stdout, each.stderr) for each in done), strict=True):
        command, module = (" ".join(text.replace("python -m fewchannels", "fewchannels").split()) for text in texts)
        assert command == module


def test_the_version_is_printed_by_itself() -> None:
    answer = CliRunner().invoke(app, ["--version"])
    assert (answer.exit_code, answer.stdout) == (0, f"fewchannels {fewchannels.__version__}\n")


def test_the_help_lists_every_command_in_the_order_of_its_panels() -> None:
    shown = CliRunner().invoke(app, ["-h"]).stdout
    names = [
        "demo",
        "manifest",
        "models",
        "capture",
        "runs",
        "query",
        "sql",
        "analyze",
        "compare",
        "probe",
        "transport",
    ]
    names += ["plot", "report", "explore", "submit", "status", "logs", "stop"]
    lines = [line.strip("│ ").split() for line in shown.splitlines() if line.startswith("│ ") and line[2] != " "]
    assert [line[0] for line in lines if not line[0].startswith("-")] == names
    assert "Missing" not in CliRunner().invoke(app, []).output
    assert CliRunner().invoke(app, ["runs", "-h"]).exit_code == 0


@pytest.mark.parametrize(
    "words", ["query", "sql", "runs list", "manifest ingest", "analyze stability", "probe disruption"]
)
def test_every_command_has_the_short_option_for_help(words: str) -> None:
    short, long = (CliRunner().invoke(app, [*words.split(), flag]) for flag in ("-h", "--help"))
    assert (short.exit_code, short.stdout) == (0, long.stdout)
    assert "Usage: " in short.stdout
