"""The report as a page in a real browser, as Markdown and as PDF: texts do nothing, figures answer, it fits screens."""

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from browser import Watched, needs_chromium
from made_sweep import make_sweep
from planted_edits import planted
from playwright.sync_api import Browser
from typer.testing import CliRunner

from fewchannels import manifest
from fewchannels.analyses.document import Document, Figure, Gallery, How, Part, Section, Shown
from fewchannels.analyses.figures.drawings import HeatMap, Landscape
from fewchannels.analyses.figures.interactive import as_json
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cli import app
from fewchannels.views.report.landscape import binned
from fewchannels.views.report.markdown import plain
from fewchannels.views.report.page import as_html

HOSTILE = (
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=1">',
    "</script><svg onload=window.hacked=1>",
    "{{7*7}} {% raw %} %{x} ${7*7} <!-- $x^2$",
    "&lt;b&gt; &amp; `code` [link](javascript:alert(1))",
)
FILE = "file://"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A report of a run and of a sweep whose prompts are hostile, as a page and as Markdown."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "prompts.json").write_text(json.dumps([{"prompt": prompt, "n<b>": 3} for prompt in HOSTILE]))
    manifest.ingest([str(folder / "prompts.json")], folder / "manifest.parquet", seeds=[0])
    settings = {"num_inference_steps": 2, "top_k": 4, "shard_samples": 5}
    job = prepare(folder / "manifest.parquet", folder / "run", CaptureConfig(model=str(tiny_model), **settings))
    begin(job, folder / "manifest.parquet")
    CaptureWorker(job, 1)(0)
    edits = planted(
        [{"selection": word, "k": k} for k in (4, 8) for word in ("top", "random")],
        {"top": 0.01, "random": 0.0},
        n_prompts=len(HOSTILE),
        with_images=True,
    )
    edits["prompt"] = [HOSTILE[int(prompt.split()[1])] for prompt in edits["prompt"]]
    make_sweep(folder / "sweep", edits)
    places = [str(folder / "run"), str(folder / "sweep")]
    for name in ("report.html", "report.md"):
        answer = CliRunner().invoke(app, ["report", *places, "-o", str(folder / name)])
        assert answer.exit_code == 0, answer.exception
        assert f"wrote {folder / name}" in answer.stderr.replace("\n", "")
    return folder


def opened(browser: Browser, path: Path, **options: object) -> Watched:
    watched = Watched(browser, SimpleNamespace(base=FILE), is_let_in=False, **options)  # type: ignore[arg-type]
    watched.page.goto(path.as_uri())
    watched.page.wait_for_selector("html[data-drawn]", state="attached")
    return watched


@needs_chromium
def test_hostile_texts_are_shown_and_do_nothing(browser: Browser, folder: Path) -> None:
    watched = opened(browser, folder / "report.html")
    page = watched.page
    assert page.evaluate("window.hacked === undefined")
    shown = page.locator("body").inner_text()
    assert all(prompt in shown for prompt in HOSTILE)
    assert "49" not in re.findall(r"\d+", " ".join(page.locator(".prompt").all_inner_texts()).replace("7*7", ""))
    assert page.locator("img:not([src^='data:'])").count() == 0
    assert page.locator("svg[onload]").count() == 0
    assert page.evaluate("document.querySelectorAll('script:not([type])').length") == 2
    assert watched.errors == []
    assert watched.elsewhere == []
    watched.close()


