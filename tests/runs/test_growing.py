"""Runs that grow, are merged, compacted and exported: nothing that was generated is generated again or changes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr

from fewchannels import manifest, open_run
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.tasks import pending_tasks
from fewchannels.errors import InputError, RunConflictError, StorageError
from fewchannels.runs import parts
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.parts import compact
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.storage import FolderStorage, open_storage
from fewchannels.runs.upkeep import datasets as for_datasets
from fewchannels.runs.upkeep import merge
from fewchannels.runs.upkeep.repair import plan, repair
from fewchannels.runs.upkeep.verify import verify

ALL = "select sample_id, prompt, image, status from samples order by sample_id"
CELLS = "select * exclude (sample) from cells order by sample_id, step, layer"


@pytest.fixture
def config(tiny_model: Path) -> CaptureConfig:
    return CaptureConfig(model=str(tiny_model), num_inference_steps=2, top_k=3, batch_size=2, shard_samples=4)


@pytest.fixture
def capture(tmp_path: Path, config: CaptureConfig) -> Callable[..., Job]:
    """A function that ingests a source and captures it, or some of its tasks, into a run of a name."""

    def work(name: str, source: str, tasks: list[int] | None = None) -> Job:
        path = tmp_path / f"{name}.parquet"
        manifest.ingest([source], path)
        return captured(tmp_path / name, path, config, tasks)

    return work


def captured(run: Path, path: Path, config: CaptureConfig, tasks: list[int] | None = None) -> Job:
    job = prepare(path, run, config)
    begin(job, path)
    worker = CaptureWorker(job, 1)
    for task in pending_tasks(job) if tasks is None else tasks:
        worker(task)
    return job


def by_id(run: Path | str) -> dict[str, xr.Dataset]:
    """Every sample's arrays by its id."""
    data = xr.open_zarr(Path(run) / "activations.zarr", chunks=None).load()
    return {str(sample_id): data.isel(sample=i) for i, sample_id in enumerate(data.sample_id.values)}


def same_samples(run: Path | str, other: Path | str, *, ids: set[str] | None = None) -> None:
    """Arrays, images and cells of the samples that two runs share are equal, bit by bit."""
    a, b = by_id(run), by_id(other)
    shared = ids or (a.keys() & b.keys())
    assert shared
    for sample_id in shared:
        for name in a[sample_id]:
            np.testing.assert_array_equal(a[sample_id][name], b[sample_id][name])
    for question in (ALL, CELLS):
        rows = [[row for row in open_run(each).sql(question).fetchall() if row[0] in shared] for each in (run, other)]
        assert rows[0] == rows[1]


