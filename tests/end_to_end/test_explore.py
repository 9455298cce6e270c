"""The explorer in a real browser: its pages show what the store holds, and its addresses what they say."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest
from browser import Watched, needs_chromium, served
from made_sweep import make_sweep
from PIL import Image
from planted_edits import planted
from playwright.sync_api import Browser, Page, expect

from fewchannels import Run, manifest, open_run
from fewchannels.analyses.alignment.units import Alignment
from fewchannels.analyses.analysis import analyze
from fewchannels.analyses.masks.units import SubjectMasks
from fewchannels.analyses.selection import select
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.shares import Pool
from fewchannels.views.explore.opened import open_places
from fewchannels.views.explore.server import Bound, bind

pytestmark = needs_chromium

HOSTILE = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "%{x} {{7 * 7}} <b>bold</b> &lt;i&gt; a $1^2$",
)
STEPS, N_SAMPLES, K = (1, 3), 8, 12
ALONE = Pool(1, 0, 1)


def begun(folder: Path, **settings: object) -> Job:
    """A run of the demo model, with hostile prompts among its own, none of whose tasks is done."""
    rows = [json.dumps({"prompt": text, "seed": 0, "kind": "hostile"}) for text in HOSTILE]
    rows += [
        json.dumps({"prompt": f"a {size} {colour} circle at the left on a white background", "seed": 1, "kind": size})
        for size in ("small", "large")
        for colour in ("red", "blue", "green")
    ]
    source, path = folder / "prompts.jsonl", folder / "manifest.parquet"
    source.write_text("\n".join(rows[:N_SAMPLES]), encoding="utf-8")
    manifest.ingest([source], path)
    flags = {"num_inference_steps": 4, "steps": ",".join(map(str, STEPS)), "top_k": K, "shard_samples": 4}
    job = prepare(path, folder / "RUN", CaptureConfig(**flags | settings))
    begin(job, path)
    return job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with alignment, one that is half done, one that is damaged, an empty one, and a sweep."""
    folder = tmp_path_factory.mktemp("looked at")
    for name, n_tasks in (("whole", 2), ("half", 1), ("damaged", 1), ("empty", 0)):
        (folder / name).mkdir()
        job = begun(folder / name)
        worker = CaptureWorker(job, 1)
        for task in range(n_tasks):
            worker(task)
        (folder / name / "RUN").rename(folder / f"{name} run")
    next((folder / "damaged run" / "samples").iterdir()).unlink()
    selected = select(str(folder / "whole run"))
    analyze(SubjectMasks("demo"), selected, "masks", ALONE)
    analyze(Alignment(selections=("top",), k=K), selected, "alignment", ALONE)
    settings = [{"selection": word, "k": k} for k in (4, 8) for word in ("top", "random")]
    edits = planted(settings, {"top": 0.012, "random": 0.0}, n_prompts=2, with_images=True)
    make_sweep(folder / "a sweep", edits)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Run:
    return open_run(folder / "whole run")


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Bound]:
    """An explorer of all of them, and of one that is not there."""
    names = ("whole run", "half run", "damaged run", "empty run", "a sweep", "nothing")
    bound = bind(open_places([str(folder / name) for name in names]), 0)
    with served(bound.server):
        yield bound


@pytest.fixture
def watched(browser: Browser, site: Bound) -> Iterator[Watched]:
    watched = Watched(browser, site)
    yield watched
    assert watched.errors == []
    assert watched.elsewhere == []
    assert watched.page.evaluate("window.hacked") is None
    watched.close()


@pytest.fixture
def go(watched: Watched) -> Callable[[str], Page]:
    return watched.go


def sample_path(run: Run, sample: int, **view: object) -> str:
    sample_id = str(run.activations.sample_id.values[sample])
    asked = "&".join(f"{name}={value}" for name, value in view.items())
    return f"/run/whole%20run/sample/{sample_id}?{asked}"


def drawn(page: Page, where: str = "#sample-figure", title: str = "") -> np.ndarray:
    """The values of the heat map that a page shows, once its title is as it should be."""
    expect(page.locator(f"{where} .gtitle").first).to_contain_text(title)
    found = page.evaluate(
        f"Array.from(document.querySelector('{where} .js-plotly-plot')._fullData[0].z, row => Array.from(row))"
    )
    return np.array(found, np.float32)


