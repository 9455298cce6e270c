"""Check that what a query reads is what was stored: each file once, and only as many as take almost no time."""

import threading
from collections.abc import Mapping

from fewchannels.errors import StorageError
from fewchannels.runs.parts import check_stored
from fewchannels.runs.storage import FolderStorage, Storage, Stored

MOST_BYTES = 64 * 2**20
"""Of all the files that are compared, in the order in which queries open them: some hundredths of a second."""


class Checksums:
    """Checksums of a location's files, from its documents, and the files that were already checked.

    Only in a folder: a bucket's server checks what it reads against its own checksums, and reading whole objects from
    it would defeat the purpose of Parquet.

    Args:
        storage: storage of the run, the sweep or the comparison.
        expected: what was stored, by key; None if that is not known. It may still be added to.
    """

    def __init__(self, storage: Storage, expected: Mapping[str, Stored | None]) -> None:
        self._storage = storage
        self._expected = expected if isinstance(storage, FolderStorage) else {}
        self._compared: set[str] = set()
        self._left, self._lock = MOST_BYTES, threading.Lock()

    def check(self, key: str) -> None:
        """Compare a file that is about to be read, unless it, or too many bytes in total, have already been compared.

        Raises:
            StorageError: it differs from the stored file.
        """
        with self._lock:
            expected = self._expected.get(key)
            if expected is None or key in self._compared or expected.n_bytes > self._left:
                return
            found = self._storage.stored(key)
            if found is None:  # the next reader gets the error
                return
            try:
                check_stored(self._storage, key, found, expected)
            except ValueError as error:
                raise StorageError(
                    f"{self._storage.location(key)} is damaged: {error}. Run fewchannels runs verify "
                    f"{self._storage.url} to see what else is damaged, and how to repair it."
                ) from None
            self._left -= expected.n_bytes
            self._compared.add(key)
