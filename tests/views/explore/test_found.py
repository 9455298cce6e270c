"""What the explorer says was found: sentences of the report, numbers of the store, questions that wait for a click."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from asked import Asked
from browser import Watched, needs_chromium, served
from made_sweep import make_sweep
from planted_edits import planted
from playwright.sync_api import Browser, expect
from posted import body

from fewchannels import Run, open_run
from fewchannels.analyses.analysis import analyze
from fewchannels.analyses.selection import select
from fewchannels.analyses.stability.units import Stability
from fewchannels.cluster.shares import Pool
from fewchannels.views.explore.opened import open_places
from fewchannels.views.explore.server import Bound, bind
from fewchannels.views.explore.site import Site
from fewchannels.views.report.build import build

pytestmark = pytest.mark.usefixtures("undrawn")

K = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its stability, under two labels, a sweep with its effects, and one whose effects are gone."""
    folder = tmp_path_factory.mktemp("found")
    shutil.copytree(Path(__file__).parents[2] / "data" / "kept_runs" / "format_2", folder / "run")
    for label in ("stability", "again"):
        analyze(Stability(ks=(K,), rank_pairs=2), select(str(folder / "run")), label, Pool(1, 0, 1))
    edits = planted([{"selection": word} for word in ("top", "random")], {"top": 0.012, "random": 0.0}, n_prompts=12)
    make_sweep(folder / "sweep", edits)
    shutil.copytree(folder / "sweep", folder / "no effects")
    shutil.rmtree(folder / "no effects" / "results")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return open_run(folder / "run")


@pytest.fixture(scope="module")
def asked(folder: Path) -> Asked:
    return Asked([folder / name for name in ("run", "sweep", "no effects")], Site(8050))


def unfolded(asked: Asked, name: str) -> tuple[list[str], list[str]]:
    """The texts that are shown when somebody unfolds the findings of a place, and where their links lead."""
    (callback,) = (
        each for each in asked.ask("/_dash-dependencies", headers=asked.own).json if each["output"] == "found.children"
    )
    answer = asked.post(
        "/_dash-update-component", json.dumps(body(callback, [1, name], [])).encode(), "application/json"
    )
    texts: list[str] = []
    links: list[str] = []

    def see(part: Any) -> None:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, list):
            for each in part:
                see(each)
        elif isinstance(part, dict):
            links.extend([part["props"]["href"]] if "href" in part["props"] else [])
            see(part["props"].get("children"))

    see(answer.json["response"]["found"]["children"])
    return texts, links


def test_the_sentences_are_those_of_the_report(asked: Asked, folder: Path) -> None:
    for name in ("run", "sweep"):
        texts, _ = unfolded(asked, name)
        reported = [each.text for each in build([str(folder / name)], None).parts[0].findings()]
        assert len(reported) >= 2
        assert set(reported) <= set(texts)


