"""What commands print: JSON is JSON everywhere, and an output that is not UTF-8, full or closed makes no traceback."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from command import command
from hub_server import connected, hub_server
from made_sweep import make_sweep
from planted_edits import planted
from rich.color import ColorSystem

from fewchannels import manifest
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cli import app, console
from fewchannels.cluster import jobs

DRY = ["--model", "tiny", "--num-inference-steps", "2", "--dry-run"]
WORDS = {
    "plot": ["SWEEP"],
    "capture": ["--manifest", "m.parquet", "--out", "new", *DRY],
    "compare": ["RUN", "OTHER", "--k", "3", "--out", "comparison", "--workers", "1"],
    "report": ["RUN"],
    "query": ["RUN", "massive_channels"],
    "sql": ["RUN", "select prompt, 'nan'::double as x from samples"],
    "submit": ["--", "runs", "show", "/RUN"],
    "status": [],
    "stop": ["job"],
    "manifest ingest": ["demo:2", "-o", "other.parquet"],
    "manifest show": ["m.parquet"],
    "manifest split": ["m.parquet", "--parts", "2", "-o", "parts"],
    "models list": [],
    "models show": ["demo"],
    "models inspect": ["tiny", "--height", "32", "--width", "48"],
    "runs verify": ["RUN"],
    "runs merge": ["RUN", "OTHER", "--out", "merged"],
    "runs compact": ["RUN"],
    "runs export": ["RUN", "--out", "exported"],
    "runs show": ["RUN"],
    "runs list": ["."],
    "runs push": ["RUN", "my-lab/stars"],
    "runs pull": ["my-lab/stars", "pulled"],
    "analyze masks": ["RUN", "--from", "saliency", "--workers", "1"],
    "analyze stability": ["RUN", "--k", "3", "--rank-pairs", "2", "--workers", "1"],
    "analyze concentration": ["RUN", "--k", "3", "--shares", "3", "--workers", "1", "--dry-run"],
    "analyze alignment": ["RUN", "--k", "3", "--selections", "top", "--workers", "1"],
    "probe disruption": ["--manifest", "m.parquet", "--out", "sweep", "--k", "2", *DRY],
    "transport text": ["--manifest", "m.parquet", "--out", "sweep", "--pairs", "2", "--k", "2", *DRY],
    "transport image": [
        "--manifest",
        "m.parquet",
        "--references",
        "pictures.parquet",
        "--out",
        "sweep",
        "--pairs",
        "1",
        "--k",
        "2",
        *DRY,
    ],
}
"""What follows each command that prints JSON, in the order in which they are run."""


def json_commands(group: Any = None, words: tuple[str, ...] = ()) -> Iterator[str]:
    """Every command with ``--json``."""
    group = typer.main.get_command(app) if group is None else group
    if hasattr(group, "commands"):
        for name, each in group.commands.items():
            yield from json_commands(each, (*words, name))
    elif any("--json" in each.opts for each in group.params):
        yield " ".join(words)


TABLES = ("plot", "compare", "query", "sql", "status", "models list", "analyze stability", "probe disruption")
TABLES += ("transport text", "transport image")
"""Those that print tables of as many columns as there are."""


@dataclass(frozen=True)
class State:
    job_id: str = "job"
    status: str = "RUNNING"
    exit_code: int | None = None
    started: str | None = None
    ended: str | None = None
    command: str = "capture"
    message: str = ""


class Jobs:
    """A cluster that has one job."""

    def __init__(self, address: str | None = None) -> None:
        self.address = address

    def all(self) -> list[State]:
        return [State()]

    def state(self, job_id: str) -> State:
        return State(job_id)

    def submit(self, *given: Any, **more: Any) -> str:
        return "job"

    def stop(self, job_id: str) -> bool:
        return True


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs and a sweep."""
    folder = tmp_path_factory.mktemp("outputs")
    (folder / "tiny").symlink_to(tiny_model)
    for run, source in (("RUN", "demo:2"), ("OTHER", "demo:3")):
        manifest.ingest([source], folder / "m.parquet")
        settings = {"num_inference_steps": 2, "top_k": 3, "batch_size": 2, "shard_samples": 2}
        job = prepare(folder / "m.parquet", folder / run, CaptureConfig(model=str(tiny_model), **settings))
        begin(job, folder / "m.parquet")
        worker = CaptureWorker(job, 1)
        for task in range(job.n_tasks):
            worker(task)
    make_sweep(folder / "SWEEP", planted([{"selection": "top", "k": 4}], {"top": 0.01}))
    (folder / "pictures.csv").write_text("prompt,reference\na star,picture.png\n")
    (folder / "picture.png").write_bytes(next(iter(command_images(folder / "RUN"))))
    manifest.ingest([folder / "pictures.csv"], folder / "pictures.parquet")
    return folder


