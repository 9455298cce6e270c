"""Whether what a question reads is what was stored: compared once, as far as that takes no time worth mentioning."""

import threading
from collections.abc import Mapping
from functools import partial

from fewchannels.errors import StorageError
from fewchannels.runs.parts import check_stored
from fewchannels.runs.storage import FolderStorage, Storage, Stored

MOST_BYTES = 64 * 2**20
"""Of all the files that are compared, in the order in which questions open them: some hundredths of a second."""
_READ_BYTES = 2**22


class Checksums:
    """What a place's documents say of its files, and which of these have been held to it.

    Only of a folder: a bucket's own server compares what it reads with checksums of its own, and to ask it for whole
    objects would take away what Parquet is for.

    Args:
        storage: of the run, the sweep or the comparison.
        expected: what was stored, by key; None where that is not known. It may still be added to.
    """

    def __init__(self, storage: Storage, expected: Mapping[str, Stored | None]) -> None:
        self._storage = storage
        self._expected = expected if isinstance(storage, FolderStorage) else {}
        self._compared: set[str] = set()
        self._left, self._lock = MOST_BYTES, threading.Lock()

    def check(self, key: str) -> None:
        """Compare a file that is about to be read, unless it has been or those before it were too large together.

        Raises:
            StorageError: it is not what was stored.
        """
        with self._lock:
            expected = self._expected.get(key)
            if expected is None or key in self._compared or expected.n_bytes > self._left:
                return
            with self._storage.open(key) as file:
                found = Stored.of(iter(partial(file.read, _READ_BYTES), b""))
            try:
                check_stored(self._storage, key, found, expected)
            except ValueError as error:
                raise StorageError(
                    f"{self._storage.location(key)} is damaged: {error}. fewchannels runs verify {self._storage.url} "
                    "says what else is, and how to mend it."
                ) from None
            self._left -= expected.n_bytes
            self._compared.add(key)
