"""A worker writes one task while it generates the next, and its memory does not grow with the number of tasks."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xarray as xr

from fewchannels import manifest
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.outcome import TASKS_AT_ONCE
from fewchannels.cluster.tasks import pending_tasks
from fewchannels.runs.arrays import Store

SETTINGS = {"num_inference_steps": 2, "top_k": 4, "batch_size": 2, "shard_samples": 2}
LONG_S = 60


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> Job:
    manifest.ingest(["demo:8"], tmp_path / "manifest.parquet")
    job = prepare(tmp_path / "manifest.parquet", tmp_path / "run", CaptureConfig(model=str(tiny_model), **SETTINGS))
    begin(job, tmp_path / "manifest.parquet")
    return job


def test_the_next_task_is_generated_while_one_is_written(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = CaptureWorker(job, 1)
    writing, may_write, generated = threading.Event(), threading.Event(), []
    write, generate = Store.write, CaptureWorker.generate

    def slow_write(self, start, arrays):
        writing.set()
        assert may_write.wait(LONG_S)
        return write(self, start, arrays)

    def told_generate(self, samples, recorder):
        found = generate(self, samples, recorder)
        generated.append(samples[0].sample_id)
        return found

    monkeypatch.setattr(Store, "write", slow_write)
    monkeypatch.setattr(CaptureWorker, "generate", told_generate)
    with ThreadPoolExecutor(TASKS_AT_ONCE) as threads:
        first = threads.submit(worker, 0)
        assert writing.wait(LONG_S)
        writing.clear()
        second = threads.submit(worker, 1)
        assert writing.wait(LONG_S)  # the second one is generated too
        assert len(generated) == 2
        assert pending_tasks(job) == [0, 1, 2, 3]  # and neither is recorded
        may_write.set()
        assert (first.result().task, second.result().task) == (0, 1)
    assert pending_tasks(job) == [2, 3]


def test_only_one_task_is_generated_at_a_time(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, generate, at_once, most = CaptureWorker(job, 1), CaptureWorker._generate, [], []

    def counting(self, samples, recorder):
        at_once.append(samples)
        most.append(len(at_once))
        found = generate(self, samples, recorder)
        at_once.remove(samples)
        return found

    monkeypatch.setattr(CaptureWorker, "_generate", counting)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(worker, range(4)))
    assert most == [1, 1, 1, 1]


def test_two_threads_store_what_one_stores(job: Job, tiny_model: Path, tmp_path: Path) -> None:
    worker = CaptureWorker(job, 1)
    with ThreadPoolExecutor(TASKS_AT_ONCE) as threads:
        list(threads.map(worker, range(4)))
    path = tmp_path / "manifest.parquet"
    alone = prepare(path, tmp_path / "alone", CaptureConfig(model=str(tiny_model), **SETTINGS))
    begin(alone, path)
    other = CaptureWorker(alone, 1)
    for task in range(4):
        other(task)
    a, b = (xr.open_zarr(tmp_path / name / "activations.zarr", chunks=None).load() for name in ("run", "alone"))
    assert a.identical(b)


_MEASURE = """
import json, resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import psutil
from fewchannels import manifest
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.begin import begin
from fewchannels.captures.job import prepare
from fewchannels.cluster.outcome import TASKS_AT_ONCE
from fewchannels.captures.worker import CaptureWorker

folder, model, n_tasks = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
manifest.ingest([f"demo:{16 * n_tasks}"], folder / "manifest.parquet")
size = {"height": 64, "width": 64, "batch_size": 16, "shard_samples": 16}
config = CaptureConfig(model=model, num_inference_steps=2, top_k=32, **size)
job = prepare(folder / "manifest.parquet", folder / "run", config)
begin(job, folder / "manifest.parquet")
worker, peaks = CaptureWorker(job, 1), []

def task(number):
    worker(number)
    peaks.append(psutil.Process().memory_info().rss)

with ThreadPoolExecutor(TASKS_AT_ONCE) as threads:
    list(threads.map(task, range(n_tasks)))
print(json.dumps({"peaks": peaks, "task_bytes": 16 * job.layout.sample_value_bytes}))
"""


def test_memory_does_not_grow_with_the_number_of_samples(tiny_model: Path, tmp_path: Path) -> None:
    """The last 32 of 64 tasks add less than ten tasks' values together: a worker that kept them would add 32."""
    command = [sys.executable, "-c", _MEASURE, str(tmp_path), str(tiny_model), "64"]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert measured["task_bytes"] > 4_000_000
    grown = max(measured["peaks"]) - max(measured["peaks"][:32])
    assert grown < 10 * measured["task_bytes"], measured
