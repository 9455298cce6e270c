"""Where a run lives: a folder or an object store (``s3://``, ``gs://``, ``az://``), behind one set of verbs.

Every verb is whole or not at all: a reader never sees half an object, and what :meth:`Storage.put` has returned from
is durable. What each kind of store must offer for that is in ``schemas/store.md``.
"""

import os
import platform
import re
import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from crc32c import crc32c

from engine.errors import InputError, StorageError

SCHEMES = ("s3", "gs", "az")
REQUEST_TIMEOUT_VARIABLE = "FEWCHANNELS_REQUEST_TIMEOUT_S"
_MULTIPART_BYTES = 16 * 2**20
_BUFFERS_PER_WRITE = 512  # half of what POSIX lets one writev take

Buffer = bytes | memoryview


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
    def put(self, key: str, parts: Sequence[Buffer]) -> Stored:
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

    def exists(self, key: str) -> bool:
        """Whether there is an object of that key."""
        try:
            self.open(key).close()
        except FileNotFoundError:
            return False
        return True

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
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InputError(
            f"the URL {parts.scheme}://... of the run has credentials or options in it; they would end up in logs. "
            "Give the bare URL, and credentials through the environment, as the store's own tools take them."
        )
    if not parts.netloc:
        raise InputError(f"{text!r} names no bucket; give {parts.scheme}://BUCKET/RUN.")
    return ObjectStorage(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}")


class FolderStorage(Storage):
    """A folder. Needs rename that is atomic, fsync of files and folders, and flock where captures may meet."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.url = str(path)

    def put(self, key: str, parts: Sequence[Buffer]) -> Stored:
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

    def exists(self, key: str) -> bool:
        return (self.path / key).is_file()

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

    def __init__(self, url: str) -> None:
        from obstore.store import from_url

        self.url = url
        self._scheme = urlsplit(url).scheme
        with self._refusals("open", ""):
            self.store = from_url(url, client_options=_client_options(), retry_config=_retries())

    def put(self, key: str, parts: Sequence[Buffer]) -> Stored:
        import obstore

        stored = Stored.of(parts)
        with self._refusals("write", key):
            if stored.n_bytes <= _MULTIPART_BYTES:
                obstore.put(self.store, key, b"".join(parts), use_multipart=False)
            else:
                obstore.put(
                    self.store, key, iter(parts), use_multipart=True, chunk_size=_MULTIPART_BYTES, max_concurrency=4
                )
        return stored

    def get(self, key: str) -> bytes:
        import obstore

        with self._refusals("read", key):
            return obstore.get(self.store, key).bytes().to_bytes()

    def open(self, key: str) -> BinaryIO:
        with self._refusals("read", key):
            return self.filesystem().open(self.location(key))

    def list(self, prefix: str = "") -> dict[str, int]:
        import obstore

        with self._refusals("list", prefix):
            found = {item["path"]: item["size"] for page in obstore.list(self.store, prefix or None) for item in page}
        return dict(sorted(found.items()))

    def delete(self, keys: Iterable[str]) -> None:
        import obstore

        for key in keys:
            with self._refusals("delete", key):
                try:
                    obstore.delete(self.store, key)
                except FileNotFoundError:
                    continue

    def location(self, key: str) -> str:
        return f"{self.url}/{key}"

    def exists(self, key: str) -> bool:
        import obstore

        with self._refusals("read", key):
            try:
                obstore.head(self.store, key)
            except FileNotFoundError:
                return False
        return True

    def filesystem(self) -> Any:
        """The object store as an fsspec file system, for readers such as DuckDB."""
        from obstore.fsspec import FsspecStore

        return FsspecStore(self._scheme, client_options=_client_options(), retry_config=_retries())

    def get_tagged(self, key: str) -> tuple[bytes, Any] | None:
        """An object with a tag that changes whenever it does; None where there is none."""
        import obstore

        with self._refusals("read", key):
            try:
                found = obstore.get(self.store, key)
            except FileNotFoundError:
                return None
            return found.bytes().to_bytes(), {"e_tag": found.meta["e_tag"], "version": found.meta["version"]}

    def put_if(self, key: str, data: bytes, tag: Any | None) -> bool:
        """Store an object only if it is still the tagged one (None: only if there is none); False where it is not.

        A put whose answer was lost is sent again and then finds its own object: that counts as stored.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._refusals("write", key):
            try:
                obstore.put(self.store, key, data, mode="create" if tag is None else tag, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                found = self.get_tagged(key)
                return found is not None and found[0] == data
        return True

    @contextmanager
    def _refusals(self, verb: str, key: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            # A signed URL's query is a credential.
            reason = re.sub(r"\?\S+", "?...", reason)
            raise StorageError(f"cannot {verb} {key!r} in {self.url!r}: {reason}") from None


def _client_options() -> dict[str, Any]:
    seconds = os.environ.get(REQUEST_TIMEOUT_VARIABLE, "60")
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", seconds) or float(seconds) == 0:
        raise InputError(f"{REQUEST_TIMEOUT_VARIABLE} is {seconds!r}; it must be a number of seconds above 0.")
    return {"timeout": timedelta(seconds=float(seconds)), "connect_timeout": timedelta(seconds=10)}


def _retries() -> dict[str, Any]:
    backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2}
    return {"max_retries": 12, "backoff": backoff, "retry_timeout": timedelta(minutes=5)}


def _write_file(path: Path, parts: Sequence[Buffer]) -> Stored:
    n_bytes = checksum = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for i in range(0, len(parts), _BUFFERS_PER_WRITE):
            batch = parts[i : i + _BUFFERS_PER_WRITE]
            expected = sum(map(len, batch))
            if (written := os.writev(descriptor, batch)) < expected:  # at 2 GiB at the latest
                _write_rest(descriptor, batch, written)
            n_bytes += expected
            for part in batch:  # after its write, so that the kernel flushes while this computes
                checksum = crc32c(part, checksum)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Stored(n_bytes, f"{checksum:08x}")


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
