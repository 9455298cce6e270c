"""A run in a bucket: an object for each, below a prefix."""

import io
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from fewchannels.errors import StorageError
from fewchannels.runs.storage import requests
from fewchannels.runs.storage.base import Buffer, Storage, Stored
from fewchannels.runs.storage.endpoints import check_endpoint, check_is_store

_MULTIPART_BYTES = 16 * 2**20
_READ_AHEAD_BYTES = 2**20
_MOST_CLIENTS = 32
_SETTINGS = ("AWS_", "AZURE_", "GOOGLE_", "FEWCHANNELS_", "HTTP", "http", "NO_PROXY", "no_proxy", "SSL_CERT")
_NO_UPLOAD = "NoSuchUpload"
_NO_BUCKET = "NoSuchBucket"
_REFUSED = "status code: 4"

Answer = TypeVar("Answer")


@lru_cache(_MOST_CLIENTS)
def _client(url: str, patience_s: float | None, environment: frozenset[tuple[str, str]]) -> Any:
    """The client of a place: one per process, with its connections and credentials, until settings change."""
    from obstore.store import from_url

    return from_url(url, **requests.options(patience_s))


os.register_at_fork(after_in_child=_client.cache_clear)  # its threads exist only in the parent process


def _environment() -> frozenset[tuple[str, str]]:
    """All variables of the environment that a client uses."""
    return frozenset((name, value) for name, value in os.environ.items() if name.startswith(_SETTINGS))


class ObjectStorage(Storage):
    """A bucket's objects below a prefix. Needs strong read-after-write, and conditional puts for its lease."""

    def __init__(self, url: str, patience_s: float | None = None) -> None:
        """Same as ``open_storage``; ``patience_s``, if given, replaces the value of the environment."""
        self.url = url
        self._scheme = urlsplit(url).scheme
        check_endpoint(self._scheme)
        self._patience_s = requests.retry_seconds() if patience_s is None else patience_s
        self.store: Any = self._ask("open", "", lambda: _client(url, patience_s, _environment()))

    def put(self, key: str, parts: Iterable[Buffer]) -> Stored:
        import obstore

        parts = list(parts)  # its size determines how it is sent, and a request may be retried
        stored, options = Stored.of(parts), {"chunk_size": _MULTIPART_BYTES, "max_concurrency": 4}
        if stored.n_bytes <= _MULTIPART_BYTES:
            whole = b"".join(parts)
            self._ask("write", key, lambda: obstore.put(self.store, key, whole, use_multipart=False))
        else:
            self._ask("write", key, lambda: obstore.put(self.store, key, iter(parts), use_multipart=True, **options))
        return stored

    def get(self, key: str) -> bytes:
        import obstore

        data = self._ask("read", key, lambda: obstore.get(self.store, key).bytes().to_bytes())
        check_is_store(self.url, key, data)
        return data

    def open(self, key: str) -> BinaryIO:
        import obstore

        def read(start: int, end: int) -> bytes:
            return self._ask("read", key, lambda: bytes(obstore.get_range(self.store, key, start=start, end=end)))

        size = self._ask("read", key, lambda: obstore.head(self.store, key)["size"])
        return io.BufferedReader(requests.RangeFile(read, size), _READ_AHEAD_BYTES)

    def list(self, prefix: str = "") -> dict[str, int]:
        import obstore

        def found() -> dict[str, int]:
            pages = obstore.list(self.store, prefix or None)
            return {item["path"]: item["size"] for page in pages for item in page}

        return dict(sorted(self._ask("list", prefix, found).items()))

    def delete(self, keys: Iterable[str]) -> None:
        import obstore

        def delete(key: str) -> None:
            with suppress(FileNotFoundError):
                obstore.delete(self.store, key)

        for key in keys:
            self._ask("delete", key, partial(delete, key))

    def move(self, key: str, to: str) -> None:
        import obstore

        self.check_key(to)
        with suppress(FileNotFoundError):
            self._ask("read", key, lambda: obstore.copy(self.store, key, to))
            self.delete([key])

    def location(self, key: str) -> str:
        self.check_prefix(key)
        return f"{self.url}/{key}"

    def below(self, prefix: str) -> Storage:
        self.check_key(prefix)
        return ObjectStorage(f"{self.url}/{prefix}")

    def size(self, key: str) -> int | None:
        import obstore
        from obstore.exceptions import BaseError

        def size() -> int:
            try:
                return obstore.head(self.store, key)["size"]
            except BaseError as error:
                if isinstance(error, FileNotFoundError) or _REFUSED not in str(error):
                    raise
                # A response to HEAD has no body with the store's reason; a response to GET has one.
                return obstore.get(self.store, key).meta["size"]

        try:
            return self._ask("read", key, size)
        except FileNotFoundError:
            return None

    def filesystem(self) -> Any:
        """The object store as an fsspec file system, for readers such as DuckDB."""
        from obstore.fsspec import FsspecStore

        return FsspecStore(self._scheme, skip_instance_cache=True, **requests.options())

    def get_tagged(self, key: str) -> tuple[bytes, Any] | None:
        """An object with its version tag; None if it does not exist."""
        import obstore

        def get() -> tuple[bytes, Any]:
            found = obstore.get(self.store, key)
            tag = {name: found.meta[name] for name in ("e_tag", "version") if found.meta[name] is not None}
            return found.bytes().to_bytes(), tag

        try:
            data, tag = self._ask("read", key, get)
        except FileNotFoundError:
            return None
        check_is_store(self.url, key, data)
        return data, tag

    def create(self, key: str, data: bytes) -> bool:
        return self.put_if(key, data, None)

    def put_if(self, key: str, data: bytes, tag: Any | None) -> bool:
        """Store an object only if it is still the tagged one (None: only if there is none); False if it is not.

        A put whose response was lost is retried, and then finds its own object, which counts as stored. So no two
        writers may put the same bytes.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def put() -> bool:
            try:
                obstore.put(self.store, key, data, mode="create" if tag is None else tag, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                found = self.get_tagged(key)
                return found is not None and found[0] == data
            return True

        return self._ask("write", key, put)

    def _ask(self, verb: str, key: str, request: Callable[[], Answer]) -> Answer:
        """Send a request, with retries. obstore itself retries none with a condition or after a partial response."""
        from obstore.exceptions import BaseError, GenericError

        if verb != "open":
            (self.check_prefix if verb == "list" else self.check_key)(key)
        started, pause = time.monotonic(), requests.FIRST_PAUSE_S
        while True:
            try:
                return request()
            except (BaseError, OSError) as error:
                if isinstance(error, FileNotFoundError) and verb == "read" and _NO_BUCKET not in str(error):
                    raise FileNotFoundError(f"{self.location(key)} does not exist") from None
                # A retried completion of a multipart upload finds no upload, since the first request completed it.
                again = _NO_UPLOAD in str(error) or (isinstance(error, GenericError) and requests.may_pass(error))
                if verb == "open" or not again or time.monotonic() - started > self._patience_s:
                    raise StorageError(f"cannot {verb} {key!r} in {self.url!r}: {requests.reason(error)}") from None
            time.sleep(pause)
            pause = min(2 * pause, requests.LONGEST_PAUSE_S)
