"""Capture on a real Ray to an object store whose network fails all the time, and the lease of such a run."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import s3_server as s3
import xarray as xr

from fewchannels import manifest, open_run
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.sizing import choose_pool
from fewchannels.errors import RunConflictError, StorageError
from fewchannels.runs import lease
from fewchannels.runs.lease import LEASE, Membership, hold
from fewchannels.runs.ledger import Record
from fewchannels.runs.storage import ObjectStorage, Stored

N_SAMPLES, N_TASKS = 20, 10
FLAGS = {"num_inference_steps": 3, "top_k": 4, "batch_size": 2, "shard_samples": 2}
# The command, with a lease that is waited out in 3 s instead of 30.
COMMAND = (
    "import fewchannels.cluster.sizing, fewchannels.runs.lease; fewchannels.runs.lease.BEAT_S = 0.5; {}; "
    "from fewchannels.cli import main; main()"
)
# One thread, as the undisturbed run has: with more, sums come out otherwise.
ONE_ACTOR = "fewchannels.cluster.sizing.choose_pool = lambda *given, **more: fewchannels.cluster.sizing.Pool(1, 0, 1)"


@pytest.fixture(scope="module")
def server() -> Iterator[s3.S3Server]:
    with s3.s3_server(seed=2) as running:
        yield running


@pytest.fixture(scope="module")
def manifest_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "manifest.parquet"
    manifest.ingest([f"demo:{N_SAMPLES}"], path)
    return path


@pytest.fixture(scope="module")
def undisturbed(manifest_path: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same capture to a folder, without Ray, in this process."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    job = prepare(manifest_path, run, CaptureConfig(model=str(tiny_model), **FLAGS))
    begin(job, manifest_path)
    worker = CaptureWorker(job, choose_pool(2, None).cpus_per_actor)
    for task in range(N_TASKS):
        worker(task)
    return run


class Capture:
    """The command to one run of the server, and what it leaves."""

    def __init__(self, server: s3.S3Server, manifest_path: Path, model: Path, name: str, ray_folder: str) -> None:
        self.server, self.name, self.prepare = server, name, "pass"
        flags = [part for key, value in FLAGS.items() for part in (f"--{key.replace('_', '-')}", str(value))]
        self._arguments = ["capture", "--model", str(model), *flags, "--actors", "2"]
        self._arguments += ["--manifest", str(manifest_path), "--out", f"s3://{s3.BUCKET}/{name}", "--json"]
        self._environment = os.environ | server.environment | {"RAY_TMPDIR": ray_folder, "FEWCHANNELS_RETRY_S": "60"}

    def start(self, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND.format(self.prepare), *self._arguments],
            env=self._environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> tuple[dict[str, int], str]:
        """Run it to its end: the outcome it prints, and what else it says."""
        process = self.start()
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        assert s3.SECRET not in out + errors
        return json.loads(out), errors

    def records(self) -> dict[str, str]:
        """The finished tasks' records, with their ETags."""
        found = self.server.keys(f"{self.name}/ledger/")
        return {key: tag for key, tag in found.items() if key.endswith(".json") and "/failed/" not in key}

    def wait_for_records(self, n: int, process: "subprocess.Popen[str]") -> None:
        while len(self.records()) < n:
            assert process.poll() is None, "the capture ended before it could be disturbed"
            time.sleep(0.02)

    def check(self, undisturbed: Path, folder: Path) -> None:
        """The run is whole, is what the undisturbed one is, and is nothing more."""
        keys = [key.removeprefix(f"{self.name}/") for key in self.server.keys(f"{self.name}/")]
        for key in keys:
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.server.read(f"{self.name}/{key}"))
            assert s3.SECRET.encode() not in path.read_bytes()
            assert s3.KEY_ID.encode() not in path.read_bytes()
        files = {str(path.relative_to(undisturbed)) for path in undisturbed.rglob("[!.]*") if path.is_file()}
        assert set(keys) - {"lease.json"} == files
        described = json.loads((folder / "run.json").read_bytes())["objects"]
        for record in sorted((folder / "ledger").glob("*.json")):
            described |= {key: vars(each) for key, each in Record.from_bytes(record.read_bytes()).objects.items()}
        assert set(described) == {key for key in files if not key.startswith(("ledger/", "run.json"))}
        for key, stored in described.items():
            assert vars(Stored.of([(folder / key).read_bytes()])) == stored
        a, b = (xr.open_zarr(run / "activations.zarr", chunks=None).load() for run in (folder, undisturbed))
        assert a.identical(b)
        for question in (
            "select sample, sample_id, prompt, status, image from samples order by sample",
            "select * from cells order by sample, step, layer",
        ):
            assert open_run(folder).sql(question).fetchall() == open_run(undisturbed).sql(question).fetchall()
        counted = open_run(folder).sql("select count(*), count(distinct sample_id) from samples").fetchall()
        assert counted == [(N_SAMPLES, N_SAMPLES)]


