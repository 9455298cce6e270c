"""Where a run lives: a folder or an object store (``s3://``, ``gs://``, ``az://``), behind one set of verbs.

Every verb is whole or not at all: a reader never sees half an object, and what :meth:`Storage.put` has returned from
is durable. What each kind of store must offer for that is in ``schemas/store.md``.
"""

import io
import os
import platform
import re
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from crc32c import crc32c

from engine import remote
from engine.errors import InputError, StorageError

SCHEMES = ("s3", "gs", "az")
_MULTIPART_BYTES = 16 * 2**20
_READ_AHEAD_BYTES = 2**20
_NO_UPLOAD = "NoSuchUpload"
_BYTES_PER_WRITE = 2**20
_BUFFERS_PER_WRITE = 512  # half of what POSIX lets one writev take

Buffer = bytes | memoryview
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Stored:
    """An object that was stored: its size, and the CRC-32C of its bytes as 8 hex digits."""

    n_bytes: int
    crc32c: str

    @classmethod
    def of(cls, parts: Iterable[Buffer]) -> "Stored":
        """What an object made of these parts, one after another, is."""
        n_bytes = checksum = 0
        for part in parts:
            n_bytes += len(part)
            checksum = crc32c(part, checksum)
        return cls(n_bytes, f"{checksum:08x}")


