"""Parquet files with a run's rows: one part per task or, after compaction, one for many tasks.

A compaction is a part with a record of its own, ``ledger/compact/FIRST-LAST.json``, written after the part. It replaces
a task's own part if and only if it names that task's record by checksum: a task that was rerun has another record, so
its own part is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field

from fewchannels.errors import StorageError
from fewchannels.runs import documents
from fewchannels.runs.changes import find_change
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.storage import Checksum, Count, Storage, Stored
from fewchannels.tables import from_parquet, join, of_samples

FOLDER = "ledger/compact/"
TABLES = ("cells", "samples")
_PART_BYTES = 256 * 2**20
_REMEDY = "Run fewchannels runs verify to see which tasks have lost their rows."
# Queries are about a layer or a step: Parquet has each column's range by row group, so readers skip other groups.
_COMPACTED: Mapping[str, Mapping[str, Any]] = {
    "cells": {"order": ("stream", "branch", "layer", "step", "sample"), "group_rows": 30_000},
    "samples": {"group_rows": 32},  # to read one image, few others have to be read
}


@dataclass(frozen=True)
class Compaction:
    """One compaction.

    Attributes:
        first: its first task.
        last: its last task.
        records: checksum of each task's record, by task.
        objects: its parts, by key.
    """

    first: int
    last: int
    records: Mapping[int, str]
    objects: Mapping[str, Stored]

    @property
    def key(self) -> str:
        """Key of its record."""
        return f"{FOLDER}{self.first:05d}-{self.last:05d}.json"

    def part(self, table: str) -> str:
        """The key of its part of a table."""
        return f"{table}/{self.first:05d}-{self.last:05d}.parquet"

    def speaks_for(self, records: Mapping[int, Record]) -> list[int]:
        """Tasks whose own parts it replaces."""
        return [t for t, checksum in self.records.items() if t in records and records[t].checksum == checksum]


def part(table: str, task: int) -> str:
    """The key of one task's part of a table."""
    return f"{table}/{task:05d}.parquet"


