"""The explorer's server: on this machine alone."""

import signal
import socket
from collections.abc import Callable
from typing import Any

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from fewchannels.errors import InputError
from fewchannels.views.explore.app import make_app
from fewchannels.views.explore.live import Live
from fewchannels.views.explore.lookup import Places

HOST = "127.0.0.1"


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # a connection serves many requests: a page asks for dozens of pictures

    def log_request(self, *arguments: Any) -> None:
        pass


def bind(places: Places, port: int, session: Live | None = None) -> tuple[BaseWSGIServer, str]:
    """A server that is ready to serve, and the address of its start page.

    Args:
        places: what is open.
        port: of 127.0.0.1; 0 takes a free one.
        session: a model for the live page; None for none.

    Raises:
        InputError: the port is taken.
    """
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise InputError(f"port {port} of this machine cannot be used: {error}. Give another --port.") from None
        port = free.getsockname()[1]
    hosts = [f"{HOST}:{port}", f"localhost:{port}"]
    app = make_app(places, hosts, session)
    server = make_server(HOST, port, app.server, threaded=True, request_handler=_Quiet)
    return server, f"http://{HOST}:{port}/"


def serve(server: BaseWSGIServer, on_ready: Callable[[], object] = lambda: None) -> None:
    """Serve until interrupted or told to end, also where a shell has had interrupts ignored. In the main thread."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        on_ready()
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