def stored(run: Run, sample: int, step: int, layer: int, channel: int | None = None) -> np.ndarray:
    """A channel's map ``(y, x)`` as Xarray reads it from the store; the largest channel's if none is named."""
    cell = run.activations.isel(sample=sample).sel(step=step, layer=layer)
    k = 0 if channel is None else cell["massive_channel"].values.tolist().index(channel)
    return cell["massive_value"].isel(k=k).values.reshape(8, 8)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_opens_in_light_and_dark_and_asks_nobody_else(
    theme: str, browser: Browser, site: Bound, whole: Run
) -> None:
    watched = Watched(browser, site, color_scheme=theme)
    grounds = set()
    for path in (
        "/",
        "/compare",
        "/run/whole%20run",
        sample_path(whole, 4),
        "/run/whole%20run/sql",
        "/sweep/a%20sweep",
        "/sweep/a%20sweep/sql",
    ):
        watched.go(path)
        watched.page.wait_for_load_state("networkidle")
        assert watched.page.locator("[role=alert]").count() == (2 if path == "/" else 0), path
        grounds.add(watched.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == {"rgb(255, 255, 255)" if theme == "light" else "rgb(22, 24, 26)"}
    assert (watched.errors, watched.elsewhere) == ([], [])
    watched.close()


def test_the_start_page_says_how_each_is(go: Callable[[str], Page]) -> None:
    page = go("/")
    cards = {card.locator("h2").inner_text(): card.inner_text() for card in page.locator("article").all()}
    assert "2 of 2" in cards["whole run, a run"]
    assert "1 of 2" in cards["half run, a run"]
    assert "Not finished yet" in cards["half run, a run"]
    assert "No task is finished yet" in cards["empty run, a run"]
    assert "is missing" in cards["damaged run"]
    assert "runs verify" in cards["damaged run"]
    assert "is not a run" in cards["nothing"]


def test_sliders_show_what_the_store_holds(go: Callable[[str], Page], whole: Run) -> None:
    page = go(sample_path(whole, 5, layer=2, step=1))
    assert (drawn(page, title="step 1, layer 2") == stored(whole, 5, 1, 2)).all()
    page.locator("#sample-layer [role=slider]").press("ArrowRight")
    assert (drawn(page, title="step 1, layer 3") == stored(whole, 5, 1, 3)).all()
    page.locator("#sample-step [role=slider]").press("ArrowRight")
    assert (drawn(page, title="step 3, layer 3") == stored(whole, 5, 3, 3)).all()
    assert parse_qs(urlsplit(page.url).query) == {"layer": ["3"], "step": ["3"]}


def test_a_thumbnail_shows_its_channel_and_its_course(go: Callable[[str], Page], whole: Run) -> None:
    page = go(sample_path(whole, 4, layer=3, step=3))
    cell = whole.activations.isel(sample=4).sel(step=3, layer=3)
    channels = cell["massive_channel"].values.tolist()
    expect(page.locator("#sample-thumbnails button")).to_have_count(K)
    texts = page.locator("#sample-thumbnails button span").all_inner_texts()
    assert list(map(int, texts)) == channels
    page.locator("#sample-thumbnails button").nth(4).click()
    chosen = channels[4]
    assert (drawn(page, title=f"Channel {chosen}, step 3") == stored(whole, 4, 3, 3, chosen)).all()
    course = whole.activations["mean_abs"].isel(sample=4).sel(channel=chosen).values
    assert (drawn(page, "#sample-course", f"Channel {chosen}: mean_abs") == course.T).all()
    score, scores = float(cell["mean_abs"].sel(channel=chosen)), np.sort(cell["mean_abs"].values)
    expect(page.locator("#sample-text")).to_contain_text("rank 5 of 128")
    expect(page.locator("#sample-text")).to_contain_text(f"{score / scores[63]:.4g} times the median")


def test_a_clicked_token_shows_its_channels(go: Callable[[str], Page], whole: Run) -> None:
    page = go(sample_path(whole, 4, layer=3, step=3))
    drawn(page, title="layer 3")
    place = page.evaluate(
        """() => {
            const graph = document.querySelector('#sample-figure .js-plotly-plot'), box = graph.getBoundingClientRect();
            const x = graph._fullLayout.xaxis, y = graph._fullLayout.yaxis;
            return [box.x + x._offset + x.l2p(2), box.y + y._offset + y.l2p(6)];
        }"""
    )
    page.mouse.move(*place)
    page.mouse.click(*place)
    cell = whole.activations.isel(sample=4).sel(step=3, layer=3)
    expected = cell["massive_value"].values[:, 6 * 8 + 2]
    assert (drawn(page, "#sample-token", "Token 50: row 6, column 2")[:, 0] == expected).all()


def test_an_address_restores_its_view_in_another_browser(
    go: Callable[[str], Page], browser: Browser, site: Bound, whole: Run
) -> None:
    page = go(sample_path(whole, 6, layer=1, step=1))
    drawn(page, title="layer 1")
    page.locator("#sample-show").click()
    page.get_by_text("foreground of two clusters").last.click()
    page.get_by_label("outline of the subject").check()
    front = drawn(page, title=f"Foreground of the top {K}, step 1, layer 1")
    page.wait_for_url("**outline=1**")
    other = Watched(browser, site)
    other.page.goto(page.url)
    assert (drawn(other.page, title=f"Foreground of the top {K}, step 1, layer 1") == front).all()
    assert other.page.get_by_label("outline of the subject").is_checked()
    assert other.page.evaluate("document.querySelector('#sample-figure .js-plotly-plot')._fullData.length") == 2
    assert other.errors == []
    other.close()


def test_the_foreground_is_the_one_that_alignment_measured(go: Callable[[str], Page], whole: Run) -> None:
    (area,) = whole.sql(
        "select area from alignment_samples where sample = 5 and layer = 2 and step = 3 and selection = 'top'"
    ).fetchone() or (None,)
    page = go(sample_path(whole, 5, layer=2, step=3, show="clusters"))
    assert drawn(page, title="Foreground").mean() == pytest.approx(area)


def test_a_map_that_is_not_kept_is_said_to_be_so(go: Callable[[str], Page], whole: Run) -> None:
    kept = whole.activations["massive_channel"].isel(sample=4).sel(step=3, layer=3).values
    other = next(channel for channel in range(128) if channel not in kept)
    page = go(sample_path(whole, 4, layer=3, step=3, channel=other))
    expect(page.locator("#sample-text")).to_contain_text(
        f"Its map was not recorded; only the top {K} channels have maps"
    )
    page = go(sample_path(whole, 4, layer=3, step=3, channel=999))
    expect(page.locator("#sample-text")).to_contain_text("There is no channel 999")
    page = go(sample_path(whole, 4, layer=3, step=2))
    expect(page.locator("[role=alert]")).to_contain_text("did not record step 2")
    page = go(sample_path(whole, 4, show="everything"))
    expect(page.locator("[role=alert]")).to_contain_text("'everything'")


def cards(page: Page, first: str) -> list[str]:
    """Prompts of the gallery, once its first is as it should be."""
    expect(page.locator("#find-results .prompt").first).to_have_text(first)
    return page.locator("#find-results .prompt").all_inner_texts()


def test_the_gallery_is_filtered_and_ordered(go: Callable[[str], Page], whole: Run) -> None:
    table = whole.sql("select sample, prompt from samples order by sample").df().set_index("sample")
    page = go("/run/whole%20run")
    assert cards(page, HOSTILE[0]) == table["prompt"].tolist()
    page.locator("#find-text").fill("BLUE")
    assert cards(page, table["prompt"][4]) == [p for p in table["prompt"] if "blue" in p]
    page.locator("#find-text").fill("")
    page.locator("#find-where").fill("kind = 'large'")
    page.locator("#find-where").press("Enter")
    large = [p for p in table["prompt"] if "large" in p]
    assert cards(page, large[0]) == large
    scores = whole.activations["mean_abs"].sel(layer=2, step=3, channel=46).values
    kept = (whole.activations["massive_channel"].sel(layer=2, step=3) == 46).any("k").values
    page = go("/run/whole%20run?by=channel&order=largest&channel=46&layer=2&step=3")
    order = [i for i in np.argsort(-scores, kind="stable") if kept[i]] + [i for i in range(N_SAMPLES) if not kept[i]]
    assert cards(page, table["prompt"][order[0]]) == table["prompt"][order].tolist()
    assert float(page.locator("#find-results b").first.inner_text()) == pytest.approx(scores.max(), rel=1e-3)
    page.locator("#find-results a").first.click()
    assert (drawn(page, title="Channel 46, step 3, layer 2") == stored(whole, int(order[0]), 3, 2, 46)).all()


def test_a_condition_that_is_no_sql_or_reads_files_is_refused(go: Callable[[str], Page]) -> None:
    page = go("/run/whole%20run")
    for text, says in (
        ("nonsense = 1", "nonsense"),
        (
            "true) union all select 1, 'a', content, 'done', 1, 1 from read_text('/etc/passwd') where (true",
            "syntax error",
        ),
        ("(select content from read_text('/etc/passwd')) is null", "read_text"),
    ):
        page.locator("#find-where").fill(text)
        page.locator("#find-where").press("Enter")
        expect(page.locator("#find-results [role=alert]")).to_contain_text(says)
        assert "root:x:" not in page.content()


def test_samples_are_found_while_a_capture_goes_on(folder: Path, go: Callable[[str], Page]) -> None:
    job = begun(folder / "half")
    (folder / "half" / "RUN").rename(folder / "half" / "thrown away")
    page = go("/run/half%20run")
    assert len(cards(page, HOSTILE[0])) == 4
    expect(page.locator(".note").first).to_contain_text("1 of 2 tasks are done")
    going_on = prepare(folder / "half" / "manifest.parquet", folder / "half run", job.config)
    CaptureWorker(going_on, 1)(1)
    page.wait_for_timeout(2500)
    page = go("/run/half%20run")
    assert len(cards(page, HOSTILE[0])) == 8


def test_compared_samples_have_one_scale(go: Callable[[str], Page], whole: Run) -> None:
    ids = whole.activations.sample_id.values
    page = go(f"/compare?a=whole run:{ids[3]}&b=whole run:{ids[7]}&layer=2&step=3&channel=46")
    maps = [stored(whole, sample, 3, 2, 46) for sample in (3, 7)]
    for n, values in enumerate(maps, start=1):
        where = f"#compare-pair section:nth-child({n})"
        assert (drawn(page, where, "Channel 46") == values).all()
        scale = page.evaluate(
            f"(t => [t.zmin, t.zmax])(document.querySelector('{where} .js-plotly-plot')._fullData[0])"
        )
        assert scale == pytest.approx([min(map(np.min, maps)), max(map(np.max, maps))])


def test_a_sweeps_images_are_on_a_grid_of_its_settings(go: Callable[[str], Page], folder: Path, site: Bound) -> None:
    edits = open_edits(folder / "a sweep")
    page = go("/sweep/a%20sweep?item=1&row=selection&column=k&metric=mse")
    expect(page.locator(".grid thead th")).to_have_text(["selection", "k 4", "k 8"])
    expect(page.locator(".grid tbody th")).to_have_text(["top", "random"])
    one = edits[(edits["item"] == 1) & (edits["selection"] == "top") & (edits["k"] == 8)].iloc[0]
    cell = page.locator(".grid tbody tr").first.locator("td").nth(1)
    expect(cell.locator("figcaption")).to_have_text(f"{one['mse']:.4g}")
    source = cell.locator("img").get_attribute("src")
    got = Image.open(io.BytesIO(page.request.get(site.base.rstrip("/") + source).body())).convert("RGB")
    expected = Image.open(io.BytesIO(one["image"])).convert("RGB")
    assert (np.asarray(got) == np.asarray(expected)).all()
    expect(page.locator("#sweep-dose .gtitle")).to_contain_text("mean squared difference")


def open_edits(sweep: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(part) for part in sorted((sweep / "edits").iterdir())])


