"""Interface of storages: operations on whole objects, by key."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, Protocol

from crc32c import crc32c
from pydantic import ConfigDict, Field

from fewchannels.errors import StorageError

_READ_BYTES = 2**22

Buffer = bytes | memoryview
_PART = r"(?!\.{1,2}(?:/|\Z))(?![A-Za-z]:)[^/\\\0]+"  # no names of only dots, no drive letter, no backslash, no NUL
_KEY = re.compile(rf"{_PART}(?:/{_PART})*")


def is_key(text: str) -> bool:
    """Return whether a text names a place inside a run, on every system and in every kind of store."""
    return _KEY.fullmatch(text) is not None


Count = Annotated[int, Field(ge=0, le=2**53)]
Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{8}\z")]
"""A CRC-32C. Pydantic enforces both when it reads a document; for Python, they are ``int`` and ``str``."""


@dataclass(frozen=True)
class Stored:
    """An object that was stored: its size, and the CRC-32C of its bytes as 8 hex digits."""

    __pydantic_config__ = ConfigDict(strict=True)

    n_bytes: Count
    crc32c: Checksum

    @classmethod
    def of(cls, parts: Iterable[Buffer]) -> "Stored":
        """Size and checksum of an object that consists of these parts, in order."""
        n_bytes = checksum = 0
        for part in parts:
            n_bytes += len(part)
            checksum = crc32c(part, checksum)
        return cls(n_bytes, f"{checksum:08x}")


class Sink(Protocol):
    """Protocol of a place where objects can be stored."""

    def put(self, key: str, parts: Iterable[Buffer]) -> Stored:
        """Same as :meth:`Storage.put`."""


class Storage(ABC):
    """Objects by key, such as ``ledger/00000.json``. Keys have forward slashes on every system.

    A run's documents name keys, and a run may come from anywhere: every operation refuses a key that does not consist
    of plain names separated by single slashes, so that none leads out of the run.

    Attributes:
        url: location, as a path or URL without credentials.
    """

    url: str

    @property
    def name(self) -> str:
        """The last part of its path or URL: a name for people."""
        return self.url.rstrip("/").rpartition("/")[2]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        from fewchannels.runs.storage import open_storage

        return open_storage, (self.url,)

    def check_key(self, key: str) -> None:
        """Refuse a text that is not a key; every operation calls this.

        Raises:
            StorageError: the text could name a place outside the run.
        """
        if not is_key(key):
            raise StorageError(
                f"{key!r} is not a location inside {self.url!r}: a key consists of plain names separated by single "
                "slashes. The file of the run with this key is damaged or forged. Get a new copy of the run from its "
                "author."
            )

    def check_prefix(self, prefix: str) -> None:
        """Refuse a text that is not a prefix of keys, like :meth:`check_key`."""
        if prefix:
            self.check_key(prefix.removesuffix("/"))

    @abstractmethod
    def put(self, key: str, parts: Iterable[Buffer]) -> Stored:
        """Store an object from its parts, atomically and durably. Safe to repeat: it replaces the object.

        Raises:
            StorageError: writing failed; the key still has its previous object, or none.
        """

    def create(self, key: str, data: bytes) -> bool:
        """Store an object only if there is none; returns False if there is one.

        In a folder, only the holder of its lease may do this, and an existing object is checked for beforehand.

        Raises:
            StorageError: same as :meth:`put`.
        """
        if self.exists(key):
            return False
        self.put(key, [data])
        return True

    @abstractmethod
    def get(self, key: str) -> bytes:
        """An object's bytes.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: it cannot be read.
        """

    @abstractmethod
    def open(self, key: str) -> BinaryIO:
        """An object as a file for random access; raises the same errors as :meth:`get`."""

    @abstractmethod
    def list(self, prefix: str = "") -> dict[str, int]:
        """Keys that begin with a prefix, ascending, with their sizes in bytes; unfinished objects are not among them.

        Args:
            prefix: empty, or whole parts of a key that end in a slash.

        Raises:
            StorageError: writing failed.
        """

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; a missing one is not an error.

        Raises:
            StorageError: writing failed.
        """

    @abstractmethod
    def move(self, key: str, to: str) -> None:
        """Move an object to another key, durably, replacing an existing one. Safe to repeat, even concurrently.

        A missing object counts as moved.

        Raises:
            StorageError: writing failed; the object is under one of the keys.
        """

    @abstractmethod
    def location(self, key: str) -> str:
        """The path or URL by which a file system of fsspec, or DuckDB with it, finds an object.

        Args:
            key: key of the object, or a prefix, as for :meth:`list`.
        """

    @abstractmethod
    def below(self, prefix: str) -> "Storage":
        """The objects whose keys begin with a prefix and a slash, as a separate writable storage.

        Raises:
            StorageError: a symbolic link is on the way there.
        """

    @abstractmethod
    def size(self, key: str) -> int | None:
        """An object's size in bytes; None if it does not exist.

        Raises:
            StorageError: writing failed.
        """

    def exists(self, key: str) -> bool:
        """Return whether there is an object with this key."""
        return self.size(key) is not None

    def stored(self, key: str) -> Stored | None:
        """Current size and checksum of an object, which is read completely; None if there is no such object.

        Raises:
            StorageError: writing failed.
        """
        try:
            with self.open(key) as file:
                return Stored.of(iter(lambda: file.read(_READ_BYTES), b""))
        except FileNotFoundError:
            return None

    def holds(self, key: str, stored: Stored) -> bool:
        """Return whether an object exists and is unchanged, byte for byte; raises the same errors as :meth:`stored`."""
        return self.stored(key) == stored

    def left_over(self) -> dict[str, int]:
        """Sizes in bytes of files of unfinished puts, by name; some of them may still be in progress.

        Raises:
            StorageError: writing failed.
        """
        return {}

    def is_linked(self, key: str) -> bool:
        """Return whether a symbolic link stands in the object's place."""
        return False

    def clean(self) -> int:
        """Remove files of interrupted puts; returns their number. Puts of live processes are left alone.

        Raises:
            StorageError: writing failed.
        """
        return 0

    def prune(self, prefix: str) -> None:
        """Remove empty folders below a prefix, if the store has folders."""
        return

    def free_bytes(self) -> int | None:
        """Free bytes; None if the storage has no known limit."""
        return None
