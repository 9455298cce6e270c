"""Runs on object stores, against a real S3 protocol server whose network fails on purpose."""

import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3_server as s3
from hypothesis import given, settings
from hypothesis import strategies as st

from fewchannels import cli, manifest, open_run
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.errors import InputError, StorageError
from fewchannels.runs.storage import ObjectStorage, Storage, Stored, open_storage

N_TASKS = 4
SETTINGS = {"num_inference_steps": 3, "top_k": 4, "batch_size": 2, "shard_samples": 2}
MULTIPART = 17 * 2**20
NAMES = st.text("abz019._-= é", min_size=1, max_size=6).filter(lambda name: name[0] not in ". ")
KEYS = st.tuples(st.lists(NAMES.map("{}d".format), max_size=2), NAMES).map(
    lambda key: "/".join([*key[0], f"{key[1]}.f"])
)


@pytest.fixture(scope="module")
def server() -> Iterator[s3.S3Server]:
    with s3.s3_server(seed=1) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in (
            running.environment | {"FEWCHANNELS_RETRY_S": "20", "FEWCHANNELS_REQUEST_TIMEOUT_S": "0.6"}
        ).items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(params=["folder", "objects"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, server: s3.S3Server) -> Storage:
    return open_storage(tmp_path / "run" if request.param == "folder" else url(request))


@pytest.fixture
def objects(request: pytest.FixtureRequest, server: s3.S3Server) -> ObjectStorage:
    return ObjectStorage(url(request))


def url(request: pytest.FixtureRequest) -> str:
    return f"s3://{s3.BUCKET}/{request.node.originalname}-{id(request.node)}"


def prefix(storage: ObjectStorage) -> str:
    return storage.url.removeprefix(f"s3://{s3.BUCKET}/")


@pytest.fixture(scope="module")
def runs(server: s3.S3Server, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """One capture in this process to objects, and the same to a folder."""
    folder = tmp_path_factory.mktemp("runs")
    manifest.ingest([f"demo:{2 * N_TASKS}"], folder / "manifest.parquet")
    places = f"s3://{s3.BUCKET}/runs/k=12/a b+é", folder / "run"
    for place in places:
        job = prepare(folder / "manifest.parquet", place, CaptureConfig(model=str(tiny_model), **SETTINGS))
        begin(job, folder / "manifest.parquet")
        worker = CaptureWorker(job, n_threads=1)
        for task in range(N_TASKS):
            worker(task)
    return places


def test_what_is_put_is_got_and_replaced(storage: Storage, server: s3.S3Server) -> None:
    for parts in ([b"one", memoryview(b"_two_")[1:4]], [], [b""], [bytes(MULTIPART), b"\x01" * 3]):
        whole = b"".join(parts)
        assert storage.put("a/b.bin", parts) == Stored.of([whole])
        assert storage.get("a/b.bin") == whole
        assert storage.list() == {"a/b.bin": len(whole)}
        assert storage.exists("a/b.bin")
        if isinstance(storage, ObjectStorage):
            assert server.read(f"{prefix(storage)}/a/b.bin") == whole


def test_what_is_missing_is_told_apart_from_what_is_refused(storage: Storage) -> None:
    for read in (storage.get, storage.open):
        with pytest.raises(FileNotFoundError):
            read("no/such.json")
    assert not storage.exists("no/such.json")
    assert storage.list("no/") == {}
    storage.put("a", [b"1"])
    storage.delete(["a", "no/such.json"])
    assert storage.list() == {}


@settings(max_examples=15)
@given(
    moves=st.lists(
        st.tuples(st.integers(0, 90), st.sampled_from([0, 1, 2]), st.sampled_from([-1, 0, 1, 7, 200])), max_size=6
    )
)
def test_an_object_is_read_anywhere(server: s3.S3Server, tmp_path_factory: pytest.TempPathFactory, moves: list) -> None:
    data = bytes(range(80))
    for storage in (open_storage(tmp_path_factory.getbasetemp() / "anywhere"), ObjectStorage("s3://bucket/anywhere")):
        storage.put("x.bin", [data])
        expected = io.BytesIO(data)
        with storage.open("x.bin") as file:
            for offset, whence, n in moves:
                to = -offset if whence == os.SEEK_END and offset <= 80 else offset
                assert file.seek(to, whence) == expected.seek(to, whence)
                assert file.read(n) == expected.read(n)
                assert file.tell() == expected.tell()


@settings(max_examples=15)
@given(keys=st.sets(KEYS, max_size=8))
def test_folders_and_objects_list_the_same(
    server: s3.S3Server, tmp_path_factory: pytest.TempPathFactory, keys: set[str]
) -> None:
    place = f"listed-{time.monotonic_ns()}"
    both = [open_storage(tmp_path_factory.getbasetemp() / place), open_storage(f"s3://{s3.BUCKET}/{place}")]
    prefixes = ["", "a/", *(f"{key.rpartition('/')[0]}/" for key in keys if "/" in key)]
    for storage in both:
        for key in keys:
            storage.put(key, [key.encode()])
    for each in prefixes:
        found = [list(storage.list(each).items()) for storage in both]
        assert found[0] == found[1] == sorted((k, len(k.encode())) for k in keys if k.startswith(each))


def test_more_objects_are_listed_than_the_store_tells_at_once(objects: ObjectStorage, server: s3.S3Server) -> None:
    client = server.client()
    for i in range(1003):
        client.put_object(Bucket=s3.BUCKET, Key=f"{prefix(objects)}/l/{i:04d}", Body=b"")
    server.plan(s3.TRUNCATED, "GET", "continuation-token")
    assert list(objects.list()) == [f"l/{i:04d}" for i in range(1003)]


def verbs(storage: ObjectStorage) -> dict[str, tuple[str, str, Callable[[], bool]]]:
    """A request of every verb: its method, a text in its address, and a check of what it did."""

    def opened() -> bytes:
        with storage.open("a") as file:
            return file.read()

    def updated() -> bool:
        found = storage.get_tagged("tagged")
        assert found is not None
        return storage.put_if("tagged", found[0] + b"+", found[1]) and storage.get("tagged") == found[0] + b"+"

    def put_large() -> bool:
        return storage.put("large", [large[:5], large[5:]]).n_bytes == len(storage.get("large")) == MULTIPART

    def deleted() -> bool:
        storage.delete(["gone"])
        return not storage.exists("gone")

    large = memoryview(bytes(MULTIPART))
    storage.put("a", [b"0123"])
    storage.put("gone", [b"0"])
    storage.put_if("tagged", b"1", None)
    return {
        "put": ("PUT", "/put", lambda: storage.put("put", [b"012"]) == Stored.of([b"012"])),
        "get": ("GET", "/a", lambda: storage.get("a") == b"0123"),
        "open": ("HEAD", "/a", lambda: opened() == b"0123"),
        "read": ("GET", "/a", lambda: opened() == b"0123"),
        "exists": ("HEAD", "/a", lambda: storage.exists("a")),
        "list": ("GET", "list-type", lambda: "a" in storage.list()),
        "delete": ("POST", "delete", deleted),
        "create": ("PUT", "/new", lambda: storage.put_if("new", b"1", None)),
        "update": ("PUT", "/tagged", updated),
        "begin": ("POST", "uploads", put_large),
        "part": ("PUT", "partNumber=2", put_large),
        "finish": ("POST", "uploadId", put_large),
    }


@pytest.mark.parametrize("kind", s3.FAULTS)
def test_every_verb_survives_every_fault(objects: ObjectStorage, server: s3.S3Server, kind: str) -> None:
    for name, (method, address, check) in verbs(objects).items():
        server.faults.clear()
        server.plan(kind, method, address)
        assert check(), f"{name} under {kind}"
        assert server.faults[kind] == 1, f"{name} made no {method} of {address}"


def test_a_put_with_a_condition_knows_its_own_object(objects: ObjectStorage, server: s3.S3Server) -> None:
    for kind in (s3.RESET_AFTER, s3.SLOW):
        server.plan(kind, "PUT", "lease")
        assert objects.put_if("lease", kind.encode(), (objects.get_tagged("lease") or (b"", None))[1])
    assert not objects.put_if("lease", b"created by another", None)
    found = objects.get_tagged("lease")
    assert found is not None
    assert objects.put_if("lease", b"first", found[1])
    server.plan(s3.RESET_AFTER, "PUT", "lease")
    assert not objects.put_if("lease", b"second", found[1])
    assert objects.get("lease") == b"first"
    assert objects.get_tagged("no such") is None


def test_a_store_that_stays_down_is_given_up(
    objects: ObjectStorage, server: s3.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWCHANNELS_RETRY_S", "1")
    impatient = ObjectStorage(objects.url)
    server.stop()
    try:
        for ask in (lambda: impatient.get("a"), lambda: impatient.put_if("a", b"1", None), impatient.list):
            started = time.monotonic()
            with pytest.raises(StorageError, match="HTTP error"):
                ask()
            assert 1 < time.monotonic() - started < 8
    finally:
        server.start()


def test_what_will_not_change_is_not_asked_again(objects: ObjectStorage, server: s3.S3Server) -> None:
    server.requests.clear()
    with pytest.raises(StorageError, match="NoSuchBucket"):
        open_storage("s3://nobucket/run").put("a", [b"1"])
    with pytest.raises(StorageError, match="NoSuchBucket"):
        open_storage("s3://nobucket/run").list()
    server.refusing = True
    try:
        with pytest.raises(StorageError, match="AccessDenied: as asked for"):
            objects.get("a")
    finally:
        server.refusing = False
    assert server.requests.total() == 3


def test_a_run_of_objects_reads_as_the_folder_does(runs: tuple[str, Path]) -> None:
    run, folder = map(open_run, runs)
    for question in (
        "select * exclude (seconds, peak_memory_bytes) from samples order by sample",
        "select * from cells order by sample, step, layer",
        "select * from manifest order by all",
        "select * from run",
    ):
        assert run.sql(question).fetchall() == folder.sql(question).fetchall()
    assert run.query("massive_channels", top=3).arrow() == folder.query("massive_channels", top=3).arrow()
    assert run.activations.load().identical(folder.activations.load())
    sample_id = str(folder.activations.sample_id.values[3])
    assert run.image(sample_id).tobytes() == folder.image(sample_id).tobytes()
    assert run.summary()["n_done"] == 2 * N_TASKS


@pytest.mark.parametrize("kind", s3.FAULTS)
def test_reading_survives_every_fault(runs: tuple[str, Path], server: s3.S3Server, kind: str) -> None:
    folder = open_run(runs[1])
    server.faults.clear()
    for address in ("run.json", "ledger/00001", "cells/00001", "rms/c", "activations.zarr/zarr.json"):
        server.plan(kind, "GET", address)
        opened = open_run(runs[0])
        if "zarr" in address or "rms" in address:
            assert opened.activations["rms"].load().identical(folder.activations["rms"].load())
        else:
            question = "select * from cells order by sample, step, layer"
            assert opened.sql(question).fetchall() == folder.sql(question).fetchall()
    assert server.faults[kind] == 5


def test_a_locked_catalog_reads_nothing_else(runs: tuple[str, Path], server: s3.S3Server) -> None:
    server.client().put_object(Bucket=s3.BUCKET, Key="other.parquet", Body=(runs[1] / "manifest.parquet").read_bytes())
    run = open_run(runs[0])
    for other in (f"s3://{s3.BUCKET}/other.parquet", f"{runs[0]}/*.parquet", str(runs[1] / "manifest.parquet")):
        with pytest.raises(InputError, match="not files, URLs or settings"):
            run.sql(f"select * from read_parquet('{other}')")
    for other in (f"{runs[0]}/run.json", "/etc/hostname", f"{server.url}/{s3.BUCKET}/other.parquet"):
        with pytest.raises(InputError):
            run.sql(f"select * from read_text('{other}')")


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code and outputs of the command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["fewchannels", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


@pytest.mark.parametrize(
    "question",
    [("query", "massive_channels", "--csv"), ("sql", "select sample_id, prompt from samples order by all", "--json")],
)
def test_the_command_line_asks_objects_as_it_asks_a_folder(
    runs: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    question: tuple[str, ...],
) -> None:
    answers = [call(monkeypatch, capsys, question[0], str(run), *question[1:]) for run in runs]
    assert answers[0] == answers[1]
    assert answers[0][0] == 0
    assert len(answers[0][1].splitlines()) > 3
    code, shown, _ = call(monkeypatch, capsys, "runs", "show", runs[0])
    assert code == 0
    assert "8 of 8 samples" in shown


@pytest.mark.parametrize("trouble", ["refusing", "down"])
def test_a_store_that_does_not_serve_is_named_without_secrets(
    runs: tuple[str, Path],
    server: s3.S3Server,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: str,
) -> None:
    monkeypatch.setenv("FEWCHANNELS_RETRY_S", "1")
    written = str(runs[1] / "manifest.parquet")
    opened = open_run(runs[0])
    server.refusing = trouble == "refusing"
    if trouble == "down":
        server.stop()
    try:
        for command in (
            ("capture", "--model", str(tiny_model), "--manifest", written, "--out", "s3://bucket/new"),
            ("runs", "show", runs[0]),
            ("sql", runs[0], "select 1"),
        ):
            code, out, err = call(monkeypatch, capsys, *command)
            assert code == 4, err
            assert re.search({"refusing": "AccessDenied|403 Forbidden", "down": "HTTP error"}[trouble], err)
            assert not any(text in out + err for text in (s3.SECRET, s3.KEY_ID, "Traceback", "Debug"))
        with pytest.raises(StorageError) as refused:
            opened.sql("select * from cells")
        assert not any(text in str(refused.value) for text in (s3.SECRET, s3.KEY_ID, "Traceback", "Debug"))
    finally:
        if trouble == "down":
            server.start()
        server.refusing = False


@pytest.mark.parametrize("place", [f"s3://{s3.KEY_ID}:{s3.SECRET}@b/run", f"s3://b/run?X-Amz-Signature={s3.SECRET}"])
def test_urls_with_credentials_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    for command in (("capture", "--manifest", str(tmp_path / "m"), "--out", place), ("runs", "show", place)):
        code, out, err = call(monkeypatch, capsys, *command)
        assert code == 2
        assert "credentials" in err
        assert s3.SECRET not in out + err


@pytest.mark.parametrize(
    "place", ["s3://", "s3://b/a*", "s3://b/a[1]", "s3://b/100%", "s3://b/../c", "s3://b c/run", "ftp://b/run"]
)
def test_places_that_readers_take_for_others_are_refused(place: str) -> None:
    with pytest.raises(InputError):
        open_storage(place)
