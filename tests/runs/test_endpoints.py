"""Object stores that are named wrongly, that are none, or that refuse: told in words, and without what is secret."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import s3_server as s3
from typer.testing import CliRunner

from fewchannels.cli import app
from fewchannels.errors import FewchannelsError, InputError, StorageError, without_secrets
from fewchannels.runs.storage import ObjectStorage, open_storage

PASSWORD = "pa55/w@rd:2?x"
VERBS: dict[str, Callable[[ObjectStorage], object]] = {
    "get": lambda storage: storage.get("run.json"),
    "open": lambda storage: storage.open("run.json"),
    "list": lambda storage: storage.list(),
    "size": lambda storage: storage.size("run.json"),
    "put": lambda storage: storage.put("x", [b"1"]),
    "delete": lambda storage: storage.delete(["x"]),
    "get_tagged": lambda storage: storage.get_tagged("lease.json"),
    "put_if": lambda storage: storage.put_if("lease.json", b"1", None),
}


@contextmanager
def answering(status: int, body: bytes, kind: str = "application/xml") -> Iterator[str]:
    """The URL of a server that answers every request alike."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            about = {"Content-Type": kind, "ETag": '"x"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
            for name, value in (about | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815 - the names that it asks for

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def refusal(code: str, message: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"AWS_ACCESS_KEY_ID": s3.KEY_ID, "AWS_SECRET_ACCESS_KEY": s3.SECRET, "AWS_REGION": "us-east-1"}
    for name, value in (given | {"AWS_ALLOW_HTTP": "true", "FEWCHANNELS_RETRY_S": "0.5"}).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_tells_the_password_of_an_endpoint(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for endpoint in (
        "http://me:pa55word@127.0.0.1:9",
        "http://127.0.0.1:9/?sig=pa55word",
        "http://me:pa%2F55word@127.0.0.1:9",
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageError, match=r"127\.0\.0\.1:9") as refused:
            VERBS[verb](ObjectStorage("s3://bucket/run"))
        for text in (str(refused.value), str(refused.value.__cause__)):
            assert "55word" not in text


@pytest.mark.parametrize(
    "value",
    [
        "not a url",
        "127.0.0.1:9000",
        "localhost",
        "http://",
        "ftp://host",
        "http://host:port",
        f"http://me:{PASSWORD}@h:1",
    ],
)
def test_an_endpoint_that_is_no_url_is_named_with_its_variable(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(
                InputError, match=rf"{name} is .*; it must be a URL such as https://HOST:PORT"
            ) as refused:
                open_storage("s3://bucket/run")
            assert PASSWORD not in str(refused.value)
            assert "w@rd" not in str(refused.value)


def test_plain_http_needs_to_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    open_storage("s3://bucket/run")
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(InputError, match=r"AWS_ENDPOINT_URL is 'http://127.0.0.1:9'.*AWS_ALLOW_HTTP=true"):
        open_storage("s3://bucket/run")


@pytest.mark.parametrize("command", [["runs", "show"], ["sql", "RUN", "select 1"], ["report", "-o", "r.html"]])
def test_a_networks_login_page_is_no_object_store(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    url = "s3://bucket/run"
    words = [url if word == "RUN" else word for word in command] + ([] if "RUN" in command else [url])
    with answering(200, b"<!DOCTYPE html><html>Welcome to the caf\xe9</html>", "text/html") as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        ended = CliRunner().invoke(app, words)
        assert isinstance(ended.exception, StorageError), ended
        assert "not an object store" in str(ended.exception)
        for verb in ("get", "list", "get_tagged"):  # with which every command begins
            with pytest.raises(StorageError, match="not an object store"):
                VERBS[verb](ObjectStorage(url))


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (400, "ExpiredToken", "Get new credentials"),
        (403, "InvalidAccessKeyId", "Check AWS_ACCESS_KEY_ID"),
        (403, "AccessDenied", "may read and write there"),
        (403, "RequestTimeTooSkewed", "clock"),
        (404, "NoSuchBucket", "Create the bucket"),
    ],
)
def test_a_refusal_is_told_with_what_to_do(
    status: int, code: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(status, refusal(code, "Because.")) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        for verb in ("get", "list", "put", "size", "get_tagged", "put_if"):
            if code == "NoSuchBucket" and verb == "size":
                continue  # a head tells no more than that there is nothing
            with pytest.raises(StorageError, match=rf"{code}: Because\. .*{remedy}"):
                VERBS[verb](ObjectStorage("s3://bucket/run"))


def test_errors_tell_no_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session/token==")
    text = f"{s3.SECRET} {s3.KEY_ID} session/token== https://u:p@h/x?sig=1 s3://b/run at a@b"
    assert without_secrets(text) == "... ... ... https://...@h/x?... s3://b/run at a@b"
    assert str(FewchannelsError(text)) == without_secrets(text)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("s3:/bucket/RUN", "has only one slash after s3:"),
        ("gs:/bucket/RUN", "has only one slash after gs:"),
        ("s3://bucket/RUN ", "a space at the beginning or end"),
        ("s3://bucket/ RUN", "a space at the beginning or end"),
        ("s3://bucket/a /RUN", "a space at the beginning or end"),
    ],
)
def test_a_name_that_means_another_place_is_refused(place: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_storage(place)


@pytest.mark.parametrize(
    "words",
    [
        ["capture", "--manifest", "s3://bucket/m.parquet", "--out", "s3://bucket/RUN"],
        ["manifest", "show", "s3://bucket/m.parquet"],
        ["manifest", "ingest", "s3://bucket/p.csv", "-o", "m.parquet"],
        ["demo", "--out", "s3://bucket/RUN"],
    ],
)
def test_a_file_in_a_bucket_is_told_from_one_that_is_not_there(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, words)
    assert isinstance(ended.exception, InputError), ended
    assert "'s3://bucket/" in str(ended.exception)
    assert "is a URL, but" in str(ended.exception)
    assert not list(tmp_path.iterdir())