@needs_chromium
def test_a_script_that_is_not_the_pages_own_is_not_run(browser: Browser, folder: Path, tmp_path: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    (tmp_path / "changed.html").write_text(text.replace("</main>", "</main><script>window.hacked=1</script>"))
    watched = opened(browser, tmp_path / "changed.html")
    assert watched.page.evaluate("window.hacked === undefined")
    assert any("Content Security Policy" in error for error in watched.errors)
    watched.close()


@needs_chromium
def test_figures_say_their_values_under_the_pointer(browser: Browser, folder: Path) -> None:
    watched = opened(browser, folder / "report.html")
    figure = watched.page.locator("#part-1-ratio_by_layer .plot")
    figure.scroll_into_view_if_needed()
    assert figure.locator("svg.main-svg").count() > 0
    figure.locator(".points path").first.hover(force=True)
    said = figure.locator(".hoverlayer .hovertext").first.text_content()
    assert said
    assert re.search(r"0: [\d.]+ \([\d.]+ to [\d.]+\)", said)
    n = watched.page.locator(".plot:not(.surface)").count()
    assert watched.page.locator(".plot:not(.surface)[data-drawn]").count() == n > 5
    watched.close()


@needs_chromium
@pytest.mark.parametrize(("scheme", "ink"), [("light", "rgb(27, 27, 27)"), ("dark", "rgb(234, 234, 234)")])
def test_figures_take_the_colours_of_the_page(browser: Browser, folder: Path, scheme: str, ink: str) -> None:
    watched = opened(browser, folder / "report.html", color_scheme=scheme)
    tick = watched.page.locator("#part-1-ratio_by_layer .xtick text").first
    assert tick.evaluate("each => getComputedStyle(each).fill") == ink
    assert watched.page.evaluate("getComputedStyle(document.body).color") == ink
    other = "dark" if scheme == "light" else "light"
    watched.page.emulate_media(color_scheme=other)
    changed = "rgb(234, 234, 234)" if other == "dark" else "rgb(27, 27, 27)"
    watched.page.wait_for_timeout(1500)  # waiting for a condition would need eval, which the page forbids
    tick = watched.page.locator("#part-1-ratio_by_layer .xtick text").first
    assert tick.evaluate("each => getComputedStyle(each).fill") == changed
    watched.close()


@needs_chromium
@pytest.mark.parametrize("width", [360, 800, 1440, 2560])
def test_it_fits_screens_of_any_width(browser: Browser, folder: Path, width: int) -> None:
    watched = opened(browser, folder / "report.html", viewport={"width": width, "height": 900})
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    contents = watched.page.locator("nav ul").first
    assert contents.is_visible() == (width >= 1440)
    watched.page.evaluate("window.scrollTo(0, 3000)")
    top = watched.page.locator("nav").evaluate("each => each.getBoundingClientRect().top")
    assert (0 <= top < 100) == (width >= 1440)  # beside the text it stays in sight
    watched.close()


@needs_chromium
def test_it_can_be_read_without_seeing_it_and_used_without_a_pointer(browser: Browser, folder: Path) -> None:
    watched = opened(browser, folder / "report.html")
    page = watched.page
    levels = [int(tag[1]) for tag in page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(e => e.tagName)")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.evaluate("[...document.querySelectorAll('.plot')].every(e => e.closest('[aria-label]'))")
    targets = page.evaluate("[...document.querySelectorAll('nav a')].map(e => e.getAttribute('href').slice(1))")
    assert len(targets) > 6
    assert all(page.locator(f"[id='{target}']").count() == 1 for target in targets)
    summary = page.locator("details.how summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details.how").first.get_attribute("open") is not None
    assert "fewchannels query" in page.locator("details.how pre").first.inner_text()
    watched.close()


@needs_chromium
def test_it_prints_without_what_is_for_a_screen(browser: Browser, folder: Path) -> None:
    watched = opened(browser, folder / "report.html")
    watched.page.locator(".plot.surface").first.evaluate("each => each.scrollIntoView()")
    watched.page.wait_for_selector(".plot.surface[data-drawn]")
    watched.page.emulate_media(media="print")
    assert not watched.page.locator("nav").is_visible()
    assert not watched.page.locator(".plot.surface").first.is_visible()
    assert watched.page.locator("img.only-print").first.is_visible()
    inside = watched.page.locator("figure").first.evaluate("each => getComputedStyle(each).breakInside")
    assert inside == "avoid"
    watched.close()


@needs_chromium
def test_a_pdf_is_printed(folder: Path) -> None:
    answer = CliRunner().invoke(app, ["report", str(folder / "run"), "-o", str(folder / "printed.html"), "--pdf"])
    assert answer.exit_code == 0, answer.exception
    data = (folder / "printed.pdf").read_bytes()
    assert data.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", data)) >= 3
    assert len(data) > 50_000  # the figures are in it


def test_markdown_names_images_that_are_there_and_holds_no_html(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", re.sub(r"\\.", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
    assert len(links) > 20
    for link in links:
        assert (folder / unquote(link)).read_bytes().startswith(b"\x89PNG"), link
    outside = re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<" not in outside
    assert "&lt;script\\>window.hacked=1&lt;/script\\>" in outside
    heads = [len(line.partition(" ")[0]) for line in outside.splitlines() if re.match("#+ ", line)]
    assert heads[:3] == [1, 2, 3]


def test_markdown_shows_marks_as_they_are() -> None:
    assert plain("*a* [b](c) `d`\n1. e") == r"\*a\* \[b\]\(c\) \`d\` 1. e"
    assert plain("1. a <b> & c | d") == r"1\. a &lt;b\> &amp; c \| d"


def test_no_text_in_a_figures_data_ends_its_script() -> None:
    text = as_json({"title": "</script><!-- & \u2028"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"title": "</script><!-- & \u2028"}


def test_a_report_of_a_large_model_stays_small() -> None:
    random = np.random.default_rng(0)
    values, width = binned(random.lognormal(size=(57, 3072)))
    labels = {"row": "layer", "column": "channel", "value": "mean_abs"}
    firsts = list(range(0, 3072, width))
    heat = HeatMap(values=values, title="a\nb", rows=list(range(57)), columns=firsts, **labels)
    surface = Landscape(values=values, title="a\nb", rows=list(range(57)), columns=firsts, **labels)
    how = [How("fewchannels runs show RUN")]
    noise = [random.integers(0, 256, (256, 256, 3), dtype=np.uint8) for _ in range(18)]
    shown = [Shown("highest", 1.0, "id", "a prompt", "", [("a", noise[i]), ("b", noise[i + 9])]) for i in range(9)]
    figures = [Figure(f"heat{i}", heat, how) for i in range(4)] + [Figure("surface", surface, how)]
    sections = [Section("Landscape", figures), Section("Samples", [Gallery("gallery", "a\nb", shown, how)])]
    page = as_html(Document("a", [Part("RUN", "run", "RUN", sections)]), lambda what, done, total: None)
    assert len(page.encode()) < 15e6
    assert max(map(len, re.findall(r"data:image/webp[^\"]+", page))) < 130_000  # of noise, the worst there is
