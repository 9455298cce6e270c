"""A real headless Chromium for tests, and servers whose pages it opens."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Thread
from typing import Any

import pytest
from network import network
from playwright.sync_api import Browser, Page, expect, sync_playwright
from werkzeug.serving import BaseWSGIServer

from fewchannels.views.explore.server import Bound

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on the PATH")
_PATIENCE_MS = 60_000  # a page that is late on a busy machine is not wrong
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that lasts as long as the context."""
    expect.set_options(timeout=_PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        yield browser
        browser.close()


class Watched:
    """A page, and what went wrong on it.

    Args:
        browser: that opens it, with cookies of its own.
        bound: the explorer that it looks at.
        is_let_in: whether it has opened the explorer's printed address.
        options: of Playwright's context.

    Attributes:
        page: Playwright's.
        errors: of its console and scripts, and answers that are errors.
        elsewhere: addresses of other servers that it asked for.
    """

    def __init__(self, browser: Browser, bound: Bound, *, is_let_in: bool = True, **options: Any) -> None:
        self._network = ExitStack()
        self._network.enter_context(network(changes=False))
        self._context = browser.new_context(**{"viewport": {"width": 1366, "height": 900}} | options)
        self.page: Page = self._context.new_page()
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda line: line.type == "error" and self.errors.append(line.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda asked: self._see(asked.url, bound.base))
        self._base = bound.base
        if is_let_in:
            self.page.goto(bound.address)
            self.page.wait_for_url(bound.base)

    def _see(self, url: str, base: str) -> None:
        if not url.startswith((base, "data:", "blob:")):
            self.elsewhere.append(url)

    def go(self, path: str) -> Page:
        """Open one of the explorer's pages, and wait until it is there."""
        self.page.goto(self._base.rstrip("/") + path)
        self.page.wait_for_selector("#page h1")
        return self.page

    def close(self) -> None:
        """Let it go."""
        self.page.unroute_all(behavior="ignoreErrors")  # an answer may still be under way
        self._context.close()
        self._network.close()


@contextmanager
def served(server: BaseWSGIServer) -> Iterator[None]:
    """The server answers as long as the context lasts."""
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()
