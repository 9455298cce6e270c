"""A run that grows is the old or the new one, for every reader, wherever the growth is interrupted."""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3_server as s3

from fewchannels import manifest, open_run
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.tasks import pending_tasks
from fewchannels.errors import RunConflictError, StorageError
from fewchannels.runs import documents
from fewchannels.runs.arrays import open_dataset
from fewchannels.runs.changes import FOLDER, Change, Draft, finish_change, finish_changes, settled_changes
from fewchannels.runs.lease import hold
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.storage import Storage, open_storage
from fewchannels.runs.upkeep import merge
from fewchannels.runs.upkeep.verify import verify

N_OLD, N_NEW = 6, 11  # of tasks of 4 samples: the second one is not full yet
VERBS = ("create", "put", "move", "delete", "prune")
QUESTIONS = (
    "select * exclude (image), md5(image) from samples order by sample",
    "select * from cells order by all",
    "select * from manifest order by all",
    "select n_samples, n_tasks, n_tasks_done from run",
    "select task, start, stop, n_done from tasks order by task",
)
TENTH = random.Random(18)


class Killed(BaseException):
    """What a test raises where a process would be killed: nothing catches it."""


@contextmanager
def killed(storage: Storage, at: int) -> Iterator[list[str]]:
    """Every verb that writes, from the n-th call on, does nothing but end the process; yields the calls."""
    calls: list[str] = []
    methods = {name: getattr(type(storage), name) for name in VERBS}

    def guarded(name: str) -> Callable[..., Any]:
        def call(self: Storage, *arguments: Any) -> Any:
            calls.append(f"{name} {arguments[0]}")
            if len(calls) > at:
                raise Killed
            return methods[name](self, *arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in VERBS:
            patch.setattr(type(storage), name, guarded(name))
        with suppress(Killed):
            yield calls


def settling(calls: list[str], name: str) -> int:
    """Which of the calls settles a change: in a folder it is the put after the look."""
    return max(i for i, call in enumerate(calls) if call in (f"create {FOLDER}{name}.json", f"put {FOLDER}{name}.json"))


def points(n: int) -> list[int]:
    """A random tenth of the points, and the last."""
    return sorted({n - 1, *TENTH.sample(range(n), max(1, n // 10))})


@pytest.fixture(scope="module")
def server() -> Iterator[s3.S3Server]:
    with s3.s3_server() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> CaptureConfig:
    return CaptureConfig(model=str(tiny_model), num_inference_steps=2, top_k=3, batch_size=2, shard_samples=4)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The short and the long manifest. What the user noted of the first samples has changed in between."""
    found = {}
    for n, note in ((N_OLD, "old"), (N_NEW, "new")):
        folder = tmp_path_factory.mktemp("manifest")
        lines = "".join(f"shape {i},{note}{i}\n" for i in range(n))
        (folder / "prompts.csv").write_text(f"prompt,note\n{lines}", encoding="utf-8")
        found[n] = folder / "manifest.parquet"
        manifest.ingest([str(folder / "prompts.csv")], found[n])
    return found


@pytest.fixture(scope="module")
def finished(config: CaptureConfig, manifests: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the short manifest."""
    run = tmp_path_factory.mktemp("finished") / "run"
    capture(run, manifests[N_OLD], config)
    return run


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, finished: Path, tmp_path: Path) -> Callable[[], Storage]:
    """A function that copies the finished run to a new place."""
    if request.param == "bucket":
        request.getfixturevalue("server")
    made = iter(range(1000))

    def copy() -> Storage:
        if request.param == "folder":
            return open_storage(shutil.copytree(finished, tmp_path / f"{next(made)}"))
        source, storage = open_storage(finished), open_storage(f"s3://{s3.BUCKET}/{tmp_path.name}-{next(made)}")
        for key in source.list():
            storage.put(key, [source.get(key)])
        return storage

    return copy


def job_of(run: Path | str, path: Path, config: CaptureConfig) -> Job:
    return prepare(path, run, config)


def capture(run: Path | str, path: Path, config: CaptureConfig, tasks: list[int] | None = None) -> Job:
    job = job_of(run, path, config)
    with hold(job.storage):
        begin(job, path)
        worker = CaptureWorker(job, 1)
        for task in pending_tasks(job) if tasks is None else tasks:
            worker(task)
    return job


def answers(storage: Storage) -> list[Any]:
    """What SQL and ``activations`` say of a run."""
    run = open_run(storage.url)
    found: list[Any] = [run.sql(question).fetchall() for question in QUESTIONS]
    data = run.activations.load()
    found += [data.sample_id.values.tolist(), data.sizes["sample"]]
    return found


def kept_values(storage: Storage) -> dict[str, np.ndarray]:
    """Every array of the samples of the short manifest."""
    data = open_dataset(storage).isel(sample=slice(N_OLD)).load()
    return {str(name): data[name].values for name in data.data_vars}


def check(storage: Storage, *expected: list[Any]) -> None:
    """Readers answer one of the expected things, and no byte is damaged."""
    assert answers(storage) in expected
    raw = open_dataset(storage)  # what xarray shows anybody who opens the store
    ids = raw.sample_id.load().values.tolist()
    assert ids in [each[-2] for each in (*expected, *NEW)]
    assert raw.sample.values.tolist() == list(range(len(ids)))
    assert verify(storage).problems == ()


NEW: list[list[Any]] = []


def test_a_growth_that_is_interrupted_anywhere_is_the_old_run_or_the_new_one(
    place: Callable[[], Storage], config: CaptureConfig, manifests: dict[int, Path], request: pytest.FixtureRequest
) -> None:
    grows_at(place, config, manifests, points if "folder" in request.node.name else lambda n: [])


@pytest.mark.exhaustive
def test_a_growth_that_is_interrupted_at_every_point(
    place: Callable[[], Storage], config: CaptureConfig, manifests: dict[int, Path]
) -> None:
    grows_at(place, config, manifests, range)


def grows_at(
    place: Callable[[], Storage],
    config: CaptureConfig,
    manifests: dict[int, Path],
    chosen: Callable[[int], Any],
) -> None:
    whole = place()
    old, values = answers(whole), kept_values(whole)
    job = job_of(whole.url, manifests[N_NEW], config)
    with killed(whole, 10**6) as calls:
        begin(job, manifests[N_NEW])
    new = answers(whole)
    NEW[:] = [new]
    assert old != new
    assert len(calls) > 40
    settled = settling(calls, "run")
    for at in [*chosen(len(calls)), settled, settled + 1, calls.index("put run.json") + 1]:
        storage = place()
        job = job_of(storage.url, manifests[N_NEW], config)
        with killed(storage, at):
            begin(job, manifests[N_NEW])
        check(storage, old, new)
        capture(storage.url, manifests[N_NEW], config, tasks=[])
        check(storage, new)
        assert not storage.list(FOLDER)
        for name, array in kept_values(storage).items():
            np.testing.assert_array_equal(array, values[name])


def test_a_task_that_gets_more_samples_keeps_its_own_wherever_it_is_interrupted(
    place: Callable[[], Storage], config: CaptureConfig, manifests: dict[int, Path], request: pytest.FixtureRequest
) -> None:
    fills_up_at(place, config, manifests, points if "folder" in request.node.name else lambda n: [])


@pytest.mark.exhaustive
def test_a_task_that_gets_more_samples_interrupted_at_every_point(
    place: Callable[[], Storage], config: CaptureConfig, manifests: dict[int, Path]
) -> None:
    fills_up_at(place, config, manifests, range)


def fills_up_at(
    place: Callable[[], Storage],
    config: CaptureConfig,
    manifests: dict[int, Path],
    chosen: Callable[[int], Any],
) -> None:
    grown = place()
    job = capture(grown.url, manifests[N_NEW], config, tasks=[])
    old, values = answers(grown), kept_values(grown)
    worker = CaptureWorker(job, 1)
    generated: list[int] = []
    generate = worker.generate
    worker.generate = lambda samples, recorder: generated.append(len(samples)) or generate(samples, recorder)  # type: ignore
    with killed(grown, 10**6) as calls:
        worker.capture(1)
    new = answers(grown)
    NEW[:] = [new]
    assert generated == [2]
    settled = settling(calls, "00001")
    for at in [*chosen(len(calls)), settled, settled + 1]:
        storage = place()
        worker.job = capture(storage.url, manifests[N_NEW], config, tasks=[])
        worker.ledger = Ledger(storage)
        with killed(storage, at):
            worker.capture(1)
        check(storage, old, mostly(new, storage))
        generated.clear()
        finish_change(storage, "00001")  # as another actor does, with the same lease
        if 1 in pending_tasks(worker.job):
            worker.capture(1, attempt=2)
        assert generated == ([2] if at <= settled else [])  # never those that were there before
        check(storage, mostly(new, storage))
        for name, array in kept_values(storage).items():
            np.testing.assert_array_equal(array, values[name])
        assert verify(storage).problems == ()


def mostly(new: list[Any], storage: Storage) -> list[Any]:
    """The new answers, with this attempt's own numbers and seconds of the new samples."""
    rows = answers(storage)
    own = {row[:1]: row for row in rows[0]}
    columns = open_run(storage.url).sql("select * exclude (image), md5(image) from samples").columns
    varies = [columns.index(name) for name in ("attempt", "seconds", "peak_memory_bytes")]
    same = [tuple(own.get(row[:1], row)[i] if i in varies else value for i, value in enumerate(row)) for row in new[0]]
    return [same, *new[1:]]


def test_a_second_growth_finds_the_spare_keys_of_the_first(
    place: Callable[[], Storage], config: CaptureConfig, manifests: dict[int, Path], tmp_path: Path
) -> None:
    storage = place()
    opened = open_dataset(storage)  # lazily: nothing but the index is read
    capture(storage.url, manifests[N_NEW], config)
    assert len(set(opened.sample_id.load().values.tolist())) == N_OLD
    longest = tmp_path / "longest.csv"
    longest.write_text("prompt,note\n" + "".join(f"shape {i},x\n" for i in range(13)))
    manifest.ingest([str(longest)], tmp_path / "longest.parquet")
    capture(storage.url, tmp_path / "longest.parquet", config)
    data = open_run(storage.url).activations.load()
    with (tmp_path / "longest.parquet").open("rb") as file:
        assert data.sample_id.values.tolist() == manifest.sample_ids(file)
    report = verify(storage)
    assert (report.problems, report.unrecorded) == ((), ())


def test_whoever_holds_the_lease_finishes_a_change_without_the_longer_manifest(
    place: Callable[[], Storage], config: CaptureConfig, manifests: dict[int, Path], tmp_path: Path
) -> None:
    storage, whole = place(), place()
    with killed(whole, 10**6) as calls:
        begin(job_of(whole.url, manifests[N_NEW], config), manifests[N_NEW])
    with killed(storage, settling(calls, "run") + 5):
        begin(job_of(storage.url, manifests[N_NEW], config), manifests[N_NEW])
    assert [change.name for change in settled_changes(storage, storage.list())] == ["run"]
    out = open_storage(tmp_path / "part")
    merge.export(storage, [0, 5], out)  # another reader, before
    assert verify(out).problems == ()
    with hold(storage):
        pass
    assert answers(storage) == answers(whole)
    assert verify(storage).unrecorded == ()


def test_an_attempt_that_was_overtaken_writes_no_record(tmp_path: Path) -> None:
    """An actor that was stopped before its last moves goes on when another one's record stands and all is cleaned."""
    storage = open_storage(tmp_path)
    late, early = (Draft(storage, "00000", "ledger/00000.json") for _ in range(2))
    documents = []
    for draft, data in ((late, b"late"), (early, b"early")):
        stored = draft.put("cells/00000.parquet", [data])
        documents.append({"objects": {"cells/00000.parquet": {"n_bytes": stored.n_bytes, "crc32c": stored.crc32c}}})
    early.settle(documents[1])
    record = storage.get("ledger/00000.json")
    finish_changes(storage)
    with pytest.raises(
        RunConflictError, match=r"'ledger/00000.json' of .* was replaced by another command while it was being written"
    ):
        late.settle(documents[0])
    assert storage.get("ledger/00000.json") == record
    assert storage.get("cells/00000.parquet") == b"early"


@pytest.mark.parametrize(
    "forged",
    [
        {"target": "notes.txt"},
        {"target": "../notes.txt"},
        {"folder": "../"},
        {"folder": "samples/"},
        {"document": {"objects": {"notes.txt": {"n_bytes": 3, "crc32c": "00000000"}}}},
        {"document": {"objects": {"samples/../../notes.txt": {"n_bytes": 3, "crc32c": "00000000"}}}},
        {"document": {"objects": []}},
        {"document": 7},
    ],
    ids=str,
)
def test_a_change_replaces_nothing_but_its_own(tmp_path: Path, forged: dict[str, Any]) -> None:
    """A run from elsewhere may hold any change, with a right checksum."""
    storage = open_storage(tmp_path / "run")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    storage.put("notes.txt", [b"mine"])
    storage.put(f"{FOLDER}00000.ab/notes.txt", [b"not"])
    whole = {
        "folder": f"{FOLDER}00000.ab/",
        "target": "ledger/00000.json",
        "document": {"objects": {}},
        "replaces": None,
    }
    storage.put(f"{FOLDER}00000.json", [documents.to_bytes(whole | forged)])
    with pytest.raises(StorageError), hold(storage):
        pass
    assert storage.get("notes.txt") == (tmp_path / "notes.txt").read_bytes() == b"mine"
    assert not storage.list("ledger/")


def test_a_change_whose_objects_are_gone_is_given_up(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.put("cells/00000.parquet", [b"old"])
    draft = Draft(storage, "00000", "ledger/00000.json")
    stored = draft.put("cells/00000.parquet", [b"new"])
    about = {"objects": {"cells/00000.parquet": {"n_bytes": stored.n_bytes, "crc32c": stored.crc32c}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Change, "finish", lambda change, storage: None)
        draft.settle(about)
    waiting = [key for key in storage.list(FOLDER) if not key.endswith("json")]
    storage.delete(waiting)
    finish_changes(storage)
    assert list(storage.list()) == ["cells/00000.parquet"]
    assert storage.get("cells/00000.parquet") == b"old"
    assert not (tmp_path / "changes").exists()
