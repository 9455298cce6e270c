"""Run the unfinished tasks of a run, and report the outcome."""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fewchannels.cluster import here
from fewchannels.cluster.interrupts import interrupts
from fewchannels.cluster.notes import Notes
from fewchannels.cluster.outcome import FATAL, Start, State, is_done
from fewchannels.cluster.shares import Pool
from fewchannels.cluster.work import Work
from fewchannels.errors import IncompleteRunError
from fewchannels.runs.changes import finish_changes
from fewchannels.runs.lease import hold
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.provenance import check_named_files, notes

_FATAL = {error.__name__: error for error in FATAL}
_SHOWN = 5  # errors and tasks in a message
_Work = TypeVar("_Work", bound=Work)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a capture or a sweep.

    Attributes:
        n_samples: rows of the manifest.
        n_done: complete samples on disk.
        n_failed: samples that failed individually; the ``samples`` table has the reasons.
        n_resumed: samples that an earlier call had finished.
        failed_tasks: tasks without a record, with the reason for each.
        n_again: number of retries of tasks whose actor died or was unreachable.
        notes: differences between earlier calls and this one that may affect the last bits.
        of_tasks: reasons why samples in this call's tasks failed, and which prompts were truncated.
    """

    n_samples: int
    n_done: int
    n_failed: int
    n_resumed: int
    failed_tasks: dict[int, str]
    n_again: int = 0
    notes: tuple[str, ...] = ()
    of_tasks: Notes = field(default_factory=Notes)

    def check_complete(self) -> None:
        """Raise unless every sample is done.

        Raises:
            IncompleteRunError: samples are missing; the message counts them.
        """
        if self.n_done == self.n_samples:
            return
        errors = sorted(self.of_tasks.errors.values(), key=lambda each: -each[1])
        kinds = [f"\n  {n:,} failed with {first}" for first, n in errors[:_SHOWN]]
        kinds += [f"\n  and {len(errors) - _SHOWN} more kinds of errors"] if len(errors) > _SHOWN else []
        tasks = [f"\n  task {task}: {reason}" for task, reason in sorted(self.failed_tasks.items())[:_SHOWN]]
        reasons = "".join(kinds + tasks)
        raise IncompleteRunError(
            f"{self.n_done} of {self.n_samples} samples are done, {self.n_failed} failed individually (query "
            f"failures), {len(self.failed_tasks)} tasks have no result. Rerun the same command to retry.{reasons}"
        )


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        n_done: samples on disk, those of earlier calls included.
        n_failed: samples and tasks that failed.
        n_actors: actors that have loaded the model.
        n_starting: actors that are waiting for room in the cluster, or loading the model.
        n_again: number of retries of tasks whose actor died.
        n_bytes: bytes written by this call.
    """

    n_done: int
    n_failed: int
    n_actors: int = 0
    n_starting: int = 0
    n_again: int = 0
    n_bytes: int = 0


@contextmanager
def begun(
    work: _Work,
    check_place: Callable[[_Work], None],
    begin: Callable[[_Work], bool],
    on_wait: Callable[[str], None] = lambda why: None,
) -> Iterator[tuple[_Work, bool]]:
    """Check the location of work, acquire its lease, and begin or resume it. The context holds the lease.

    Args:
        work: work to begin.
        check_place: function that rejects a location with other content.
        begin: function that creates what tasks need, and returns whether it already existed.
        on_wait: called with the reason while waiting for another command.

    Yields:
        The work with its lease, and whether it had been begun earlier.

    Raises:
        RunConflictError: the location contains something else, or another command is writing to it.
        StorageError: writing failed.
    """
    check_place(work)
    with hold(work.storage, on_wait=on_wait) as token:
        leased = work.leased(token)
        yield leased, begin(leased)


def pending_tasks(work: Work) -> list[int]:
    """Tasks without a record, tasks with failed samples, and a task that has more samples since the run has grown."""
    return _pending(work, Ledger(work.storage).records(work.fingerprint))


def _pending(work: Work, records: dict[int, Record]) -> list[int]:
    return [task for task in range(work.n_tasks) if not is_done(work, records.get(task))]


def _overwritten(work: Work, tasks: Collection[int]) -> list[int]:
    """Find retried tasks whose objects differ from their records.

    An actor that lost contact with the driver, but not with the storage, may have written after its replacement.
    """
    ledger = Ledger(work.storage)
    records = [record for task in sorted(tasks) if (record := ledger.find(task)) is not None]
    return [record.task for record in records if not ledger.is_intact(record)]


