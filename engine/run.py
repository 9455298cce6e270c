"""Runs a capture's tasks on a pool of Ray actors: bounded retries, progress, and an honest end."""

import json
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from engine.cluster import MACHINE_FAULT_RETRIES, Pool, interrupts, ray_session
from engine.errors import FewchannelsError, IncompleteRunError, InputError, RunConflictError, StorageError
from engine.job import Job, Work
from engine.ledger import Ledger, Record
from engine.manifest import Sample, read_samples
from engine.runfile import EMBEDDINGS, MANIFEST
from engine.sizes import size

TASKS_AT_ONCE = 2  # of an actor: one is generated, one is written; no more wait in its memory
_FATAL = {error.__name__: error for error in (StorageError, RunConflictError, InputError)}


@dataclass(frozen=True)
class Outcome:
    """How a capture ended.

    Attributes:
        n_samples: rows of the manifest.
        n_done: samples on disk, whole.
        n_failed: samples that failed by themselves; the ``samples`` table says why.
        n_resumed: samples that an earlier call had already done.
        failed_tasks: tasks without a record, with the reason of each.
    """

    n_samples: int
    n_done: int
    n_failed: int
    n_resumed: int
    failed_tasks: dict[int, str]

    def check_complete(self) -> None:
        """Raise unless every sample is done.

        Raises:
            IncompleteRunError: saying what is missing.
        """
        if self.n_done == self.n_samples:
            return
        reasons = "".join(f"\n  task {task}: {reason}" for task, reason in sorted(self.failed_tasks.items())[:5])
        raise IncompleteRunError(
            f"{self.n_done} of {self.n_samples} samples are done, {self.n_failed} failed by themselves (query "
            f"failures), {len(self.failed_tasks)} tasks have no result. Run the same command again to retry.{reasons}"
        )


Start = Callable[[Any, int], Callable[[int], Record]]
"""From work and a number of CPU threads to a worker: called with a task, it does it and returns its record."""


def pending_tasks(work: Work) -> list[int]:
    """Tasks without a record, those with failed samples, and one that owns more samples since the run has grown."""
    return _pending(work, Ledger(work.storage).records(work.fingerprint))


def _pending(work: Work, records: dict[int, Record]) -> list[int]:
    return [task for task in range(work.n_tasks) if not _is_done(work, records.get(task))]


def _is_done(work: Work, record: Record | None) -> bool:
    if record is None or record.fingerprint != work.fingerprint:
        return False
    return not record.n_failed and record.stop == work.rows(record.task).stop


def check_space(job: Job, tasks: list[int]) -> None:
    """Refuse work that cannot fit on the disk.

    Raises:
        StorageError: less is free than the pending tasks' arrays take.
    """
    free = job.storage.free_bytes()
    needed = job.layout.expected_bytes * len(tasks) // job.layout.n_tasks
    if free is not None and needed > free:
        raise StorageError(
            f"{len(tasks)} tasks will write about {size(needed)} of arrays and {job.run!r} has "
            f"{size(free)} free. Free space, keep fewer --layers or --steps, or lower --top-k."
        )


def start_capture(job: Job, n_threads: int) -> Callable[[int], Record]:
    """A capture's worker."""
    from engine.embeddings import InStorage  # here: seconds to import, and the driver does not need them
    from engine.worker import CaptureWorker

    return CaptureWorker(job, n_threads, InStorage(job.storage) if job.config.encode_first else None)


class Actor:
    """A worker as Ray Data calls it: a batch of one task in, its outcome as JSON out."""

    def __init__(self, work: Work, start: Start, n_threads: int) -> None:
        self._work, self._ledger = work, Ledger(work.storage)
        self._worker: Callable[[int], Record] | FewchannelsError
        try:
            self._worker = start(work, n_threads)
        except FewchannelsError as error:  # Ray would start the actor again and again; the driver ends the run
            self._worker = error

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        task = int(batch["task"][0])
        outcome: dict[str, Any] = {"task": task, "error": None, "fatal": None}
        try:
            if isinstance(self._worker, FewchannelsError):
                raise self._worker
            # Ray asks again where it lost the answer. The record names what is there, bit by bit: it is left alone.
            if not _is_done(self._work, self._ledger.find(task)):
                self._worker(task)
        except (StorageError, RunConflictError, InputError) as error:
            outcome |= {"error": str(error), "fatal": type(error).__name__}
        except Exception as error:  # one task's failure must not end the others; the driver reports it
            outcome |= {"error": f"{type(error).__name__}: {error}"}
        return {"outcome": np.array([json.dumps(outcome)], dtype=object)}


