"""A run as Python sees it, and the contact sheet drawn from it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fewchannels
from fewchannels import manifest
from fewchannels.analyses.figures.contact_sheet import contact_sheet
from fewchannels.capture.begin import begin
from fewchannels.capture.config import CaptureConfig
from fewchannels.capture.job import prepare
from fewchannels.capture.worker import CaptureWorker
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


def test_a_contact_sheet_shows_the_finished_samples(run: fewchannels.Run, tmp_path: Path) -> None:
    shown = contact_sheet(run, tmp_path / "sheet.png")
    assert shown.startswith("4 samples, largest channel of layer 3 (single_transformer_blocks.1) at step 2")
    assert Image.open(tmp_path / "sheet.png").size > (1000, 200)


def test_a_contact_sheet_of_a_layer_or_step_that_was_not_kept_is_refused(run: fewchannels.Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer 0 was not kept by this run; it has 1, 3"):
        contact_sheet(run, tmp_path / "sheet.png", layer=0)
    with pytest.raises(InputError, match="step 1 was not kept by this run; it has 0, 2"):
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
