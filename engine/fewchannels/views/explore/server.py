"""The explorer's server: on this machine only, with limits for each connection."""

import contextlib
import io
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Condition
from typing import Any
from urllib.parse import urlsplit

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from fewchannels.errors import InputError
from fewchannels.views.explore.app import make_app
from fewchannels.views.explore.keys import Keys
from fewchannels.views.explore.live import Live
from fewchannels.views.explore.lookup import Places
from fewchannels.views.explore.site import Site

HOST = "127.0.0.1"
MOST_CONNECTIONS = 64  # a browser opens 6 to a host
RECEIVE_S = 20.0
SEND_S = 120.0
_DRAIN_S = 1.0
_PATIENCE_S = 3.0


class Server(ThreadedWSGIServer):
    """A server with a limited number of connections: the one that has been sending its request longest gives way.

    Args:
        port: port of 127.0.0.1; 0 takes a free one.
    """

    def __init__(self, port: int) -> None:
        super().__init__(HOST, port, _unknown, handler=_Handler)
        self._changed = Condition()
        self._receiving: dict[socket.socket, None] = {}  # in the order of their arrival
        self._answering: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Accept a connection, or close it if all others are being answered."""
        with self._changed:
            if len(self._receiving) + len(self._answering) >= MOST_CONNECTIONS:
                if not self._receiving:
                    super().shutdown_request(request)
                    return
                oldest = next(iter(self._receiving))
                del self._receiving[oldest]
                _hang_up(oldest)
            self._receiving[request] = None
        super().process_request(request, client_address)

    def received(self, request: socket.socket) -> None:
        """Note that a request has arrived, except for its body."""
        with self._changed:
            self._receiving.pop(request, None)
            self._answering.add(request)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._changed:
            self._receiving.pop(request, None)
            self._answering.discard(request)
            self._changed.notify_all()
        super().shutdown_request(request)

    def is_idle(self, timeout_s: float) -> bool:
        """Return whether every request is answered, waiting up to this number of seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._answering, timeout_s)


class _Handler(WSGIRequestHandler):
    """One connection, which werkzeug closes after its first request."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._incoming = _Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming)

    def run_wsgi(self) -> None:
        self.server.received(self.connection)
        try:
            urlsplit(self.path)
        except ValueError:
            self.send_error(400)
            return
        if "Transfer-Encoding" in self.headers:  # browsers send the length of a request
            self.send_error(411)
            return
        super().run_wsgi()

    def send_response(self, code: int, message: str | None = None) -> None:
        self._incoming.end_within(_DRAIN_S)
        self.connection.settimeout(SEND_S)
        super().send_response(code, message)

    def log(self, *arguments: Any) -> None:
        """Do nothing, since a request's line may contain the token."""

    def log_request(self, *arguments: Any) -> None:
        """Do nothing, for the same reason."""


class _Incoming(io.RawIOBase):
    """Data from a connection, up to a deadline, so that a very slow sender cannot block the server."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._until = connection, time.monotonic() + RECEIVE_S

    def end_within(self, seconds: float) -> None:
        """Stop reading after this number of seconds from now."""
        self._until = min(self._until, time.monotonic() + seconds)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it closed on its own
        connection.shutdown(socket.SHUT_RDWR)


def _unknown(environ: Any, start_response: Any) -> Any:
    raise AssertionError("no application is served yet")


@dataclass(frozen=True)
class Bound:
    """An explorer that is ready to serve.

    Attributes:
        server: server to be served.
        site: addresses of the explorer.
        keys: keys that open it.
        places: open runs and sweeps.
    """

    server: Server
    site: Site
    keys: Keys
    places: Places

    @property
    def base(self) -> str:
        """The address of the start page, for browsers that already have access."""
        return self.site.base

    @property
    def address(self) -> str:
        """The address that gives a user access."""
        return f"{self.base}?token={self.keys.token}"

    def close(self) -> None:
        """Close the socket and everything else that is open, after the last request."""
        self.server.server_close()
        for place in self.places.values():
            if not isinstance(place, str):
                place.close()

    def once(self) -> str:
        """An address that gives a browser access once."""
        return f"{self.base}?token={self.keys.once()}"


def bind(places: Places, port: int, session: Live | None = None, public_url: str | None = None) -> Bound:
    """An explorer that is ready to serve.

    Args:
        places: open runs and sweeps.
        port: port of 127.0.0.1; 0 takes a free one.
        session: a model for the live page; None for none.
        public_url: address of a proxy through which it is reached; None without one.

    Raises:
        InputError: the port is taken, or the address cannot be a proxy's.
    """
    site = Site.of(port, public_url)
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise InputError(f"port {port} cannot be used: {error}. Give another --port.") from None
    server = Server(port)
    site, keys = replace(site, port=server.port), Keys()
    server.app = make_app(places, site, keys, session).server
    return Bound(server, site, keys, places)


def serve(bound: Bound, on_ready: Callable[[], object] = lambda: None) -> bool:
    """Serve until interrupted or terminated, even if a shell has had interrupts ignored. In the main thread.

    Args:
        bound: the explorer.
        on_ready: called in a thread of its own while requests are answered.

    Returns:
        Whether all requests are answered: the interpreter must not exit while DuckDB is working in a thread.
    """

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        # In a thread: it may start a program that waits for a response, and may have to wait for that program.
        threading.Thread(target=on_ready, daemon=True).start()
        bound.server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        bound.close()
    return bound.server.is_idle(_PATIENCE_S)
