"""A driver that is stopped, as by a laptop's lid, while another captures the same run in a bucket, and then goes on."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3_server as s3

from fewchannels import manifest
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.runs import lease
from fewchannels.runs.lease import hold
from fewchannels.runs.storage import open_storage
from fewchannels.runs.upkeep.verify import verify

# Stops itself where it has seen that there is no run: before it lays one out, when it has, when it has looked whether
# the lease is its own, and when it has settled the change.
DRIVER = """
import os, signal, sys
from pathlib import Path
from fewchannels.captures import begin as beginning
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.errors import RunConflictError
from fewchannels.runs import changes, lease
lease.BEAT_S = 0.3
path, url, model, when = sys.argv[1:]
lay_out = beginning.arrays.lay_out
def stopped(*given):
    if when == "before":
        os.kill(os.getpid(), signal.SIGSTOP)
    made = lay_out(*given)
    if when == "after":
        os.kill(os.getpid(), signal.SIGSTOP)
    return made
beginning.arrays.lay_out = stopped
settle, finish = changes.Draft.settle, changes.Change.finish
def looked(*given):
    if when == "looked":
        os.kill(os.getpid(), signal.SIGSTOP)
    return settle(*given)
def settled(*given):
    if when == "settled":
        os.kill(os.getpid(), signal.SIGSTOP)
    return finish(*given)
changes.Draft.settle, changes.Change.finish = looked, settled
job = prepare(Path(path), url, CaptureConfig(model=model, num_inference_steps=2, top_k=3, shard_samples=2))
try:
    with lease.hold(job.storage) as token:
        beginning.begin(job.leased(token), Path(path))
except RunConflictError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[s3.S3Server]:
    with s3.s3_server(seed=3) as running:
        yield running


@pytest.fixture
def url(request: pytest.FixtureRequest, server: s3.S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lease, "BEAT_S", 0.3)
    for name, value in (server.environment | {"FEWCHANNELS_RETRY_S": "20"}).items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3.BUCKET}/{request.node.name}".replace("[", "-").replace("]", "")


def captured(job: Job, path: Path) -> bool:
    """Capture all of it; returns whether there was a run."""
    with hold(job.storage) as token:
        own = job.leased(token)
        was_there = begin(own, path)
        worker = CaptureWorker(own, 1)
        for task in range(own.n_tasks):
            worker(task)
    return was_there


@pytest.mark.parametrize(
    ("when", "n_samples"), [("before", 6), ("after", 4), ("looked", 6), ("looked", 4), ("settled", 6)]
)
def test_a_driver_that_was_stopped_changes_nothing_of_what_another_has_captured(
    when: str, n_samples: int, url: str, server: s3.S3Server, tiny_model: Path, tmp_path: Path
) -> None:
    paths = {n: tmp_path / f"{n}.parquet" for n in (4, 6)}
    for n, path in paths.items():
        manifest.ingest([f"demo:{n}"], path)
    command = [sys.executable, "-c", DRIVER, str(paths[4]), url, str(tiny_model), when]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        os.waitpid(driver.pid, os.WUNTRACED)
        config = CaptureConfig(model=str(tiny_model), num_inference_steps=2, top_k=3, shard_samples=2)
        # What the stopped one has settled, whoever holds the lease finishes.
        assert captured(prepare(paths[n_samples], url, config), paths[n_samples]) == (when == "settled")
        name = url.removeprefix(f"s3://{s3.BUCKET}/")
        before = server.keys(f"{name}/")
        driver.send_signal(signal.SIGCONT)
        said, _ = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert driver.returncode == 3, said
    assert re.search("another command .*so this command stops writing", said)
    after = server.keys(f"{name}/")
    left = {
        key for key in after.keys() - before.keys() if f"{name}/changes/" in key
    }  # beside, for the next one to remove
    assert {key: tag for key, tag in after.items() if key not in left} == before
    with hold(open_storage(url)):
        found = verify(open_storage(url))
    assert not found.problems
    assert server.keys(f"{name}/").keys() == before.keys()
