"""Commands on a run folder that somebody else made: no file outside it is written, deleted or copied from."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import Answer, command

from fewchannels import manifest
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.runs import documents
from fewchannels.runs.lease import DRIVER_LOCK, WORKERS_LOCK

N_SAMPLES = 6
SETTINGS = {"num_inference_steps": 2, "top_k": 3, "batch_size": 2, "shard_samples": 2}
OPTIONS = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", value)]
MINE = b"of the user alone"


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, ``RUN`` and ``OTHER``, of three tasks of two samples, and their manifests."""
    folder = tmp_path_factory.mktemp("foreign")
    for run, source in (("RUN", "demo:6"), ("OTHER", "demo:8")):
        manifest.ingest([source], folder / f"{run}.parquet")
        job = prepare(folder / f"{run}.parquet", folder / run, CaptureConfig(model=str(tiny_model), **SETTINGS))
        begin(job, folder / f"{run}.parquet")
        worker = CaptureWorker(job, 1)
        for task in range(3):
            worker(task)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A folder with copies of the runs, and a file and a folder that are the user's own."""
    shutil.copytree(made, tmp_path / "place")
    (tmp_path / "place" / "victim.txt").write_bytes(MINE)
    (tmp_path / "place" / "private").mkdir()
    (tmp_path / "place" / "private" / "victim.txt").write_bytes(MINE)
    return tmp_path / "place"


def call(name: str, place: Path, model: Path) -> Answer:
    """A command that writes, by its name."""
    run, other, out = place / "RUN", place / "OTHER", place / "OUT"
    words = {
        "compact": ["runs", "compact", run],
        "merge": ["runs", "merge", run, other, "--out", out],
        "export": ["runs", "export", run, "--out", out],
        "datasets": ["runs", "export", run, "--as", "parquet", "--out", out],
        "repair": ["runs", "verify", run, "--repair"],
        "analyze": ["analyze", "concentration", run, "--workers", 1, "--k", 3],
        "capture": ["capture", "--model", model, "--manifest", place / "RUN.parquet", "--out", run, *OPTIONS],
    }
    return command(*words[name])


def outside(place: Path) -> dict[str, bytes]:
    """Every file in the place that is in no run."""
    files = [place / "victim.txt", *(place / "private").rglob("*"), *(place / "OTHER").rglob("*")]
    return {str(path): path.read_bytes() for path in files if path.is_file()}


def rewrite(path: Path, **changes: object) -> None:
    """Change a document, with a right checksum: that is no signature."""
    content = json.loads(path.read_bytes()) | changes
    del content[documents.CHECKSUM]
    path.write_bytes(documents.to_bytes(content))


def some(*values: str) -> list[Any]:
    """The first two of these, and the others with ``pytest -m exhaustive``."""
    return [*values[:2], *(pytest.param(value, marks=pytest.mark.exhaustive) for value in values[2:])]


@pytest.mark.parametrize("link", some("symbolic", "hard", "dangling", "pipe"))
@pytest.mark.parametrize("lock", [DRIVER_LOCK, WORKERS_LOCK])
@pytest.mark.parametrize("name", ["compact", "merge", "export", "repair", "capture"])
def test_no_lock_is_written_into_a_file_of_the_users(
    name: str, lock: str, link: str, place: Path, tiny_model: Path
) -> None:
    run = place / ("OUT" if name in ("merge", "export") else "RUN")
    run.mkdir(exist_ok=True)
    (run / lock).unlink(missing_ok=True)
    if link == "hard":
        os.link(place / "victim.txt", run / lock)
    elif link == "pipe":
        os.mkfifo(run / lock)
    else:
        os.symlink(place / ("victim.txt" if link == "symbolic" else "new.txt"), run / lock)
    if name == "repair":
        (run / "cells" / "00001.parquet").unlink()
    before = outside(place)
    answer = call(name, place, tiny_model)
    assert answer.code == 4
    assert f"{lock} is not a plain file" in answer.stderr
    assert outside(place) == before
    assert not (place / "new.txt").exists()


FORGED = {"n_bytes": 1, "crc32c": "00000000"}


