"""The explorer without a socket: requests with just the headers that a test gives."""

from pathlib import Path
from urllib.parse import urlencode

from werkzeug.test import Client, TestResponse

from fewchannels.views.explore.app import make_app
from fewchannels.views.explore.keys import Keys
from fewchannels.views.explore.opened import open_places
from fewchannels.views.explore.site import Site

HOST = "127.0.0.1:8050"


class Asked:
    """An explorer, without a socket, and what a browser that was let in sends.

    Attributes:
        keys: that open it.
        own: headers of its own pages.
    """

    def __init__(self, paths: list[Path], site: Site) -> None:
        self.keys = Keys()
        self.own = {"Cookie": f"fewchannels-8050={self.keys.cookie}", "X-Fewchannels-Key": self.keys.page}
        self._client = Client(make_app(open_places([*map(str, paths)]), site, self.keys).server, use_cookies=False)

    def ask(self, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> TestResponse:
        """The answer to a request that has no more than these headers, and is for 127.0.0.1:8050 unless they say."""
        named = {"Host": HOST} | (headers or {})
        sent = {"json": {}} if method == "POST" else {}
        host = {"HTTP_HOST": named["Host"]}
        return self._client.open(path, method=method, headers=named, environ_overrides=host, **sent)

    def post(self, path: str, data: bytes, kind: str) -> TestResponse:
        """The answer to a post of its own pages."""
        return self._client.post(path, data=data, content_type=kind, headers={"Host": HOST} | self.own)

    def signed(self, path: str, query: dict[str, str] | None = None) -> str:
        """An address of an image or a download, as a page has it."""
        return self.keys.signed(f"{path}?{urlencode(query)}" if query else path)
