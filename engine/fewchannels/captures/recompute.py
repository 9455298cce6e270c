"""Regenerate some of a run's samples and compare them with the stored ones."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.encode_prompts import encoded_prompts
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.recorder import Recorder
from fewchannels.captures.worker import CaptureWorker
from fewchannels.errors import InputError, RunConflictError
from fewchannels.manifest import Sample, read_samples
from fewchannels.models.family_file import named_family
from fewchannels.models.loaded import default_device
from fewchannels.runs.arrays import read
from fewchannels.runs.changes import manifest_key
from fewchannels.runs.description import MANIFEST, read_description
from fewchannels.runs.identity import differences
from fewchannels.runs.images import png
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.parts import Parts
from fewchannels.runs.provenance import check_named_files
from fewchannels.runs.storage import Storage


@dataclass(frozen=True)
class Comparison:
    """One regenerated sample.

    Attributes:
        sample: index of the sample.
        sample_id: id of the sample.
        equal: whether every stored number and the image are the same to the last bit.
        difference: largest ``|again - stored|`` of any array, divided by the largest ``|stored|`` of that array.
        n_other_channels: number of (step, layer) cells with different top channels.
    """

    sample: int
    sample_id: str
    equal: bool
    difference: float
    n_other_channels: int


def recompute(
    storage: Storage, n_samples: int, n_threads: int, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Comparison]:
    """Regenerate whole tasks, spread evenly over the run, until there are at least ``n_samples``. Reads only.

    On a CPU, with the capture's batches and threads, everything is equal to the last bit. On a GPU, with another number
    of threads, or for a task that was finished in two parts, the last bits may differ.

    Raises:
        InputError: nothing is finished, or the model cannot be loaded.
        RunConflictError: the model's files, or those that the manifest names, have changed.
    """
    description = read_description(storage)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / MANIFEST
        key = manifest_key(storage, description)
        local.write_bytes(storage.get(key))
        described = description["identity"].get("family")
        family = named_family(described, storage.url) if described else None
        job = prepare(local, storage.url, CaptureConfig.of(description), family)
    if job.fingerprint != description["fingerprint"]:
        lines = "\n  ".join(differences(job.identity, description["identity"]))
        raise RunConflictError(
            f"{job.config.model!r} differs from the model that {storage.url!r} was captured with:\n  {lines}"
        )
    records = Ledger(storage).records(job.fingerprint)
    done = [task for task, record in records.items() if not record.n_failed]
    if not done:
        raise InputError(f"{storage.url!r} has no finished task to compare with. Rerun its capture first.")
    n_tasks = min(len(done), -(-n_samples // job.layout.shard_samples))
    chosen = [done[i * len(done) // n_tasks] for i in range(n_tasks)]
    check_named_files(storage, [records[task] for task in chosen])
    samples = {}
    for task in chosen:
        with storage.open(key) as file:
            samples[task] = read_samples(file, job.layout.rows(task).start, records[task].stop)
    parts, compared = Parts(storage, records), []
    with encoded_prompts(job, [sample for each in samples.values() for sample in each], default_device()) as embeddings:
        worker = CaptureWorker(job, n_threads, embeddings)
        for i, task in enumerate(chosen, start=1):
            compared += _compare(job, worker, parts, task, samples[task])
            on_progress(i, n_tasks)
    return compared


def _compare(job: Job, worker: CaptureWorker, parts: Parts, task: int, samples: list[Sample]) -> list[Comparison]:
    start = job.layout.rows(task).start
    recorder = Recorder(job.layout, job.config.score, [sample.sample_id for sample in samples])
    generated = worker.generate(samples, recorder)
    again = recorder.arrays()
    stored = read(job.storage, list(again), start, start + len(samples))
    images = parts.rows("samples", task).column("image").to_pylist()
    return [
        _compared(
            start + i,
            sample.sample_id,
            {name: values[i] for name, values in again.items()},
            {name: values[i] for name, values in stored.items()},
            images[i] == (png(made.image) if (made := generated[i]).image else None),
        )
        for i, sample in enumerate(samples)
    ]


def _compared(
    sample: int,
    sample_id: str,
    again: Mapping[str, np.ndarray],
    stored: Mapping[str, np.ndarray],
    same_image: bool,
) -> Comparison:
    difference, n_other = 0.0, 0
    for name, expected in stored.items():
        if expected.dtype.kind == "i":
            n_other += int((again[name] != expected).any(axis=-1).sum())
            continue
        largest = np.nanmax(np.abs(expected), initial=0.0)
        apart = np.nanmax(np.abs(again[name] - expected), initial=0.0)
        if not np.array_equal(np.isnan(again[name]), np.isnan(expected)):
            apart = np.inf
        difference = max(difference, float(apart / largest) if largest else float(apart))
    equal = same_image and all(np.array_equal(again[name], stored[name], equal_nan=True) for name in stored)
    return Comparison(sample, sample_id, equal, difference, n_other)


def summary(compared: Sequence[Comparison]) -> dict[str, float]:
    """Summarize comparisons: counts, and the largest difference."""
    return {
        "n_samples": len(compared),
        "n_equal": sum(each.equal for each in compared),
        "n_other_channels": sum(each.n_other_channels for each in compared),
        "largest_difference": max(each.difference for each in compared),
    }
