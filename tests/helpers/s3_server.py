"""A real S3 protocol server on the loopback, and in front of it a proxy that makes it as bad as the network can be."""

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST = "127.0.0.1"
BUCKET = "bucket"
KEY_ID = "AKIAFEWCHANNELSTEST0"
SECRET = "neverwritethisdown/FewChannels+0123456789"
TIMEOUT_S = 1.0
_HOP = {"connection", "keep-alive", "transfer-encoding"}
_BLOCK = 2**16

ERROR = "error"  # 500; the request is not passed on
SLOW_DOWN = "slow_down"  # 503, as S3 asks for patience
SLOW = "slow"  # passed on, and answered after the client's time-out
RESET_BEFORE = "reset_before"  # the connection breaks and the request is not passed on
RESET_AFTER = "reset_after"  # passed on, and the connection breaks: the answer is lost
TRUNCATED = "truncated"  # passed on, and the connection ends half way through the answer
KILL_BEFORE = "kill_before"  # the client is killed, and its request not passed on
KILL_AFTER = "kill_after"  # passed on, and the client is killed before it is answered
FAULTS = (ERROR, SLOW_DOWN, SLOW, RESET_BEFORE, RESET_AFTER, TRUNCATED)
_STATUS = {ERROR: (500, "InternalError"), SLOW_DOWN: (503, "SlowDown"), "refusing": (403, "AccessDenied")}


