"""The ledger: one record per finished task, written last. A task exists for readers if and only if its record does."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from fewchannels.errors import RunConflictError, StorageError
from fewchannels.runs import documents
from fewchannels.runs.changes import Draft
from fewchannels.runs.documents import Key, Seconds
from fewchannels.runs.storage import Count, Storage, Stored

_FOLDER = "ledger/"
_READERS = 16


@dataclass(frozen=True)
class Record:
    """Record of one finished task.

    Attributes:
        task: number of the task.
        start: first manifest row.
        stop: one past the last manifest row; less than the task's own last row if the run has grown since.
        fingerprint: fingerprint of the run that wrote it.
        attempt: 1 for the first.
        n_done: samples generated.
        n_failed: samples that failed individually; the samples table has the reasons.
        seconds: seconds from the task's start to its last file.
        finished: UTC time, ISO 8601; for information only.
        host: node that ran it.
        device: ``cpu`` or ``cuda:...`` with its name.
        objects: objects that the task stored, by key; empty in runs of format version 1.
        computed_by: versions of the libraries that computed it, and ``threads`` of the CPU; empty in older records.
        files: SHA-256, 16 hex digits, of the files that its manifest rows name and that determine its data, by path.
    """

    __pydantic_config__ = ConfigDict(strict=True)

    task: Count
    start: Count
    stop: Count
    fingerprint: str
    attempt: Count
    n_done: Count
    n_failed: Count
    seconds: Seconds
    finished: str
    host: str
    device: str
    objects: Mapping[Key, Stored] = field(default_factory=dict)
    computed_by: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """The record's fields, without those it lacks: a record of an earlier version stays unchanged."""
        fields = asdict(self)
        return {name: value for name, value in fields.items() if value or name not in ("computed_by", "files")}

    def to_bytes(self) -> bytes:
        """The record's document."""
        return documents.to_bytes(self.content())

    @cached_property
    def checksum(self) -> str:
        """CRC-32C of the record's document, which distinguishes it from other records of the same task."""
        return Stored.of([self.to_bytes()]).crc32c

    @classmethod
    def from_bytes(cls, data: bytes) -> "Record":
        """The record of a document.

        Raises:
            DamagedDocumentError: it is damaged, or not a record.
        """
        # Without `documents.from_bytes`, for speed: a run has thousands of records, all of which are read to open it.
        if documents.needs_checksum(data):
            documents.check_whole(data)
        return documents.check(_RECORD.validate_json, data)


_RECORD = TypeAdapter(Record)


class Ledger:
    """The records of the run in a storage, under ``ledger/``."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @staticmethod
    def key(task: int) -> str:
        """Key of a task's record."""
        return f"{_FOLDER}{task:05d}.json"

    def write(self, record: Record, draft: Draft | None = None) -> None:
        """Write a finished task's record; all of its data must be stored before.

        Args:
            record: the record.
            draft: draft that contains its objects, if the task has an earlier record.
        """
        if draft:
            draft.settle(record.content())
        else:
            self._storage.put(self.key(record.task), [record.to_bytes()])

    def write_failure(self, task: int, attempt: int, error: str) -> None:
        """Record a failed attempt of a task."""
        content = {"task": task, "attempt": attempt, "error": error}
        self._storage.put(self._failure(task, attempt), [documents.to_bytes(content)])

    def next_attempt(self, task: int) -> int:
        """1 plus the number of attempts that are recorded as failed."""
        attempt = 1
        while self._storage.exists(self._failure(task, attempt)):
            attempt += 1
        return attempt

    def find(self, task: int) -> Record | None:
        """A task's record; None if it has none, or a damaged one."""
        try:
            return Record.from_bytes(self._storage.get(self.key(task)))
        except (FileNotFoundError, ValueError):
            return None

    def is_intact(self, record: Record) -> bool:
        """Return whether every object that a record names exists and is unchanged, byte for byte."""
        return all(self._storage.holds(key, stored) for key, stored in record.objects.items())

    def keys(self) -> dict[int, str]:
        """The key of every finished task's record, by task."""
        names = {key: key.removeprefix(_FOLDER).removesuffix(".json") for key in self._storage.list(_FOLDER)}
        return {int(name): key for key, name in names.items() if name.isdecimal() and key.endswith(".json")}

    def records(self, fingerprint: str) -> dict[int, Record]:
        """Every finished task's record, by task, ascending.

        Raises:
            StorageError: a record cannot be read, or is damaged.
            RunConflictError: a record belongs to a run with another fingerprint.
        """
        keys = self.keys()
        # One at a time in a folder, which answers at once; object stores take some milliseconds per request.
        with ThreadPoolExecutor(_READERS) as pool:
            read = map if self._storage.free_bytes() is not None else pool.map
            found = dict(zip(keys, read(self._read, keys.values()), strict=True))
        for task, record in found.items():
            if record.fingerprint != fingerprint:
                raise RunConflictError(
                    f"the record {self._storage.location(keys[task])} has fingerprint {record.fingerprint}, but the "
                    f"run has {fingerprint}, so it belongs to a different run. Choose another folder."
                )
        return dict(sorted(found.items()))

    def delete(self, tasks: Iterable[int]) -> None:
        """Delete tasks' records, so that the next capture reruns these tasks."""
        self._storage.delete([self.key(task) for task in tasks])

    def _read(self, key: str) -> Record:
        try:
            record = Record.from_bytes(self._storage.get(key))
            if self.key(record.task) != key:
                raise documents.DamagedDocumentError(f"it belongs to task {record.task}")
            return record
        except documents.DamagedDocumentError as error:
            raise StorageError(
                f"the record {self._storage.location(key)} is damaged: {error}. fewchannels runs verify --repair "
                "removes it, and the next capture reruns its task."
            ) from None

    @staticmethod
    def _failure(task: int, attempt: int) -> str:
        return f"{_FOLDER}failed/{task:05d}.{attempt}.json"