def command_images(run: Path) -> Iterator[bytes]:
    from fewchannels.runs.sql.catalog import Catalog

    with Catalog(run) as catalog:
        yield from (image for (image,) in catalog.sql("select image from samples").fetchall())


def test_every_command_that_prints_json_is_tried() -> None:
    assert set(WORDS) == set(json_commands())


@pytest.mark.usefixtures("undrawn")
def test_json_is_never_colored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(console.results, "_force_terminal", True)
    monkeypatch.setattr(console.results, "_color_system", ColorSystem.TRUECOLOR)
    monkeypatch.setattr(jobs, "Jobs", Jobs)
    with hub_server() as hub, connected(hub):
        for name, words in WORDS.items():
            done = command(*name.split(), "--json", *words)
            assert done.code == 0, (name, done)
            assert json.loads(done.stdout) is not None, name


@pytest.mark.usefixtures("undrawn")
def test_what_a_narrow_terminal_leaves_out_is_named_and_wide_prints_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(console.results, "_force_terminal", True)
    monkeypatch.setattr(console.results, "_width", 20)
    monkeypatch.setattr(jobs, "Jobs", Jobs)
    for name in TABLES:
        done = command(*name.split(), *WORDS[name][: (WORDS[name] + ["--"]).index("--")])
        assert done.code == 0, (name, done)
        assert "Columns that do not fit" in " ".join(done.stdout.split()), (name, done.stdout)
        wide = command(*name.split(), "--wide", *WORDS[name])
        assert wide.code == 0, (name, wide)
        assert "do not fit" not in " ".join(wide.stdout.split()), name


