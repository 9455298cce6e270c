"""A task's attempts: a limited number of tries, and the record of the one that succeeds."""

import platform
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from fewchannels.cluster.work import Work
from fewchannels.errors import FamilyMismatchError, RunConflictError, StorageError
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.storage import Stored

MAX_ATTEMPTS = 3


def tried(ledger: Ledger, task: int, do: Callable[[int, int], Record]) -> Record:
    """Try a task a bounded number of times; a failed attempt is in the ledger.

    Args:
        ledger: ledger of the run.
        task: number of the task.
        do: called with the task and the number of the attempt.

    Raises:
        StorageError: writing failed; trying again would not help.
        RunConflictError: another capture took over.
        FamilyMismatchError: the model does not run as its family describes, which affects every task.
        Exception: the last attempt's own error, after :data:`MAX_ATTEMPTS`.
    """
    while True:
        attempt = ledger.next_attempt(task)
        try:
            return do(task, attempt)
        except (StorageError, RunConflictError, FamilyMismatchError):
            raise
        except Exception:
            ledger.write_failure(task, attempt, traceback.format_exc())
            if attempt % MAX_ATTEMPTS == 0:
                raise


def recorded(
    work: Work,
    task: int,
    attempt: int,
    n_failed: int,
    seconds: float,
    device: str,
    objects: Mapping[str, Stored],
    computed_by: Mapping[str, str],
    files: Mapping[str, str],
) -> Record:
    """The record of a task whose objects are stored.

    Args:
        work: work that the task belongs to.
        task: number of the task.
        attempt: 1 for the first.
        n_failed: number of its samples or pairs that failed individually.
        seconds: seconds from its start to its last object.
        device: description of the device that did it.
        objects: objects that it stored, by key.
        computed_by: provenance, from :func:`fewchannels.runs.provenance.computed_by`.
        files: files, from :func:`fewchannels.runs.provenance.named_files`.
    """
    rows = work.rows(task)
    return Record(
        task=task,
        start=rows.start,
        stop=rows.stop,
        fingerprint=work.fingerprint,
        attempt=attempt,
        n_done=len(rows) - n_failed,
        n_failed=n_failed,
        seconds=round(seconds, 3),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        host=platform.node(),
        device=device,
        objects=objects,
        computed_by=computed_by,
        files=files,
    )
