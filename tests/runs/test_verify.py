"""Verification against planted damage, on a run that a real worker wrote."""

import dataclasses
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import google_crc32c
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from fewchannels import manifest
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.recompute import recompute, summary
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.tasks import pending_tasks
from fewchannels.errors import InputError, StorageError
from fewchannels.runs import documents
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.storage import FolderStorage, open_storage
from fewchannels.runs.upkeep.repair import check_report, plan, repair
from fewchannels.runs.upkeep.verify import verify
from fewchannels.tables import as_columns, from_parquet, to_parquet

N_SAMPLES = 6


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three tasks of two samples, and its manifest beside it."""
    folder = tmp_path_factory.mktemp("verify")
    manifest.ingest([f"demo:{N_SAMPLES}"], folder / "manifest.parquet")
    config = CaptureConfig(model=str(tiny_model), num_inference_steps=2, top_k=3, batch_size=2, shard_samples=2)
    job = prepare(folder / "manifest.parquet", folder / "run", config)
    begin(job, folder / "manifest.parquet")
    worker = CaptureWorker(job, 1)
    for task in range(3):
        worker(task)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of it that may be damaged."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def data_files(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file() and not path.name.startswith("."))


def test_a_whole_run_has_no_problems(run: Path) -> None:
    report = verify(open_storage(run))
    assert report.problems == ()
    assert report.unrecorded == ()
    assert (report.n_tasks, report.n_recorded) == (3, 3)
    assert report.n_objects == len(data_files(run))
    assert report.n_bytes == sum(path.stat().st_size for path in data_files(run))
    check_report(report, "run")


@pytest.mark.parametrize("n", [250, pytest.param(1000, marks=pytest.mark.exhaustive)])
def test_every_one_of_many_single_bit_flips_is_found(made: Path, tmp_path: Path, n: int) -> None:
    """Files are drawn as often as they have bytes, but every kind of file is drawn at least 40 times."""
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    storage, chance = open_storage(run), random.Random(0)
    files = data_files(run)
    kinds: dict[str, list[Path]] = {}
    for path in files:
        kinds.setdefault(path.relative_to(run).parts[0], []).append(path)
    drawn = [chance.choice(kinds[kind]) for kind in kinds for _ in range(40)]
    drawn += chance.choices(files, [path.stat().st_size for path in files], k=n - len(drawn))
    found: Counter[str] = Counter()
    for path in drawn:
        whole = path.read_bytes()
        bit = chance.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        key = path.relative_to(run).as_posix()
        if key == "run.json":
            with pytest.raises(StorageError, match=r"run\.json is damaged"):
                verify(storage)
        else:
            assert {problem.key for problem in verify(storage).problems} == {key}, bit
        found[key.split("/")[0]] += 1
        path.write_bytes(whole)
    assert found.total() == n
    assert set(found) == {"activations.zarr", "cells", "ledger", "manifest.parquet", "run.json", "samples"}
    assert min(found.values()) >= 40


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "size"),
        (lambda path: path.write_bytes(b""), "size"),
        (lambda path: path.write_bytes(path.read_bytes()[::-1]), "checksum"),
    ],
)
@pytest.mark.parametrize("key", ["activations.zarr/massive_value/c.1.0.0.0.0", "cells/00001.parquet"])
def test_damage_is_named_dropped_by_repair_and_mended_by_the_next_capture(
    run: Path, made: Path, tiny_model: Path, damage, kind: str, key: str
) -> None:
    damage(run / key)
    storage = open_storage(run)
    report = verify(storage)
    assert [(problem.key, problem.task, problem.kind) for problem in report.problems] == [(key, 1, kind)]
    with pytest.raises(StorageError, match=r"of the tasks 1\. fewchannels runs verify .* --repair"):
        check_report(report, str(run))
    quick = verify(storage, quick=True)
    assert [problem.kind for problem in quick.problems] == ([] if kind == "checksum" else [kind])
    repair(storage, plan(report, "run"))
    config = CaptureConfig(model=str(tiny_model), num_inference_steps=2, top_k=3, batch_size=2, shard_samples=2)
    job = prepare(made / "manifest.parquet", run, config)
    assert pending_tasks(job) == [1]
    CaptureWorker(job, 1)(1)
    assert verify(storage).problems == ()
    a, b = (xr.open_zarr(each / "activations.zarr", chunks=None).load() for each in (run, made / "run"))
    assert a.identical(b)


@pytest.mark.parametrize(
    "key", ["manifest.parquet", "activations.zarr/rms/zarr.json", "activations.zarr/sample_id/c/0"]
)
def test_what_the_whole_run_shares_is_laid_out_again_after_repair(
    run: Path, made: Path, tiny_model: Path, key: str
) -> None:
    whole = (run / key).read_bytes()
    (run / key).write_bytes(b"x" + whole[1:])
    storage = open_storage(run)
    report = verify(storage)
    assert [(problem.key, problem.task, problem.kind) for problem in report.problems] == [(key, None, "checksum")]
    repair(storage, plan(report, "run"))
    config = CaptureConfig(model=str(tiny_model), num_inference_steps=2, top_k=3, batch_size=2, shard_samples=2)
    job = prepare(made / "manifest.parquet", run, config)
    assert begin(job, made / "manifest.parquet")
    assert (run / key).read_bytes() == whole
    assert verify(storage).problems == ()
    assert pending_tasks(job) == []


def rewrite_record(storage: FolderStorage, number: int, **changes: object) -> None:
    record = Record.from_bytes(storage.get(Ledger.key(number)))
    storage.put(Ledger.key(number), [dataclasses.replace(record, **changes).to_bytes()])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fingerprint": "0" * 16}, "its fingerprint is 0000000000000000"),
        ({"task": 2}, "it is for task 2"),
        ({"stop": 3}, None),
        ({"stop": 5}, r"it has samples \[2, 5\), the task owns \[2, 4\)"),
        ({"start": 1}, r"it has samples \[1, 4\)"),
        ({"objects": {}}, "its objects are not those of a task"),
        ({"n_done": 1, "n_failed": 1}, "2 done and 0 failed; the record says 1 and 1"),
    ],
)
def test_a_record_that_is_whole_and_wrong_is_found(run: Path, changes: dict, says: str | None) -> None:
    storage = open_storage(run)
    rewrite_record(storage, 1, **changes)
    report = verify(storage)
    assert report.tasks == [1]
    if says:
        assert any(re.search(says, problem.detail) for problem in report.problems)


def put_table(storage: FolderStorage, table: str, task: int, change) -> None:
    """Rewrite a table and its checksum in the record: damage that only a comparison of contents can find."""
    key = f"{table}/{task:05d}.parquet"
    rows = change(from_parquet(storage.get(key)).to_pylist())
    stored = storage.put(key, [to_parquet(table, as_columns(table, rows))])
    record = Record.from_bytes(storage.get(Ledger.key(task)))
    rewrite_record(storage, task, objects={**record.objects, key: stored})


def changed(rows: list[dict], row: int, **values: object) -> list[dict]:
    return [each | values if i == row else each for i, each in enumerate(rows)]


@pytest.mark.parametrize(
    ("table", "change", "says"),
    [
        ("samples", lambda rows: rows[:1], "1 rows that are not samples [2, 4)"),
        ("samples", lambda rows: [rows[0], rows[0]], "2 rows that are not samples [2, 4)"),
        ("samples", lambda rows: changed(rows, 1, sample_id=rows[0]["sample_id"]), "differ from those of the manifest"),
        (
            "samples",
            lambda rows: changed(rows, 0, image=rows[0]["image"][:99]),
            "image of sample 2 cannot be decoded",
        ),
        ("samples", lambda rows: changed(rows, 0, status="failed"), "1 done and 1 failed"),
        ("cells", lambda rows: rows[1:], "15 rows; the samples ran 16 cells"),
        ("cells", lambda rows: [rows[0], *rows[:-1]], "16 rows; the samples ran"),
        ("cells", lambda rows: changed(rows, 3, top_scores=[9.0, 8.0, 7.0]), "top_scores are not the store's mean_abs"),
        (
            "cells",
            lambda rows: changed(
                rows, 3, top_channels=rows[3]["top_channels"][::-1], top_scores=rows[3]["top_scores"][::-1]
            ),
            "top_channels are not the store's massive_channel",
        ),
    ],
)
def test_tables_that_are_whole_and_disagree_are_found(run: Path, table: str, change, says: str) -> None:
    storage = open_storage(run)
    put_table(storage, table, 1, change)
    (problem, *_) = verify(storage).problems
    assert (problem.key, problem.task, problem.kind) == (f"{table}/00001.parquet", 1, "disagrees")
    assert says in problem.detail


def test_what_unfinished_tasks_left_is_no_problem_and_is_told(run: Path) -> None:
    (run / "ledger" / "00001.json").unlink()
    report = verify(open_storage(run))
    assert report.problems == ()
    assert report.n_recorded == 2
    assert len(report.unrecorded) == 9
    assert all("/c.1." in key or key.endswith("00001.parquet") for key in report.unrecorded)


def test_a_run_json_that_was_deleted_is_written_anew_and_nothing_is_redone(
    run: Path, made: Path, tiny_model: Path
) -> None:
    (run / "run.json").unlink()
    with pytest.raises(InputError, match=r"it has no run\.json"):
        verify(open_storage(run))
    config = CaptureConfig(model=str(tiny_model), num_inference_steps=2, top_k=3, batch_size=2, shard_samples=2)
    job = prepare(made / "manifest.parquet", run, config)
    assert begin(job, made / "manifest.parquet") is False
    assert pending_tasks(job) == []
    assert verify(open_storage(run)).problems == ()


def test_samples_generated_again_are_equal_to_the_last_bit_and_damage_is_measured(run: Path) -> None:
    storage = open_storage(run)
    compared = recompute(storage, 3, 1)
    assert summary(compared) == {
        "n_samples": 4,
        "n_equal": 4,
        "n_other_channels": 0,
        "largest_difference": 0.0,
    }
    # A shard of other values, with a true record: only generating again can tell.
    name = "activations.zarr/mean_abs/c.0.0.0.0"
    (run / name).write_bytes((run / name.replace("c.0", "c.1")).read_bytes())
    wrong = {each.sample: each for each in recompute(storage, 6, 1)}
    assert [sample for sample, each in wrong.items() if not each.equal] == [0, 1]
    assert wrong[0].difference > 1e-3


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "crc32c"),
        st.one_of(st.integers(-(2**53), 2**53), st.text(max_size=20), st.booleans(), st.none()),
        max_size=6,
    ),
    st.data(),
)
@settings(max_examples=60)
def test_a_document_is_read_back_and_any_flipped_bit_is_noticed(content: dict, data: st.DataObject) -> None:
    content["objects"] = {}
    written = documents.to_bytes(content)
    assert documents.from_bytes(written) == content
    bit = data.draw(st.integers(0, 8 * len(written) - 1))
    damaged = bytearray(written)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match=r"."):
        documents.from_bytes(bytes(damaged))


def test_a_documents_checksum_is_that_of_the_document_without_it() -> None:
    written = documents.to_bytes({"a": 1})
    bare = b'{\n "a": 1\n}\n'
    assert json.loads(written) == {"a": 1, "crc32c": f"{google_crc32c.value(bare):08x}"}
