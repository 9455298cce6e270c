"""How often a capture opens what it reads: its manifest, and the store that it writes to."""

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore.store
import pytest
import s3_server as s3
from two_runs import ROWS

from fewchannels import manifest
from fewchannels.captures.begin import begin, check_place
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.run import start_capture
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.pool import Actor
from fewchannels.runs.lease import hold

OPEN, CLOSE = 0x20, 0x18  # of inotify; closes come in between, as the kernel joins equal events
EVENT = struct.Struct("iIII")


@contextmanager
def opens(path: Path) -> Iterator[Callable[[], int]]:
    """How often any process has opened a file inside, as the kernel tells: libraries in C open files, too."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(descriptor, os.fsencode(path), OPEN | CLOSE) > 0

    def counted() -> int:
        try:
            data = os.read(descriptor, 2**20)
        except BlockingIOError:
            return 0
        return sum(mask & OPEN != 0 for _, mask, _, _ in EVENT.iter_unpack(data))

    try:
        yield counted
    finally:
        os.close(descriptor)


@pytest.fixture
def path(tmp_path: Path, manifest_of: Callable[..., Path]) -> Path:
    return manifest_of("\n".join(["prompt,seed", *ROWS]))


def prepared(path: Path, run: Path | str, model: Path) -> Job:
    return prepare(path, run, CaptureConfig(model=str(model), num_inference_steps=2, top_k=3, shard_samples=4))


def test_a_manifest_is_opened_twice_before_the_first_sample(path: Path, tiny_model: Path, tmp_path: Path) -> None:
    with opens(path) as counted:
        job = prepared(path, tmp_path / "run", tiny_model)
        assert counted() == 1
        check_place(job)
        begin(job, path)
        assert counted() == 1
        CaptureWorker(job, 1)(0)
        assert counted() == 0


def test_a_run_that_grows_reads_its_longer_manifest_as_often(
    path: Path, manifest_of: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    begin(prepared(path, tmp_path / "run", tiny_model), path)
    longer = manifest_of("\n".join(["prompt,seed", *ROWS, "a green moon,7"]), "longer")
    with opens(longer) as counted:
        begin(prepared(longer, tmp_path / "run", tiny_model), longer)
        assert counted() == 2


def test_an_actor_opens_the_stored_manifest_once_a_task(path: Path, tiny_model: Path, tmp_path: Path) -> None:
    job = prepared(path, tmp_path / "run", tiny_model)
    begin(job, path)
    with opens(tmp_path / "run" / manifest_key(job)) as counted:
        actor = Actor(job, start_capture, 1)
        for task in range(job.n_tasks):
            assert actor.do(task)["error"] is None
            assert counted() == 1


def manifest_key(job: Job) -> str:
    (key,) = (key for key in job.storage.list() if key.endswith("manifest.parquet"))
    return key


@pytest.fixture(scope="module")
def server() -> Iterator[s3.S3Server]:
    with s3.s3_server(seed=3) as running:
        yield running


def test_a_process_has_one_client_of_its_run_and_one_of_its_lease(
    path: Path, tiny_model: Path, server: s3.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    own = obstore.store.from_url

    def from_url(url: str, **options: Any) -> Any:
        made.append(url)
        return own(url, **options)

    monkeypatch.setattr(obstore.store, "from_url", from_url)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{s3.BUCKET}/one-client"
    job = prepared(path, url, tiny_model)
    check_place(job)
    with hold(job.storage) as token:
        leased = job.leased(token)
        begin(leased, path)
        worker = CaptureWorker(leased, 1)
        for task in range(job.n_tasks):
            worker(task)
    assert made == [url, url]  # the lease's waits less long for an answer
    assert manifest.sample_ids(job.storage.open("manifest.parquet")) == manifest.sample_ids(path)
