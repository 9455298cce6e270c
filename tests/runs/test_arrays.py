"""The store on a real disk, read back by other readers than the writer."""

import warnings
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import xarray as xr

from fewchannels.errors import StorageError
from fewchannels.models.family import Block
from fewchannels.runs.arrays import Store, lay_out, open_dataset, read
from fewchannels.runs.layout import Layout
from fewchannels.runs.storage import open_storage

BLOCKS = tuple(Block(2 * i, f"blocks.{2 * i}", "dual") for i in range(3))
LAYOUT = Layout(n_samples=11, steps=(0, 3), blocks=BLOCKS, n_channels=8, n_tokens=6, top_k=2, shard_samples=4)


def task_arrays(task: int, value: float | None = None) -> dict[str, np.ndarray]:
    random = np.random.default_rng(task)
    made = {}
    for array in LAYOUT.arrays():
        shape = (len(LAYOUT.rows(task)), *array.shape[1:])
        values = random.normal(scale=1e6, size=shape) if value is None else np.full(shape, value)
        made[array.name] = values.astype(array.dtype)
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lay_out(open_storage(tmp_path), LAYOUT, [f"{i:016x}" for i in range(11)])
    return tmp_path


def test_what_is_written_is_read_back_by_xarray_with_labels_and_no_warning(run: Path) -> None:
    written = {task: task_arrays(task) for task in range(LAYOUT.n_tasks)}
    for task in (2, 0, 1):
        Store(open_storage(run), LAYOUT).write(LAYOUT.rows(task).start, written[task])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xr.open_zarr(run / "activations.zarr", chunks=None)
    for array in LAYOUT.arrays():
        assert data[array.name].dims == array.dims
        expected = np.concatenate([written[task][array.name] for task in range(LAYOUT.n_tasks)])
        np.testing.assert_array_equal(data[array.name].values, expected)
    assert data.sel(layer=4, step=3)["mean_abs"].shape == (11, 8)
    assert data.block.values.tolist() == ["blocks.0", "blocks.2", "blocks.4"]
    assert data.sample_id.values.tolist() == [f"{i:016x}" for i in range(11)]
    assert {"sample_id", "block"} <= set(data.coords)


def test_a_shard_is_one_file_whose_checksum_and_size_are_told(run: Path) -> None:
    stored = Store(open_storage(run), LAYOUT).write(8, task_arrays(2))
    files = {str(f.relative_to(run)): f.read_bytes() for f in run.rglob("c.*")}
    assert {key: (each.n_bytes, each.crc32c) for key, each in stored.items()} == {
        key: (len(data), f"{google_crc32c.value(data):08x}") for key, data in files.items()
    }
    assert {Path(key).name for key in files} == {"c.2.0.0.0", "c.2.0.0.0.0"}


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_a_task_of_nothing_but_zeros_or_fill_values_is_stored_all_the_same(run: Path, value: float) -> None:
    with np.errstate(invalid="ignore"):
        arrays = task_arrays(0, value)
    Store(open_storage(run), LAYOUT).write(0, arrays)
    for array in LAYOUT.arrays():
        assert list((run / "activations.zarr" / array.name).glob("c.*"))


def test_unwritten_samples_read_as_nan_and_minus_one(run: Path) -> None:
    Store(open_storage(run), LAYOUT).write(4, task_arrays(1))
    data = open_dataset(open_storage(run))
    assert np.isnan(data["mean_abs"].values[:4]).all()
    assert (data["massive_channel"].values[8:] == -1).all()
    assert not np.isnan(data["mean_abs"].values[4:8]).any()


@pytest.mark.parametrize(("start", "n"), [(1, 4), (0, 5), (8, 4), (0, 0)])
def test_a_region_that_is_not_whole_shards_is_refused(run: Path, start: int, n: int) -> None:
    arrays = {array.name: np.zeros((n, *array.shape[1:]), array.dtype) for array in LAYOUT.arrays()}
    with pytest.raises(ValueError, match="is not a whole shard of 4 samples"):
        Store(open_storage(run), LAYOUT).write(start, arrays)


def test_a_missing_array_is_refused(run: Path) -> None:
    arrays = task_arrays(0)
    del arrays["rms"]
    with pytest.raises(ValueError, match="got arrays"):
        Store(open_storage(run), LAYOUT).write(0, arrays)


def test_massive_values_survive_to_the_last_bit(run: Path) -> None:
    arrays = task_arrays(0)
    arrays["massive_value"][0, 0, 0, 0, :3] = [91_648.0, 2e7, 1e8]
    Store(open_storage(run), LAYOUT).write(0, arrays)
    assert open_dataset(open_storage(run))["massive_value"].values[0, 0, 0, 0, :3].tolist() == [
        91_648.0,
        2e7,
        1e8,
    ]


@pytest.mark.parametrize("samples", [(4, 8), (5, 6)])
@pytest.mark.parametrize(("damage", "word"), [(Path.unlink, "missing"), (lambda file: file.write_bytes(b""), "empty")])
def test_a_shard_of_finished_samples_that_is_missing_or_empty_is_never_read_as_nan(
    run: Path, samples: tuple[int, int], damage: Callable[[Path], object], word: str
) -> None:
    for task in range(LAYOUT.n_tasks):
        Store(open_storage(run), LAYOUT).write(LAYOUT.rows(task).start, task_arrays(task))
    file = run / "activations.zarr/rms/c.1.0.0.0"
    damage(file)
    for region in (None, ([0], [1]), ([0, 1], [0, 2])):
        with pytest.raises(StorageError, match=rf"{file} is {word}"):
            read(open_storage(run), ["rms"], *samples, region)
        np.testing.assert_array_equal(
            read(open_storage(run), ["mean_abs"], 4, 8)["mean_abs"], task_arrays(1)["mean_abs"]
        )


def test_a_dataset_never_takes_an_empty_shard_for_one_that_was_not_written(run: Path) -> None:
    Store(open_storage(run), LAYOUT).write(4, task_arrays(1))
    (run / "activations.zarr/rms/c.1.0.0.0").write_bytes(b"")
    data = open_dataset(open_storage(run))
    for chosen in (slice(4, 8), slice(None), 5):
        with pytest.raises(StorageError, match="is empty"):
            data["rms"].isel(sample=chosen).load()
