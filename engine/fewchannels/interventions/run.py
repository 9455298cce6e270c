"""A whole sweep: begin or resume it, run the tasks, and measure the effects."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from fewchannels.analyses.summary import Summary
from fewchannels.captures.memory import batch_bytes, check_fits
from fewchannels.cluster.shares import Pool
from fewchannels.cluster.tasks import Outcome, Progress, begun, run_tasks
from fewchannels.interventions.begin import begin_sweep, check_place
from fewchannels.interventions.effects.measure import end_sweep
from fewchannels.interventions.sweep import Prepared, Sweep
from fewchannels.runs.ledger import Record


def start_sweep(
    sweep: Sweep, n_threads: int, device: str | None = None, pipeline: Any = None
) -> Callable[[int], Record]:
    """A sweep's worker."""
    # Imported here: it takes seconds, and the driver does not need it.
    from fewchannels.interventions.worker import SweepWorker

    return SweepWorker(sweep, n_threads, device=device, pipeline=pipeline)


def check_memory(sweep: Sweep, pool: Pool) -> None:
    """Refuse a sweep that this machine cannot hold.

    Raises:
        InputError: the memory does not suffice; the message has the required amount and remedies.
    """
    height, width = sweep.generation.height, sweep.generation.width
    assert height is not None, "prepare_sweep() settles it"
    assert width is not None
    n_rows, n_tokens = min(sweep.batch_size, sweep.n_items), math.prod(sweep.geometry.token_grid(height, width))
    needed = batch_bytes(n_rows, n_tokens, sweep.geometry.n_channels, height * width)
    check_fits(needed, f"images of {height} x {width} pixels, {sweep.batch_size} in a batch", pool)


def run_sweep(
    prepared: Prepared,
    pool: Pool,
    *,
    on_wait: Callable[[str], None] = lambda why: None,
    on_begun: Callable[[bool], None] = lambda resumed: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_note: Callable[[str], None] = lambda note: None,
    on_ended: Callable[[], Callable[[int, int], None]] = lambda: lambda done, total: None,
    pipeline: Any = None,
) -> tuple[Outcome, Summary | None]:
    """Create or resume a sweep, run its unfinished tasks, and measure its effects. Call it again to resume.

    Args:
        prepared: result of :func:`fewchannels.interventions.sweep.prepare_sweep`.
        pool: pool of actors.
        on_wait: called with the reason while waiting for another command that writes to the sweep.
        on_begun: called when the sweep exists, with whether it already existed.
        on_progress: called after every task, and at least once a second.
        on_note: called with each of the outcome's notes, before any task.
        on_ended: called when the tasks have ended; returns a function that is called with the number of units of the
            effects measured so far and in all.
        pipeline: the model, if it is loaded already, for a pool of this process alone; None loads it.

    Returns:
        The outcome of the tasks, and the effects; None if nothing is finished.

    Raises:
        InputError: this machine has too little memory for a worker.
        RunConflictError: the place contains something else, or another command is writing to it.
        StorageError: writing failed, for example on a full disk; finished items are kept.
        FewchannelsError: Ray could not run the actors.
    """
    check_memory(prepared.sweep, pool)
    with begun(prepared.sweep, lambda sweep: check_place(prepared), lambda sweep: begin_sweep(prepared), on_wait) as (
        sweep,
        resumed,
    ):
        on_begun(resumed)
        start = start_sweep if pipeline is None else partial(start_sweep, pipeline=pipeline)
        outcome = run_tasks(sweep, start, pool, on_progress, on_note=on_note)
        if not outcome.n_done:
            return outcome, None
        return outcome, end_sweep(sweep.storage, sweep.metrics, on_ended(), pool.device)
