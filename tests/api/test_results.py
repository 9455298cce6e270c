"""Analyses, comparisons, reports and the explorer from Python, beside what the commands give."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from plotly.graph_objects import Figure as PlotlyFigure
from two_runs import ROWS, captured
from typer.testing import CliRunner

import fewchannels as fc
from fewchannels.cli import app
from fewchannels.errors import InputError, RunConflictError


@pytest.fixture
def run(tmp_path: Path) -> fc.Run:
    return fc.open_run(
        captured(tmp_path, "RUN", Path("demo"), ROWS, num_inference_steps=3, top_k=8, controls="bottom,random:1")
    )


def command(*words: object) -> Any:
    answer = CliRunner().invoke(app, [str(word) for word in words])
    assert answer.exit_code == 0, answer.output
    return answer


@pytest.mark.parametrize(
    ("analysis", "given", "options"),
    [
        ("stability", {"k": [8, 4], "steps": -1}, ["--k", "4,8", "--steps", "2"]),
        (
            "concentration",
            {"shares": range(1, 3), "layers": [0, -1], "k": 4},
            ["--shares", "1,2", "--layers", "0,5", "--k", "4"],
        ),
        ("masks", {"source": "saliency", "where": "seed = 1"}, ["--from", "saliency", "--where", "seed = 1"]),
    ],
)
def test_an_analysis_is_that_of_the_command(
    run: fc.Run, analysis: str, given: dict[str, Any], options: list[str], undrawn: None
) -> None:
    mine = run.analyze(analysis, progress=False, **given)
    command("analyze", analysis, run.storage.url, *options, "--label", "other", "--workers", "1")
    run.reopen()
    assert mine.tables
    for table in mine.tables:
        theirs = run.sql(f"select * from other_{table}").df()
        pd.testing.assert_frame_equal(mine.table(table), theirs)
        assert len(theirs) or table == "transitions"
    kept = json.loads((Path(run.storage.url) / "results" / "other" / "result.json").read_text(encoding="utf-8"))
    assert mine.numbers == kept["numbers"]
    assert (Path(mine.place) / "summary.md").read_text(encoding="utf-8") == mine.text


def test_a_result_has_sentences_and_figures(run: fc.Run) -> None:
    result = run.analyze("stability", k=4, progress=False)
    assert result.findings
    assert all(sentence in result.text for sentence in result.findings)
    assert "overlap_by_layer" in result.figures
    assert isinstance(result.plot(), Figure)
    assert result.plot("overlap_by_layer").axes[0].get_title(loc="left").startswith("Overlap of the top 4")
    assert isinstance(result.plot("overlap_by_layer", interactive=True), PlotlyFigure)
    shown = result._repr_html_()
    assert all(table in shown for table in result.tables)
    with pytest.raises(InputError, match=r"unknown figure of stability 'overlap'\. Did you mean"):
        result.plot("overlap")
    with pytest.raises(InputError, match="unknown table of stability 'pair'"):
        result.table("pair")


def test_the_same_call_gives_the_same_result_and_another_is_refused(run: fc.Run, undrawn: None) -> None:
    first = run.analyze("stability", k=4, progress=False)
    assert run.analyze("stability", k=4, progress=False).text == first.text
    with pytest.raises(RunConflictError, match=r"Give replace to delete it, or label to choose another name"):
        run.analyze("stability", k=5, progress=False)
    assert run.analyze("stability", k=5, replace=True, progress=False).table("pairs").k.unique().tolist() == [5]
    with pytest.raises(InputError, match="was replaced by another one"):
        first.table("pairs")


def test_masks_then_alignment(run: fc.Run, undrawn: None) -> None:
    assert run.analyze("masks", progress=False).numbers["n_masks"] == 8
    result = run.analyze(
        "alignment", k=4, clusters=2, trials=1, selections=["top", "random"], steps="last", layers=-1, progress=False
    )
    assert result.table("means").selection.unique().tolist()
    assert "contact_sheet" in result.figures
    assert run.findings[-1] in result.text or run.findings


@pytest.mark.parametrize(
    ("analysis", "given", "message"),
    [
        ("stable", {}, "unknown analysis 'stable'. Did you mean 'stability'"),
        ("stability", {"ks": [4], "kay": 3}, r"unknown setting in run.analyze\('stability'\) 'kay'"),
        ("stability", {"k": 0}, "ks"),
        ("stability", {"by": "seed_"}, "seed_"),
        ("stability", {"layers": [17]}, "layer 17 was not recorded"),
        ("stability", {"layers": -17}, "layers includes -17; the run has 6 layers"),
        ("stability", {"steps": 1.5}, "steps is 1.5"),
        (
            "alignment",
            {"selections": "top", "trials": 2},
            "trials would have no effect: none of the selections is random",
        ),
        ("alignment", {"clip": 0.1}, "clip would have no effect"),
        ("alignment", {"k": 4, "selections": "top"}, "masks"),
    ],
)
def test_what_cannot_be_analyzed_is_refused(run: fc.Run, analysis: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        run.analyze(analysis, progress=False, **given)
    assert "--" not in str(raised.value)


def test_a_comparison_is_that_of_the_command(run: fc.Run, tmp_path: Path, undrawn: None) -> None:
    other = captured(tmp_path, "OTHER", Path("demo"), ROWS, num_inference_steps=3, guidance_scale=1.0)
    mine = fc.compare(run, other, tmp_path / "MINE", k=4, progress=False)
    command("compare", run.storage.url, other, "--k", "4", "--out", tmp_path / "THEIRS", "--workers", "1")
    theirs = json.loads((tmp_path / "THEIRS" / "comparison.json").read_text(encoding="utf-8"))
    assert mine.numbers == theirs["numbers"]
    assert mine.findings
    assert len(mine.table("differences"))
    last = fc.compare(run, other, tmp_path / "LAST", k=4, layers=[0, -1], progress=False)
    assert sorted(set(last.table("profiles").layer)) == [run.layers[0], run.layers[-1]]


def test_a_report_of_each_kind_is_written(run: fc.Run, tmp_path: Path) -> None:
    run.analyze("stability", k=4, progress=False)
    page = run.report(tmp_path / "r.html", progress=False)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    text = fc.report(run, out=tmp_path / "r.md", progress=False).read_text(encoding="utf-8")
    assert len(run.findings) >= 3
    assert all(_plain(sentence) in _plain(text) for sentence in run.findings)
    for out, message in ((tmp_path / "r.txt", "its suffix must be"), (tmp_path / "no" / "r.html", "no folder")):
        with pytest.raises(InputError, match=message):
            run.report(out)
    with pytest.raises(InputError, match="there is nothing to report"):
        fc.report(out=tmp_path / "r.html")


def _plain(text: str) -> str:
    """Text without what Markdown escapes and wraps."""
    return "".join(text.replace("\\", "").split())


def test_the_explorer_serves_until_it_is_closed(run: fc.Run, tmp_path: Path) -> None:
    explorer = run.explore()
    with urllib.request.urlopen(explorer.url) as answer:
        assert answer.status == 200
    assert explorer.url in explorer._repr_html_()
    run.sql("select count(*) from cells")
    explorer.close()
    explorer.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(explorer.url)
    with pytest.raises(InputError, match="nothing to show"):
        fc.explore()
    with pytest.raises(InputError, match="NOWHERE"):
        fc.explore(tmp_path / "NOWHERE")
