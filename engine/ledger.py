"""The ledger: one record per finished task, written last. A task exists for readers if and only if its record does."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from engine.errors import RunConflictError, StorageError
from engine.tables import replace_durably


@dataclass(frozen=True)
class Record:
    """What is known of one finished task.

    Attributes:
        task: its number.
        start: first manifest row.
        stop: one past the last manifest row.
        fingerprint: of the run that wrote it.
        attempt: 1 for the first.
        n_done: samples generated.
        n_failed: samples that failed by themselves; the samples table says why.
        seconds: from the task's start to its last file.
        finished: UTC time, ISO 8601.
        host: node that ran it.
        device: ``cpu`` or ``cuda:...`` with its name.
    """

    task: int
    start: int
    stop: int
    fingerprint: str
    attempt: int
    n_done: int
    n_failed: int
    seconds: float
    finished: str
    host: str
    device: str


class Ledger:
    """The folder ``RUN/ledger``."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "ledger"

    def path(self, task: int) -> Path:
        """Where a task's record is."""
        return self.folder / f"{task:05d}.json"

    def write(self, record: Record) -> None:
        """Write a finished task's record; all of its data must be on disk before."""
        self._write(self.path(record.task), asdict(record))

    def write_failure(self, task: int, attempt: int, error: str) -> None:
        """Write down a failed attempt of a task."""
        self._write(self._failure(task, attempt), {"task": task, "attempt": attempt, "error": error})

    def next_attempt(self, task: int) -> int:
        """1 plus the number of attempts that are written down as failed."""
        attempt = 1
        while self._failure(task, attempt).exists():
            attempt += 1
        return attempt

    def records(self, fingerprint: str) -> dict[int, Record]:
        """Every finished task's record, by task.

        Raises:
            StorageError: a record cannot be read.
            RunConflictError: a record belongs to a run with another fingerprint.
        """
        found = {}
        for path in sorted(self.folder.glob("[0-9]*.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                record = Record(**{field.name: content[field.name] for field in fields(Record)})
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StorageError(f"the record {path} cannot be read ({error}); delete it to redo its task.") from None
            if record.fingerprint != fingerprint:
                raise RunConflictError(
                    f"the record {path} has fingerprint {record.fingerprint}, the run has {fingerprint}; "
                    "it was written by another run. Choose another folder."
                )
            found[record.task] = record
        return found

    def _failure(self, task: int, attempt: int) -> Path:
        return self.folder / "failed" / f"{task:05d}.{attempt}.json"

    @staticmethod
    def _write(path: Path, content: dict[str, object]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        replace_durably(temporary, path)
