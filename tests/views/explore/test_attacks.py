"""Pages of other origins against an explorer, in a real browser that was let in: none has a question asked or reads.

A question is observed where it is asked: every one that reaches DuckDB is counted, and the attacks' own are known by
their texts. Other ports of 127.0.0.1 are of the same site, so the browser sends its cookies along with their requests.
"""

import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from browser import Watched, needs_chromium, served
from playwright.sync_api import Browser

from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.sql.question import Question
from fewchannels.views.explore.opened import open_places
from fewchannels.views.explore.server import Bound, bind

pytestmark = needs_chromium
MARK = "planted_by_an_attack"
ASKS = (
    f"run/run/sql?sql=select+1+as+{MARK}",
    f"run/run?where={MARK}+is+null",
    f"download/run/answer.csv?sql=select+1+as+{MARK}",
)
ATTACKS = {
    "a link": "<a id=go href='{to}'>go</a><script>onload = () => go.click()</script>",
    "a link to a new window": "<a id=go target=_blank href='{to}'>go</a><script>onload = () => go.click()</script>",
    "a download": "<a id=go download href='{to}'>go</a><script>onload = () => go.click()</script>",
    "a form": "<form id=f method=post action='{to}'><input name=a value=1></form><script>f.submit()</script>",
    "a form of text": "<form id=f method=post enctype=text/plain action='{update}'><input name='{json}' value='\"}}'>"
    "</form><script>f.submit()</script>",
    "an image": "<img src='{to}' onload=\"tell('seen')\">",
    "a script": "<script src='{to}' onload=\"tell('seen')\"></script>",
    "a style": "<link rel=stylesheet href='{to}' onload=\"tell('seen')\">",
    "an object": "<object data='{to}' type='text/html'></object><embed src='{to}'>",
    "a frame": "<iframe src='{to}'></iframe>",
    "a refresh": "<meta http-equiv=refresh content=\"0; url='{to}'\">",
    "a window": "<script>const w = window.open('{to}'); setTimeout(() => {{ try {{ w.document.body && tell('read') }} "
    "catch (e) {{}} }}, 1000)</script>",
    "fetch": "<script>for (const mode of ['cors', 'no-cors', 'navigate']) try {{ fetch('{to}', {{mode, credentials: "
    "'include'}}).then(r => r.text()).then(t => t && tell('read'), () => 0) }} catch (e) {{}}</script>",
    "a posted question": "<script>for (const type of ['application/json', 'text/plain']) fetch('{update}', {{method: "
    "'POST', mode: type[0] == 't' ? 'no-cors' : 'cors', credentials: 'include', headers: {{'Content-Type': type}}, "
    "body: '{json}'}}).then(r => r.text()).then(t => t && tell('read'), () => 0)</script>",
    "a beacon": "<script>navigator.sendBeacon('{update}', '{json}')</script>",
    "a prefetch": "<link rel=prefetch href='{to}'><link rel=prerender href='{to}'>",
}


class _Foreign(BaseHTTPRequestHandler):
    pages: dict[str, str] = {}  # noqa: RUF012
    cookies: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        type(self).cookies.append(self.headers.get("Cookie", ""))
        page = f"<script>seen = []; tell = what => seen.push(what)</script>{self.pages.get(self.path, '')}"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def foreign() -> Iterator[int]:
    """The port of another server of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Foreign)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bound]:
    kept = Path(__file__).parents[2] / "data" / "kept_runs" / "format_2"
    run = shutil.copytree(kept, tmp_path_factory.mktemp("attacked") / "run")
    bound = bind(open_places([str(run)]), 0)
    with served(bound.server):
        yield bound


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of all questions that were asked."""
    found: list[str] = []
    whole = Catalog.ask

    def ask(self: Catalog, text: str, *more: object, **named: object) -> Question:
        found.append(text)
        return whole(self, text, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Catalog, "ask", ask)
    return found