def test_questions_are_answered_plotted_and_downloaded(go: Callable[[str], Page], whole: Run, tmp_path: Path) -> None:
    page = go("/run/whole%20run/sql")
    text = "select layer, avg(ratio) as mean_ratio from cells group by layer order by layer"
    page.locator("#console-sql").fill(text)
    page.locator("#console-sql").press("Control+Enter")
    expected = whole.sql(text).df()
    expect(page.locator(".ag-row")).to_have_count(6)
    assert page.locator(".ag-row [col-id=layer]").all_inner_texts() == list(map(str, range(6)))
    shown = [float(text) for text in page.locator(".ag-row [col-id=mean_ratio]").all_inner_texts()]
    assert shown == pytest.approx(expected["mean_ratio"].tolist(), rel=1e-5)
    page.locator("#console-figure .js-plotly-plot .main-svg").first.wait_for()  # drawn after the table
    line = page.evaluate("Array.from(document.querySelector('#console-figure .js-plotly-plot')._fullData[0].y)")
    assert line == pytest.approx(expected["mean_ratio"].tolist())
    for kind, read in (("CSV", pd.read_csv), ("Parquet", pd.read_parquet)):
        with page.expect_download() as download:
            page.get_by_text(f"as {kind}").click()
        download.value.save_as(tmp_path / kind)
        pd.testing.assert_frame_equal(read(tmp_path / kind), expected, check_dtype=False)