@pytest.fixture
def capture(
    request: pytest.FixtureRequest, server: s3.S3Server, manifest_path: Path, tiny_model: Path
) -> Iterator[Capture]:
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="fc-", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        captured = Capture(server, manifest_path, tiny_model, request.node.name, ray_folder)
        yield captured
        logs = [path for path in Path(ray_folder).rglob("*") if path.is_file()]
        # One worker needs no Ray.
        assert captured.prepare == ONE_ACTOR or any(path.suffix == ".log" for path in logs), "Ray logged elsewhere"
        for path in logs:
            assert s3.SECRET.encode() not in path.read_bytes(), path


def kill(process: "subprocess.Popen[str]") -> None:
    """End the command and all that it started, at once."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in family:
        if each.is_running():
            each.kill()
    process.communicate()
    psutil.wait_procs(family, timeout=30)


def test_nothing_is_lost_or_doubled_under_faults_of_every_kind(
    capture: Capture, server: s3.S3Server, undisturbed: Path, tmp_path: Path
) -> None:
    server.requests.clear()
    server.faults.clear()
    with server.failing(0.05):
        outcome, _ = capture.finish()
    assert (outcome["n_done"], outcome["n_failed"], outcome["n_resumed"]) == (N_SAMPLES, 0, 0)
    assert set(server.faults) == set(s3.FAULTS)
    capture.check(undisturbed, tmp_path)


def test_a_run_goes_on_after_its_store_was_down_and_its_driver_killed(
    capture: Capture, server: s3.S3Server, undisturbed: Path, tmp_path: Path
) -> None:
    capture.prepare = ONE_ACTOR
    process = capture.start(FEWCHANNELS_RETRY_S="2")
    capture.wait_for_records(2, process)
    server.stop()
    try:
        _, errors = process.communicate(timeout=90)
    finally:
        server.start()
    assert process.returncode == 4, errors
    assert "Traceback" not in errors
    assert "run again to resume" in errors
    assert s3.SECRET not in errors
    first = capture.records()
    assert 2 <= len(first) < N_TASKS
    with server.failing(0.05):
        process = capture.start()
        capture.wait_for_records(len(first) + 1, process)
        kill(process)
        second = capture.records()
        assert len(first) + 1 <= len(second) < N_TASKS
        outcome, said = capture.finish()
    assert outcome["n_resumed"] == 2 * len(second)
    assert "did not release its lease" in said
    assert first.items() <= second.items() <= capture.records().items()
    capture.check(undisturbed, tmp_path)


@pytest.fixture
def objects(request: pytest.FixtureRequest, server: s3.S3Server, monkeypatch: pytest.MonkeyPatch) -> ObjectStorage:
    """An empty place, with a lease that beats fast."""
    monkeypatch.setattr(lease, "BEAT_S", 0.3)
    for name, value in (server.environment | {"FEWCHANNELS_RETRY_S": "20"}).items():
        monkeypatch.setenv(name, value)
    return ObjectStorage(f"s3://{s3.BUCKET}/{request.node.name}".replace("[", "-").replace("]", ""))


def test_a_second_capture_is_refused_while_the_first_one_beats(objects: ObjectStorage, server: s3.S3Server) -> None:
    with hold(objects) as token:
        for _ in range(2):
            with pytest.raises(RunConflictError, match="another command is writing"), hold(ObjectStorage(objects.url)):
                pass
        server.stop()
        time.sleep(3 * lease.BEAT_S)  # beats that do not get through
        server.start()
        with pytest.raises(RunConflictError, match="another command is writing"), hold(ObjectStorage(objects.url)):
            pass
        Membership(objects, token).check()
    waits: list[str] = []
    with hold(objects, waits.append):
        assert not waits, "a lease that was given back is waited for"


@pytest.mark.parametrize("kind", [s3.RESET_AFTER, s3.SLOW])
def test_a_lease_whose_answer_was_lost_is_held(objects: ObjectStorage, server: s3.S3Server, kind: str) -> None:
    server.plan(kind, "PUT", LEASE)
    with hold(objects) as token:
        assert json.loads(objects.get(LEASE))["token"] == token


def test_a_capture_that_misses_its_beats_loses_the_run(objects: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(lease._Beating, "_run", lambda self: None)
        first = hold(objects)
        token = first.__enter__()
    old = Membership(objects, token)
    old.check()
    started = time.monotonic()
    with hold(ObjectStorage(objects.url), waits.append) as second:
        assert time.monotonic() - started >= lease.BEAT_S * lease.MISSED_BEATS
        assert len(waits) == 1
        for check in (old.check, lambda: Membership(objects, token)):
            with pytest.raises(RunConflictError, match="took over writing to"):
                check()
        first.__exit__(None, None, None)
        Membership(objects, second).check()


def test_a_lease_in_a_store_that_is_down_is_let_go_for_the_first_reason(
    objects: ObjectStorage, server: s3.S3Server
) -> None:
    def fail() -> None:
        with hold(objects):
            server.stop()
            raise StorageError("the first reason")

    started = time.monotonic()
    try:
        with pytest.raises(StorageError, match="the first reason"):
            fail()
    finally:
        server.start()
    assert time.monotonic() - started < 10
