"""The secrets of one explorer: its token, and what is derived from it for browsers, pages and addresses."""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from threading import Lock
from urllib.parse import parse_qsl, unquote, urlsplit

SIGNATURE = "by"
"""The name of an address' signature in its query."""


class Keys:
    """Random secrets that last as long as the process.

    A browser gives its cookies to every server of a host, whatever the port, so to those of other users of the machine
    too. The cookie therefore opens the empty pages only. What shows data takes more: a callback takes :attr:`page`,
    which scripts of the explorer's own origin alone can read, and an image or a download takes a signed address.

    Attributes:
        token: opens the explorer to a person; it stands in the printed address.
        cookie: held by a browser that has shown the token.
        page: what a page sends with a callback.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self.cookie, self.page = self._derived("cookie"), self._derived("page")
        self._once: set[str] = set()
        self._lock = Lock()

    def once(self) -> str:
        """A token that opens the explorer once: a browser's command line can be read by every user."""
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._once.add(token)
        return token

    def opens(self, token: str) -> bool:
        """Return whether it is the token, or a one-time token, which is used up now."""
        with self._lock:
            used = {each for each in self._once if same(each, token)}
            self._once -= used
        return same(self.token, token) or bool(used)

    def signed(self, address: str) -> str:
        """An address of this server, path and query, with its signature."""
        parts = urlsplit(address)
        signature = self._signature(unquote(parts.path), parse_qsl(parts.query, keep_blank_values=True))
        return f"{address}{'&' if parts.query else '?'}{SIGNATURE}={signature}"

    def has_signed(self, path: str, query: Iterable[tuple[str, str]]) -> bool:
        """Return whether an address is one that :meth:`signed` returned.

        Args:
            path: without percent signs.
            query: every name and value.
        """
        pairs = list(query)
        given = [pair for pair in pairs if pair[0] != SIGNATURE]
        return same(self._signature(path, given), dict(pairs).get(SIGNATURE, ""))

    def _signature(self, path: str, query: Iterable[tuple[str, str]]) -> str:
        return self._derived("address", path, *(part for pair in query for part in pair))

    def _derived(self, *purpose: str) -> str:
        text = "".join(f"{len(part)}:{part}" for part in purpose)
        return hmac.new(self.token.encode(), text.encode(), hashlib.sha256).hexdigest()


def same(one: str, other: str) -> bool:
    """Return whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(errors="replace"), other.encode(errors="replace"))
