"""Addresses of the explorer: names of this machine, and a proxy's address if there is one."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fewchannels.errors import InputError

_LOOPBACK = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::(\d{1,5}))?", re.ASCII | re.IGNORECASE)
_USUAL_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Site:
    """The addresses of an explorer.

    The port is not compared, since ``ssh -L`` and editors forward other ports. A browser that was made to resolve a
    foreign name to this machine still sends that name as the host.

    Attributes:
        port: port on 127.0.0.1 that it serves.
        public: scheme and host of a proxy's address, such as ``https://hub.example.org``; None without one.
        prefix: prefix of every path, such as ``/user/ann/proxy/8050``; empty for none.
    """

    port: int
    public: str | None = None
    prefix: str = ""

    @classmethod
    def of(cls, port: int, public_url: str | None) -> "Site":
        """The site for a port and, if given, a proxy's address.

        Raises:
            InputError: the address is not an http or https URL, or has more than a host and a path.
        """
        if public_url is None:
            return cls(port)
        try:
            parts = urlsplit(public_url)
            host, proxy_port = parts.hostname, parts.port
        except ValueError:
            host = proxy_port = None
        is_plain = public_url.isascii() and public_url.isprintable() and not re.search(r"[@?#\\ ]", public_url)
        if not is_plain or not host or parts.scheme not in _USUAL_PORTS:
            # It is not quoted in the message, since it may contain a password.
            raise InputError(
                "--public-url is not the URL of a proxy. Give its scheme, host and path, without a user name, such "
                "as https://hub.example.org/user/ann/proxy/8050/."
            )
        host = f"[{host}]" if ":" in host else host
        if proxy_port not in (None, _USUAL_PORTS[parts.scheme]):
            host += f":{proxy_port}"
        return cls(port, f"{parts.scheme}://{host}", parts.path.rstrip("/"))

    @property
    def base(self) -> str:
        """The address of the start page."""
        return f"{self.public or f'http://127.0.0.1:{self.port}'}{self.prefix}/"

    def has_host(self, host: str) -> bool:
        """Return whether a request that names this host and port is meant for the explorer."""
        return _LOOPBACK.fullmatch(host) is not None or self.is_public(host)

    def port_of(self, host: str) -> str:
        """The port of a host that a request names; empty for the default port."""
        found = _LOOPBACK.fullmatch(host)
        return (found[1] or "") if found else host.rpartition("]")[2].partition(":")[2]

    def has_origin(self, origin: str, host: str) -> bool:
        """Return whether a page of this origin is the explorer's own, when it was requested under a host."""
        return origin in (f"http://{host}", f"https://{host}") or (self.public is not None and origin == self.public)

    def is_public(self, host: str) -> bool:
        """Return whether it is the proxy's host."""
        return self.public is not None and host.lower() == self.public.partition("://")[2]

    def is_secure(self, host: str) -> bool:
        """Return whether browsers reach it by https when they name this host."""
        return self.is_public(host) and str(self.public).startswith("https:")


class Prefixed:
    """A WSGI application behind a proxy, which may or may not strip the prefix of its address.

    Args:
        application: application that takes its prefix only from ``SCRIPT_NAME``.
        prefix: prefix of a :class:`Site`.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]], prefix: str) -> None:
        self._application, self._prefix = application, prefix

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == self._prefix or path.startswith(f"{self._prefix}/"):
            path = path.removeprefix(self._prefix)
        return self._application({**environ, "SCRIPT_NAME": self._prefix, "PATH_INFO": path or "/"}, start_response)
