"""A question has one answer, wherever and whenever it is asked."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import everywhere
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fewchannels import manifest
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker

NAMES = ["b", "B", "ä", "a", "Z", "z", "é", "a"]
ENVIRONMENTS = {
    "New York, C": {"TZ": "America/New_York", "LC_ALL": "C", "PYTHONHASHSEED": "0"},
    "Kathmandu, UTF-8": {"TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8", "LANG": "de_DE.UTF-8", "PYTHONHASHSEED": "7"},
}


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight prompts, six hours apart around the midnight of UTC."""
    folder = tmp_path_factory.mktemp("everywhere")
    times = [datetime(2022, 8, 7, 6, tzinfo=UTC) + timedelta(hours=6 * i) for i in range(8)]
    columns = {
        "prompt": [f"prompt {i}" for i in range(8)],
        "stamp": pa.array(times, pa.timestamp("us", tz="UTC")),
        "local": pa.array([each.replace(tzinfo=None) for each in times], pa.timestamp("us")),
        "name": NAMES,
    }
    pq.write_table(pa.table(columns), folder / "prompts.parquet")
    manifest.ingest([folder / "prompts.parquet"], folder / "m.parquet")
    settings = {"num_inference_steps": 2, "top_k": 4, "batch_size": 2, "shard_samples": 3}
    job = prepare(folder / "m.parquet", folder / "run", CaptureConfig(model=str(tiny_model), **settings))
    begin(job, folder / "m.parquet")
    worker = CaptureWorker(job, 1)
    for task in range(job.n_tasks):
        worker(task)
    return folder / "run"


def answers(run: Path, place: Path, environment: dict[str, str], *before: str) -> dict[str, object]:
    """What :mod:`everywhere` prints of a copy of the run, by its relative name."""
    shutil.copytree(run, place / "run")
    (place / "out").mkdir()
    words = [*before, sys.executable, everywhere.__file__, "run", str(place / "out")]
    done = subprocess.run(
        words, cwd=place, env=os.environ | environment, capture_output=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def here(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return answers(run, tmp_path_factory.mktemp("here"), {})


def test_times_are_those_of_utc(here: dict[str, object]) -> None:
    for where in ("stamp < '2022-08-08'", "stamp < timestamp '2022-08-08'", "local < '2022-08-08'"):
        assert here[where] == [0, 1, 2], where
    assert here["stamp::date = '2022-08-08'"] == [3, 4, 5, 6]
    assert here["local < stamp"] == []
    assert here["extract(hour from stamp) < 12"] == [0, 3, 4, 7]
    assert here["name < 'b'"] == [1, 3, 4, 7]  # by code points


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environment_changes_no_answer(name: str, here: dict[str, object], run: Path, tmp_path: Path) -> None:
    assert answers(run, tmp_path, ENVIRONMENTS[name]) == here


def test_one_thread_answers_as_many_do(here: dict[str, object], run: Path, tmp_path: Path) -> None:
    assert answers(run, tmp_path, {"TZ": "Pacific/Chatham"}, "taskset", "-c", "0") == here
