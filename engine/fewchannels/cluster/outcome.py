"""The outcome of one task, run by a Ray actor or by this process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from fewchannels.cluster.work import Work
from fewchannels.errors import FewchannelsError, InputError, RunConflictError, StorageError, without_secrets
from fewchannels.runs.changes import finish_change, name_of
from fewchannels.runs.ledger import Ledger, Record

FATAL = (StorageError, RunConflictError, InputError)
"""Errors that would affect every other task, too."""
TASKS_AT_ONCE = 2
"""Concurrent tasks of a worker: one is generated, one is written. There are never more in its memory."""


@runtime_checkable
class Closes(Protocol):
    """A worker that must be closed."""

    def close(self) -> None:
        """Release its resources; no further task can run."""


Start = Callable[[Any, int, str | None], Callable[[int], Record]]
"""Function of work, a number of CPU threads and a device that returns a worker; a worker returns a task's record."""


@dataclass
class State:
    """Number of workers, and retried tasks.

    Attributes:
        n_actors: number of workers that have loaded the model.
        n_starting: number of workers that are pending or load the model.
        n_lost: number of actors that died, or whose node died.
        n_again: times that a task was retried.
        reassigned: tasks that were retried: the first actor may have been cut off and still have written.
    """

    n_actors: int = 0
    n_starting: int = 0
    n_lost: int = 0
    n_again: int = 0
    reassigned: set[int] = field(default_factory=set)


def is_done(work: Work, record: Record | None) -> bool:
    """Return whether a task's record covers all of its samples; it does not if the run has grown since."""
    if record is None or record.fingerprint != work.fingerprint:
        return False
    return not record.n_failed and record.stop == work.rows(record.task).stop


def outcome_of(
    work: Work, ledger: Ledger, worker: Callable[[int], Record], task: int
) -> tuple[dict[str, Any], Record | None]:
    """Run a task, unless its record shows that it is done.

    Args:
        work: work that the task belongs to.
        ledger: ledger of its records.
        worker: worker that runs it.
        task: number of the task.

    Returns:
        The outcome: ``task``, ``error`` and ``fatal`` (both None on success), ``n_bytes``; and the record if this call
        wrote it.
    """
    outcome: dict[str, Any] = {"task": task, "error": None, "fatal": None, "n_bytes": 0}
    record = None
    try:
        # The task is sent again if its outcome was lost. The record then names exactly the existing objects: keep them.
        found = ledger.find(task)
        if found and not is_done(work, found):
            finish_change(work.storage, name_of(task))  # of a worker that died while writing it
            found = ledger.find(task)
        if not is_done(work, found):
            record = worker(task)
            outcome["n_bytes"] = sum(each.n_bytes for each in record.objects.values())
    except FATAL as error:
        outcome |= {"error": str(error), "fatal": next(kind.__name__ for kind in FATAL if isinstance(error, kind))}
    except Exception as error:  # one task's failure must not end the others; the driver reports it
        outcome |= {"error": without_secrets(f"{type(error).__name__}: {error}")}
    return outcome, record


def refusing(error: FewchannelsError) -> Callable[[int], Record]:
    """A worker that could not start: each of its tasks ends with the error, which would affect other workers, too."""

    def refuse(task: int) -> Record:
        raise error

    return refuse
