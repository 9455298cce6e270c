"""Tables on a terminal: no header is broken within a word, and what does not fit is named."""

import dataclasses
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_run import RESULTS, make_run
from rich.console import Console

from fewchannels.cli import answers, models, query, tables
from fewchannels.cli import jobs as commands
from fewchannels.cluster import jobs
from fewchannels.cluster.jobs import JobState
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.sql.named_queries import queries

WIDTHS = (80, 100, 120)
Screen = Callable[[int], io.StringIO]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Makes a terminal of a width; what is printed can be read from it."""

    def made(width: int) -> io.StringIO:
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=True, width=width, color_system=None, highlight=False)
        for module in (tables, answers, query, models, commands):
            if hasattr(module, "results"):
                monkeypatch.setattr(module, "results", console)
        return shown

    return made


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    cells = [{"sample": i, "layer": layer, "top_channels": [3, 1]} for i in range(3) for layer in (0, 1)]
    run = make_run(tmp_path_factory.mktemp("tables") / "run", cells, results={label: {} for label in RESULTS})
    with Catalog(run) as opened:
        yield opened


def left_out(shown: str) -> list[str]:
    """The columns that did not fit."""
    found = re.search(r"Columns that do not fit: (.*)\. --wide prints them\.", " ".join(shown.split()))
    return found[1].split(", ") if found else []


@pytest.mark.parametrize("width", WIDTHS)
def test_an_answer_has_whole_names_or_says_that_they_do_not_fit(width: int, catalog: Catalog, screen: Screen) -> None:
    questions = ["select * from cells", "select * from samples", "select * from tasks", "select * from manifest"]
    answers = [catalog.sql(text) for text in questions]
    answers += [catalog.query(name) for name, each in queries().items() if each.of == "run"]
    for answer in answers:
        shown = screen(width)
        query.print_relation(answer)
        text = shown.getvalue()
        assert max(map(len, text.splitlines())) <= width
        head = text.splitlines()[1].split()
        assert head, text
        assert [name for name in answer.columns if name in head] == head, text
        assert sorted([*head, *left_out(text)]) == sorted(answer.columns), text


def test_ends_of_intervals_are_left_out_first_and_wide_prints_all(catalog: Catalog, screen: Screen) -> None:
    answer = catalog.query("massive_channels")
    shown = screen(100)
    query.print_relation(answer)
    main = ["layer", "step", "channel", "n_samples", "frequency", "mean_ratio", "mean_rank"]
    assert shown.getvalue().splitlines()[1].split() == main
    assert left_out(shown.getvalue()) == [name for name in answer.columns if name not in main]
    shown = screen(100)
    query.print_relation(answer, is_wide=True)
    assert shown.getvalue().splitlines()[1].split() == answer.columns
    assert "do not fit" not in shown.getvalue()
    free = catalog.sql("select 1.5::double as x_low, 2.5::double as x_high, 7 as a, 8 as b")
    shown = screen(14)
    query.print_relation(free)
    assert shown.getvalue().splitlines()[1].split() == ["a", "b"]


def test_a_named_query_prints_at_most_eight_columns_in_100_characters_to_a_pipe(
    catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, each in queries().items():
        if each.of == "run":
            query.print_relation(catalog.query(name))
            text = capsys.readouterr().out
            assert max(map(len, text.splitlines())) <= 100, text
            head = text.splitlines()[1].split()
            assert 1 <= len(head) <= 8
            assert head == [column for column in catalog.query(name).columns if column in head], "whole names, in order"


def test_a_count_of_what_is_left_out_is_always_there_unless_it_is_0(tmp_path: Path, screen: Screen) -> None:
    cells = [{"sample": i, "top_channels": [3, 1], "nonfinite": int(i == 2)} for i in range(3)]
    with Catalog(make_run(tmp_path / "run", cells)) as catalog:
        for name in ("massive_channels", "channel_history", "layer_profile", "step_profile"):
            shown = screen(80)
            query.print_relation(catalog.query(name))
            assert "n_nonfinite" in shown.getvalue().splitlines()[1].split(), shown.getvalue()


def test_a_long_text_gives_way_to_the_columns_beside_it(catalog: Catalog, screen: Screen) -> None:
    shown = screen(70)
    query.print_relation(
        catalog.sql("select repeat('long ', 20) as prompt, 'x' || repeat('y', 30) as id, 1 as a, 2 as b")
    )
    assert shown.getvalue().splitlines()[1].split() == ["prompt", "id", "a", "b"]
    assert re.search(r"^ (long ){4,6}\w*… +xy{30}  1  2  $", shown.getvalue(), re.M), shown.getvalue()


HEADS = ["layer", "largest over median", "top 12 hold", "effective channels", "over 10 x median", "scalar test"]
HEADS += ["registers", "elevation", "without top channels", "token outliers"]
ROW = ["0", "14.5 (12 to 18)", "0.713 (0.669 to 0.754)", "8.42", "1.75", "0% pass", "0", "1.1", "1.57", "0"]
PAGE = "\n".join(
    [
        *("# Title", "", "What was looked at.", ""),
        *(f"| {' | '.join(line)} |" for line in (HEADS, ["---"] * len(HEADS), ROW, ROW)),
        *("", "Notes.", "", "![ratio](figures/ratio.png)"),
    ]
)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_summary_breaks_no_word(width: int, screen: Screen) -> None:
    shown = screen(width)
    tables.print_page(["The first sentence."], PAGE, is_wide=False)
    text = shown.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert text.startswith("Title\nThe first sentence.\n")
    kept = [head for head in HEADS if head not in left_out(text)]
    words = text.split()
    for head, cell in zip(HEADS, ROW, strict=True):
        if head in kept:
            assert all(word in words for word in (*head.split(), *cell.split())), (head, text)
    assert kept == HEADS[:8] or width < 100
    assert not any(each in text for each in ("looked at", "Notes", "ratio.png"))


def test_a_wide_summary_has_one_line_for_each_row(screen: Screen) -> None:
    shown = screen(80)
    tables.print_page([], PAGE, is_wide=True)
    assert "14.5 (12 to 18)" in shown.getvalue()
    assert left_out(shown.getvalue()) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_jobs_are_told_apart(width: int, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = {field.name: None for field in dataclasses.fields(JobState)}
    names = [f"raysubmit_{letter * 16}" for letter in "aB"]
    command = "fewchannels capture --model demo --manifest manifest.parquet --out s3://bucket/run --address auto"
    about = {"status": "SUCCEEDED", "started": "2026-01-02T03:04:05+00:00", "ended": "2026-01-02T04:05:06+00:00"}
    states = [JobState(**blank | about | {"job_id": name, "exit_code": 0, "command": command}) for name in names]

    class Jobs:
        def __init__(self, address: str | None) -> None:
            pass

        def all(self) -> list[JobState]:
            return states

    monkeypatch.setattr(jobs, "Jobs", Jobs)
    shown = screen(width)
    commands.status()
    words = shown.getvalue().split()
    for word in (*names, "job", "status", "exit", "started,", "took", "command", "SUCCEEDED", "01-02", "03:04"):
        assert word in words, shown.getvalue()

    assert all(word in words for word in command.split()) or width == 80


@pytest.mark.parametrize("length", [30, 60, 100])
def test_the_id_of_a_job_is_whole_however_long(length: int, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = {field.name: None for field in dataclasses.fields(JobState)}
    name, command = (
        "flux-" * (length // 5),
        "fewchannels capture --model demo --manifest m.parquet --out s3://bucket/run",
    )
    state = JobState(**blank | {"job_id": name, "status": "RUNNING", "command": command})
    monkeypatch.setattr(jobs, "Jobs", lambda address: SimpleNamespace(all=lambda: [state]))
    monkeypatch.setenv("COLUMNS", "80")
    shown = screen(80)
    commands.status()
    assert name in shown.getvalue().split(), shown.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
def test_lists_break_no_word(width: int, screen: Screen) -> None:
    shown = screen(width)
    query.query(as_list=True)
    words = shown.getvalue().split()
    assert all(name in words for name in queries())
    assert all(f"{each.name}={each.default}" in words for one in queries().values() for each in one.parameters)
    shown = screen(width)
    models.list_families()
    words = shown.getvalue().split()
    assert all(head in words for head in ("pipeline", "layers", "streams", "guidance", "reference"))
    assert "HunyuanImagePipeline" in words


def test_a_pipe_gets_every_column(catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    answer = catalog.sql("select * from samples")
    query.print_relation(answer)
    assert capsys.readouterr().out.splitlines()[1].split() == answer.columns


def test_a_table_of_a_page_has_its_caption_above_it(capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["| a | b |", "| --- | --- |", "| 1 | 2 |"]
    page = ["# Title", "", "Prose.", "", "Means at step 9:", "", *rows, "", "## Controls", "", "More prose.", "", *rows]
    tables.print_page(["One.", "Two."], "\n".join(page), is_wide=False)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    shown = [line for line in lines if line[0].isalnum()]
    assert shown == ["Title", "One.", "Two.", "Means at step 9:", "a  b", "1  2", "Controls", "a  b", "1  2"]


@pytest.mark.parametrize("width", [12, 20, 40])
def test_no_heading_is_cut_however_narrow_the_terminal(width: int, catalog: Catalog, screen: Screen) -> None:
    for name, each in queries().items():
        if each.of == "run":
            shown = screen(width)
            query.print_relation(catalog.query(name))
            head = shown.getvalue().splitlines()[1]
            assert "…" not in head
            assert head.split()
            assert set(head.split()) <= set(catalog.query(name).columns)