def test_a_question_is_cancelled(go: Callable[[str], Page]) -> None:
    page = go("/run/whole%20run/sql")
    page.locator("#console-sql").fill(
        "select count(*) from cells a, cells b, cells c, cells d, cells e, cells f, cells g"
    )
    page.locator("#console-ask").click()
    page.wait_for_timeout(1000)
    page.locator("#console-cancel").click()
    expect(page.locator("#console-answer [role=alert]")).to_contain_text("the query was cancelled")
    page.locator("#console-cancel").click()
    expect(page.locator("#console-cancelled")).to_contain_text("No query of this page")


def test_a_named_query_takes_its_parameters(go: Callable[[str], Page], whole: Run) -> None:
    page = go("/run/whole%20run/sql?query=massive_channels&p.layer=2&p.top=1")
    page.locator("#console-ask").click()
    expected = whole.query("massive_channels", layer=2, top=1).df()
    expect(page.locator(".ag-row")).to_have_count(len(expected))
    assert page.locator(".ag-row [col-id=channel]").all_inner_texts() == list(map(str, expected["channel"]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("select content from read_text('/etc/passwd')", "this run's tables"),
        ("copy cells to '/tmp/stolen.csv'", "read-only"),
        ("drop view cells", "read-only"),
        ("select 1; select 2", "2"),
        ("select nothing from cells", "nothing"),
    ],
)
def test_questions_that_reach_further_are_refused(text: str, says: str, go: Callable[[str], Page]) -> None:
    page = go("/run/whole%20run/sql")
    page.locator("#console-sql").fill(text)
    page.locator("#console-ask").click()
    expect(page.locator("#console-answer [role=alert]")).to_contain_text(says)
    assert page.locator(".ag-row").count() == 0


