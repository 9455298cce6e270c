"""Estimate of a sweep before it starts: rows and batches from its plan, time and bytes from one batch."""

import io
import time
from dataclasses import dataclass
from typing import BinaryIO

from fewchannels.cluster.notes import check_measured
from fewchannels.interventions.rows import count
from fewchannels.interventions.sweep import Prepared
from fewchannels.interventions.worker import SweepWorker
from fewchannels.models.loaded import device_of
from fewchannels.runs.description import MANIFEST
from fewchannels.tables import as_columns, to_parquet


@dataclass(frozen=True)
class Cost:
    """Images, batches, bytes and time of a whole sweep.

    Attributes:
        n_items: samples, or pairs.
        n_conditions: number of conditions.
        n_edits: edited images.
        n_batches: number of batches that are generated.
        n_rows: number of rows of all batches, that is, of generated images.
        rows_per_edit: rows divided by edited images; it would be 1 if only edited ones were generated.
        total_bytes: size in bytes of the ``edits`` table, images included.
        seconds: seconds with the given number of actors, without model loading and Ray's start.
        seconds_per_row: seconds per row as measured, with this process's threads.
        measured_rows: rows of the batch that was measured.
    """

    n_items: int
    n_conditions: int
    n_edits: int
    n_batches: int
    n_rows: int
    rows_per_edit: float
    total_bytes: int
    seconds: float
    seconds_per_row: float
    measured_rows: int


def cost(prepared: Prepared, n_actors: int, n_threads: int, share: str = "cuda") -> Cost:
    """Generate and measure the first item of the sweep without writing it, and extrapolate its time and size.

    Args:
        prepared: the sweep, not started yet.
        n_actors: actors that will share the work.
        n_threads: CPU threads of each.
        share: ``cuda`` if each worker has a GPU; then this machine's GPU is used for the measurement, if available.

    Raises:
        IncompleteRunError: that item failed.
    """
    sweep = prepared.sweep

    def opened(key: str) -> BinaryIO:
        return prepared.manifest.open() if key == MANIFEST else io.BytesIO(prepared.tables[key])

    worker = SweepWorker(sweep, n_threads, opened, device_of(share))
    items = worker.items(range(1))
    n_one = count(1, sweep.conditions, sweep.batch_size, has_source=sweep.has_source)[1]
    started = time.monotonic()
    rows = worker.model.run(worker.images, items)
    check_measured(rows)
    seconds_per_row = (time.monotonic() - started) / n_one
    empty, one = (
        len(to_parquet("edits", as_columns("edits", [row | {"task": 0, "attempt": 1} for row in each])))
        for each in ([], rows)
    )
    counts = [
        count(len(sweep.rows(task)), sweep.conditions, sweep.batch_size, has_source=sweep.has_source)
        for task in (0, sweep.n_tasks - 1)
    ]
    n_batches, n_rows = (first * (sweep.n_tasks - 1) + last for first, last in zip(*counts, strict=True))
    return Cost(
        n_items=sweep.n_items,
        n_conditions=len(sweep.conditions),
        n_edits=sweep.n_edits,
        n_batches=n_batches,
        n_rows=n_rows,
        rows_per_edit=n_rows / sweep.n_edits,
        total_bytes=(one - empty) * sweep.n_items + empty * sweep.n_tasks,
        seconds=seconds_per_row * n_rows / min(n_actors, sweep.n_tasks),
        seconds_per_row=seconds_per_row,
        measured_rows=n_one,
    )
