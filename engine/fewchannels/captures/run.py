"""A whole capture: begin or resume the run, encode prompts first if requested, and run the tasks."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fewchannels import manifest
from fewchannels.captures.begin import begin, check_place
from fewchannels.captures.job import Job
from fewchannels.captures.memory import check_memory
from fewchannels.cluster.parallel import streamed
from fewchannels.cluster.shares import Pool
from fewchannels.cluster.tasks import Outcome, Progress, begun, pending_tasks, run_tasks
from fewchannels.errors import StorageError
from fewchannels.manifest import Sample
from fewchannels.runs.description import EMBEDDINGS, MANIFEST, objects_of, read_description
from fewchannels.runs.ledger import Record
from fewchannels.runs.storage import Stored
from fewchannels.settings.units import size


def check_space(job: Job, tasks: list[int]) -> None:
    """Refuse work that does not fit on the disk.

    Raises:
        StorageError: there is less free space than the pending tasks' arrays take.
    """
    free = job.storage.free_bytes()
    needed = job.layout.expected_bytes * len(tasks) // job.layout.n_tasks
    if free is not None and needed > free:
        raise StorageError(
            f"{len(tasks)} tasks will write about {size(needed)} of arrays, but {job.run!r} has only "
            f"{size(free)} free. Free space, record fewer --layers or --steps, or lower --top-k."
        )


def start_capture(job: Job, n_threads: int, device: str | None = None, pipeline: Any = None) -> Callable[[int], Record]:
    """A capture's worker."""
    # Imported here: it takes seconds, and the driver does not need them.
    from fewchannels.captures.stored_embeddings import StoredEmbeddings
    from fewchannels.captures.worker import CaptureWorker

    embeddings = StoredEmbeddings(job.storage) if job.config.encode_first else None
    return CaptureWorker(job, n_threads, embeddings, device, pipeline)


def _encode(job: Job, tasks: list[int], n_threads: int, share: str) -> Iterator[str | None]:
    """Encode the prompts of tasks into the run's storage, on any node that Ray chooses."""
    import torch

    from fewchannels.captures.encode_prompts import encode_prompts
    from fewchannels.captures.stored_embeddings import StoredEmbeddings
    from fewchannels.models.loaded import device_of

    torch.set_num_threads(n_threads)

    def samples() -> Iterator[Sample]:
        for task in tasks:
            yield from job.samples(task)

    yield from encode_prompts(job, samples(), StoredEmbeddings(job.storage), device_of(share))


def encode_prompts(job: Job, tasks: list[int], pool: Pool, on_encoded: Callable[[int], None]) -> None:
    """Encode the prompts of tasks with one actor's share of resources, before actors start.

    Raises:
        InputError: the model cannot be loaded.
    """
    encoded = streamed(_encode, (job, tasks, pool.cpus_per_actor, pool.device), pool)
    for done, _ in enumerate(encoded, start=1):
        on_encoded(done)


def capture(
    job: Job,
    manifest_path: Path,
    pool: Pool,
    *,
    on_wait: Callable[[str], None] = lambda why: None,
    on_begun: Callable[[bool], None] = lambda resumed: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_encoded: Callable[[int], None] = lambda done: None,
    on_note: Callable[[str], None] = lambda note: None,
    pipeline: Any = None,
) -> Outcome:
    """Create, resume or extend a run, and capture its unfinished samples. Call it again to resume.

    Args:
        job: result of :func:`fewchannels.captures.job.prepare`.
        manifest_path: the manifest that it was prepared with.
        pool: pool of actors.
        on_wait: called with the reason while waiting for another command that writes to the run.
        on_begun: called when the run exists, with whether it already existed.
        on_progress: called after every task, and at least once a second.
        on_encoded: called with the number of encoded prompts, if they are encoded first.
        on_note: called with each of the outcome's notes, before any task.
        pipeline: the model, if it is loaded already, for a pool of this process alone; None loads it.

    Raises:
        InputError: this machine has too little memory for a worker, or the manifest was replaced.
        RunConflictError: the place contains something else, or another command is writing to it.
        StorageError: writing failed, for example on a full disk; finished samples are kept.
        FewchannelsError: Ray could not run the actors.
    """
    check_memory(job, pool)
    with begun(job, check_place, lambda leased: begin(leased, manifest_path), on_wait) as (leased, resumed):
        on_begun(resumed)
        if resumed and (kept := _kept_columns(leased, manifest_path.read_bytes())):
            on_note(
                f"the columns {', '.join(kept)} of this manifest differ from those that the run was created with. The "
                "run keeps its own; the samples are the same."
            )
        return finish(leased, pool, on_progress, on_encoded, on_note, pipeline)


def _kept_columns(job: Job, rows: bytes) -> list[str]:
    """The extra columns in which a run's manifest differs from the one that resumes it."""
    stored = objects_of(read_description(job.storage)).get(MANIFEST)
    if stored == Stored.of([rows]):
        return []
    return manifest.other_columns(job.storage.get(MANIFEST), rows)


def finish(
    job: Job,
    pool: Pool,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_encoded: Callable[[int], None] = lambda done: None,
    on_note: Callable[[str], None] = lambda note: None,
    pipeline: Any = None,
) -> Outcome:
    """Capture the unfinished samples of an existing run, like :func:`capture`."""

    def encode(tasks: list[int]) -> None:
        encode_prompts(job, tasks, pool, on_encoded)

    tasks = pending_tasks(job)
    if tasks:
        check_space(job, tasks)
    start = start_capture if pipeline is None else partial(start_capture, pipeline=pipeline)
    outcome = run_tasks(job, start, pool, on_progress, encode if job.config.encode_first else None, on_note)
    if job.config.encode_first and outcome.n_done == outcome.n_samples:
        job.storage.delete(job.storage.list(EMBEDDINGS))
    return outcome
