"""The capture worker, which loads the model once and writes shards, tables and records of tasks. Does not need Ray."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image

from fewchannels.captures.job import Job
from fewchannels.captures.recorder import Recorder
from fewchannels.cluster.attempts import recorded, tried
from fewchannels.cluster.notes import note_cut_prompts, note_failures
from fewchannels.errors import FamilyMismatchError, without_secrets
from fewchannels.manifest import Sample
from fewchannels.measures.kernels import version_on
from fewchannels.models.embeddings import Kept, Recent, remembering
from fewchannels.models.generation import Settings
from fewchannels.models.loaded import LoadedModel
from fewchannels.models.taps import tapped
from fewchannels.runs.arrays import Store, read
from fewchannels.runs.changes import Draft, name_of
from fewchannels.runs.images import png
from fewchannels.runs.lease import Membership
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.parts import part, read_rows
from fewchannels.runs.provenance import computed_by, named_files
from fewchannels.tables import Columns, as_columns, from_parquet, join, of_samples, schema, to_parquet


@dataclass(frozen=True)
class Generated:
    """Data of one generated sample, besides arrays.

    Attributes:
        row: row of ``samples``, without the image and the columns that identify the sample.
        image: the image; None if there is none.
        cells: its columns of ``cells``, from :meth:`Recorder.cells`; empty if there is no image.
    """

    row: dict[str, Any]
    image: Image.Image | None
    cells: dict[str, np.ndarray]


def tables_of(
    task: int, start: int, attempt: int, samples: Sequence[Sample], generated: Sequence[Generated]
) -> dict[str, Columns]:
    """A task's ``cells`` and ``samples``; a sample without an image has no cells.

    Args:
        task: number of the task.
        start: index of the first sample on the store's sample axis.
        attempt: number of the attempt, from 1.
        samples: samples of the task, starting at ``start``.
        generated: data of these samples.
    """
    sample_rows, cells = [], []
    for position, (sample, made) in enumerate(zip(samples, generated, strict=True)):
        name = {"sample_id": sample.sample_id, "sample": start + position}
        about = {"task": task, "prompt": sample.prompt, "seed": sample.seed, "attempt": attempt}
        image = {"image": None if made.image is None else png(made.image)}
        sample_rows.append(name | about | made.row | image)
        if made.image is not None:
            n = len(made.cells["step"])
            cells.append({key: np.full(n, value) for key, value in name.items()} | made.cells)
    names = schema("cells").names
    return {
        "cells": {key: np.concatenate([part[key] for part in cells]) if cells else [] for key in names},
        "samples": as_columns("samples", sample_rows),
    }


class CaptureWorker:
    """Worker for the tasks of one capture. With two calling threads, one task is written while the next is generated.

    Args:
        job: the job.
        n_threads: CPU threads for PyTorch.
        embeddings: embeddings of prompts that were encoded before; None if the worker must encode them itself.
        device: device assigned to it; None to choose by the machine.
        pipeline: the model, if it is loaded already; None loads it.

    Raises:
        InputError: the model cannot be loaded.
        RunConflictError: the capture that this worker belongs to has ended.
    """

    def __init__(
        self,
        job: Job,
        n_threads: int,
        embeddings: Kept | None = None,
        device: str | None = None,
        pipeline: Any = None,
    ) -> None:
        self.job = job
        self._encodes, self._embeddings = embeddings is None, embeddings or Recent()
        self._membership = Membership(job.storage, job.lease) if job.lease else None
        self.model = LoadedModel(job.config, job.geometry, n_threads, device, encodes=self._encodes, pipeline=pipeline)
        self.sampler = self.model.sampler
        self.ledger = Ledger(job.storage)

    def __call__(self, task: int) -> Record:
        """Run one task, with a limited number of retries, and write its record. Safe to repeat.

        Raises:
            StorageError: writing failed, and a retry would not help.
            RunConflictError: another capture took over.
            Exception: the last attempt's own error, see :func:`fewchannels.cluster.attempts.tried`.
        """
        return tried(self.ledger, task, self.capture)

    def close(self) -> None:
        """Release the run and the model's thread."""
        self.model.close()
        if self._membership:
            self._membership.end()

    def capture(self, task: int, attempt: int = 1) -> Record:
        """Attempt a task: generate, then write the shards, the tables and the record.

        A task that was finished when the run had fewer samples keeps these unchanged, and adds the new ones.
        """
        job, storage = self.job, self.job.storage
        rows = job.layout.rows(task)
        earlier = self.ledger.find(task)
        kept = earlier if earlier and self._is_kept(earlier) else None
        first = kept.stop if kept else rows.start
        samples = job.samples(task)[first - rows.start :]
        files = named_files((sample.reference for sample in samples), kept)
        recorder = Recorder(job.layout, job.config.score, [sample.sample_id for sample in samples])
        generated = self.generate(samples, recorder)
        # Without the time in which the previous task was generated.
        started = time.monotonic() - sum(made.row["seconds"] for made in generated)
        arrays = recorder.arrays()
        if kept:
            before = read(storage, list(arrays), rows.start, first)
            arrays = {name: np.concatenate([before[name], values]) for name, values in arrays.items()}
        if self._membership:
            self._membership.check()
        # Objects that a record names stay unchanged until the new record exists.
        draft = Draft(storage, name_of(task), self.ledger.key(task)) if earlier else None
        objects = Store(draft or storage, job.layout).write(rows.start, arrays)
        for table, columns in tables_of(task, first, attempt, samples, generated).items():
            key = part(table, task)
            parquet = to_parquet(table, columns)
            if kept:
                before_rows = of_samples(read_rows(storage, key, kept.objects.get(key)), rows.start, first)
                parquet = join([before_rows, from_parquet(parquet)])
            objects[key] = (draft or storage).put(key, [parquet])
        n_failed = sum(made.row["status"] == "failed" for made in generated)
        note_failures(made.row["error"] for made in generated if made.row["status"] == "failed")
        cut = [made.row["prompt_tokens"] for made in generated if made.row["prompt_truncated"]]
        note_cut_prompts(cut, self.sampler.max_prompt_tokens() if cut else 0)
        seconds = time.monotonic() - started
        made_by = computed_by(self.model.n_threads, kept, version_on(self.model.device))
        record = recorded(job, task, attempt, n_failed, seconds, self.model.name, objects, made_by, files)
        if self._membership:
            self._membership.check()
        self.ledger.write(record, draft)
        return record

    def _is_kept(self, record: Record) -> bool:
        """Return whether a task's samples are all finished and intact, but fewer than it has now."""
        is_own = record.fingerprint == self.job.fingerprint
        is_short = record.stop < self.job.layout.rows(record.task).stop
        return is_own and is_short and not record.n_failed and self.ledger.is_intact(record)

    def generate(self, samples: list[Sample], recorder: Recorder) -> list[Generated]:
        """Generate samples in batches that share settings, recording into their positions."""
        return self.model.run(self._generate, samples, recorder)

    def _generate(self, samples: list[Sample], recorder: Recorder) -> list[Generated]:
        generated: list[Generated] = []
        for settings, batch in self._batches(samples):
            generated += self._batch(batch, slice(len(generated), len(generated) + len(batch)), settings, recorder)
        return generated

    def _batches(self, samples: list[Sample]) -> Iterator[tuple[Settings, list[Sample]]]:
        size = self.job.batch_size
        for settings, group in groupby(samples, self.job.settings):
            alike = list(group)
            n_together = 1 if settings.reference or settings.image else size
            for i in range(0, len(alike), n_together):
                yield settings, alike[i : i + n_together]

    def _batch(self, samples: list[Sample], rows: slice, settings: Settings, recorder: Recorder) -> list[Generated]:
        """Generate one batch; if it fails, generate its samples one by one, so that only the faulty ones fail."""
        started = time.monotonic()
        lengths = self.sampler.prompt_lengths([sample.prompt for sample in samples])
        grid_height, grid_width = self.job.geometry.token_grid(settings.height, settings.width)
        images: list[Image.Image | None]
        failure = None
        try:
            layout = self.job.layout
            with (
                remembering(self.sampler.pipeline, self._embeddings, encodes=self._encodes),
                tapped(self.sampler, layout.blocks, recorder.tap(rows), layout.streams, layout.branches),
            ):
                images = list(self.sampler.generate(samples, settings))
        except FamilyMismatchError:  # affects every other batch, too
            raise
        except Exception as error:  # whatever the model raises, including out of memory, fails only this batch
            recorder.discard(rows)
            self.model.let_go()
            if len(samples) > 1:
                alone = range(rows.start, rows.stop)
                return [
                    made
                    for sample, row in zip(samples, alone, strict=True)
                    for made in self._batch([sample], slice(row, row + 1), settings, recorder)
                ]
            images, failure = [None], without_secrets(f"{type(error).__name__}: {error}")
        timesteps, sigmas = self.sampler.schedule()
        seconds = (time.monotonic() - started) / len(samples)
        generated = []
        for row, image, (n_tokens, cut) in zip(range(rows.start, rows.stop), images, lengths, strict=True):
            bad_cells = recorder.nonfinite_cells(row)
            nonfinite = f"non-finite hidden states in {bad_cells} of the recorded cells"
            error_text = nonfinite if bad_cells else failure
            about = {
                "status": "failed" if error_text else "done",
                "error": error_text,
                "width": settings.width,
                "height": settings.height,
                "grid_width": grid_width,
                "grid_height": grid_height,
                "n_steps": self.job.geometry.n_run(settings.steps),
                "guidance": settings.guidance if self.job.geometry.takes_guidance else None,
                "prompt_tokens": n_tokens,
                "prompt_truncated": cut,
                "seconds": seconds,
                "batch_size": len(samples),
                "peak_memory_bytes": self.model.peak_memory_bytes(),
            }
            cells = {} if image is None else recorder.cells(row, timesteps, sigmas)
            generated.append(Generated(about, image, cells))
        return generated