class Storage(ABC):
    """Objects by key, such as ``ledger/00000.json``. Keys have forward slashes on every system.

    Attributes:
        url: where it is, as a path or URL without credentials.
    """

    url: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return open_storage, (self.url,)

    @abstractmethod
    def put(self, key: str, parts: Iterable[Buffer]) -> Stored:
        """Store an object, its parts one after another, durably and whole. Safe to repeat: it replaces the object.

        Raises:
            StorageError: the store refused; nothing is there under the key, or what was there before.
        """

    @abstractmethod
    def get(self, key: str) -> bytes:
        """An object's bytes.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: it cannot be read.
        """

    @abstractmethod
    def open(self, key: str) -> BinaryIO:
        """An object as a file for random access; raises as :meth:`get` does."""

    @abstractmethod
    def list(self, prefix: str = "") -> dict[str, int]:
        """Keys that begin with a prefix, ascending, with their sizes in bytes; unfinished objects are not among them.

        Args:
            prefix: empty, or whole parts of a key that end in a slash.

        Raises:
            StorageError: the store refused.
        """

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; one that is not there is no error.

        Raises:
            StorageError: the store refused.
        """

    @abstractmethod
    def location(self, key: str) -> str:
        """The path or URL by which :meth:`filesystem`, or DuckDB with it, finds an object."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """An object's size in bytes; None where there is no such object.

        Raises:
            StorageError: the store refused.
        """

    def exists(self, key: str) -> bool:
        """Whether there is an object of that key."""
        return self.size(key) is not None

    def clean(self) -> int:
        """Remove what interrupted puts have left; returns how many. Only while nobody writes."""
        return 0

    def free_bytes(self) -> int | None:
        """Bytes that are free; None where there is no limit to ask for."""
        return None


def open_storage(url: str | Path) -> Storage:
    """The storage at a path or URL; nothing is read or written yet.

    Object stores take their credentials and endpoints from the environment, as their own tools do
    (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME``,
    instance roles, ...).

    Raises:
        InputError: an unknown kind of URL, or one with credentials in it.
    """
    text = str(url)
    if "://" not in text:
        return FolderStorage(Path(text))
    parts = urlsplit(text)
    if parts.scheme == "file":
        return FolderStorage(Path(parts.path))
    if parts.scheme not in SCHEMES:
        raise InputError(
            f"{parts.scheme}:// is no place for a run; give a folder, or a URL that begins with "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}."
        )
    if re.search("[:@]", parts.netloc) or parts.query or parts.fragment:  # a secret may have a slash, an @ after it
        raise InputError(
            f"the URL {parts.scheme}://... of the run has credentials or options in it; they would end up in logs. "
            "Give the bare URL, and credentials through the environment, as the store's own tools take them."
        )
    if not re.fullmatch(r"[\w.-]+", parts.netloc):
        raise InputError(f"{text!r} names no bucket; give {parts.scheme}://BUCKET/RUN.")
    path = parts.path.rstrip("/")
    if re.search(r"[*\[\]%\\]|//|/\.\.?(/|$)", path):  # not every reader means the same by them
        raise InputError(f"{text!r} has *, [, ], %, \\, // or a part of dots in it; choose a plain name for the run.")
    return ObjectStorage(f"{parts.scheme}://{parts.netloc}{path}")


class FolderStorage(Storage):
    """A folder. Needs rename that is atomic, fsync of files and folders, and flock where captures may meet."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.url = str(path)

    def put(self, key: str, parts: Iterable[Buffer]) -> Stored:
        path = self.path / key
        # Two attempts at one task may overlap on a cluster: each has its own unfinished file.
        writer = f"{platform.node()}-{os.getpid()}-{threading.get_ident()}"
        temporary = path.with_name(f".{path.name}.{writer}.tmp")
        with self._refusals("write", key):
            try:
                self._make_folder(path.parent)
                stored = _write_file(temporary, parts)
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _make_durable(path.parent)
        return stored

    def get(self, key: str) -> bytes:
        with self._refusals("read", key):
            return (self.path / key).read_bytes()

    def open(self, key: str) -> BinaryIO:
        with self._refusals("read", key):
            return (self.path / key).open("rb")

    def list(self, prefix: str = "") -> dict[str, int]:
        with self._refusals("list", prefix):
            found = {
                entry.path.removeprefix(f"{self.path}{os.sep}").replace(os.sep, "/"): entry.stat().st_size
                for entry in _files(self.path / prefix)
                if not entry.name.startswith(".")
            }
        return dict(sorted(found.items()))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with self._refusals("delete", key):
                (self.path / key).unlink(missing_ok=True)

    def location(self, key: str) -> str:
        return str(self.path / key)

    def size(self, key: str) -> int | None:
        path = self.path / key
        with self._refusals("look at", key):
            return path.stat().st_size if path.is_file() else None

    def clean(self) -> int:
        with self._refusals("clean", ""):
            left = [entry.path for entry in _files(self.path) if re.fullmatch(r"\..+\.tmp", entry.name)]
            for path in left:
                os.unlink(path)
        return len(left)

    def free_bytes(self) -> int | None:
        existing = next(path for path in (self.path, *self.path.parents) if path.exists())
        return shutil.disk_usage(existing).free

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            _make_durable(folder.parent)

    @contextmanager
    def _refusals(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            if verb == "read":
                raise
            raise StorageError(f"cannot {verb} {key!r} in {self.url!r}: the folder is not there.") from None
        except OSError as error:
            raise StorageError(f"cannot {verb} {key!r} in {self.url!r}: {error.strerror or error}") from error


class ObjectStorage(Storage):
    """A bucket's objects below a prefix. Needs strong read-after-write, and conditional puts for its lease."""

    def __init__(self, url: str, patience_s: float | None = None) -> None:
        """As :func:`open_storage` does, with another patience than the environment's where one is given."""
        from obstore.store import from_url

        self.url = url
        self._scheme = urlsplit(url).scheme
        self._patience_s = remote.retry_seconds() if patience_s is None else patience_s
        self.store: Any = self._ask("open", "", lambda: from_url(url, **remote.options(patience_s)))

    def put(self, key: str, parts: Iterable[Buffer]) -> Stored:
        import obstore

        parts = list(parts)  # its size decides how, and a request may be sent again
        stored, options = Stored.of(parts), {"chunk_size": _MULTIPART_BYTES, "max_concurrency": 4}
        if stored.n_bytes <= _MULTIPART_BYTES:
            whole = b"".join(parts)
            self._ask("write", key, lambda: obstore.put(self.store, key, whole, use_multipart=False))
        else:
            self._ask("write", key, lambda: obstore.put(self.store, key, iter(parts), use_multipart=True, **options))
        return stored

    def get(self, key: str) -> bytes:
        import obstore

        return self._ask("read", key, lambda: obstore.get(self.store, key).bytes().to_bytes())

    def open(self, key: str) -> BinaryIO:
        import obstore

        def read(start: int, end: int) -> bytes:
            return self._ask("read", key, lambda: bytes(obstore.get_range(self.store, key, start=start, end=end)))

        size = self._ask("read", key, lambda: obstore.head(self.store, key)["size"])
        return io.BufferedReader(remote.RangeFile(read, size), _READ_AHEAD_BYTES)

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

    def location(self, key: str) -> str:
        return f"{self.url}/{key}"

    def size(self, key: str) -> int | None:
        import obstore

        try:
            return self._ask("read", key, lambda: obstore.head(self.store, key)["size"])
        except FileNotFoundError:
            return None

    def filesystem(self) -> Any:
        """The object store as an fsspec file system, for readers such as DuckDB."""
        from obstore.fsspec import FsspecStore

        return FsspecStore(self._scheme, skip_instance_cache=True, **remote.options())

    def get_tagged(self, key: str) -> tuple[bytes, Any] | None:
        """An object with a tag that changes whenever it does; None where there is none."""
        import obstore

        def get() -> tuple[bytes, Any]:
            found = obstore.get(self.store, key)
            tag = {name: found.meta[name] for name in ("e_tag", "version") if found.meta[name] is not None}
            return found.bytes().to_bytes(), tag

        try:
            return self._ask("read", key, get)
        except FileNotFoundError:
            return None

    def put_if(self, key: str, data: bytes, tag: Any | None) -> bool:
        """Store an object only if it is still the tagged one (None: only if there is none); False where it is not.

        A put whose answer was lost is sent again and then finds its own object: that counts as stored. So no two
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
        """A request's answer. obstore sends some again itself, but none with a condition, nor after half an answer."""
        from obstore.exceptions import BaseError, GenericError

        started, pause = time.monotonic(), remote.FIRST_PAUSE_S
        while True:
            try:
                return request()
            except (BaseError, OSError) as error:
                if isinstance(error, FileNotFoundError) and verb == "read":
                    raise FileNotFoundError(f"there is no {self.location(key)}") from None
                # The end of a multipart upload that was sent again finds no upload: the first one had ended it.
                again = _NO_UPLOAD in str(error) or (isinstance(error, GenericError) and remote.may_pass(error))
                if verb == "open" or not again or time.monotonic() - started > self._patience_s:
                    raise StorageError(f"cannot {verb} {key!r} in {self.url!r}: {remote.reason(error)}") from None
            time.sleep(pause)
            pause = min(2 * pause, remote.LONGEST_PAUSE_S)


def _write_file(path: Path, parts: Iterable[Buffer]) -> Stored:
    n_bytes = checksum = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for batch in _batches(parts):
            expected = sum(map(len, batch))
            if (written := os.writev(descriptor, batch)) < expected:  # at 2 GiB at the latest
                _write_rest(descriptor, batch, written)
            if hasattr(os, "posix_fadvise"):
                # The kernel begins to write these back now, and not only when fsync asks.
                os.posix_fadvise(descriptor, n_bytes, expected, os.POSIX_FADV_DONTNEED)
            n_bytes += expected
            for part in batch:
                checksum = crc32c(part, checksum)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Stored(n_bytes, f"{checksum:08x}")


def _batches(parts: Iterable[Buffer]) -> Iterator[list[Buffer]]:
    batch: list[Buffer] = []
    n_bytes = 0
    for part in parts:
        batch.append(part)
        n_bytes += len(part)
        if n_bytes >= _BYTES_PER_WRITE or len(batch) == _BUFFERS_PER_WRITE:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch


def _write_rest(descriptor: int, parts: Sequence[Buffer], written: int) -> None:
    for part in parts:
        rest = memoryview(part)[min(written, len(part)) :]
        written -= min(written, len(part))
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name, so that readers see all of it or none of it, even after a crash."""
    _make_durable(temporary)
    os.replace(temporary, path)
    _make_durable(path.parent)


def _files(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        elif entry.is_file():
            yield entry