def run_tasks(
    work: Work,
    start: Start,
    pool: Pool,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    before: Callable[[list[int]], None] | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Outcome:
    """Run the unfinished tasks. Call it again to resume.

    Args:
        work: work that the tasks belong to.
        start: function that creates a worker.
        pool: pool of actors.
        on_progress: called after every task, and at least once a second.
        before: called with the tasks when Ray runs but no actor does yet; None if there is nothing to do before, in
            which case a single worker runs in this process.
        on_note: called with each of the outcome's notes, before any task starts.

    Raises:
        RunConflictError: a file that finished tasks depend on has changed.
        StorageError: writing failed, for example on a full disk; finished tasks are kept.
        FewchannelsError: Ray could not run the actors.
    """
    ledger = Ledger(work.storage)
    n_samples = work.rows(work.n_tasks - 1).stop

    def counted() -> tuple[dict[int, Record], int, int]:
        records = ledger.records(work.fingerprint)
        return records, sum(r.n_done for r in records.values()), sum(r.n_failed for r in records.values())

    records, n_done, n_failed = counted()
    n_resumed = n_done
    finished = [record for record in records.values() if not record.n_failed]  # the others are rerun
    check_named_files(work.storage, finished)
    noted = notes(finished, pool.cpus_per_actor, work.unchecked) if records else []
    for note in noted:
        on_note(note)
    tally = _Tally(work, Progress(n_done, n_failed), on_progress)
    if tasks := _pending(work, records):
        is_here = before is None and pool.is_here(len(tasks))
        with _workers(pool, is_here) as outcomes, interrupts() as check_interrupted:
            if before is not None:
                before(tasks)

            def on_turn(state: State) -> None:
                check_interrupted()
                tally.turn(state)

            while tasks:
                tally.begin()
                with closing(outcomes(work, start, tasks, pool, on_turn)) as ended:
                    for outcome in ended:
                        check_interrupted()
                        tally.add(outcome)
                finish_changes(work.storage)
                tasks = _overwritten(work, tally.reassigned)
                ledger.delete(tasks)
        work.storage.clean()  # an actor that was killed during a put has left a partial file, and its task was retried
        records, n_done, n_failed = counted()
    missing = {task: tally.failed.get(task, "no record") for task in range(work.n_tasks) if task not in records}
    n_again = tally.progress.n_again
    return Outcome(n_samples, n_done, n_failed, n_resumed, missing, n_again, tuple(noted), tally.notes)


@contextmanager
def _workers(pool: Pool, is_here: bool) -> Iterator[Callable[..., Generator[dict[str, Any]]]]:
    """Yield the runner of tasks: this process, or actors on a Ray instance that lives as long as the context."""
    if is_here:
        yield here.outcomes
        return
    from fewchannels.cluster.pool import outcomes  # Ray takes a second to import
    from fewchannels.cluster.session import ray_session

    with ray_session(pool):
        yield outcomes


class _Tally:
    """State of the tasks so far, reported on every change."""

    def __init__(self, work: Work, progress: Progress, on_progress: Callable[[Progress], None]) -> None:
        self._work, self._on_progress = work, on_progress
        self.progress, self.failed, self.reassigned = progress, dict[int, str](), set[int]()
        self.notes = Notes()
        self._n_again_before = 0
        on_progress(progress)

    def begin(self) -> None:
        """Handle the start of a pool."""
        self.reassigned.clear()
        self._n_again_before = self.progress.n_again

    def turn(self, state: State) -> None:
        """Handle the current state of the pool."""
        self.reassigned |= state.reassigned
        n_again = self._n_again_before + state.n_again
        self._tell(n_actors=state.n_actors, n_starting=state.n_starting, n_again=n_again)

    def add(self, outcome: Mapping[str, Any]) -> None:
        """Handle the end of a task.

        Raises:
            FewchannelsError: the task failed in a way that would affect every other task.
        """
        if outcome["fatal"]:
            raise _FATAL[outcome["fatal"]](f"{outcome['error']}\nFinished work is kept; run again to resume.")
        self.notes.add(outcome.get("notes", Notes()))
        n_done = self.progress.n_done
        if outcome["error"]:
            self.failed[outcome["task"]] = outcome["error"]
        else:
            n_done += len(self._work.rows(outcome["task"]))
        # A task that is rerun, or that had failed samples, counts twice, so the number is limited below.
        n_samples = self._work.rows(self._work.n_tasks - 1).stop
        n_bytes = self.progress.n_bytes + outcome["n_bytes"]
        self._tell(n_done=min(n_done, n_samples), n_failed=len(self.failed), n_bytes=n_bytes)

    def _tell(self, **changes: int) -> None:
        self.progress = replace(self.progress, **changes)
        self._on_progress(self.progress)
