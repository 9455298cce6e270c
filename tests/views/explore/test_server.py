"""The explorer's server under load and at its end: connections that are never finished, floods, signals."""

import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from browser import served
from command import Answer, line
from explorer import entered, explorer
from posted import body

from fewchannels.cli import explore
from fewchannels.views.explore import server as limits
from fewchannels.views.explore.opened import open_places
from fewchannels.views.explore.posts import MOST_BYTES
from fewchannels.views.explore.server import MOST_CONNECTIONS, Bound, bind

COMMAND = [str(Path(sys.executable).with_name("fewchannels")), "explore"]
SLOW = "select count(*) from range(1000000) a, range(1000000) b where a.range + b.range = 7"


@pytest.fixture
def bound() -> Iterator[Bound]:
    bound = bind({}, 0)
    with served(bound.server):
        yield bound


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = Path(__file__).parents[2] / "data" / "kept_runs" / "format_2"
    return Path(shutil.copytree(kept, tmp_path_factory.mktemp("served") / "run"))


def connected(bound: Bound) -> socket.socket:
    return socket.create_connection(("127.0.0.1", bound.site.port), timeout=30)


def trickled(client: socket.socket, byte: bytes) -> float:
    """Seconds for which a byte could be sent now and then, at most 20."""
    began = time.monotonic()
    while time.monotonic() < began + 20:
        try:
            client.sendall(byte)
        except ConnectionError:
            break
        time.sleep(0.1)
    return time.monotonic() - began


def said(bound: Bound, data: bytes) -> bytes:
    """All that the server answers to these bytes."""
    with connected(bound) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while part := client.recv(65536):
                found += part
        except ConnectionError:
            pass
        return found