def outcomes(work: Work, start: Start, tasks: list[int], pool: Pool) -> Iterator[dict[str, Any]]:
    """Run tasks on the pool; yields each one's outcome as it ends, in any order."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Use is measured against TASKS_AT_ONCE, which are also all that an actor is given: more than 1 is never reached.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    n_actors = min(pool.n_actors, len(tasks))
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised as well
    rows = ray.data.from_items([{"task": task} for task in tasks], override_num_blocks=len(tasks))
    with warnings.catch_warnings():
        # Ray Data offers no other way to bound them than what Ray 2.64 will take away (pyproject.toml stays below it).
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        done = rows.map_batches(
            Actor,
            fn_constructor_kwargs={"work": work, "start": start, "n_threads": pool.cpus_per_actor},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=1,  # of a cluster that has no room for more yet
                initial_size=n_actors,
                max_size=n_actors,
                max_tasks_in_flight_per_actor=TASKS_AT_ONCE,
                max_concurrent_calls_per_actor=TASKS_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            num_cpus=pool.cpus_per_actor,
            num_gpus=pool.gpus_per_actor,
            max_restarts=MACHINE_FAULT_RETRIES,
            max_task_retries=MACHINE_FAULT_RETRIES,
        )
    try:
        for row in done.iter_rows():
            yield json.loads(row["outcome"])
    except BaseException as error:
        # Ray's iterator, alive in the traceback, would else end after Ray has, and start it again.
        traceback.clear_frames(error.__traceback__)
        raise


def _encode(job: Job, tasks: list[int], n_threads: int) -> Iterator[str | None]:
    """Encode the prompts of tasks into the run's storage, on whatever node Ray chose for it."""
    import torch

    from engine.embeddings import InStorage
    from engine.encode import encode
    from engine.loaded import default_device

    torch.set_num_threads(n_threads)

    def samples() -> Iterator[Sample]:
        for task in tasks:
            rows = job.layout.rows(task)
            with job.storage.open(MANIFEST) as file:
                yield from read_samples(file, rows.start, rows.stop)

    yield from encode(job, samples(), InStorage(job.storage), default_device())


def encode_prompts(job: Job, tasks: list[int], pool: Pool, on_encoded: Callable[[int], None]) -> None:
    """Encode the prompts of tasks with what one actor owns, before there are actors.

    Raises:
        InputError: the model cannot be loaded.
    """
    remote = ray.remote(
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor,
        num_returns="streaming",
        max_calls=1,  # its process ends, and with it all that the encoders took
        max_retries=MACHINE_FAULT_RETRIES,
    )(_encode)
    try:
        for done, reference in enumerate(remote.remote(job, tasks, pool.cpus_per_actor), start=1):
            ray.get(reference)
            on_encoded(done)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, FewchannelsError) else error from None


def capture(
    job: Job,
    pool: Pool,
    on_progress: Callable[[int, int], None] = lambda done, failed: None,
    on_encoded: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Run what is not done yet of a job that was begun. Call it again to resume.

    Args:
        job: from :func:`engine.job.prepare`, begun on disk.
        pool: of actors.
        on_progress: called with the samples done so far and those failed, after every task.
        on_encoded: called with the samples whose prompts are encoded, where that is done first.

    Raises:
        StorageError: the disk is full or refused; what is done stays done.
        FewchannelsError: Ray could not run the actors.
    """

    def before(tasks: list[int]) -> None:
        if job.config.encode_first:
            encode_prompts(job, tasks, pool, on_encoded)

    tasks = pending_tasks(job)
    if tasks:
        check_space(job, tasks)
    outcome = run_tasks(job, start_capture, pool, on_progress, before)
    if job.config.encode_first and outcome.n_done == outcome.n_samples:
        job.storage.delete(job.storage.list(EMBEDDINGS))
    return outcome


def run_tasks(
    work: Work,
    start: Start,
    pool: Pool,
    on_progress: Callable[[int, int], None] = lambda done, failed: None,
    before: Callable[[list[int]], None] = lambda tasks: None,
) -> Outcome:
    """Do the tasks that are not done yet. Call it again to resume.

    Args:
        work: whose tasks.
        start: makes a worker.
        pool: of actors.
        on_progress: called with the samples done so far and those failed, after every task.
        before: called with the tasks when Ray runs and no actor does yet.

    Raises:
        StorageError: the disk is full or refused; what is done stays done.
        FewchannelsError: Ray could not run the actors.
    """
    ledger = Ledger(work.storage)
    n_samples = work.rows(work.n_tasks - 1).stop

    def counted() -> tuple[dict[int, Record], int, int]:
        records = ledger.records(work.fingerprint)
        return records, sum(r.n_done for r in records.values()), sum(r.n_failed for r in records.values())

    records, n_resumed, n_failed = counted()
    n_done = n_resumed
    tasks = _pending(work, records)
    failed_tasks: dict[int, str] = {}
    on_progress(n_resumed, n_failed)
    if tasks:
        try:
            with ray_session(pool), interrupts() as check_interrupted:
                before(tasks)
                for outcome in outcomes(work, start, tasks, pool):
                    check_interrupted()
                    if outcome["fatal"]:
                        refused = _FATAL[outcome["fatal"]]
                        raise refused(f"{outcome['error']}\nWhat is done is kept; run again to resume.")
                    if outcome["error"]:
                        failed_tasks[outcome["task"]] = outcome["error"]
                    n_done += len(work.rows(outcome["task"])) if not outcome["error"] else 0
                    on_progress(min(n_done, n_samples), len(failed_tasks))
        except ray.exceptions.RayError as error:
            raise FewchannelsError(
                f"Ray could not run the actors: {str(error).strip()}\nWhat is done is kept; run again to resume."
            ) from error
        work.storage.clean()  # an actor that was killed amid a put has left half a file, and its task was done again
        records, n_done, n_failed = counted()
    missing = {task: failed_tasks.get(task, "no record") for task in range(work.n_tasks) if task not in records}
    return Outcome(n_samples, n_done, n_failed, n_resumed, missing)