def test_hostile_prompts_are_shown_as_they_are(go: Callable[[str], Page], whole: Run) -> None:
    page = go("/run/whole%20run")
    assert cards(page, HOSTILE[0])[:3] == list(HOSTILE)
    for sample, prompt in enumerate(HOSTILE):
        page = go(sample_path(whole, sample))
        expect(page.locator("h1")).to_have_text(prompt)
        drawn(page, title="Channel")
    page = go("/run/whole%20run/sql?sql=select prompt, sample from samples order by sample")
    page.locator("#console-ask").click()
    expect(page.locator(".ag-row [col-id=prompt]").first).to_have_text(HOSTILE[0])


def test_the_keyboard_reaches_the_page_and_its_sliders(go: Callable[[str], Page], whole: Run) -> None:
    page = go(sample_path(whole, 4))
    drawn(page, title="Channel")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the page"
    names = page.evaluate(
        "Array.from(document.querySelectorAll('button, input, a'), e => e.innerText || e.id || e.title)"
    )
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('role')") == "slider":
            break
    else:
        pytest.fail(f"no slider was reached among {names}")


@pytest.mark.parametrize("width", [480, 2560])
def test_nothing_is_wider_than_the_window(width: int, browser: Browser, site: Bound, whole: Run) -> None:
    watched = Watched(browser, site, viewport={"width": width, "height": 900})
    for path in ("/", "/run/whole%20run", sample_path(whole, 4), "/compare", "/sweep/a%20sweep"):
        watched.go(path)
        watched.page.wait_for_load_state("networkidle")
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= width, path
    watched.close()