@pytest.mark.parametrize("key", some("../victim.txt", "VICTIM", "cells/../../victim.txt", "a\\..\\victim.txt"))
@pytest.mark.parametrize("name", ["repair", "capture", "compact", "merge", "export", "datasets"])
def test_no_command_deletes_or_copies_what_a_forged_document_names(
    name: str, key: str, place: Path, tiny_model: Path
) -> None:
    key = str(place / "victim.txt") if key == "VICTIM" else key
    path = place / "RUN" / "run.json"
    rewrite(path, objects=json.loads(path.read_bytes())["objects"] | {key: FORGED})
    before = outside(place)
    answer = call(name, place, tiny_model)
    assert outside(place) == before
    assert answer.code == 4
    assert "run.json" in answer.stderr
    assert not any(MINE in path.read_bytes() for path in (place / "OUT").rglob("*") if path.is_file())


def test_a_forged_compaction_that_speaks_for_no_task_deletes_nothing(place: Path, tiny_model: Path) -> None:
    folder = place / "RUN" / "ledger" / "compact"
    folder.mkdir()
    content = {"first": 7, "last": 8, "records": {}, "objects": {"../victim.txt": FORGED}}
    (folder / "00007-00008.json").write_bytes(documents.to_bytes(content))
    before = outside(place)
    for name in ("merge", "export", "datasets", "compact", "repair"):
        answer = call(name, place, tiny_model)
        assert outside(place) == before
        assert answer.code == 4
        assert "00007-00008.json" in answer.stderr + answer.stdout


@pytest.mark.parametrize("command_line", ["sql RUN|select 1", "runs show RUN", "report RUN -o report.md", "plot RUN"])
def test_a_tables_forged_name_is_no_sql(place: Path, command_line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result's tables become views; their names come from ``result.json``."""
    monkeypatch.chdir(place)
    name = "x as select 1; copy (select 1) to 'victim.txt'; create view y"
    result = place / "RUN" / "results" / "evil"
    (result / name).mkdir(parents=True)
    shutil.copy(place / "RUN" / "samples" / "00000.parquet", result / name / "00000.parquet")
    objects = {f"results/evil/{name}/00000.parquet": FORGED}
    (result / "result.json").write_bytes(documents.to_bytes({"tables": {name: "samples"}, "objects": objects}))
    before = outside(place)
    line, _, text = command_line.partition("|")
    answer = command(*line.split(), *([text] if text else []))
    assert outside(place) == before
    assert answer.code == (2 if line.startswith("plot") else 4)
    assert line.startswith("plot") or "result.json" in answer.stderr


LINKED = ["manifest.parquet", "run.json", "cells", "samples", "ledger", "activations.zarr", "activations.zarr/rms"]
LINKED += ["cells/00001.parquet", "samples/00001.parquet", "ledger/00001.json", "activations.zarr/rms/c.1.0.0.0"]
LINKED += ["activations.zarr/zarr.json", "results"]


@pytest.mark.parametrize("key", LINKED)
@pytest.mark.parametrize("name", some("export", "repair", "compact", "merge", "datasets", "analyze"))
def test_what_a_link_names_is_not_copied_overwritten_or_deleted(
    name: str, key: str, place: Path, tiny_model: Path
) -> None:
    """Of the user's own other run, so that all would fit."""
    target, link = place / "OTHER" / key, place / "RUN" / key
    if key == "results":
        target.mkdir()
        (target / "mine.txt").write_bytes(MINE)
    elif link.is_dir():
        shutil.rmtree(link)
    else:
        link.unlink()
    link.symlink_to(target)
    before = outside(place)
    answer = call(name, place, tiny_model)
    assert outside(place) == before
    unread = {
        "compact": ("manifest.parquet", "activations.zarr", "results"),
        "merge": ("results",),
        "export": ("results",),
        "datasets": ("activations.zarr", "results"),
        "repair": ("results",),
        "analyze": (),
    }[name]
    is_of_a_moved_array = name == "analyze" and key == "activations.zarr"  # read where its owner has put it
    is_no_record = key == "ledger/00001.json"  # the task does not exist then
    if not (key.startswith(unread) or is_of_a_moved_array or is_no_record):
        assert answer.code == 4, answer
        assert key.split("/")[0] in "".join((answer.stderr + answer.stdout).split())
    if name in ("merge", "export") and answer.code == 0:
        assert command("runs", "verify", place / "OUT").code == 0