def test_a_longer_manifest_grows_a_run_without_generating_or_changing_what_is_there(
    capture: Callable[..., Job], tmp_path: Path
) -> None:
    capture("run", "demo:6")
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    untouched = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*c.0.*")}
    counted: list[int] = []
    generate = CaptureWorker.generate

    def counting(self, samples, recorder):
        counted.append(len(samples))
        return generate(self, samples, recorder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CaptureWorker, "generate", counting)
        capture("run", "demo:11")
    assert counted == [2, 3]  # the second task keeps its 2 samples and gets 2 more; the third is new
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    assert verify(open_storage(tmp_path / "run")).problems == ()
    same_samples(tmp_path / "run", tmp_path / "before")
    data = open_run(tmp_path / "run").activations
    assert data.sizes["sample"] == 11
    assert np.isfinite(data["mean_abs"].values).all()
    assert open_run(tmp_path / "run").sql("select sample, task from samples order by sample").fetchall() == [
        (i, i // 4) for i in range(11)
    ]


def test_a_grown_run_holds_what_one_capture_of_all_its_samples_would(
    capture: Callable[..., Job], tmp_path: Path
) -> None:
    """Batches are the same ones here, since the run grew at the end of a batch: so all is equal to the last bit."""
    capture("run", "demo:6")
    capture("run", "demo:11")
    capture("once", "demo:11")
    same_samples(tmp_path / "run", tmp_path / "once")
    a, b = (xr.open_zarr(tmp_path / name / "activations.zarr", chunks=None).load() for name in ("run", "once"))
    assert a.identical(b)


def test_a_short_task_that_is_damaged_is_done_again_whole_when_the_run_grows(
    capture: Callable[..., Job], tmp_path: Path
) -> None:
    capture("run", "demo:6")
    path = tmp_path / "run" / "cells" / "00001.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    capture("run", "demo:8")
    assert verify(open_storage(tmp_path / "run")).problems == ()


def test_growth_that_an_earlier_version_was_interrupted_in_is_told_and_mended_by_the_same_command(
    capture: Callable[..., Job], tmp_path: Path, config: CaptureConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture("run", "demo:6")
    description = (tmp_path / "run" / "run.json").read_bytes()
    capture("run", "demo:11", tasks=[])
    # The first version put the manifest before run.json, and was killed in between.
    (tmp_path / "run" / "run.json").write_bytes(description)
    with pytest.raises(StorageError, match=r"manifest\.parquet is damaged: .*runs verify"):
        open_run(tmp_path / "run").sql("select count(*) from manifest")
    job = captured(tmp_path / "run", tmp_path / "run.parquet", config)
    assert job.layout.n_samples == 11
    assert verify(open_storage(tmp_path / "run")).problems == ()


@pytest.mark.parametrize("change", [{"top_k": 2}, {"value_precision": "bfloat16"}, {"tokens": "pool:2"}])
def test_a_run_does_not_grow_under_other_settings(
    capture: Callable[..., Job], tmp_path: Path, config: CaptureConfig, change: dict
) -> None:
    capture("run", "demo:6", tasks=[])
    manifest.ingest(["demo:11"], tmp_path / "longer.parquet")
    with pytest.raises(RunConflictError, match=f"config.{next(iter(change))}: "):
        captured(tmp_path / "run", tmp_path / "longer.parquet", CaptureConfig(**{**vars(config), **change}))


def test_a_sample_of_a_larger_size_does_not_fit_into_a_grown_run(
    manifest_of, tmp_path: Path, config: CaptureConfig
) -> None:
    captured(tmp_path / "run", manifest_of("prompt,width\na,\n"), config)
    larger = manifest_of("prompt,width\na,\nb,24\n")
    with pytest.raises(RunConflictError, match=r"config\.n_tokens: 16 -> 24"):
        captured(tmp_path / "run", larger, config)


def test_merged_runs_hold_every_sample_once_and_the_rest_can_be_captured(
    capture: Callable[..., Job], tmp_path: Path, config: CaptureConfig
) -> None:
    capture("a", "demo:11", tasks=[0, 2])  # samples 0 to 3 and 8 to 10
    capture("b", "demo:11", tasks=[2, 1])  # samples 4 to 10
    capture("whole", "demo:11")
    steps: list[tuple[int, int]] = []
    storages = [open_storage(tmp_path / name) for name in ("a", "b")]
    out = open_storage(tmp_path / "merged")
    counts = merge.merge(storages, out, lambda *step: steps.append(step))
    assert counts == {"n_samples": 11, "n_done": 11, "n_twice": 3}
    assert steps == [(4, 11), (8, 11), (11, 11)]
    assert verify(out).problems == ()
    same_samples(tmp_path / "merged", tmp_path / "whole")
    assert open_run(tmp_path / "merged").sql("select count(distinct sample_id) from samples").fetchall() == [(11,)]


def test_what_no_merged_run_has_done_is_generated_by_capturing_with_the_new_manifest(
    capture: Callable[..., Job], tmp_path: Path, config: CaptureConfig
) -> None:
    capture("a", "demo:11", tasks=[2])  # 3 samples
    capture("b", "demo:6", tasks=[1])  # 2 samples
    capture("whole", "demo:11")
    out = open_storage(tmp_path / "merged")
    counts = merge.merge([open_storage(tmp_path / "a"), open_storage(tmp_path / "b")], out)
    assert counts == {"n_samples": 11, "n_done": 5, "n_twice": 0}
    assert verify(out).problems == ()
    kept = set(by_id(tmp_path / "merged")) & {
        i for (i,) in open_run(out.url).sql("select sample_id from samples").fetchall()
    }
    assert len(kept) == 5
    captured(tmp_path / "merged", tmp_path / "merged" / "manifest.parquet", config)
    assert verify(out).problems == ()
    assert open_run(out.url).summary()["n_done"] == 11
    same_samples(tmp_path / "merged", tmp_path / "whole", ids=kept)


def test_an_interrupted_merge_goes_on_and_another_one_into_the_same_place_is_refused(
    capture: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture("a", "demo:6")
    capture("b", "demo:11", tasks=[1, 2])
    storages = [open_storage(tmp_path / name) for name in ("a", "b")]
    out = open_storage(tmp_path / "merged")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge.merge(storages, out, stop)
    first = (tmp_path / "merged" / "ledger" / "00000.json").stat().st_mtime_ns
    merge.merge(storages, out)
    assert (tmp_path / "merged" / "ledger" / "00000.json").stat().st_mtime_ns == first
    assert verify(out).problems == ()
    with pytest.raises(RunConflictError, match="contains another run"):
        merge.merge(storages[::-1], out)


def test_runs_with_other_settings_are_not_merged(
    capture: Callable[..., Job], tmp_path: Path, config: CaptureConfig
) -> None:
    capture("a", "demo:6", tasks=[0])
    captured(tmp_path / "b", tmp_path / "a.parquet", CaptureConfig(**{**vars(config), "top_k": 2}), [0])
    with pytest.raises(RunConflictError, match=r"config\.top_k: 3 -> 2"):
        merge.merge([open_storage(tmp_path / "a"), open_storage(tmp_path / "b")], open_storage(tmp_path / "c"))
    with pytest.raises(InputError, match="at least two runs"):
        merge.merge([open_storage(tmp_path / "a")], open_storage(tmp_path / "c"))


def test_failed_samples_are_left_to_be_done_by_a_merged_run(
    capture: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = capture("a", "demo:6", tasks=[])
    capture("b", "demo:11", tasks=[2])
    worker = CaptureWorker(job, 1)
    generate = worker.sampler.generate
    (victim,) = manifest.read_samples(tmp_path / "a.parquet", 1, 2)

    def fails(samples, settings):
        if victim in samples:
            raise RuntimeError("planted")
        return generate(samples, settings)

    monkeypatch.setattr(worker.sampler, "generate", fails)
    worker(0)
    counts = merge.merge(
        [open_storage(tmp_path / name) for name in ("a", "b")], out := open_storage(tmp_path / "merged")
    )
    assert counts == {"n_samples": 11, "n_done": 6, "n_twice": 0}
    assert verify(out).problems == ()
    assert victim.sample_id in list(by_id(tmp_path / "merged"))[6:]


def compacted(run: str) -> None:
    storage = open_storage(run)
    description = open_run(run).description
    compact(storage, Ledger(storage).records(description["fingerprint"]), description["shard_samples"])


def test_a_compacted_run_answers_the_same_from_fewer_files(capture: Callable[..., Job], tmp_path: Path) -> None:
    job = capture("run", "demo:11")
    before = [open_run(job.run).sql(question).fetchall() for question in (ALL, CELLS)]
    compacted(job.run)
    assert [open_run(job.run).sql(question).fetchall() for question in (ALL, CELLS)] == before
    assert sorted(path.name for path in (tmp_path / "run" / "cells").iterdir()) == [
        "00000-00001.parquet",
        "00002.parquet",  # has fewer samples than a shard: the run may still grow
    ]
    assert verify(open_storage(job.run)).problems == ()
    assert pending_tasks(job) == []
    compacted(job.run)
    assert verify(open_storage(job.run)).problems == ()


def test_a_compacted_part_tells_by_row_group_which_layers_it_has(
    capture: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = capture("run", "demo:8")
    monkeypatch.setitem(parts._COMPACTED["cells"], "group_rows", 8)
    compacted(job.run)
    file = pq.ParquetFile(tmp_path / "run" / "cells" / "00000-00001.parquet")
    layer, step = (file.schema_arrow.names.index(name) for name in ("layer", "step"))
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    # 8 samples: a group is a layer and a step.
    ranges = [[(at.min, at.max) for at in (g.column(layer).statistics, g.column(step).statistics)] for g in groups]
    n_layers = len(prepare(tmp_path / "run.parquet", job.run, job.config).layout.blocks)
    assert ranges == [[(i, i), (j, j)] for i in range(n_layers) for j in range(2)]
    assert [row["sample"] for row in file.read(["sample"]).to_pylist()] == list(range(8)) * (2 * n_layers)


def test_a_records_checksum_is_computed_once_when_a_compacted_run_is_opened(
    capture: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = capture("run", "demo:8")
    compacted(job.run)
    written: list[int] = []
    to_bytes = Record.to_bytes
    monkeypatch.setattr(Record, "to_bytes", lambda record: written.append(record.task) or to_bytes(record))
    Catalog(job.run).close()
    assert sorted(written) == [0, 1]


def test_a_compacted_run_grows_is_damaged_and_is_mended(
    capture: Callable[..., Job], tmp_path: Path, config: CaptureConfig
) -> None:
    job = capture("run", "demo:10")  # whole batches, so that growth leaves them as they are
    compacted(job.run)
    part = tmp_path / "run" / "samples" / "00000-00001.parquet"
    part.write_bytes(b"x" + part.read_bytes()[1:])
    storage = open_storage(job.run)
    report = verify(storage)
    assert {(problem.key, problem.task) for problem in report.problems} == {
        ("samples/00000-00001.parquet", 0),
        ("samples/00000-00001.parquet", 1),
    }
    repair(storage, plan(report, "run"))
    job = capture("run", "demo:13")
    assert verify(storage).problems == ()
    capture("once", "demo:13")
    same_samples(job.run, tmp_path / "once")
    compacted(job.run)
    assert verify(storage).problems == ()
    same_samples(job.run, tmp_path / "once")


def test_a_task_that_is_done_again_speaks_for_itself_after_a_compaction(
    capture: Callable[..., Job], tmp_path: Path
) -> None:
    job = capture("run", "demo:11")
    compacted(job.run)
    before = [open_run(job.run).sql(question).fetchall() for question in (ALL, CELLS)]
    Ledger(open_storage(job.run)).delete([1])
    assert open_run(job.run).sql("select count(*), max(sample) from samples where sample < 8").fetchall() == [(4, 3)]
    CaptureWorker(job, 1).capture(1, attempt=2)
    run = open_run(job.run)
    assert [run.sql(question).fetchall() for question in (ALL, CELLS)] == before
    assert run.sql("select sample, attempt from samples where attempt = 2").fetchall() == [(i, 2) for i in range(4, 8)]
    assert verify(open_storage(job.run)).problems == ()


@pytest.mark.parametrize("stop_at", range(5))
def test_a_compaction_that_is_interrupted_anywhere_loses_nothing(
    capture: Callable[..., Job], stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = capture("run", "demo:11")
    before = [open_run(job.run).sql(question).fetchall() for question in (ALL, CELLS)]
    storage_type = type(open_storage(job.run))
    steps = iter(range(100))

    def interrupted(method):
        def wrapper(self, *arguments):
            if next(steps) == stop_at:
                raise KeyboardInterrupt
            return method(self, *arguments)

        return wrapper

    with monkeypatch.context() as patch:
        for name in ("put", "delete"):
            patch.setattr(storage_type, name, interrupted(getattr(storage_type, name)))
        if stop_at < 4:
            with pytest.raises(KeyboardInterrupt):
                compacted(job.run)
    for _ in range(2):
        assert [open_run(job.run).sql(question).fetchall() for question in (ALL, CELLS)] == before
        assert verify(open_storage(job.run)).problems == ()
        compacted(job.run)
    assert not verify(open_storage(job.run)).unrecorded


def test_an_exported_run_has_the_samples_of_the_condition(capture: Callable[..., Job], tmp_path: Path) -> None:
    job = capture("run", "demo:11")
    where = "sample_id in (select sample_id from cells where layer = 1 and ratio > 1.0) and sample % 3 = 1"
    with Catalog(job.run) as catalog:
        samples = for_datasets.chosen_samples(catalog, where)
    assert samples == [1, 4, 7, 10]
    out = open_storage(tmp_path / "part")
    merge.export(open_storage(job.run), samples, out)
    assert verify(out).problems == ()
    same_samples(tmp_path / "part", job.run)
    run = open_run(tmp_path / "part")
    assert run.sql("select sample from samples order by sample").fetchall() == [(0,), (1,), (2,), (3,)]
    assert list(by_id(tmp_path / "part")) == [list(by_id(job.run))[sample] for sample in samples]
    assert run.description["copied_from"][0]["run"] == job.run


def test_exported_parquet_opens_in_datasets_with_images(capture: Callable[..., Job], tmp_path: Path) -> None:
    job = capture("run", "demo:11")
    out = open_storage(tmp_path / "hf")
    for_datasets.export(open_storage(job.run), [1, 2, 9], out)
    cache = str(tmp_path / "cache")
    samples = datasets.load_dataset(str(tmp_path / "hf"), "samples", split="train", cache_dir=cache)
    assert samples.features["image"] == datasets.Image()
    run = open_run(job.run)
    for row in samples:
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(run.image(row["sample_id"])))
    assert samples["sample"][:] == [1, 2, 9]
    cells = datasets.load_dataset(str(tmp_path / "hf"), "cells", split="train", cache_dir=cache)
    assert len(cells) == 3 * 2 * 4
    expected = run.sql("select top_channels from cells where sample = 9 and step = 1 and layer = 3").fetchone()
    assert [row["top_channels"] for row in cells if (row["sample"], row["step"], row["layer"]) == (9, 1, 3)] == [
        expected[0]
    ]


def test_an_export_of_nothing_or_over_other_files_is_refused(capture: Callable[..., Job], tmp_path: Path) -> None:
    job = capture("run", "demo:6")
    with Catalog(job.run) as catalog, pytest.raises(InputError, match="no_such_column"):
        for_datasets.chosen_samples(catalog, "no_such_column = 1")
    storage = open_storage(job.run)
    for export in (merge.export, for_datasets.export):
        with pytest.raises(InputError, match="no finished sample meets the --where condition"):
            export(storage, [], open_storage(tmp_path / "nothing"))
        with pytest.raises(RunConflictError, match="contains other"):
            export(storage, [0], open_storage(tmp_path / "run" / "cells"))


def test_an_earlier_export_stays_until_the_new_one_is_whole(
    capture: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, out = open_storage(capture("run", "demo:11").run), open_storage(tmp_path / "hf")
    for_datasets.export(storage, [1, 2, 9], out)
    before = {key: out.get(key) for key in out.list()}

    put = FolderStorage.put
    for interrupted_at in ("README.md", "cells/"):

        def interrupted(self: FolderStorage, key: str, parts: object, at: str = interrupted_at) -> object:
            if key.startswith(at):
                raise KeyboardInterrupt
            return put(self, key, parts)

        with monkeypatch.context() as patch:
            patch.setattr(FolderStorage, "put", interrupted)
            with pytest.raises(KeyboardInterrupt):
                for_datasets.export(storage, [0, 3], out)
        assert {key: out.get(key) for key in out.list() if key in before} == before
        found = datasets.load_dataset(str(tmp_path / "hf"), "samples", split="train", cache_dir=str(tmp_path / "c"))
        assert found["sample"][:] == [1, 2, 9]
    for_datasets.export(storage, [0, 3], out)
    assert len(out.list()) == 3, "a card, samples and cells: what was left is gone"
    found = datasets.load_dataset(str(tmp_path / "hf"), "samples", split="train", cache_dir=str(tmp_path / "c2"))
    assert found["sample"][:] == [0, 3]
