"""Small runs of one manifest, made in this process: to be compared, and looked at side by side."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fewchannels import manifest
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.runs.arrays import Store, read
from fewchannels.runs.description import read_description
from fewchannels.runs.layout import Layout
from fewchannels.runs.storage import open_storage

Arrays = dict[str, np.ndarray]

ROWS = [f"{prompt},{seed}" for prompt in ("a red star", "two blue rings", "a heart", "night") for seed in (1, 2)]
"""Eight samples: four prompts with two seeds each."""


def captured(
    folder: Path, name: str, model: Path, rows: list[str], columns: str = "prompt,seed", **settings: Any
) -> Path:
    """Capture rows of CSV into ``folder/name``; other settings than the usual are given by name."""
    source, path = folder / f"{name}.csv", folder / f"{name}.parquet"
    source.write_text("\n".join([columns, *rows]), encoding="utf-8")
    manifest.ingest([str(source)], path)
    chosen = {"num_inference_steps": 2, "top_k": 3, "batch_size": 4, "shard_samples": 3} | settings
    job = prepare(path, folder / name, CaptureConfig(model=str(model), **chosen))
    begin(job, path)
    worker = CaptureWorker(job, 1)
    for task in range(job.layout.n_tasks):
        worker(task)
    return folder / name


def changed(run: Path, path: Path, change: Callable[[Arrays], None]) -> Path:
    """Copy a run and change its arrays ``(sample, step, layer, ...)``, task by task."""
    shutil.copytree(run, path)
    storage = open_storage(path)
    layout = Layout.of(read_description(storage))
    for task in range(layout.n_tasks):
        rows = layout.rows(task)
        arrays = read(storage, [array.name for array in layout.arrays()], rows.start, rows.stop)
        change(arrays)
        Store(storage, layout).write(rows.start, arrays)
    return path