def read_rows(storage: Storage, key: str, expected: Stored | None) -> Any:
    """The rows of a part of a run's, a sweep's or a result's table, a ``pyarrow.Table``.

    Args:
        storage: storage of the run or the sweep.
        key: key of the part.
        expected: size and checksum in its record; None in runs of format version 1.

    Raises:
        StorageError: the part is missing, damaged, or differs from the stored one.
    """
    try:
        data = storage.get(key)
        if expected is not None:
            check_stored(storage, key, Stored.of([data]), expected)
        return from_parquet(data)
    except (FileNotFoundError, ValueError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged: {error}"
        raise StorageError(
            f"{storage.location(key)} {reason}. Run fewchannels runs verify {storage.url} to see what else is damaged, "
            "and how to repair it."
        ) from None


def own_rows(storage: Storage, table: str, record: Record) -> Any:
    """The rows of a task's own part, a ``pyarrow.Table``; raises as :func:`read_rows` does."""
    key = part(table, record.task)
    return read_rows(storage, key, record.objects.get(key))


def check_stored(storage: Storage, key: str, found: Stored, expected: Stored) -> None:
    """Check an object against its record, or against the new record if its task was rerun since.

    Raises:
        ValueError: it is neither.
    """
    if found == expected:
        return
    task = key.rpartition("/")[2].removesuffix(".parquet")
    if task.isdecimal():
        later = (Ledger(storage).find(int(task)), find_change(storage, task))
        if any(each is not None and each.objects.get(key) == found for each in later):
            return
    raise ValueError(f"its CRC-32C is {found.crc32c}, and {expected.crc32c} was stored")


class Parts:
    """The parts of a run's tables.

    Args:
        storage: storage of the run.
        records: records of its finished tasks.
        damaged: receives the reason for each compaction whose record is damaged, by key; None raises it as an error.

    Raises:
        StorageError: a compaction's record is damaged.
    """

    def __init__(self, storage: Storage, records: Mapping[int, Record], damaged: dict[str, str] | None = None) -> None:
        self._storage, self._records = storage, records
        self.compactions: list[Compaction] = []
        for key in storage.list(FOLDER):
            try:
                with documents.damage(storage, key, _REMEDY):
                    self.compactions.append(_compaction(key, storage.get(key)))
            except StorageError as error:
                if damaged is None:
                    raise
                damaged[key] = str(error)
        self.compacted = {t: each for each in self.compactions for t in each.speaks_for(records)}

    def files(self, table: str, shard_samples: int) -> dict[str, list[tuple[int, int]] | None]:
        """Every file with rows of a table, by key, with the samples ``[start, stop)`` to take from it.

        None takes all of them. A task that is not full may be about to get more samples than its record has.
        """
        files: dict[str, list[tuple[int, int]] | None] = {}
        for task, record in sorted(self._records.items()):
            compaction = self.compacted.get(task)
            if compaction is None:
                full = record.stop - record.start == shard_samples
                files[part(table, task)] = None if full else [(record.start, record.stop)]
            elif compaction.part(table) not in files:
                spoken = [self._records[each] for each in compaction.speaks_for(self._records)]
                ranges = [(each.start, each.stop) for each in spoken]
                files[compaction.part(table)] = None if len(spoken) == len(compaction.records) else ranges
        return files

    def rows(self, table: str, task: int) -> Any:
        """One task's rows, a ``pyarrow.Table``.

        Raises:
            StorageError: its part is missing or damaged.
        """
        compaction, record = self.compacted.get(task), self._records[task]
        key = part(table, task) if compaction is None else compaction.part(table)
        expected = (record if compaction is None else compaction).objects.get(key)
        return of_samples(read_rows(self._storage, key, expected), record.start, record.stop)


class _Compacted(documents.Fields):
    first: Count
    last: Count
    records: dict[Annotated[str, Field(pattern=r"^[0-9]{1,15}\z")], Checksum]
    objects: documents.Objects


def _compaction(key: str, data: bytes) -> Compaction:
    content = documents.from_bytes(data, _Compacted)
    compaction = Compaction(
        content["first"],
        content["last"],
        {int(task): checksum for task, checksum in content["records"].items()},
        {key: Stored(**stored) for key, stored in content["objects"].items()},
    )
    own = {compaction.part(table) for table in TABLES}
    if compaction.key != key or compaction.objects.keys() != own:  # they are deleted when it replaces no task's part
        raise documents.DamagedDocumentError("it does not list exactly the objects of a compaction of its tasks")
    if not all(compaction.first <= task <= compaction.last for task in compaction.records):
        raise documents.DamagedDocumentError("it lists tasks outside the range in its name")
    return compaction


def compact(
    storage: Storage,
    records: Mapping[int, Record],
    shard_samples: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Compaction]:
    """Merge the parts of finished tasks into fewer, larger ones. Only while no capture runs.

    Tasks with fewer samples than a shard, or with failed ones, keep their own parts, which may still change. The small
    parts are deleted when the large ones and their record are durable. If interrupted at any point, it can be repeated.

    Args:
        storage: storage of the run.
        records: records of its finished tasks.
        shard_samples: samples in a whole task.
        on_progress: called with the parts read so far and in all.
    """
    parts = Parts(storage, records)
    single = [
        task
        for task, record in sorted(records.items())
        if task not in parts.compacted and not record.n_failed and record.stop - record.start == shard_samples
    ]
    groups = [group for group in _groups(single, records) if len(group) > 1]
    made, done, total = [], 0, sum(map(len, groups))
    for group in groups:
        objects: dict[str, Stored] = {}
        about = Compaction(group[0], group[-1], {task: records[task].checksum for task in group}, objects)
        for table in TABLES:
            merged = join([own_rows(storage, table, records[task]) for task in group], **_COMPACTED[table])
            objects[about.part(table)] = storage.put(about.part(table), [merged])
        storage.put(about.key, [documents.to_bytes(asdict(about))])
        storage.delete([part(table, task) for table in TABLES for task in group])
        made.append(about)
        done += len(group)
        on_progress(done, total)
    _delete_stale(storage, records)
    return made


def _groups(tasks: list[int], records: Mapping[int, Record]) -> list[list[int]]:
    """Neighboring tasks whose parts together stay within a part's size."""
    groups: list[list[int]] = []
    n_bytes = 0
    for task in tasks:
        mine = sum(records[task].objects[part(table, task)].n_bytes for table in TABLES)
        if not groups or n_bytes + mine > _PART_BYTES or task != groups[-1][-1] + 1:
            groups.append([])
            n_bytes = 0
        groups[-1].append(task)
        n_bytes += mine
    return groups


def _delete_stale(storage: Storage, records: Mapping[int, Record]) -> None:
    """Delete what an interruption has left: small parts whose rows are in a large one, and unused large ones."""
    parts = Parts(storage, records)
    stored = storage.list()
    storage.delete([key for task in parts.compacted for t in TABLES if (key := part(t, task)) in stored])
    for compaction in parts.compactions:
        if not compaction.speaks_for(records):
            storage.delete([compaction.key])
            storage.delete(compaction.objects)
