"""Runs of every format version that was ever landed open, for ever. ``kept_runs/`` is never regenerated.

Both were made by a 4-layer FLUX pipeline of 32 channels and random weights, with 2 steps, the top 3 channels and tasks
of 2 samples. Format 1 has 5 samples, of which task 1's 2 are missing; format 2 has 7, of which task 2's 2 are missing,
and its tasks 0 and 1 are compacted.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fewchannels import open_run
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.run import capture
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.shares import Pool
from fewchannels.cluster.tasks import pending_tasks
from fewchannels.errors import InputError
from fewchannels.runs.layout import Layout
from fewchannels.runs.storage import open_storage
from fewchannels.runs.upkeep.verify import verify

KEPT = Path(__file__).parents[1] / "data" / "kept_runs"
DONE = {"format_1": [0, 1, 4], "format_2": [0, 1, 2, 3, 6]}


@pytest.mark.parametrize("name", DONE)
def test_a_kept_run_is_read_and_asked(name: str) -> None:
    run = open_run(KEPT / name)
    done = DONE[name]
    assert run.description["format_version"] == int(name[-1])
    assert run.sql("select sample from samples order by sample").fetchall() == [(i,) for i in done]
    assert run.sql("select count(*) from cells").fetchall() == [(len(done) * 2 * 4,)]
    data = run.activations
    assert data.sizes == {"sample": done[-1] + 1, "step": 2, "layer": 4, "channel": 32, "k": 3, "token": 16}
    finite = np.isfinite(data["mean_abs"].values).all(axis=(1, 2, 3))
    assert np.flatnonzero(finite).tolist() == done
    stored = data["mean_abs"].values[done]
    top = np.argsort(-stored, axis=-1, kind="stable")[..., :3]
    np.testing.assert_array_equal(data["massive_channel"].values[done], top)
    rows = run.sql("select top_channels from cells order by sample, step, layer").fetchall()
    assert [channels for (channels,) in rows] == top.reshape(-1, 3).tolist()
    assert run.image(str(data.sample_id.values[0])).size == (16, 16)
    assert run.summary()["n_done"] == len(done)
    assert len(run.query("massive_channels").fetchall()) > 0


@pytest.mark.parametrize("name", DONE)
def test_two_formats_hold_the_same_samples_with_the_same_values(name: str) -> None:
    """Both were made from the same weights and settings, so their shared samples agree."""
    kept, other = (open_run(KEPT / each).activations for each in (name, "format_1"))
    for array in other.data_vars:
        np.testing.assert_array_equal(kept[array].values[:2], other[array].values[:2])


def test_a_kept_run_of_format_2_verifies(tmp_path: Path) -> None:
    report = verify(open_storage(KEPT / "format_2"))
    assert report.problems == ()
    assert (report.n_tasks, report.n_recorded) == (4, 3)
    shutil.copytree(KEPT / "format_2", tmp_path / "run")
    (tmp_path / "run" / "samples" / "00000-00001.parquet").unlink()
    assert verify(open_storage(tmp_path / "run")).tasks == [0, 1]


def test_a_run_of_format_1_says_why_it_cannot_be_verified() -> None:
    with pytest.raises(InputError, match=r"has format version 1.*no checksums"):
        verify(open_storage(KEPT / "format_1"))
    with pytest.raises(InputError, match="Capture it again"):
        Layout.of(open_run(KEPT / "format_1").description)


def test_a_kept_run_of_format_2_is_resumed(tiny_model: Path, tmp_path: Path) -> None:
    """Its identity has no digests of files, and its records no versions: that is said, and the rest is captured."""
    run = Path(shutil.copytree(KEPT / "format_2", tmp_path / "run"))
    before = open_run(run)
    config = replace(CaptureConfig.of(before.description), model=str(tiny_model))
    job = prepare(run / "manifest.parquet", run, config)
    assert (job.fingerprint, job.unchecked) == (before.description["fingerprint"], ("files",))
    assert begin(job, run / "manifest.parquet")
    assert pending_tasks(job) == [2]
    CaptureWorker(job, 1)(2)
    outcome = capture(job, run / "manifest.parquet", Pool(1, 0, 1))
    assert (outcome.n_done, outcome.n_samples) == (7, 7)
    assert ["recorded no digest of files" in note for note in outcome.notes] == [True]
    asked = "select computed_by is null, count(*) from tasks group by all order by all"
    assert open_run(run).sql(asked).fetchall() == [(False, 1), (True, 3)]
    assert verify(open_storage(run)).problems == ()
