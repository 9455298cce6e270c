"""Capture on a real Ray, and by one worker without it, through the real command, interrupted and resumed."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
import xarray as xr

from fewchannels import manifest, open_run
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.run import capture
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.shares import Pool
from fewchannels.cluster.sizing import choose_pool

N_SAMPLES, N_TASKS = 24, 12
# Steps enough for a capture to last some seconds, so that both actors are at work at once.
FLAGS = {"num_inference_steps": 40, "top_k": 4, "batch_size": 2, "shard_samples": 2}


@pytest.fixture(scope="module")
def manifest_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "manifest.parquet"
    manifest.ingest([f"demo:{N_SAMPLES}"], path)
    return path


@pytest.fixture(scope="module")
def undisturbed(manifest_path: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same capture without Ray, in this process."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    job = prepare(manifest_path, run, CaptureConfig(model=str(tiny_model), **FLAGS))
    begin(job, manifest_path)
    worker = CaptureWorker(job, choose_pool(2, None).cpus_per_actor)
    for task in range(N_TASKS):
        worker(task)
    return run


def command(manifest_path: Path, model: Path, out: Path, *more: str, actors: int = 2) -> list[str]:
    flags = [part for name, value in FLAGS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    base = [str(Path(sys.executable).parent / "fewchannels"), "capture", "--model", str(model)]
    return [*base, "--manifest", str(manifest_path), "--out", str(out), *flags, "--actors", str(actors), *more]


def same(run: Path, other: Path) -> None:
    """Arrays, images and cells of two runs are equal, bit by bit."""
    a, b = (xr.open_zarr(path / "activations.zarr", chunks=None).load() for path in (run, other))
    assert a.identical(b)
    for question in (
        "select sample, sample_id, prompt, status, image from samples order by sample",
        "select * from cells order by sample, step, layer",
    ):
        assert open_run(run).sql(question).fetchall() == open_run(other).sql(question).fetchall()


def wait_for_records(run: Path, n: int, process: subprocess.Popen) -> None:
    while len(list((run / "ledger").glob("0*.json"))) < n:
        assert process.poll() is None, "the capture ended before it could be disturbed"
        time.sleep(0.02)


def actors_of(process: subprocess.Popen) -> list[psutil.Process]:
    actors = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended, or is a zombie
            if "ray::Actor" in " ".join(child.cmdline()) or "ray::Actor" in child.name():
                actors.append(child)
    return actors


def test_two_actors_store_what_one_process_stores(
    manifest_path: Path, tiny_model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(manifest_path, tiny_model, run, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    most_actors = 0
    while process.poll() is None:
        most_actors = max(most_actors, len(actors_of(process)))
        time.sleep(0.1)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert most_actors == 2
    outcome = json.loads(stdout)
    assert (outcome["n_done"], outcome["n_failed"], outcome["n_resumed"]) == (N_SAMPLES, 0, 0)
    assert "Traceback" not in stderr
    assert "Warning" not in stderr
    same(run, undisturbed)
    assert not list(run.rglob("*.tmp"))


def test_an_interrupted_capture_says_how_to_go_on(manifest_path: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    long = command(manifest_path, tiny_model, run, "--num-inference-steps", "200")
    process = subprocess.Popen(long, stderr=subprocess.PIPE, text=True)
    wait_for_records(run, 2, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "rerun the same command to resume" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("blow", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)], ids=["interrupted", "killed"]
)
def test_a_worker_of_this_process_resumes_to_what_was_undisturbed(
    manifest_path: Path, tiny_model: Path, undisturbed: Path, tmp_path: Path, blow: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    one = command(manifest_path, tiny_model, run, "--cpus-per-actor", "1", actors=1)
    process = subprocess.Popen(one, stderr=subprocess.PIPE, text=True)
    wait_for_records(run, 2, process)
    assert psutil.Process(process.pid).children() == []
    process.send_signal(blow)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code
    assert "Traceback" not in errors
    if blow is signal.SIGINT:
        assert "rerun the same command to resume" in errors
    n_done = len(list((run / "ledger").glob("0*.json")))
    assert 2 <= n_done < N_TASKS
    job = prepare(manifest_path, run, CaptureConfig(model=str(tiny_model), **FLAGS))
    outcome = capture(job, manifest_path, Pool(1, 0, 1))
    assert not ray.is_initialized()
    assert (outcome.n_done, outcome.n_resumed) == (N_SAMPLES, 2 * n_done)
    same(run, undisturbed)
    assert not list(run.rglob("*.tmp"))
