"""Runs in a bucket, pushed to the Hub and pulled from it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3_server as s3
from command import command
from hub_server import OWNER, HubServer, connected, hub_server
from two_runs import ROWS, captured

from fewchannels.runs.storage import open_storage

NAME = f"{OWNER}/stars"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3.s3_server(seed=1) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield f"s3://{s3.BUCKET}"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as running, connected(running):
        yield running


def test_a_run_goes_from_a_bucket_to_the_hub_and_back(
    hub: HubServer, bucket: str, tiny_model: Path, tmp_path: Path
) -> None:
    run = captured(tmp_path, "RUN", tiny_model, ROWS)
    whole = open_storage(run).list()
    assert command("runs", "push", run, NAME).code == 0
    pulled = command("runs", "pull", NAME, f"{bucket}/RUN")
    assert pulled.code == 0, pulled.stderr
    there = open_storage(f"{bucket}/RUN")
    assert {key: n for key, n in there.list().items() if key != "lease.json"} == whole
    shutil.rmtree(run)
    pushed = command("runs", "push", f"{bucket}/RUN", f"{OWNER}/copy")
    assert pushed.code == 0, pushed.stderr
    first, second = (hub.repos[name].files | {"README.md": b""} for name in (NAME, f"{OWNER}/copy"))
    assert first == second
    again = command("runs", "push", f"{bucket}/RUN", NAME)
    assert (again.code, "has all of it" in again.stderr) == (0, True)
