"""Masks of files: an answer is of the masks that are there, what failed is tried again, and --replace begins anew."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewchannels.analyses.alignment.units import Alignment
from fewchannels.analyses.analysis import analyze
from fewchannels.analyses.masks import units
from fewchannels.analyses.masks.units import SubjectMasks
from fewchannels.analyses.selection import select
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.shares import Pool
from fewchannels.errors import RunConflictError
from fewchannels.runs.results import Results
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.storage import open_storage

pytestmark = pytest.mark.usefixtures("undrawn")

ALONE = Pool(1, 0, 1)


def painted(path: Path, n_rows: int) -> None:
    """A mask whose subject is the upper rows of 16."""
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:n_rows] = 255
    Image.fromarray(pixels).save(path)


@pytest.fixture
def run(tiny_model: Path, manifest_of, tmp_path: Path) -> Path:
    """Two samples in two tasks, of which the first one's mask is there: 4 of 16 rows."""
    painted(tmp_path / "0.png", 4)
    rows = "".join(f"a star,{i},{tmp_path}/{i}.png\n" for i in range(2))
    manifest = manifest_of(f"prompt,seed,mask\n{rows}")
    how = CaptureConfig(model=str(tiny_model), num_inference_steps=1, top_k=2, shard_samples=1)
    job = prepare(manifest, tmp_path / "run", how)
    begin(job, manifest)
    worker = CaptureWorker(job, 1)
    for task in range(2):
        worker(task)
    return tmp_path / "run"


def areas(run: Path, *, replace: bool = False) -> list[float | None]:
    """Share of each image that the subject covers, by the analysis and then by SQL."""
    analyze(SubjectMasks("manifest"), select(str(run)), "masks", ALONE, replace=replace)
    with Catalog(run) as catalog:
        return [area for (area,) in catalog.sql("select area from masks_samples order by sample").fetchall()]


def test_a_mask_that_was_missing_is_looked_for_again(run: Path, tmp_path: Path) -> None:
    assert areas(run) == [0.25, None]
    painted(tmp_path / "1.png", 12)
    assert areas(run) == [0.25, 0.75]
    assert areas(run) == [0.25, 0.75]


def test_a_mask_that_was_painted_over_is_refused_by_name_and_replaced(run: Path, tmp_path: Path) -> None:
    painted(tmp_path / "1.png", 12)
    assert areas(run) == [0.25, 0.75]
    painted(tmp_path / "0.png", 8)
    with pytest.raises(RunConflictError, match=r"settings\.mask_files\..*/0\.png: '\w+' -> '\w+'(?s:.)*Give --replace"):
        areas(run)
    assert areas(run, replace=True) == [0.5, 0.75]
    (tmp_path / "1.png").unlink()
    with pytest.raises(RunConflictError, match=r"settings\.mask_files\..*/1\.png: '\w+' -> None"):
        areas(run)
    assert areas(run, replace=True) == [0.5, None]


def test_replace_begins_anew_with_the_same_settings(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    areas(run)
    done: list[int] = []
    own = SubjectMasks.unit

    def unit(self: SubjectMasks, selected, results, number, device):
        done.append(number)
        return own(self, selected, results, number, device)

    monkeypatch.setattr(SubjectMasks, "unit", unit)
    areas(run)
    assert done == [1], "the one that failed"
    areas(run, replace=True)
    assert done == [1, 0, 1]


def test_a_result_has_no_end_while_a_unit_is_done_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    areas(run)
    painted(tmp_path / "1.png", 12)

    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SubjectMasks, "unit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            areas(run)
    storage = open_storage(run)
    assert not storage.exists(Results(storage, "masks").key("result.json"))
    assert areas(run) == [0.25, 0.75]


def test_many_masks_are_digested_in_groups(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_MOST_NAMED", 1)
    painted(tmp_path / "1.png", 12)
    assert areas(run) == [0.25, 0.75]
    painted(tmp_path / "0.png", 8)
    with pytest.raises(RunConflictError, match=r"settings\.mask_files\.masks, group \w\w: '\w+' -> '\w+'"):
        areas(run)


def test_what_was_computed_of_masks_knows_them(run: Path, tmp_path: Path) -> None:
    def align(*, replace: bool = False) -> list[int]:
        selected = select(str(run))
        analyze(Alignment(k=2, selections=("top",), starts=2), selected, "alignment", ALONE, replace=replace)
        with Catalog(run) as catalog:
            return [n for (n,) in catalog.sql("select distinct sample from alignment_samples order by 1").fetchall()]

    areas(run)
    assert align() == align() == [0]
    painted(tmp_path / "1.png", 12)
    areas(run)
    with pytest.raises(RunConflictError, match=r"settings\.masks\.mask_files(?s:.)*settings\.masks\.parts"):
        align()
    assert align(replace=True) == [0, 1]
