"""What a task's time goes to, and which samples it is of."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from fewchannels import manifest
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.models.timings import collected, took

N_SAMPLES, SHARD = 5, 2


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> Job:
    manifest.ingest([f"demo:{N_SAMPLES}"], tmp_path / "manifest.parquet")
    config = CaptureConfig(model=str(tiny_model), num_inference_steps=2, top_k=2, shard_samples=SHARD)
    job = prepare(tmp_path / "manifest.parquet", tmp_path / "run", config)
    begin(job, tmp_path / "manifest.parquet")
    return job


def test_stages_add_up_and_are_a_threads_own() -> None:
    took("model", 1.0)  # nobody listens

    def other() -> dict[str, float]:
        with collected() as taken:
            took("wait", 5.0)
        return taken

    with collected() as taken, ThreadPoolExecutor(1) as pool:
        took("model", 1.0)
        assert pool.submit(other).result() == {"wait": 5.0}
        took("model", 0.5)
    assert taken == {"model": 1.5}
    took("model", 1.0)
    assert taken == {"model": 1.5}


def test_a_capture_says_how_long_the_model_took_and_was_waited_for(job: Job) -> None:
    worker = CaptureWorker(job, 1)
    generate = worker._generate

    def slowly(*arguments: object) -> list:
        time.sleep(0.4)
        return generate(*arguments)

    worker._generate = slowly

    def do(task: int) -> tuple[dict[str, float], float]:
        started = time.monotonic()
        with collected() as taken:
            worker(task)
        return taken, time.monotonic() - started

    with ThreadPoolExecutor(2) as pool:
        (first, one), (second, two) = sorted(pool.map(do, (0, 1)), key=lambda done: done[0]["wait"])
    assert first["wait"] < 0.3
    assert second["wait"] >= 0.4 - first["wait"], "until the first has left the model"
    for taken, whole in ((first, one), (second, two)):
        assert 0.4 <= taken["model"] <= whole
        assert taken["wait"] + taken["model"] <= whole


def test_a_tasks_ids_are_those_of_its_rows(job: Job) -> None:
    ids = pd.read_parquet(Path(job.run) / "manifest.parquet")["sample_id"].tolist()
    assert [job.ids(task) for task in range(3)] == [ids[:2], ids[2:4], ids[4:]]
