"""The explorer as a command of its own, for as long as a test needs it, and how a client is let in."""

import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen


class _Entry(HTMLParser):
    """What the page that a token opens tells the browser."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.said: dict[str, str | None] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "body":
            self.said = dict(attributes)


def entered(address: str) -> dict[str, str]:
    """The headers of a client that has opened an address with its token, as a browser would."""
    with urlopen(address, timeout=300) as answer:
        cookies = SimpleCookie(answer.headers["Set-Cookie"])
        key = _Entry(answer.read().decode()).said["data-key"] or ""
    return {"Cookie": "; ".join(f"{name}={each.value}" for name, each in cookies.items()), "X-Fewchannels-Key": key}


def layout_of(address: str) -> str:
    """The layout of the start page, of the explorer whose printed address this is."""
    base = urlsplit(address)._replace(query="").geturl()
    with urlopen(Request(f"{base}_dash-layout", headers=entered(address)), timeout=300) as answer:
        return str(answer.read().decode())


@contextmanager
def explorer(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    *,
    opens_browser: bool = False,
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it printed. One that prints none within two minutes is killed.

    Args:
        command: the command line, without its port.
        folder: where it is started.
        environment: of the process; None for this one's.
        opens_browser: whether it opens what the environment's ``BROWSER`` names.
    """
    words = [*command, *([] if opens_browser else ["--no-browser"]), "--port", "0"]
    with subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        patience = threading.Timer(120, process.kill)
        patience.start()
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert "token=" in address, process.stderr.read() if process.stderr else ""
            patience.cancel()
            yield process, address
        finally:
            patience.cancel()
            process.kill()
