"""The tasks of a run that are not done: what to do, what became of it, and an honest end."""

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
    """How a capture ended.

    Attributes:
        n_samples: rows of the manifest.
        n_done: samples on disk, whole.
        n_failed: samples that failed individually; the ``samples`` table says why.
        n_resumed: samples that an earlier call had already done.
        failed_tasks: tasks without a record, with the reason of each.
        n_again: times that a task was retried because its actor died or was out of reach.
        notes: differences of earlier calls from this one that may affect the last bits.
        of_tasks: why samples of the tasks that this call did failed, and which prompts were cut.
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
            IncompleteRunError: saying what is missing.
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
    """How far a run is.

    Attributes:
        n_done: samples on disk, those of earlier calls included.
        n_failed: samples and tasks that failed.
        n_actors: actors that have loaded the model.
        n_starting: actors that wait for room in the cluster, or load.
        n_again: times that a task was retried because its actor died.
        n_bytes: written by this call.
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
    """Check work's place, take its lease, and begin or resume it there. The lease is held inside.

    Args:
        work: work to begin.
        check_place: refuses a place that holds something else.
        begin: lays out what tasks need; returns whether it was there already.
        on_wait: called with the reason when another command has to be waited for.

    Yields:
        The work under the lease, and whether it was begun before.

    Raises:
        RunConflictError: the place holds something else, or another command writes to it.
        StorageError: the store refused.
    """
    check_place(work)
    with hold(work.storage, on_wait=on_wait) as token:
        leased = work.leased(token)
        yield leased, begin(leased)


def pending_tasks(work: Work) -> list[int]:
    """Tasks without a record, those with failed samples, and one that owns more samples since the run has grown."""
    return _pending(work, Ledger(work.storage).records(work.fingerprint))


def _pending(work: Work, records: dict[int, Record]) -> list[int]:
    return [task for task in range(work.n_tasks) if not is_done(work, records.get(task))]


def _overwritten(work: Work, tasks: Collection[int]) -> list[int]:
    """Of tasks that were retried, those whose objects are not what their records say.

    An actor that was out of the driver's reach, but not of the storage's, may have written after the one that took its
    place.
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
    """Do the tasks that are not done yet. Call it again to resume.

    Args:
        work: work that the tasks belong to.
        start: makes a worker.
        pool: pool of actors.
        on_progress: called after every task, and at least once a second.
        before: called with the tasks when Ray runs and no actor does yet; None where nothing comes before, and then one
            worker alone is this process.
        on_note: called with each of the outcome's notes, before any task.

    Raises:
        RunConflictError: a file that finished tasks were made with holds something else by now.
        StorageError: the disk is full or refused; what is done stays done.
        FewchannelsError: Ray could not run the actors.
    """
    ledger = Ledger(work.storage)
    n_samples = work.rows(work.n_tasks - 1).stop

    def counted() -> tuple[dict[int, Record], int, int]:
        records = ledger.records(work.fingerprint)
        return records, sum(r.n_done for r in records.values()), sum(r.n_failed for r in records.values())

    records, n_done, n_failed = counted()
    n_resumed = n_done
    finished = [record for record in records.values() if not record.n_failed]  # the others are done again
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
        work.storage.clean()  # an actor that was killed amid a put has left half a file, and its task was done again
        records, n_done, n_failed = counted()
    missing = {task: tally.failed.get(task, "no record") for task in range(work.n_tasks) if task not in records}
    n_again = tally.progress.n_again
    return Outcome(n_samples, n_done, n_failed, n_resumed, missing, n_again, tuple(noted), tally.notes)


@contextmanager
def _workers(pool: Pool, is_here: bool) -> Iterator[Callable[..., Generator[dict[str, Any]]]]:
    """Yields what does tasks: this process, or actors on a Ray that lasts as long as the context."""
    if is_here:
        yield here.outcomes
        return
    from fewchannels.cluster.pool import outcomes  # Ray takes a second to import
    from fewchannels.cluster.session import ray_session

    with ray_session(pool):
        yield outcomes


class _Tally:
    """What has become of tasks so far, told whenever it changes."""

    def __init__(self, work: Work, progress: Progress, on_progress: Callable[[Progress], None]) -> None:
        self._work, self._on_progress = work, on_progress
        self.progress, self.failed, self.reassigned = progress, dict[int, str](), set[int]()
        self.notes = Notes()
        self._n_again_before = 0
        on_progress(progress)

    def begin(self) -> None:
        """A pool begins."""
        self.reassigned.clear()
        self._n_again_before = self.progress.n_again

    def turn(self, state: State) -> None:
        """How the pool stands now."""
        self.reassigned |= state.reassigned
        n_again = self._n_again_before + state.n_again
        self._tell(n_actors=state.n_actors, n_starting=state.n_starting, n_again=n_again)

    def add(self, outcome: Mapping[str, Any]) -> None:
        """A task has ended.

        Raises:
            FewchannelsError: in a way in which every other would.
        """
        if outcome["fatal"]:
            raise _FATAL[outcome["fatal"]](f"{outcome['error']}\nFinished work is kept; run again to resume.")
        self.notes.add(outcome.get("notes", Notes()))
        n_done = self.progress.n_done
        if outcome["error"]:
            self.failed[outcome["task"]] = outcome["error"]
        else:
            n_done += len(self._work.rows(outcome["task"]))
        # A task that is done again, or that had failed samples, is counted once more.
        n_samples = self._work.rows(self._work.n_tasks - 1).stop
        n_bytes = self.progress.n_bytes + outcome["n_bytes"]
        self._tell(n_done=min(n_done, n_samples), n_failed=len(self.failed), n_bytes=n_bytes)

    def _tell(self, **changes: int) -> None:
        self.progress = replace(self.progress, **changes)
        self._on_progress(self.progress)