def posted() -> str:
    """What the console would post to ask; the place is as any page has it."""
    state = [
        {"id": "console-query", "property": "value", "value": "(free SQL)"},
        {"id": "console-sql", "property": "value", "value": f"select 1 as {MARK}"},
        [],
        [],
        {"id": "console-place", "property": "data", "value": {"name": "run", "path": "/run/run", "page": "0"}},
    ]
    output = "..console-answer.children...console-plot.children...link.data.."
    return json.dumps({"output": output, "inputs": [], "state": state, "changedPropIds": []})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_attack_has_a_question_asked_or_reads_anything(
    host: str, browser: Browser, site: Bound, foreign: int, questions: list[str]
) -> None:
    watched = Watched(browser, site)
    watched.go("/run/run")
    assert questions, "the questions of its own pages are counted"
    pages = []
    for name, text in ATTACKS.items():
        for ask in ASKS:
            path = f"/{len(pages)}"
            update = f"{site.base}_dash-update-component"
            _Foreign.pages[path] = text.format(to=site.base + ask, update=update, json=posted())
            page = watched.page.context.new_page()
            page.goto(f"http://{host}:{foreign}{path}")
            pages.append((name, ask, page))
    watched.page.wait_for_timeout(2000)
    for name, ask, page in pages:
        if page.url.startswith(f"http://{host}:{foreign}"):
            assert page.evaluate("window.seen") == [], (name, ask)
    assert not [text for text in questions if MARK in text]
    watched.close()


def test_a_link_that_is_followed_waits_for_two_clicks(
    browser: Browser, site: Bound, foreign: int, questions: list[str]
) -> None:
    watched = Watched(browser, site)
    _Foreign.pages["/link"] = f"<a href='{site.base}{ASKS[0]}'>look</a>"
    page = watched.page
    page.goto(f"http://127.0.0.1:{foreign}/link")
    page.locator("a").click()
    assert "Access denied" in page.content()
    page.get_by_text("open it from this page").click()
    page.wait_for_selector("#console-answer .note")
    page.wait_for_load_state("networkidle")
    assert not [text for text in questions if MARK in text]
    page.locator("#console-ask").click()
    page.wait_for_selector(f"[col-id={MARK}]")
    assert [text for text in questions if MARK in text] == [f"select 1 as {MARK}"]
    watched.close()


def test_a_condition_of_an_address_waits_until_it_was_asked_by_hand(
    browser: Browser, site: Bound, questions: list[str]
) -> None:
    watched = Watched(browser, site)
    page = watched.go("/run/run?where=seed+%3C+99")
    page.wait_for_load_state("networkidle")
    assert not [text for text in questions if "seed < 99" in text]
    page.locator("#find-apply").click()
    page.wait_for_selector("#find-results .card")
    assert [text for text in questions if "seed < 99" in text]
    page.reload()
    page.wait_for_selector("#find-results .card")
    watched.close()


def test_a_server_of_another_port_gets_a_cookie_that_opens_no_data(browser: Browser, site: Bound, foreign: int) -> None:
    watched = Watched(browser, site)
    _Foreign.cookies.clear()
    watched.page.goto(f"http://127.0.0.1:{foreign}/")
    (cookie,) = set(_Foreign.cookies)
    assert site.keys.cookie in cookie, "browsers give it away"
    stolen = browser.new_context(extra_http_headers={"Cookie": cookie})
    page = stolen.new_page()
    asked: list[int] = []
    page.on("response", lambda answer: "_dash-update" in answer.url and asked.append(answer.status))
    page.goto(f"{site.base}run/run")
    page.get_by_text("Access denied").wait_for()
    assert set(asked) == {403}
    assert page.request.get(f"{site.base}picture/run/0.png").status == 403
    stolen.close()
    watched.close()


def test_two_explorers_do_not_take_each_others_cookies(browser: Browser, site: Bound) -> None:
    other = bind({}, 0)
    with served(other.server):
        watched = Watched(browser, site)
        watched.page.goto(other.address)
        watched.page.wait_for_selector("#page h1")
        watched.go("/run/run")
        watched.page.goto(other.base)
        watched.page.wait_for_selector("#page h1")
        assert watched.page.url == other.base
        watched.close()
