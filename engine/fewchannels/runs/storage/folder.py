"""A run in a folder: a file for each object, written beside its place, made durable, renamed."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from crc32c import crc32c

from fewchannels.errors import StorageError
from fewchannels.files import UNFINISHED, is_left_over, make_durable, unfinished
from fewchannels.runs.storage.base import Buffer, Storage, Stored

_BYTES_PER_WRITE = 2**20
_BUFFERS_PER_WRITE = 512  # half of what POSIX lets one writev take


class FolderStorage(Storage):
    """A folder. Needs rename that is atomic, fsync of files and folders, and flock where captures may meet."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.url = str(path)

    def put(self, key: str, parts: Iterable[Buffer]) -> Stored:
        path = self.path / key
        with self._refusals("write", key):
            # Two attempts at one task may overlap on a cluster: each has its own unfinished file.
            with unfinished(path) as temporary:
                self._make_folder(path.parent)
                stored = _write_file(temporary, parts)
                os.replace(temporary, path)
            make_durable(path.parent)
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

    def move(self, key: str, to: str) -> None:
        source, target = self.path / key, self.path / to
        with self._refusals("move", key):
            self._make_folder(target.parent)
            try:
                os.replace(source, target)
            except FileNotFoundError:
                return
            make_durable(target.parent)
            make_durable(source.parent)

    def location(self, key: str) -> str:
        return str(self.path / key)

    def size(self, key: str) -> int | None:
        path = self.path / key
        with self._refusals("look at", key):
            return path.stat().st_size if path.is_file() else None

    def left_over(self) -> dict[str, int]:
        found = {}
        with self._refusals("list", ""):
            for entry in _files(self.path):
                if UNFINISHED.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # its writer has just renamed it
                        found[os.path.relpath(entry.path, self.path)] = entry.stat().st_size
        return dict(sorted(found.items()))

    def clean(self) -> int:
        n_removed = 0
        with self._refusals("clean", ""):
            for entry in _files(self.path):
                if UNFINISHED.fullmatch(entry.name) and is_left_over(Path(entry.path)):
                    Path(entry.path).unlink(missing_ok=True)
                    n_removed += 1
        return n_removed

    def prune(self, prefix: str) -> None:
        with self._refusals("clean", prefix):
            for folder, _, _ in os.walk(self.path / prefix, topdown=False):
                with suppress(OSError):  # something is in it, or another has removed it
                    os.rmdir(folder)

    def free_bytes(self) -> int | None:
        existing = next(path for path in (self.path, *self.path.parents) if path.exists())
        return shutil.disk_usage(existing).free

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            make_durable(folder.parent)

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
