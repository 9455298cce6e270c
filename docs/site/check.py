"""What is wrong with a built site: links to nothing, and anything that a page would load from another server."""

import os
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The anchors of a page, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect from one tag."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.loads += [given[name] for name in ("src", "poster", "data") if name in given]
        if "href" in given:
            (self.loads if tag == "link" and given.get("rel") not in _REFERENCES else self.links).append(given["href"])
        self.loads += re.findall(r"url\(['\"]?([^'\")]+)", given.get("style", ""))


_REFERENCES = ("next", "prev", "search", "index", "canonical", "author", "help")
"""Relations of a page to others, which a browser does not load."""


@cache
def _page(path: Path) -> _Page:
    return _Page(path.read_text(encoding="utf-8"))


def problems(site: Path) -> list[str]:
    """What is wrong, one line each.

    Args:
        site: folder of the built site.
    """
    found = []
    for path in sorted(site.rglob("*.html")):
        page, name = _page(path), path.relative_to(site)
        found += [f"{name} loads {each} from another server" for each in page.loads if urlsplit(each).netloc]
        local = [each for each in dict.fromkeys((*page.links, *page.loads)) if not any(urlsplit(each)[:2])]
        found += [f"{name} links to {each}, which is not there" for each in local if not _is_there(path, each)]
    for path in sorted(site.rglob("*.css")):
        outside = re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")]+)", path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)} loads {each} from another server" for each in outside]
    return found


def _is_there(page: Path, address: str) -> bool:
    parts = urlsplit(address)
    target = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
    if not _is_file(target):
        return False
    return target.suffix != ".html" or not parts.fragment or unquote(parts.fragment) in _page(target).anchors


@cache
def _is_file(path: Path) -> bool:
    return path.is_file()
