"""A stand-in for the Hugging Face Hub on the loopback: what its client asks to create, fill, list and read a dataset.

It keeps commits and contents, checks what it is sent (tokens, parents of commits, digests of large files), and answers
as the Hub does: small files in the commit itself, large ones by Git LFS. It has no Xet storage, so the client must have
HF_HUB_DISABLE_XET.
"""

import base64
import fnmatch
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

TOKEN = "hf_neverWriteThisDown0123456789"
OWNER = "my-lab"
_ATTRIBUTES = "".join(f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("parquet", "bin", "png", "zip"))
_LARGE_BYTES = 10 * 2**20
_PAGE = 20


@dataclass
class Repo:
    """A dataset: its visibility, and every commit's files, by path, latest commit last."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: dict[str, set[str]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The latest commit."""
        return next(reversed(self.commits))

    @property
    def files(self) -> dict[str, bytes]:
        """The latest files."""
        return self.commits[self.head]

    def add(self, files: Mapping[str, bytes], large: set[str]) -> str:
        """Make a commit with these files; returns its name."""
        parent = self.head if self.commits else ""
        listing = json.dumps([parent, *((path, _blob(data)) for path, data in sorted(files.items()))])
        oid = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[oid], self.large[oid] = dict(files), large
        return oid


class HubServer:
    """The Hub, and what it was asked: from :func:`hub_server`.

    Attributes:
        url: for HF_ENDPOINT.
        content_url: where large files are read from.
        repos: datasets by name.
        requests: method and path of every request.
        uploaded: digests of the large files that were sent, in their order.
        fail: method, pattern of a path, how many such requests pass before one fails, and the status it fails with.
    """

    def __init__(self) -> None:
        self.url = self.content_url = ""
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.uploaded: list[str] = []
        self.fail: tuple[str, str, int, int] | None = None
        self.lock = threading.Lock()

    def count(self, method: str, pattern: str) -> int:
        """How many requests of a method had a path that a pattern matches."""
        return sum(each == method and bool(re.search(pattern, path)) for each, path in self.requests)

    def make(self, name: str, files: Mapping[str, bytes], *, private: bool = False) -> Repo:
        """A dataset that somebody else has made, of small files."""
        repo = self.repos[name] = Repo(private)
        repo.add({".gitattributes": _ATTRIBUTES.encode()} | dict(files), set())
        return repo

    def failure(self, method: str, path: str) -> int:
        """The status with which a request fails; 0 where it does not. Only one request does."""
        if self.fail is None or self.fail[0] != method or not re.search(self.fail[1], path):
            return 0
        method, pattern, left, status = self.fail
        self.fail = None if left == 0 else (method, pattern, left - 1, status)
        return status if left == 0 else 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            if status := self.hub.failure(self.command, path):
                return self._answer(status, {"error": "the disk of the server is full"})
            for method, pattern, handler in _ROUTES:
                if method == self.command and (found := re.fullmatch(pattern, path)):
                    return handler(self, body, parse_qs(parts.query), **found.groupdict())
        return self._answer(404, {"error": f"no route for {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _answer(self, status: int, content: Any = None, headers: Mapping[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if isinstance(content, dict) and "error" in content:
            self.send_header("X-Error-Message", content["error"])
        for name, value in ({"Content-Length": str(len(data))} | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _user(self) -> str | None:
        """Whose token it is: the owner's; ``""`` without a token, None with a wrong one."""
        given = self.headers.get("Authorization")
        return "" if given is None else OWNER if given == f"Bearer {TOKEN}" else None

    def _repo(self, name: str, *, to_write: bool = False) -> Repo | None:
        """A dataset that the token may read or write; None where an error was answered."""
        user, repo = self._user(), self.hub.repos.get(name)
        if user is None:
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        elif repo is None or (repo.private and not user):
            lost = {"error": "Repository not found"}
            self._answer(404 if user else 401, lost, {"X-Error-Code": "RepoNotFound"})
        elif to_write and user != name.split("/")[0]:
            self._answer(403 if user else 401, {"error": "You don't have the rights to write to this repository"})
        else:
            return repo
        return None

    def _commit(self, repo: Repo, revision: str) -> str | None:
        oid = repo.head if revision == "main" else revision
        if oid in repo.commits:
            return oid
        self._answer(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
        return None

    def create(self, body: bytes, _: Any) -> None:
        asked = json.loads(body)
        name, user = f"{asked['organization'] or OWNER}/{asked['name']}", self._user()
        assert asked["type"] == "dataset"
        if not user:
            return self._answer(401, {"error": "Invalid username or password."})
        if name.split("/")[0] != user:
            return self._answer(403, {"error": f"You don't have the rights to create a dataset under {name}"})
        if name in self.hub.repos:
            return self._answer(409, {"error": "You already created this dataset repo"})
        private = asked.get("visibility", "public") == "private" or asked.get("private") is True
        self.hub.make(name, {}, private=private)
        return self._answer(200, {"url": f"{self.hub.url}/datasets/{name}"})

    def about(self, _: bytes, __: Any, name: str, revision: str | None = None) -> None:
        if (repo := self._repo(name)) and (oid := self._commit(repo, revision or "main")):
            self._answer(200, {"id": name, "sha": oid, "private": repo.private, "siblings": []})

    def tree(self, _: bytes, query: dict[str, list[str]], name: str, revision: str) -> None:
        if not (repo := self._repo(name)) or not (oid := self._commit(repo, revision)):
            return
        entries: list[dict[str, Any]] = []
        for path, data in sorted(repo.commits[oid].items()):
            entries.append({"type": "file", "path": path, "size": len(data), "oid": _blob(data)})
            if path in repo.large[oid]:
                entries[-1]["lfs"] = {"oid": _sha(data), "size": len(data), "pointerSize": 130}
        start = int(query.get("cursor", ["0"])[0])
        more = f"{self.hub.url}/api/datasets/{name}/tree/{quote(revision)}?recursive=true&cursor={start + _PAGE}"
        link = {"Link": f'<{more}>; rel="next"'} if start + _PAGE < len(entries) else {}
        self._answer(200, entries[start : start + _PAGE], link)

    def preupload(self, body: bytes, _: Any, name: str, revision: str) -> None:
        if not (repo := self._repo(name, to_write=True)):
            return
        patterns = [line.split()[0] for line in repo.files[".gitattributes"].decode().splitlines() if "lfs" in line]
        answers = []
        for each in json.loads(body)["files"]:
            sample = base64.b64decode(each["sample"])
            matches = any(fnmatch.fnmatch(each["path"].rpartition("/")[2], pattern) for pattern in patterns)
            is_large = matches or each["size"] > _LARGE_BYTES or b"\0" in sample
            there = repo.files.get(each["path"])
            oid = None if there is None else _sha(there) if is_large else _blob(there)
            mode = "lfs" if is_large else "regular"
            answers.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer(200, {"files": answers})

    def batch(self, body: bytes, _: Any, name: str) -> None:
        if not self._repo(name, to_write=True):
            return
        objects = []
        for each in json.loads(body)["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}
            objects.append(each | ({} if each["oid"] in self.hub.stored else {"actions": action}))
        self._answer(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, _: Any, oid: str) -> None:
        if _sha(body) != oid:
            return self._answer(400, {"error": "the digest differs"})
        self.hub.stored[oid] = body
        self.hub.uploaded.append(oid)
        return self._answer(200, {})

    def commit(self, body: bytes, _: Any, name: str, revision: str) -> None:
        if not (repo := self._repo(name, to_write=True)):
            return None
        lines = [json.loads(line) for line in body.splitlines()]
        assert lines[0]["key"] == "header"
        if lines[0]["value"].get("parentCommit", repo.head) != repo.head:
            return self._answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        files, large = dict(repo.files), set(repo.large[repo.head])
        for line in lines[1:]:
            value = line["value"]
            large.discard(value["path"])
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.stored:
                    return self._answer(400, {"error": f"{value['path']} was not uploaded"})
                files[value["path"]] = self.hub.stored[value["oid"]]
                large.add(value["path"])
            else:
                assert line["key"] == "deletedFile", line["key"]
                del files[value["path"]]
        oid = repo.add(files, large)
        return self._answer(200, {"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{oid}", "commitOid": oid})

    def validate(self, body: bytes, _: Any) -> None:
        assert json.loads(body)["repoType"] == "dataset"
        self._answer(200, {"errors": [], "warnings": []})

    def resolve(self, _: bytes, __: Any, name: str, revision: str, path: str) -> None:
        if not (repo := self._repo(name)) or not (oid := self._commit(repo, revision)):
            return None
        if path not in repo.commits[oid]:
            return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        data = repo.commits[oid][path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_blob(data)}"'}
        if path not in repo.large[oid]:
            return self._answer(200, data, headers)
        linked = {"X-Linked-Etag": f'"{_sha(data)}"', "X-Linked-Size": str(len(data))}
        return self._answer(302, b"", headers | linked | {"Location": f"{self.hub.content_url}/{_sha(data)}"})

    def content(self, _: bytes, __: Any, oid: str) -> None:
        assert "Authorization" not in self.headers
        data, headers = self.hub.stored[oid], {"ETag": f'"{oid}"'}
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(found[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._answer(206, data[start:], headers)
        return self._answer(200, data, headers)


_NAME = r"(?P<name>[^/]+/[^/]+)"
_ROUTES = (
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("GET", rf"/api/datasets/{_NAME}", _Handler.about),
    ("GET", rf"/api/datasets/{_NAME}/revision/(?P<revision>.+)", _Handler.about),
    ("GET", rf"/api/datasets/{_NAME}/tree/(?P<revision>[^/]+)", _Handler.tree),
    ("POST", rf"/api/datasets/{_NAME}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"/api/datasets/{_NAME}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", rf"/datasets/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.put),
    ("HEAD", rf"/datasets/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("GET", rf"/datasets/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("GET", r"/cdn/(?P<oid>[0-9a-f]{64})", _Handler.content),
)


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A Hub with no datasets."""
    hub = HubServer()
    handler = type("_Of", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.content_url = f"http://localhost:{server.server_port}/cdn"  # another host, to which no token may be sent
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def environment(hub: HubServer) -> dict[str, str]:
    """What makes a process of its own talk to the stand-in, with the owner's token."""
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


@contextmanager
def connected(hub: HubServer) -> Iterator[None]:
    """The Hub's client of this process talks to the stand-in, with the owner's token, as long as the context lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        for name, value in (
            ("ENDPOINT", hub.url),
            ("HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
            ("HF_TOKEN_PATH", os.devnull),
        ):
            patch.setattr(f"huggingface_hub.constants.{name}", value)
        impatient = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})  # between the client's retries
        patch.setattr("huggingface_hub.utils._http.time", impatient)
        yield
