"""The capture worker: loads the model once, then turns tasks into shards, tables and records. Needs no Ray."""

import io
import platform
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine.errors import StorageError
from engine.job import Job
from engine.ledger import Ledger, Record
from engine.manifest import Sample, read_samples
from engine.models.load import find, load
from engine.recorder import Recorder
from engine.sampler import Sampler, Settings
from engine.store import Store
from engine.tables import Columns, as_columns, schema, write_columns
from engine.taps import tapped

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Generated:
    """What one sample's generation left besides arrays: a row of ``samples`` without the columns that name it."""

    row: dict[str, Any]
    timesteps: list[float]
    sigmas: list[float] | None


class CaptureWorker:
    """Runs tasks of one capture, one after another.

    Args:
        job: what to do.
        n_threads: CPU threads for PyTorch.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(self, job: Job, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        torch.set_flush_denormal(True)
        self.job = job
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device_name = torch.cuda.get_device_name() if self.device == "cuda" else platform.machine()
        source = find(job.config.model, job.config.revision)
        self.sampler = Sampler(load(source, job.config.dtype, self.device))
        self.ledger = Ledger(job.run)

    def __call__(self, task: int) -> Record:
        """Run one task, trying again a bounded number of times, and write its record. Safe to repeat.

        Raises:
            StorageError: the disk refused; trying again would not help.
            Exception: the last attempt's own error, after :data:`MAX_ATTEMPTS`; each is in the ledger.
        """
        while True:
            attempt = self.ledger.next_attempt(task)
            try:
                return self.capture(task, attempt)
            except OSError as error:
                raise StorageError(f"task {task} could not be written to {self.job.run}: {error}") from error
            except StorageError:
                raise
            except Exception:
                self.ledger.write_failure(task, attempt, traceback.format_exc())
                if attempt % MAX_ATTEMPTS == 0:
                    raise

    def capture(self, task: int, attempt: int = 1) -> Record:
        """One attempt at a task: generate, write the shards, then the tables, then the record."""
        started, job = time.monotonic(), self.job
        rows = job.layout.rows(task)
        samples = read_samples(job.run / "manifest.parquet", rows.start, rows.stop)
        recorder = Recorder(job.layout, job.config.score, len(samples))
        generated = self.generate(samples, recorder)
        self._store.write(rows.start, recorder.arrays())
        for table, columns in self.tables(task, rows.start, attempt, samples, generated, recorder).items():
            write_columns(table, columns, job.run / table / f"{task:05d}.parquet")
        n_failed = sum(made.row["status"] == "failed" for made in generated)
        record = Record(
            task=task,
            start=rows.start,
            stop=rows.stop,
            fingerprint=job.fingerprint,
            attempt=attempt,
            n_done=len(samples) - n_failed,
            n_failed=n_failed,
            seconds=round(time.monotonic() - started, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            host=platform.node(),
            device=f"{self.device} {self.device_name}",
        )
        self.ledger.write(record)
        return record

    @cached_property
    def _store(self) -> Store:
        return Store(self.job.run, self.job.layout)

    def tables(
        self,
        task: int,
        start: int,
        attempt: int,
        samples: list[Sample],
        generated: list[Generated],
        recorder: Recorder,
    ) -> dict[str, Columns]:
        """A task's ``cells`` and ``samples``; a sample without a picture has no cells."""
        sample_rows, cells = [], []
        for position, (sample, made) in enumerate(zip(samples, generated, strict=True)):
            name = {"sample_id": sample.sample_id, "sample": start + position}
            about = {"task": task, "prompt": sample.prompt, "seed": sample.seed, "attempt": attempt}
            sample_rows.append(name | about | made.row)
            if made.row["image"] is not None:
                n_tokens = made.row["grid_height"] * made.row["grid_width"]
                columns = recorder.cells(position, n_tokens, made.timesteps, made.sigmas)
                n = len(columns["step"])
                cells.append({key: np.full(n, value) for key, value in name.items()} | columns)
        names = schema("cells").names
        return {
            "cells": {key: np.concatenate([part[key] for part in cells]) if cells else [] for key in names},
            "samples": as_columns("samples", sample_rows),
        }

    def generate(self, samples: list[Sample], recorder: Recorder) -> list[Generated]:
        """Generate samples in batches that share settings, recording into their positions."""
        generated: list[Generated] = []
        for settings, batch in self._batches(samples):
            generated += self._batch(batch, slice(len(generated), len(generated) + len(batch)), settings, recorder)
        return generated

    def _batches(self, samples: list[Sample]) -> Iterator[tuple[Settings, list[Sample]]]:
        size = self.job.config.batch_size
        for settings, group in groupby(samples, self.job.settings):
            alike = list(group)
            for i in range(0, len(alike), size):
                yield settings, alike[i : i + size]

    def _batch(self, samples: list[Sample], rows: slice, settings: Settings, recorder: Recorder) -> list[Generated]:
        """One batch; if it fails, its samples one by one, so that a sample fails alone."""
        started = time.monotonic()
        lengths = self.sampler.prompt_lengths([sample.prompt for sample in samples])
        grid_height, grid_width = self.job.geometry.grid(settings.height, settings.width)
        images: list[Image.Image | None]
        failure = None
        try:
            tap = recorder.tap(self.sampler, rows)
            with tapped(self.sampler.pipeline.transformer, self.job.layout.blocks, tap):
                images = list(self.sampler.generate(samples, settings))
        except Exception as error:  # whatever the model raises, out of memory included, is this batch's failure
            recorder.discard(rows)
            if self.device == "cuda":
                torch.cuda.empty_cache()
            if len(samples) > 1:
                alone = range(rows.start, rows.stop)
                return [
                    made
                    for sample, row in zip(samples, alone, strict=True)
                    for made in self._batch([sample], slice(row, row + 1), settings, recorder)
                ]
            images, failure = [None], f"{type(error).__name__}: {error}"
        timesteps, sigmas = self.sampler.schedule()
        seconds = (time.monotonic() - started) / len(samples)
        generated = []
        for row, image, (n_tokens, cut) in zip(range(rows.start, rows.stop), images, lengths, strict=True):
            bad_cells = (
                recorder.nonfinite_cells(row, grid_height * grid_width, settings.steps) if image is not None else 0
            )
            nonfinite = f"non-finite hidden states in {bad_cells} of the recorded (step, layer) cells"
            error_text = nonfinite if bad_cells else failure
            about = {
                "status": "failed" if error_text else "done",
                "error": error_text,
                "image": None if image is None else _png(image),
                "width": settings.width,
                "height": settings.height,
                "grid_width": grid_width,
                "grid_height": grid_height,
                "n_steps": settings.steps,
                "guidance": settings.guidance if self.job.geometry.takes_guidance else None,
                "prompt_tokens": n_tokens,
                "prompt_truncated": cut,
                "seconds": seconds,
                "batch_size": len(samples),
                "peak_memory_bytes": _peak_memory_bytes(self.device),
            }
            generated.append(Generated(about, timesteps, sigmas))
        return generated


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _peak_memory_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
