"""The live page in a real browser: channels form step by step, and an edit is shown beside the original."""

import base64
import re
from collections.abc import Iterator

import pytest
from browser import Watched, needs_chromium, served
from playwright.sync_api import APIResponse, Browser, Route, expect

from fewchannels.analyses.figures.interactive import data_uri
from fewchannels.interventions.live.ask import Ask, Edit
from fewchannels.interventions.live.session import LiveModel
from fewchannels.views.explore.live import Live
from fewchannels.views.explore.server import Bound, bind

pytestmark = needs_chromium

UPDATES = re.compile("/_dash-update-component")
PROMPT = "a large red star in the center on a blue background"


@pytest.fixture(scope="module")
def model() -> Iterator[LiveModel]:
    with LiveModel("demo", 1) as model:
        yield model


@pytest.fixture(scope="module")
def site(model: LiveModel) -> Iterator[Bound]:
    bound = bind({}, 0, Live(model, "demo"))
    with served(bound.server):
        yield bound


@pytest.fixture
def watched(browser: Browser, site: Bound) -> Iterator[Watched]:
    watched = Watched(browser, site)
    yield watched
    assert (watched.errors, watched.elsewhere) == ([], [])
    watched.close()


def images(watched: Watched) -> list[bytes]:
    expect(watched.page.locator("#live-state")).to_contain_text("done", timeout=60_000)
    sources = watched.page.locator("#live-rows img.image")
    expect(sources.first).to_be_visible()
    found = [each.get_attribute("src") or "" for each in sources.all()]
    return [base64.b64decode(source.partition(",")[2]) for source in found]


def test_a_prompt_is_generated_and_an_edit_shown_beside_it(watched: Watched, model: LiveModel) -> None:
    page = watched.go("/live")
    page.locator("#live-prompt").fill(PROMPT)
    page.locator("#live-seed").fill("3")
    page.locator("#live-n_steps").fill("6")
    page.locator("#live-guidance").fill("5.5")
    page.locator("#live-go").click()
    (plain,) = images(watched)
    expected = model.begin(Ask(PROMPT, seed=3, n_steps=6, guidance=5.5)).wait(60)
    assert plain == expected.images["undisturbed"]
    expect(page.locator("#live-ratios .gtitle")).to_contain_text("undisturbed")
    graph = page.locator("#live-ratios .js-plotly-plot")
    ratios = graph.evaluate("graph => Array.from(graph._fullData[0].z, row => Array.from(row))")
    assert [row[2] for row in ratios] == pytest.approx(expected.steps[2].rows["undisturbed"].ratio.tolist())
    page.locator("#live-action").click()
    page.get_by_role("option", name="zero").click()
    page.locator("#live-k").fill("12")
    page.locator("#live-go").click()
    expect(page.locator("#live-rows img.image")).to_have_count(2, timeout=60_000)
    edit = Edit("zero", k=12)
    beside = model.begin(Ask(PROMPT, seed=3, n_steps=6, guidance=5.5, edit=edit)).wait(60).images
    assert images(watched) == [beside["undisturbed"], beside["edited"]]
    assert beside["edited"] != beside["undisturbed"]
    assert "action=zero" in page.url


def test_a_late_answer_about_the_generation_before_does_not_stop_the_next(watched: Watched, model: LiveModel) -> None:
    image = data_uri(model.begin(Ask(PROMPT, seed=12, n_steps=4)).wait(60).images["undisturbed"])
    held: list[tuple[Route, APIResponse]] = []
    late = True

    def hold(route: Route) -> None:
        answer = route.fetch()
        if late and "live-rows" in (route.request.post_data or "") and "done, 4 of 4 steps" in answer.text():
            held.append((route, answer))
        else:
            route.fulfill(response=answer)

    page = watched.go("/live")
    page.locator("#live-prompt").fill(PROMPT)
    page.locator("#live-n_steps").fill("4")
    page.locator("#live-go").click()
    images(watched)
    page.locator("#live-seed").fill("11")
    page.route(UPDATES, hold)
    page.locator("#live-go").click()
    while not held:
        page.wait_for_timeout(50)
    page.locator("#live-seed").fill("12")
    late = False
    with page.expect_response(lambda answer: "live-go" in (answer.request.post_data or "")):
        page.locator("#live-go").click()
    route, answer = held[-1]
    route.fulfill(response=answer)
    expect(page.locator("#live-rows img.image")).to_have_attribute("src", image)


def test_an_address_waits_for_the_button_and_steps_are_seen_one_by_one(watched: Watched, model: LiveModel) -> None:
    said = Ask(PROMPT, seed=4, n_steps=60).as_query()
    page = watched.go("/live?" + "&".join(f"{name}={value}" for name, value in said.items()))
    page.wait_for_load_state("networkidle")
    expect(page.locator("#live-state")).to_contain_text("Press Generate")
    page.locator("#live-go").click()
    expect(watched.page.locator("#live-state")).to_contain_text("running", timeout=60_000)
    (image,) = images(watched)
    assert image == model.begin(Ask(PROMPT, seed=4, n_steps=60)).wait(60).images["undisturbed"]


def test_a_generation_is_cancelled_and_a_second_one_is_refused_until_then(
    watched: Watched, browser: Browser, site: Bound
) -> None:
    other = Watched(browser, site)
    for each, prompt in ((watched, PROMPT), (other, "a small blue ring")):
        page = each.go("/live")
        page.locator("#live-prompt").fill(prompt)
        page.locator("#live-n_steps").fill("200")
        page.locator("#live-go").click()
    expect(other.page.locator("#live-error [role=alert]")).to_contain_text("another generation is running")
    expect(watched.page.locator("#live-state")).to_contain_text("running", timeout=30_000)
    watched.page.locator("#live-cancel").click()
    expect(watched.page.locator("#live-state")).to_contain_text("cancelled: somebody pressed Cancel", timeout=30_000)
    other.page.locator("#live-n_steps").fill("4")
    other.page.locator("#live-go").click()
    images(other)
    other.page.locator("#live-cancel").click()
    expect(other.page.locator("#live-error")).to_contain_text("Nothing is being generated")
    other.close()


def test_what_cannot_be_is_refused_in_words(watched: Watched) -> None:
    page = watched.go("/live")
    for name, text in (("live-seed", "minus one"), ("live-n_steps", "0")):
        page.locator(f"#{name}").fill(text)
        page.locator("#live-go").click()
        expect(page.locator("#live-error [role=alert]")).to_contain_text(text)
        page.locator(f"#{name}").fill("1")


def test_without_a_model_the_page_says_how_to_have_one(browser: Browser) -> None:
    bound = bind({}, 0)
    with served(bound.server):
        watched = Watched(browser, bound)
        watched.go("/live")
        expect(watched.page.locator("[role=alert]")).to_contain_text("--model demo")
        assert watched.errors == []
        watched.close()