def test_brackets_and_colons_of_a_path_are_printed_as_they_are(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "q[/b] :cat:"
    (tmp_path / "q[").mkdir()
    (tmp_path / place).symlink_to(folder / "RUN")
    (tmp_path / "tiny").symlink_to(folder / "tiny")
    shutil.copy(folder / "m.parquet", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.errors, "_force_terminal", True)
    asked = {
        "runs show": [place],
        "runs verify": [place, "--quick"],
        "runs compact": [place],
        "analyze stability": [place, "--k", "3", "--rank-pairs", "2", "--workers", "1", "--dry-run"],
        "capture": ["--manifest", "m.parquet", "--out", f"{place}2", *DRY],
        "probe disruption": ["--manifest", "m.parquet", "--out", f"{place}2", "--k", "2", *DRY],
        "report": [place, "-o", f"{place}.html"],
        "sql": [place, f"select '{place}' as p", "-o", f"{place}.csv"],
    }
    for name, words in asked.items():
        done = command(*name.split(), *words)
        assert done.code == 0, (name, done)
        if name not in ("analyze stability", "runs verify"):  # which name it only while they look, or not at all
            assert place in done.stdout + done.stderr, (name, done)
    for words in (["runs", "show", f"{place}3"], ["manifest", "show", f"{place}.parquet"], ["query", place, "[/b]"]):
        done = command(*words)
        assert done.code == 2
        assert words[-1] in done.stderr


def test_the_next_command_can_be_copied_whatever_the_name(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "it's my $table.parquet"
    told = command("manifest", "ingest", "demo:1", "-o", table).stderr
    assert str(table) in shlex.split(told.partition("Next: ")[2])


def fewchannels(
    words: list[str], folder: Path, shell: str = "", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own; ``shell`` redirects what it prints."""
    line = f'exec "$@" {shell}'
    command_line = ["bash", "-c", line, "bash", sys.executable, "-m", "fewchannels", *words]
    return subprocess.run(command_line, cwd=folder, env=os.environ | environment, capture_output=True, check=False)


PROMPT = "é, 日本 ★"
ASK = ["sql", "RUN", f"select {' || '.join(f'chr({ord(each)})' for each in PROMPT)} as prompt"]


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"])
def test_json_is_plain_where_colors_are_forced(variable: str, folder: Path) -> None:
    for words in (["runs", "show", "RUN", "--json"], [*ASK, "--json"], ["query", "--list", "--json"]):
        done = fewchannels(words, folder, **{variable: "1"})
        assert json.loads(done.stdout), words


@pytest.mark.parametrize("columns", ["0", "1"])
def test_a_terminal_of_no_width_is_not_believed(columns: str, folder: Path) -> None:
    for words in (["runs", "show", "RUN"], ["models", "show", "demo"], ["query", "--help"]):
        usual = fewchannels(words, folder, COLUMNS="80")
        assert usual.stdout
        assert fewchannels(words, folder, COLUMNS=columns).stdout == usual.stdout, words


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "qt4agg", "TkAgg"])
def test_figures_are_drawn_whatever_backend_other_programs_use(backend: str, folder: Path, tmp_path: Path) -> None:
    words = ["plot", "SWEEP", "--of", "mse", "--axis", "k", "--out", str(tmp_path / "a.png")]
    done = fewchannels(words, folder, MPLBACKEND=backend)
    assert (done.returncode, (tmp_path / "a.png").exists()) == (0, True), done.stderr.decode()


ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("environment", ENCODINGS, ids=["ascii", "latin-1", "C"])
def test_any_encoding_of_the_output_is_taken(environment: dict[str, str], folder: Path) -> None:
    table = fewchannels(ASK, folder, **environment)
    assert (table.returncode, table.stderr) == (0, b"")
    escaped = PROMPT.encode("latin-1" if "latin-1" in environment.values() else "ascii", "backslashreplace")
    assert escaped in table.stdout
    data = fewchannels([*ASK, "--csv"], folder, **environment)
    assert data.stdout.decode("utf-8") == f'prompt\n"{PROMPT}"\n'
    listed = fewchannels(["query", "--list"], folder, **environment)
    assert (listed.returncode, listed.stderr) == (0, b"")


@pytest.mark.parametrize(("shell", "why"), [("> /dev/full", "No space left on device"), (">&-", "it is closed")])
def test_an_output_that_takes_nothing_is_said_in_a_line(shell: str, why: str, folder: Path) -> None:
    for words in (ASK, [*ASK, "--csv"], [*ASK, "--json"], ["runs", "show", "RUN", "--json"], ["query", "--list"]):
        done = fewchannels(words, folder, shell)
        assert done.returncode == 4, words
        said = " ".join(done.stderr.decode().split())
        assert said.startswith(f"error: cannot write to standard output: {why}. "), words
        assert "Traceback" not in said


def test_a_closed_output_is_not_the_next_file_that_is_opened(folder: Path, tmp_path: Path) -> None:
    done = fewchannels(["manifest", "ingest", "demo:2", "-o", str(tmp_path / "m.parquet")], folder, ">&- 2>&- <&-")
    assert done.returncode == 4
    assert manifest.Manifest.read(tmp_path / "m.parquet").n_samples == 2


@pytest.mark.parametrize("shell", ["2>&-", "2> /dev/full"])
def test_messages_that_cannot_be_written_change_nothing_else(shell: str, folder: Path) -> None:
    done = fewchannels([*ASK, "--csv"], folder, shell)
    assert (done.returncode, done.stdout.decode()) == (0, f'prompt\n"{PROMPT}"\n')
    assert fewchannels(["sql", "nowhere", "select 1"], folder, shell).returncode == 2


def test_a_reader_that_has_enough_is_no_error(folder: Path) -> None:
    words = ["sql", "RUN", "select * from range(200000)", "--csv"]
    done = fewchannels(words, folder, "| head -1")
    assert (done.stdout, done.stderr) == (b"range\n", b"")


def test_a_word_that_the_locale_cannot_read_is_said_to_be_so(folder: Path) -> None:
    done = fewchannels(["sql", "RUN", "select 'é'"], folder, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 2
    assert " ".join(done.stderr.decode().split()).endswith("whose encoding is ascii. Set PYTHONUTF8=1.")


def text_paths(group: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[list[str], str]]:
    """Every command with one of its arguments or options that may be a path or a text, named."""
    group = typer.main.get_command(app) if group is None else group
    if hasattr(group, "commands"):
        for name, each in group.commands.items():
            yield from text_paths(each, (*words, name))
        return
    for each in group.params:
        if each.param_type_name == "argument":
            yield [*words, "X"], f"{' '.join(words)} {each.name}"
        elif not each.is_flag and each.opts[0].startswith("--"):
            yield [*words, each.opts[0], "X"], f"{' '.join(words)} {each.opts[0]}"


def test_a_path_that_is_not_utf_8_is_refused_by_every_command() -> None:
    for words, what in text_paths():
        done = command(*("r\udce9n" if word == "X" else word for word in words))
        assert done.code == 2, what
        assert "'r\\udce9n', which is not UTF-8 text" in done.stderr, (what, done.stderr)
