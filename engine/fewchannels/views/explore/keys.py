"""The secrets of one explorer: its token, and secrets for browsers, pages and addresses."""

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

    A browser sends its cookies to every server of a host, whatever the port, including those of other users of the
    machine. The cookie therefore gives access only to empty pages. Data need more: a callback needs :attr:`page`, which
    only scripts of the explorer's own origin can read, and an image or a download needs a signed address.

    Attributes:
        token: token in the printed address, which gives a user access.
        cookie: cookie of a browser that has presented the token.
        page: key that a page sends with a callback.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self.cookie, self.page = self._derived("cookie"), self._derived("page")
        self._once: set[str] = set()
        self._lock = Lock()

    def once(self) -> str:
        """A token that works only once, since a browser's command line can be read by every user."""
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
    """Return whether two texts are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(one.encode(errors="replace"), other.encode(errors="replace"))
