"""A run as Python sees it, and the contact sheet drawn from it."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fewchannels
from fewchannels import manifest
from fewchannels.analyses.figures.contact_sheet import contact_sheet
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.errors import InputError, StorageError


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> fewchannels.Run:
    """Two of three tasks of two samples each, layers 1 and 3, steps 0 and 2 of 3."""
    folder = tmp_path_factory.mktemp("reader")
    manifest.ingest(["demo:6"], folder / "manifest.parquet")
    config = CaptureConfig(
        model=str(tiny_model), num_inference_steps=3, layers="1,3", steps="0,2", top_k=4, batch_size=2, shard_samples=2
    )
    job = prepare(folder / "manifest.parquet", folder / "run", config)
    begin(job, folder / "manifest.parquet")
    worker = CaptureWorker(job, 1)
    worker(0)
    worker(2)
    return fewchannels.open_run(folder / "run")


def test_a_summary_counts_what_is_finished(run: fewchannels.Run) -> None:
    about = run.summary()
    assert (about["n_samples"], about["n_done"], about["n_failed"]) == (6, 4, 0)
    assert (about["n_tasks"], about["n_tasks_done"]) == (3, 2)
    files = [file for file in Path(run.storage.url).rglob("*") if file.is_file()]
    assert (about["files"], about["bytes"]) == (len(files), sum(file.stat().st_size for file in files))
    json.dumps(about)


def test_samples_of_unfinished_tasks_are_absent_from_tables_and_nan_in_arrays(run: fewchannels.Run) -> None:
    assert run.sql("select sample from samples order by sample").fetchall() == [(0,), (1,), (4,), (5,)]
    assert np.isnan(run.activations["rms"].values[2:4]).all()
    unfinished = str(run.activations.sample_id.values[2])
    with pytest.raises(InputError, match="no finished sample has the id"):
        run.image(unfinished)


def test_tables_and_settings_are_attributes(run: fewchannels.Run) -> None:
    assert (len(run), run.layers, run.steps, run.results) == (6, [1, 3], [0, 2], [])
    assert run.manifest.sample_id.tolist() == run.activations.sample_id.values.tolist()
    assert run.samples["sample"].tolist() == [0, 1, 4, 5]
    assert "image" not in run.samples
    assert len(run.cells) == 4 * 2 * 2
    shown = run._repr_html_()
    assert "4 of 6" in shown
    assert "failed" not in shown


@pytest.mark.parametrize("sample", [4, -2, "id"])
@pytest.mark.parametrize(("step", "at"), [(2, 2), (-1, 2), (-2, 0)])
def test_largest_channels_and_their_maps_are_read_off_the_arrays(
    run: fewchannels.Run, sample: int | str, step: int, at: int
) -> None:
    data = run.activations.sel(step=at, layer=3).isel(sample=4)
    named = str(run.activations.sample_id.values[4]) if sample == "id" else sample
    top = run.top(named, 3, step)
    assert run.top(named, -1, step).equals(top)
    order = np.argsort(-data["mean_abs"].values, kind="stable")[:4]
    assert top.channel.tolist() == order.tolist()
    assert top["rank"].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(top.score, data["mean_abs"].values[order])
    np.testing.assert_allclose(top.ratio, top.score / np.sort(data["mean_abs"].values)[15], rtol=1e-6)
    drawn = run.map(named, 3, step, channel=int(order[2]))
    assert run.map(named, -1, step, channel=int(order[2])).identical(drawn)
    np.testing.assert_array_equal(drawn.values, data["massive_value"].values[2].reshape(4, 4))
    assert (drawn.dims, int(drawn.step), int(drawn.channel)) == (("y", "x"), at, order[2])
    expected = run.image(str(run.activations.sample_id.values[4]))
    np.testing.assert_array_equal(np.asarray(run.image(named)), np.asarray(expected))


def test_what_the_run_does_not_have_is_named(run: fewchannels.Run) -> None:
    absent = next(i for i in range(32) if i not in run.top(0, 1).channel.tolist())
    for ask, says in (
        (lambda: run.top(0, 2), r"no cell of sample 0, layer 2, step -1.*layers \[1, 3\] and steps \[0, 2\]"),
        (lambda: run.top(2, 1), "no cell of sample 2, .* may not be finished"),
        (lambda: run.top(0, 1, -3), r"step is -3; the run has 2 steps: \[0, 2\]"),
        (lambda: run.map(0, -3, channel=0), r"layer is -3; the run has 2 layers: \[1, 3\]"),
        (lambda: run.top(6, 1), "sample is 6; the run has samples 0 to 5"),
        (lambda: run.top("' or true --", 1), "no finished sample has the id"),
        (lambda: run.map(0, 1, channel=absent), f"channel {absent} is not among the 4 largest of layer 1 at step 2"),
        (lambda: run.image(3), "sample 3 is not finished, or failed"),
    ):
        with pytest.raises(InputError, match=says):
            ask()


def test_a_run_travels_to_another_process_and_is_copied_by_its_place(run: fewchannels.Run) -> None:
    """As for a pool of processes, and for what keeps copies of its arguments."""
    for other in (pickle.loads(pickle.dumps(run)), copy.deepcopy(run)):
        assert type(other) is fewchannels.Run
        assert other.place == run.place
        assert other.top(0, 3).equals(run.top(0, 3))
        assert other.activations.identical(run.activations)


def test_an_answer_is_a_table_in_a_notebook(run: fewchannels.Run) -> None:
    answer = run.sql("select sample, image, '<b>' as text from samples order by sample")
    shown = answer._repr_html_()
    assert "&lt;b&gt;" in shown
    assert shown.count("bytes") == 4
    assert answer.to_pandas().equals(answer.df())
    assert "60 rows, the first 50 shown" in run.sql("select * from range(60)")._repr_html_()


def test_a_contact_sheet_shows_the_finished_samples(run: fewchannels.Run, tmp_path: Path) -> None:
    shown = contact_sheet(run, tmp_path / "sheet.png")
    assert shown.startswith("4 samples, largest channel of layer 3 (single_transformer_blocks.1) at step 2")
    assert Image.open(tmp_path / "sheet.png").size > (1000, 200)


def test_a_contact_sheet_of_a_layer_or_step_that_was_not_kept_is_refused(run: fewchannels.Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer 0 was not recorded by this run; it has 1, 3"):
        contact_sheet(run, tmp_path / "sheet.png", layer=0)
    with pytest.raises(InputError, match="step 1 was not recorded by this run; it has 0, 2"):
        contact_sheet(run, tmp_path / "sheet.png", step=1)


def test_a_folder_that_is_no_run_a_newer_format_and_a_damaged_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no run\.json"):
        fewchannels.open_run(tmp_path)
    (tmp_path / "run.json").write_text('{"format_version": 99}', encoding="utf-8")
    with pytest.raises(InputError, match="format_version 99"):
        fewchannels.open_run(tmp_path)
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(StorageError, match=r"run\.json is damaged: it is not JSON"):
        fewchannels.open_run(tmp_path)