def test_a_run_says_how_often_its_channels_are_massive(asked: Asked, run: Run) -> None:
    texts, _ = unfolded(asked, "run")
    assert "Stability" in texts
    assert "Concentration" in texts
    scores = run.activations["mean_abs"]
    last = scores.isel(step=-1).values.astype(np.float64)  # (sample, layer, channel)
    last = last[np.isfinite(last).all(axis=(1, 2))]  # the others failed
    ranked = np.sort(last, axis=-1)
    ratio = (ranked[..., -1] / ranked[..., (ranked.shape[-1] - 1) // 2]).mean(axis=0)
    assert any(text.startswith(f"The largest channel scores {ratio.max():.3g} ") for text in texts)
    tops = np.argsort(-last[:, ratio.argmax()], axis=-1, kind="stable")[:, :K]
    channel = np.bincount(tops.ravel()).argmax()
    n = (tops == channel).any(axis=1).sum()
    (told,) = (text for text in texts if "most often among the top" in text)
    assert str(channel) in re.findall(r"\d+", told.partition(" most often")[0])
    assert f"in {n} of {len(last)} samples" in told


def test_a_result_that_no_sentence_is_about_is_named(asked: Asked, folder: Path) -> None:
    texts, _ = unfolded(asked, "run")
    assert "Not included: again; each has" in texts[0]
    (section,) = (
        each for each in build([str(folder / "run")], None).parts[0].sections if each.heading == "What was found"
    )
    assert section.blocks[0].about == texts[0]


def test_every_link_holds_a_question_that_the_console_answers(asked: Asked, folder: Path, run: Run) -> None:
    for name in ("run", "sweep"):
        _, links = unfolded(asked, name)
        opened = open_places([str(folder / name)])[name]
        questions = [{key: values[0] for key, values in parse_qs(urlsplit(link).query).items()} for link in links]
        assert len(questions) >= 2
        assert all(urlsplit(link).path.endswith(f"/{name}/sql") for link in links)
        for question in questions:
            given = {key.removeprefix("p."): value for key, value in question.items() if key.startswith("p.")}
            parameters = {key: int(value) if value.isdecimal() else value for key, value in given.items()}
            answer = (
                opened.catalog.query(question["query"], **parameters)
                if "query" in question
                else opened.catalog.sql(question["sql"])
            )
            assert len(answer) > 0, question


def test_without_effects_the_command_stands_before_the_question_and_no_link_leads_to_it(
    asked: Asked, folder: Path
) -> None:
    texts, links = unfolded(asked, "no effects")
    assert links == []
    assert f'fewchannels plot "{folder / "no effects"}"' in texts
    assert any(text.startswith("The top channels exceed the same number of random channels") for text in texts)


def test_a_run_without_analyses_says_what_its_cells_can_say(tmp_path: Path) -> None:
    kept = Path(__file__).parents[2] / "data" / "kept_runs" / "format_2"
    shutil.copytree(kept, tmp_path / "run")
    texts, links = unfolded(Asked([tmp_path / "run"], Site(8050)), "run")
    assert any(text.startswith("The largest channel scores") for text in texts)
    assert any("query=layer_profile" in link for link in links)


@needs_chromium
def test_a_folder_with_a_line_break_in_its_name_has_a_page(browser: Browser, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "two\nlines")
    bound = bind(open_places([str(tmp_path / "two\nlines")]), 0)
    with served(bound.server):
        watched = Watched(browser, bound)
        page = watched.go("/")
        page.get_by_role("link", name="Open", exact=True).click()
        page.wait_for_url("**/run/two_lines")
        expect(page.locator("#page h1")).to_contain_text("two_lines")
        assert watched.errors == []
        watched.close()


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Bound]:
    bound = bind(open_places([str(folder / "run")]), 0)
    with served(bound.server):
        yield bound


@needs_chromium
def test_a_person_unfolds_them_and_asks_again_by_a_click(browser: Browser, site: Bound, run: Run) -> None:
    watched = Watched(browser, site)
    page = watched.go("/run/run")
    assert page.locator("#found").inner_text() == ""
    page.locator("#found-summary").click()
    sentence = page.locator(".findings li", has_text="most often among the top")
    expect(sentence).to_be_visible()
    expect(page.locator("#found h2").first).to_have_text("Concentration")
    sentence.get_by_text("How to reproduce these numbers").click()
    text = sentence.locator("pre").inner_text()
    sentence.get_by_text("Open as a query").click()
    expect(page.locator("h1")).to_have_text("SQL: run")
    expect(page.locator("#console-answer")).to_contain_text("Press Run to run it")
    sql = page.locator("#console-sql").input_value()
    assert sql in text
    assert page.locator(".ag-row").count() == 0
    page.locator("#console-ask").click()
    expected = run.sql(sql).df()
    expect(page.locator(".ag-row")).to_have_count(len(expected))
    assert page.locator(".ag-row [col-id=channel]").all_inner_texts() == list(map(str, expected["channel"]))
    assert (watched.errors, watched.elsewhere) == ([], [])
    watched.close()
