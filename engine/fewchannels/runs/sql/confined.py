"""A DuckDB that cannot write: it opens only a run's own files, through a read-only file system."""

import datetime
import io
import os
import threading
import urllib.parse
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, BinaryIO

import duckdb
from fsspec.spec import AbstractFileSystem

from fewchannels import machine
from fewchannels.runs.sql import spill
from fewchannels.runs.storage import ObjectStorage, Storage

PREFIX = "run://"
_LEAST_BYTES = 128 * 2**20


def connect(storage: Storage, check: Callable[[str], None] = lambda key: None) -> duckdb.DuckDBPyConnection:
    """A database in memory that can read a storage's objects, as ``address(key)``; not confined to them yet.

    It uses half of the free memory, and spills into a folder of this process alone, if one can be created.

    Args:
        storage: storage of the run, the sweep or the comparison.
        check: called with an object's key before it is opened; raises if it is not to be read.
    """
    folder = spill.new_folder()
    spills = (
        {"temp_directory": ""}
        if folder is None
        else {"temp_directory": str(folder), "max_temp_directory_size": f"{spill.most_bytes(folder)}B"}
    )
    settings = spills | {
        "memory_limit": f"{max(_LEAST_BYTES, machine.free_bytes() // 2)}B",
        "threads": machine.processors(),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,
    }
    connection = duckdb.connect(":memory:", config=settings)
    # Not the machine's time zone: a query has the same answer everywhere.
    connection.execute("set global TimeZone = 'UTC'")
    connection.register_filesystem(ReadOnlyFiles(storage, check))
    return connection


def confine(connection: duckdb.DuckDBPyConnection, keys: Collection[str]) -> None:
    """From now on, allow a connection to read only the named objects."""
    allowed = ", ".join("'" + address(key).replace("'", "''") + "'" for key in keys)
    for setting in (
        f"allowed_paths = [{allowed}]",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"set {setting}")


def address(key: str) -> str:
    """Name of an object for DuckDB: neither a pattern nor a path of the machine."""
    return PREFIX + urllib.parse.quote(key)


class ReadOnlyFiles(AbstractFileSystem):
    """A storage's objects for DuckDB. It opens them for reading, and refuses everything else."""

    protocol = PREFIX.removesuffix("://")
    cachable = False

    def __init__(self, storage: Storage, check: Callable[[str], None] = lambda key: None) -> None:
        super().__init__()
        self._storage, self._check = storage, check
        self._bucket = storage.filesystem() if isinstance(storage, ObjectStorage) else None

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            raise PermissionError(f"{path} is opened for reading only.")
        self._check(_key(path))
        return SharedFile(partial(self._storage.open, _key(path)))

    def glob(self, path: str, **options: Any) -> list[str]:
        return [path]

    def exists(self, path: str, **options: Any) -> bool:
        return self._storage.exists(_key(path))

    def size(self, path: str) -> int:
        location = self._location(path)
        return int(self._bucket.size(location)) if self._bucket else os.stat(location).st_size

    def modified(self, path: str) -> datetime.datetime:
        location = self._location(path)
        if self._bucket:
            found: datetime.datetime = self._bucket.modified(location)
            return found
        return datetime.datetime.fromtimestamp(os.stat(location).st_mtime, datetime.UTC)

    def _location(self, path: str) -> str:
        return self._storage.location(_key(path))


class SharedFile(io.RawIOBase):
    """A file that several threads read at once.

    DuckDB gives one file to all of its threads, and each of them seeks and then reads. Between these two calls, another
    thread may seek, so each thread has its own file and position.

    Args:
        open_file: function that opens the file again.
    """

    def __init__(self, open_file: Callable[[], BinaryIO]) -> None:
        super().__init__()
        self._open_file = open_file
        # Not threading.local: its content is lost whenever one of DuckDB's threads leaves Python.
        self._files = {threading.get_ident(): open_file()}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._own().seek(offset, whence)

    def tell(self) -> int:
        return self._own().tell()

    def read(self, n: int = -1) -> bytes:
        return self._own().read(n)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        super().close()

    def _own(self) -> BinaryIO:
        thread = threading.get_ident()
        if thread not in self._files:
            self._files[thread] = self._open_file()
        return self._files[thread]


def _key(path: str) -> str:
    return urllib.parse.unquote(path.removeprefix(PREFIX))
