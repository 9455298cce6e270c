"""A run in a folder: one file per object, written to a temporary file, synced, and renamed.

A folder may come from somebody else, and a symbolic link in it may point to any of the user's files. So nothing is
read, written or deleted through a link. One use is legitimate, and allowed for reading: ``activations.zarr`` may link
to a Zarr group, for arrays that their owner keeps on another disk.
"""

import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from crc32c import crc32c

from fewchannels.errors import StorageError
from fewchannels.files.durable import UNFINISHED, expanded, is_left_over, unfinished
from fewchannels.files.file_system import begin_writing_back, make_durable
from fewchannels.runs.storage.base import Buffer, Storage, Stored

_BYTES_PER_WRITE = 2**20
_BUFFERS_PER_WRITE = 512  # half of POSIX's limit for one writev
_OF_THE_VOLUME = "lost+found"  # in the root of a volume, for the file system's own use; only root may list it
_LINKED, _LINKED_HOLDS = "activations.zarr", "zarr.json"  # the only name that may be a link, and a file in its target


class FolderStorage(Storage):
    """A folder. Needs atomic rename, fsync of files, and flock for its lease; uses fsync of folders if available."""

    def __init__(self, path: Path) -> None:
        self.path = expanded(path).absolute()
        self.url = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return _at, (self.path, self.url)  # it may be sent to a process with another working directory

    @property
    def name(self) -> str:
        return self.path.name if self.path.name != ".." else self.path.resolve().name

    def put(self, key: str, parts: Iterable[Buffer]) -> Stored:
        path = self._place(key, to_write=True)
        with self._refusals("write", key):
            # Two attempts at one task may overlap on a cluster: each has its own unfinished file.
            with unfinished(path) as temporary:
                self._make_folder(path.parent)
                stored = _write_file(temporary, parts)
                os.replace(temporary, path)
            make_durable(path.parent)
        return stored

    def get(self, key: str) -> bytes:
        path = self._place(key)
        with self._refusals("read", key):
            return path.read_bytes()

    def open(self, key: str) -> BinaryIO:
        path = self._place(key)
        with self._refusals("read", key):
            return path.open("rb")

    def list(self, prefix: str = "") -> dict[str, int]:
        folders = [self.path] if not prefix else [self._place(prefix.removesuffix("/"))]
        if not prefix and self._is_linked_group(linked := self.path / _LINKED):
            folders.append(linked)
        with self._refusals("list", prefix):
            found = {
                entry.path.removeprefix(f"{self.path}{os.sep}").replace(os.sep, "/"): entry.stat().st_size
                for folder in folders
                for entry in _files(folder, hidden=False)
            }
        return dict(sorted(found.items()))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._place(key, to_write=True)
            with self._refusals("delete", key):
                path.unlink(missing_ok=True)

    def move(self, key: str, to: str) -> None:
        source, target = self._place(key, to_write=True), self._place(to, to_write=True)
        with self._refusals("move", key):
            self._make_folder(target.parent)
            try:
                os.replace(source, target)
            except FileNotFoundError:
                return
            make_durable(target.parent)
            make_durable(source.parent)

    def location(self, key: str) -> str:
        return str(self._place(key.removesuffix("/")) if key else self.path)

    def below(self, prefix: str) -> Storage:
        self._place(f"{prefix}/any", to_write=True)
        return _at(self.path / prefix, str(Path(self.url) / prefix))

    def size(self, key: str) -> int | None:
        path = self._place(key)
        with self._refusals("inspect", key):
            return path.stat().st_size if path.is_file() else None

    def left_over(self) -> dict[str, int]:
        found = {}
        with self._refusals("list", ""):
            for entry in _files(self.path):
                if UNFINISHED.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # its writer has just renamed it
                        found[os.path.relpath(entry.path, self.path)] = entry.stat().st_size
        return dict(sorted(found.items()))

    def is_linked(self, key: str) -> bool:
        self.check_key(key)
        return (self.path / key).is_symlink()

    def clean(self) -> int:
        n_removed = 0
        with self._refusals("clean", ""):
            for entry in _files(self.path):
                if UNFINISHED.fullmatch(entry.name) and is_left_over(Path(entry.path)):
                    Path(entry.path).unlink(missing_ok=True)
                    n_removed += 1
        return n_removed

    def prune(self, prefix: str) -> None:
        top = self._place(prefix.removesuffix("/"))
        with self._refusals("clean", prefix):
            for folder, _, _ in os.walk(top, topdown=False):
                with suppress(OSError):  # it is not empty, or another process has removed it
                    os.rmdir(folder)

    def free_bytes(self) -> int | None:
        existing = next(path for path in (self.path, *self.path.parents) if path.exists())
        return shutil.disk_usage(existing).free

    def _place(self, key: str, *, to_write: bool = False) -> Path:
        """Path of an object, without links on the way. A link at the path itself is replaced or removed, never read."""
        self.check_key(key)
        parts = key.split("/")
        path = str(self.path)
        for part in parts[:-1] if to_write else parts:
            path = f"{path}{os.sep}{part}"
            try:
                mode = os.lstat(path).st_mode
            except OSError:  # opening it reports the error
                break
            if stat.S_ISLNK(mode) and (to_write or not self._is_linked_group(Path(path))):
                raise StorageError(
                    f"{path} is a symbolic link; a run's files are not {'written' if to_write else 'read'} through "
                    "links, which could lead to any of your files. If you created it, replace it with its target."
                )
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise StorageError(f"{path} is neither a file nor a folder, so it does not belong in a run. Delete it.")
        return self.path / key

    def _is_linked_group(self, path: Path) -> bool:
        return path == self.path / _LINKED and path.is_symlink() and (path / _LINKED_HOLDS).is_file()

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
            raise StorageError(f"cannot {verb} {key!r} in {self.url!r}: the folder does not exist.") from None
        except OSError as error:
            raise StorageError(f"cannot {verb} {key!r} in {self.url!r}: {error.strerror or error}") from error


def _write_file(path: Path, parts: Iterable[Buffer]) -> Stored:
    n_bytes = checksum = 0
    descriptor = _create(path)
    try:
        for batch in _batches(parts):
            expected = sum(map(len, batch))
            if (written := os.writev(descriptor, batch)) < expected:  # at 2 GiB at the latest
                _write_rest(descriptor, batch, written)
            begin_writing_back(descriptor, n_bytes, expected)
            n_bytes += expected
            for part in batch:
                checksum = crc32c(part, checksum)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Stored(n_bytes, f"{checksum:08x}")


def _create(path: Path) -> int:
    """Open a new private file for writing; remains of an interrupted process with this name are removed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o666)
    except FileExistsError:
        path.unlink()
        return os.open(path, flags, 0o666)


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


def _files(folder: str | Path, *, hidden: bool = True) -> Iterator[os.DirEntry[str]]:
    """Every file below a folder, not following links; if requested, without hidden files and hidden folders."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    for entry in found:
        if entry.name == _OF_THE_VOLUME or (entry.name.startswith(".") and not hidden):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path, hidden=hidden)
        elif entry.is_file(follow_symlinks=False):
            yield entry


def _at(path: Path, url: str) -> FolderStorage:
    """The storage of an absolute path, with the name by which users know it."""
    storage = FolderStorage(path)
    storage.url = url
    return storage
