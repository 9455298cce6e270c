"""Estimate of a capture before it starts: bytes by array from the layout, time and tables from one batch."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fewchannels.captures.encode_prompts import encoded_prompts
from fewchannels.captures.job import Job
from fewchannels.captures.recorder import Recorder
from fewchannels.captures.worker import CaptureWorker, tables_of
from fewchannels.cluster.notes import check_measured
from fewchannels.manifest import Sample, read_samples
from fewchannels.models.loaded import device_of
from fewchannels.runs import shards
from fewchannels.runs.layout import ArrayPlan
from fewchannels.tables import to_parquet


@dataclass(frozen=True)
class Estimate:
    """Bytes, files and time of a whole capture.

    Attributes:
        n_samples: samples.
        n_tasks: tasks.
        n_files: files that the finished run has.
        shapes: shapes of the arrays, by name.
        array_bytes: size in bytes by array name, as the batch below compressed.
        table_bytes: size in bytes of the ``cells`` and ``samples`` tables (images included) and the manifest.
        total_bytes: all of it.
        seconds: seconds with the given number of actors, without model loading and Ray's start.
        seconds_per_sample: seconds per sample as measured on the batch below, with this process's threads.
        measured_samples: samples in the batch that was measured.
    """

    n_samples: int
    n_tasks: int
    n_files: int
    shapes: dict[str, tuple[int, ...]]
    array_bytes: dict[str, int]
    table_bytes: dict[str, int]
    total_bytes: int
    seconds: float
    seconds_per_sample: float
    measured_samples: int


def estimate(job: Job, manifest_path: Path, n_actors: int, n_threads: int, share: str = "cuda") -> Estimate:
    """Generate the manifest's first batch without writing it, and extrapolate its time and size to the whole run.

    Args:
        job: result of :func:`fewchannels.captures.job.prepare`.
        manifest_path: the manifest.
        n_actors: actors that will share the work.
        n_threads: CPU threads of each.
        share: ``cuda`` if each worker has a GPU; then this machine's GPU is used for the measurement, if available.

    Raises:
        IncompleteRunError: a sample of that batch failed.
    """
    n_measured = min(job.batch_size, job.layout.shard_samples, job.layout.n_samples)
    samples = read_samples(manifest_path, 0, n_measured)
    device = device_of(share)
    with encoded_prompts(job, samples, device) as embeddings:
        worker = CaptureWorker(job, n_threads, embeddings, device)
        return _measure(job, worker, samples, manifest_path, n_actors)


def _measure(job: Job, worker: CaptureWorker, samples: list[Sample], manifest_path: Path, n_actors: int) -> Estimate:
    ids = [sample.sample_id for sample in samples]
    recorder = Recorder(job.layout, job.config.score, ids)
    # The first generation also warms up.
    first = worker.generate(samples[:1], Recorder(job.layout, job.config.score, ids[:1]))
    check_measured([made.row for made in first])
    started = time.monotonic()
    generated = worker.generate(samples, recorder)
    check_measured([made.row for made in generated])
    tables = tables_of(0, 0, 1, samples, generated)
    seconds = (time.monotonic() - started) / len(samples)
    scale = job.layout.n_samples / len(samples)
    table_bytes = {
        **{name: round(len(to_parquet(name, columns)) * scale) for name, columns in tables.items()},
        "manifest": manifest_path.stat().st_size,
    }
    measured = recorder.arrays()
    array_bytes = {
        array.name: replace(array, ratio=_ratio(array, measured[array.name])).expected_bytes
        for array in job.layout.arrays()
    }
    return Estimate(
        n_samples=job.layout.n_samples,
        n_tasks=job.layout.n_tasks,
        n_files=job.layout.n_files,
        shapes={array.name: array.shape for array in job.layout.arrays()},
        array_bytes=array_bytes,
        table_bytes=table_bytes,
        total_bytes=sum(array_bytes.values()) + sum(table_bytes.values()),
        seconds=seconds * job.layout.n_samples / min(n_actors, job.layout.n_tasks),
        seconds_per_sample=seconds,
        measured_samples=len(samples),
    )


def _ratio(array: ArrayPlan, values: np.ndarray) -> float:
    """Bytes stored per byte of values, without a chunk's fixed overhead."""
    one_shard = replace(array, shape=array.shard, ratio=0)
    n_bytes = sum(map(len, shards.compress(values, array))) - one_shard.expected_bytes
    return max(0.0, n_bytes / values.nbytes)