def test_a_request_is_answered_between_many_that_are_never_finished(bound: Bound) -> None:
    with ExitStack() as stack:
        for _ in range(3 * MOST_CONNECTIONS):
            client = stack.enter_context(connected(bound))
            client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        began = time.monotonic()
        with urlopen(bound.address, timeout=300) as answer:
            assert answer.status == 200
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("start", [b"", b"GET /", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "])
def test_one_that_sends_a_byte_now_and_then_is_closed(
    start: bytes, bound: Bound, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECEIVE_S", 1.0)
    with connected(bound) as client:
        client.sendall(start)
        assert trickled(client, b"a") < 10


def test_a_body_that_never_ends_does_not_hold_a_connection(bound: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECEIVE_S", 1.0)
    headers = "".join(f"{name}: {value}\r\n" for name, value in entered(bound.address).items())
    head = f"POST /_dash-update-component HTTP/1.1\r\nHost: 127.0.0.1:{bound.site.port}\r\n{headers}"
    head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    with connected(bound) as client:
        client.sendall(head.encode())
        assert trickled(client, b" ") < 10


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Content-Length: {MOST_BYTES + 1}", b"413"),
        ("Transfer-Encoding: chunked", b"411"),
        ("X: " + "a" * 70_000, b"431"),
    ],
)
def test_what_is_too_large_is_refused(header: str, status: bytes, bound: Bound) -> None:
    host = f"Host: 127.0.0.1:{bound.site.port}\r\nContent-Type: application/json\r\n"
    own = "".join(f"{name}: {value}\r\n" for name, value in entered(bound.address).items())
    data = f"POST /_dash-update-component HTTP/1.1\r\n{host}{own}{header}\r\n\r\n".encode()
    assert said(bound, data).split()[1] == status


def test_without_a_token_no_bytes_get_more_than_a_refusal(bound: Bound, capfd: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(1)
    lines = [
        b"GET / HTTP/1.1",
        b"GET http://[ HTTP/1.1",
        b"GET http://evil.example/?token=%s HTTP/1.1",
        b"GET /%ff HTTP/1.1",
    ]
    lines += [
        b"GET //[/ HTTP/1.1",
        b"GET /?token=%C3%28 HTTP/1.1",
        b"POST / HTTP/1.1",
        b"GET /",
        b"\x16\x03\x01",
        b"PRI * HTTP/2.0",
    ]
    headers = [
        b"Host: 127.0.0.1:%d" % bound.site.port,
        b"Host: evil.example",
        b"Cookie: \xff=\xff; a",
        b"Host: [::1",
        b"Host:",
    ]
    headers += [
        b"Content-Length: x",
        b"Content-Length: -1",
        b"Expect: 100-continue",
        b"Content-Length: 5",
        b"Origin: \xff",
    ]
    for _ in range(150):
        parts = [chance.choice(lines), *chance.sample(headers, chance.randrange(4)), b"", b""]
        data = bytearray(b"\r\n".join(parts))
        for _ in range(chance.randrange(3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        answer = said(bound, bytes(data)).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
        assert not answer or answer.lower().startswith(b"<!doctype") or answer.split()[1][:1] in (b"4", b"5"), (
            data,
            answer,
        )
        assert b"Set-Cookie" not in answer
    assert capfd.readouterr() == ("", "")


def asked(address: str, sql: str) -> Request:
    """The post of a console's button."""
    base = address.partition("?")[0]
    own = entered(address) | {"Content-Type": "application/json"}
    with urlopen(Request(f"{base}_dash-dependencies", headers=own)) as answer:
        (callback,) = (each for each in json.load(answer) if "console-answer" in each["output"])
    place = {"name": "run", "path": "/run/run", "page": "0"}
    said = body(callback, [1, "(free SQL)", sql, [], [], place], [])
    said["state"][2:4] = [[], []]
    return Request(f"{base}_dash-update-component", json.dumps(said).encode(), own)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_question_ends_it_quietly(number: signal.Signals, run: Path) -> None:
    with explorer([*COMMAND, str(run)], run.parent) as (process, address):
        answers: list[str] = []
        question = asked(address, SLOW)
        thread = Thread(target=lambda: answers.append(urlopen(question, timeout=300).read().decode()))
        thread.start()
        time.sleep(2)
        assert thread.is_alive()
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(30) == 0
        assert time.monotonic() - began < 25
        thread.join()
        errors = process.stderr.read() if process.stderr else ""
        assert "Traceback" not in errors
        assert "terminate" not in errors
        assert address.partition("token=")[2] not in errors


def test_a_question_that_takes_too_long_is_stopped(run: Path) -> None:
    with explorer([*COMMAND, str(run), "--timeout", "1"], run.parent) as (_, address):
        answer = urlopen(asked(address, SLOW), timeout=300).read().decode()
        assert "took longer than 1 s" in answer
        large = urlopen(asked(address, "select repeat('x', 100000000) from range(100)"), timeout=300).read().decode()
        assert "role" in large
        assert "x" * 1000 not in large


def test_a_browsers_command_line_holds_no_token_that_opens_twice(run: Path, tmp_path: Path) -> None:
    script, opened = tmp_path / "browser", tmp_path / "opened"
    script.write_text(f'#!/bin/sh\necho "$1" > {opened}.new && mv {opened}.new {opened}\n', encoding="utf-8")
    script.chmod(0o700)
    given = os.environ | {"BROWSER": f"{script} %s"}
    with explorer([*COMMAND, str(run)], run.parent, given, opens_browser=True) as (_, address):
        deadline = time.monotonic() + 30
        while not opened.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        once = opened.read_text(encoding="utf-8").strip()
        assert address.partition("token=")[2] not in once
        assert "Cookie" in entered(once)
        with pytest.raises(HTTPError, match="403"):
            entered(once)
        assert "Cookie" in entered(address)


def test_a_browser_that_waits_for_its_page_gets_it(run: Path, tmp_path: Path) -> None:
    script, page = tmp_path / "fetch.py", tmp_path / "page"
    script.write_text(
        "import sys, urllib.request\n"
        "text = urllib.request.urlopen(sys.argv[1], timeout=300).read()\n"
        f"open({str(page)!r}, 'wb').write(text)\n",
        encoding="utf-8",
    )
    given = os.environ | {"BROWSER": f"{sys.executable} {script} %s"}  # without & behind it: it is waited for
    with explorer([*COMMAND, str(run)], run.parent, given, opens_browser=True):
        deadline = time.monotonic() + 30
        while not page.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "data-key" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "opens"), [("/usr/bin/w3m", False), ("lynx", False), ("www-browser", False), ("firefox", True)]
)
def test_no_text_browser_is_started(name: str, opens: bool, bound: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    browser = SimpleNamespace(name=name, open=opened.append)
    monkeypatch.setattr("webbrowser.get", lambda: browser)
    explore._open(bound)
    assert len(opened) == opens


def test_a_place_is_named_after_its_folder_however_its_path_ends(run: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(run, tmp_path / name / "RUN")
    (tmp_path / "one" / "RUN" / "inside").mkdir()
    with contextlib.chdir(tmp_path / "one" / "RUN"):
        for path in (".", "./", "../RUN/", "../RUN/.", "../../two/RUN", str(tmp_path / "one" / "RUN")):
            assert list(open_places([path])) == ["RUN"]
        assert list(open_places([".", "../../two/RUN/."])) == ["RUN", "RUN-2"]
        with contextlib.chdir("inside"):
            assert list(open_places([".."])) == ["RUN"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["s3://key:secret@bucket/run"], "credentials"),
        (["nothing"], "is not a run|no folder"),
        (["RUN", "--timeout", "nan"], "86400"),
        (["RUN", "--public-url", "https://ann:secret@hub/"], "Give its scheme, host and path"),
    ],
)
def test_what_cannot_work_ends_with_2(words: list[str], says: str, run: Path) -> None:
    given = [*(str(run) if word == "RUN" else word for word in words), "--no-browser", "--port", "0"]
    if words == ["nothing"]:  # one of them as a process of its own
        ended = subprocess.run(
            [*COMMAND, *given], cwd=run.parent, capture_output=True, text=True, timeout=300, check=False
        )
        done = Answer(ended.returncode, ended.stdout, ended.stderr)
    else:
        done = line(shlex.join(["fewchannels", "explore", *given]), run.parent)
    assert (done.code, done.stdout) == (2, "")
    assert re.search(says, done.stderr)
    assert "secret" not in done.stderr