class S3Server:
    """The server and its proxy, and what went through: from :func:`s3_server`.

    Attributes:
        url: of the proxy, for clients under test.
        direct_url: of the server itself, for those who check.
        rate: probability of each kind of fault, for every request.
        refusing: answer 403 to everything.
        requests: how many came, by method.
        changes: requests that change something since :meth:`strike`: method, path and query.
        faults: how many were made to fail, by kind.
    """

    def __init__(self, direct_url: str, seed: int) -> None:
        self.direct_url = direct_url
        self.rate = 0.0
        self.refusing = False
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.changes: list[str] = []
        self._strike: tuple[int, str, Callable[[], None]] = (0, "", lambda: None)
        self._random = random.Random(seed)
        self._planned: deque[tuple[str, str, str]] = deque()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._up: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client's environment needs."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "FEWCHANNELS_REQUEST_TIMEOUT_S": str(TIMEOUT_S),
        }

    def client(self) -> Any:
        """A boto3 client of the server itself."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.direct_url,
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def keys(self, prefix: str) -> dict[str, str]:
        """The ETag of every object below a prefix, by key, as boto3 lists them."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {each["Key"]: each["ETag"] for page in pages for each in page.get("Contents", [])}

    def read(self, key: str) -> bytes:
        """An object as boto3 reads it."""
        return bytes(self.client().get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def plan(self, kind: str, method: str, key: str = "", times: int = 1) -> None:
        """Make the next requests of a method, whose path and query contain a text, fail in one way."""
        self._planned.extend([(kind, method, key)] * times)

    def strike(self, at: int = 0, kind: str = "", kill: Callable[[], None] = lambda: None) -> None:
        """Count requests that change something from 0 again, and make one of them fail.

        Args:
            at: which, from 1; 0 for none.
            kind: ``KILL_BEFORE``, ``KILL_AFTER``, ``SLOW_DOWN``; or ``ERROR``, of that one and all that come then.
            kill: ends the client.
        """
        with self._lock:
            self.changes, self._strike = [], (at, kind, kill)

    @contextmanager
    def failing(self, rate: float) -> Iterator[None]:
        """Every kind of fault at a rate, while the context lasts."""
        self.rate = rate
        try:
            yield
        finally:
            self.rate = 0.0

    def start(self) -> None:
        """Answer, at the same address as before."""
        self._ended.clear()
        self._up = _Proxy((HOST, self._port), _Handler)
        self._up.owner = self
        self._port = self._up.server_address[1]
        self._thread = threading.Thread(target=self._up.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections, and break those that are open; the server keeps its objects."""
        assert self._up is not None
        assert self._thread is not None
        self._ended.set()
        self._up.shutdown()
        self._up.socket.close()
        self._thread.join()
        with self._lock:
            for each in self._open:
                _reset(each)
            self._open.clear()

    def fault(self, method: str, target: str) -> str | None:
        """What shall happen to a request."""
        with self._lock:
            self.requests[method] += 1
            kind = self._struck(method, target)
            if kind:
                pass
            elif self._planned and method == self._planned[0][1] and self._planned[0][2] in target:
                kind = self._planned.popleft()[0]
            elif (drawn := self._random.random()) < self.rate * len(FAULTS):
                kind = FAULTS[int(drawn / self.rate)]
            if kind:
                self.faults[kind] += 1
        return "refusing" if self.refusing else kind

    def _struck(self, method: str, target: str) -> str | None:
        if method not in ("PUT", "POST", "DELETE"):
            return None
        self.changes.append(f"{method} {target}")
        at, kind, _ = self._strike
        return kind if at and (len(self.changes) == at or (kind == ERROR and len(self.changes) > at)) else None

    def kill(self) -> None:
        """End the client of the strike."""
        self._strike[2]()

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)

    def wait(self, seconds: float) -> None:
        """Let time pass, unless the proxy is stopped."""
        self._ended.wait(seconds)


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128
    owner: S3Server

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.owner.opened(self.connection)
        self.upstream: HTTPConnection | None = None

    def finish(self) -> None:
        self.server.owner.closed(self.connection)
        if self.upstream:
            self.upstream.close()
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the counters say what happened."""

    def handle_any(self) -> None:
        owner = self.server.owner
        kind = owner.fault(self.command, self.path)
        if kind == KILL_BEFORE:
            owner.kill()
        if kind in (RESET_BEFORE, KILL_BEFORE):
            self._break()
        elif kind in _STATUS:
            self._drain()
            self._refuse(*_STATUS[kind])
        else:
            answer = self._pass_on()
            if kind == SLOW:
                owner.wait(2 * TIMEOUT_S)
            if kind in (SLOW, RESET_AFTER, KILL_AFTER):
                answer.read()
                if kind == KILL_AFTER:
                    owner.kill()
                self._break()
            else:
                self._answer(answer, cut=kind == TRUNCATED)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

    def _body(self) -> Iterator[bytes]:
        left = int(self.headers.get("Content-Length", 0))
        while left:
            block = self.rfile.read(min(left, _BLOCK))
            if not block:
                raise ConnectionError("the client went away")
            left -= len(block)
            yield block

    def _drain(self) -> None:
        for _ in self._body():
            pass

    def _pass_on(self) -> HTTPResponse:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        address = self.server.owner.direct_url.removeprefix("http://")
        self.upstream = HTTPConnection(address, timeout=60)
        body = self._body() if "Content-Length" in self.headers else None
        self.upstream.request(self.command, self.path, body=body, headers=headers)
        return self.upstream.getresponse()

    def _refuse(self, status: int, code: str) -> None:
        # S3 tells a client whose signature is wrong its own key, and what it signed.
        about = f"<Message>as asked for</Message><AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId>"
        body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code>{about}</Error>'.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _answer(self, answer: HTTPResponse, cut: bool) -> None:
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
        lines += [f"{name}: {value}" for name, value in answer.getheaders() if name.lower() not in _HOP]
        chunked = answer.getheader("Content-Length") is None and answer.status not in (204, 304)
        if chunked and self.command != "HEAD":
            lines.append("Transfer-Encoding: chunked")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        size = 0 if self.command == "HEAD" else int(answer.getheader("Content-Length") or 0)
        if cut and not size:
            self.wfile.write(head[: len(head) // 2])
            self._break()
            return
        self.wfile.write(head)
        left = size // 2 if cut else size
        while chunked or left:
            block = answer.read(_BLOCK if chunked else min(left, _BLOCK))
            if not block:
                break
            left -= len(block)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
        if cut:
            self._break()
        elif chunked and self.command != "HEAD":
            self.wfile.write(b"0\r\n\r\n")

    def _break(self) -> None:
        self.close_connection = True
        _reset(self.connection)


def _reset(connection: socket.socket) -> None:
    try:
        # Lingering for no time makes the kernel send a reset in place of an orderly end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    except OSError:
        return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the S3 server did not start"
        try:
            connection = HTTPConnection(HOST, port, timeout=5)
            connection.request("GET", "/moto-api/")
            connection.getresponse().read()
            return
        except (OSError, HTTPException):
            time.sleep(0.05)
    raise TimeoutError("the S3 server does not answer")


@contextmanager
def s3_server(seed: int = 0) -> Iterator[S3Server]:
    """An S3 server with an empty bucket, for as long as the context lasts."""
    port = _free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_it_answers(port, process)
        server = S3Server(f"http://{HOST}:{port}", seed)
        server.client().create_bucket(Bucket=BUCKET)
        try:
            yield server
        finally:
            server.stop()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
