"""``fc.explore``: the explorer, served in the background of a notebook or a program."""

import html
import threading
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fewchannels.api.messages import in_python
from fewchannels.api.report import where
from fewchannels.errors import InputError
from fewchannels.runs.opened import Opened
from fewchannels.settings.arguments import checked

if TYPE_CHECKING:
    from fewchannels.views.explore.server import Bound


class Explorer:
    """An explorer that serves until it is closed, or this process ends.

    Args:
        bound: explorer that is ready to serve.

    Attributes:
        url: address of the start page, with its access token.
    """

    def __init__(self, bound: "Bound") -> None:
        self._bound, self.url = bound, bound.address
        self._thread = threading.Thread(target=bound.server.serve_forever, name="explorer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving. Closing it again does nothing."""
        if self._thread.is_alive():
            self._bound.server.shutdown()
            self._thread.join()
            self._bound.close()

    def __enter__(self) -> "Explorer":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Explorer({self.url!r})"

    def _repr_html_(self) -> str:
        """A link, for notebooks."""
        url = html.escape(self.url)
        return f'<a href="{url}" target="_blank">Open the explorer</a> (on the machine of this notebook: {url})'


@checked
def explore(*places: str | Path | Opened, port: int = 0, timeout: float = 60.0, browser: bool = False) -> Explorer:
    """Serve runs and sweeps to a browser, in the background.

    The server listens only on this machine, at 127.0.0.1. A notebook shows a link; if the notebook runs on another
    machine, forward the port first: ``ssh -L PORT:127.0.0.1:PORT HOST``.

    Args:
        *places: runs and sweeps, opened or as folders or URLs, finished or not.
        port: port to listen on; 0 chooses a free one.
        timeout: time limit of a query, in seconds.
        browser: whether to open the explorer in a browser.

    Returns:
        The explorer, which a notebook shows as a link; it stops with :meth:`Explorer.close` or with this process.

    Raises:
        InputError: nothing can be shown, or the port is taken.

    Example:
        >>> with fc.explore("RUN") as explorer:
        ...     explorer.url
        'http://127.0.0.1:.../?token=...'
    """
    from fewchannels.views.explore.opened import open_places
    from fewchannels.views.explore.server import bind

    with in_python():
        if not places:
            raise InputError("there is nothing to show. Pass a run, a sweep, or the folder of one.")
        opened = open_places([where(each) for each in places], timeout)
        if failed := [place for place in opened.values() if isinstance(place, str)]:
            raise InputError("\n".join(failed))
        explorer = Explorer(bind(opened, port))
    if browser:
        with suppress(webbrowser.Error):  # no browser available; the URL is shown
            webbrowser.open(explorer.url)
    return explorer
