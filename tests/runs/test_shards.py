"""Shards as other Zarr libraries read them, whatever their shape and values."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import torch
import zarr
import zarrs  # noqa: F401  (registers its codec pipeline)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewchannels.measures.scores import round_to_bfloat16
from fewchannels.models.family import Block
from fewchannels.runs import shards
from fewchannels.runs.arrays import NAME, Store, lay_out
from fewchannels.runs.layout import ArrayPlan, Layout
from fewchannels.runs.storage import open_storage

ODD_VALUES = [0.0, -0.0, 91_648.0, 2e7, 1e8, -1e8, np.nan, np.inf, -np.inf, 1e-45, np.finfo(np.float32).max]


def layout(n_samples: int, n_steps: int, n_layers: int, n_channels: int, n_tokens: int, k: int, s: int) -> Layout:
    blocks = tuple(Block(i, f"b.{i}", "dual") for i in range(n_layers))
    return Layout(n_samples, tuple(range(n_steps)), blocks, n_channels, n_tokens, k, s)


def by_zarr(path: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(path, mode="r")[:])


def by_zarrs(path: Path) -> np.ndarray:
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return np.asarray(zarr.open_array(path, mode="r")[:])


def by_tensorstore(path: Path) -> np.ndarray:
    opened = tensorstore.open({"driver": "zarr3", "kvstore": f"file://{path}/"}).result()
    return np.asarray(opened.read().result())


READERS = [by_zarr, by_zarrs, by_tensorstore]


@given(
    shape=st.tuples(*(st.integers(1, n) for n in (9, 5, 3, 6, 7, 3, 4))),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_three_libraries_read_what_was_written(shape: tuple[int, ...], seed: int, tmp_path_factory) -> None:
    plan, random = layout(*shape), np.random.default_rng(seed)
    storage = open_storage(tmp_path_factory.mktemp("run"))
    lay_out(storage, plan, [str(i) for i in range(plan.n_samples)])
    written: dict[str, list[np.ndarray]] = {}
    for task in range(plan.n_tasks):
        arrays = {}
        for array in plan.arrays():
            values = random.normal(scale=1e6, size=(len(plan.rows(task)), *array.shape[1:])).astype(array.dtype)
            if array.dtype == "float32":
                values.flat[:: random.integers(1, 9)] = random.choice(np.array(ODD_VALUES, np.float32))
            arrays[array.name] = values
            written.setdefault(array.name, []).append(values)
        Store(storage, plan, n_threads=2).write(plan.rows(task).start, arrays)
    for array in plan.arrays():
        expected = np.concatenate(written[array.name])
        for read in READERS:
            found = read(Path(storage.url) / NAME / array.name)
            np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32), err_msg=read.__name__)


@pytest.mark.parametrize("read", READERS)
def test_a_damaged_chunk_is_refused_by_every_reader(read, tmp_path: Path) -> None:
    plan, storage = layout(2, 2, 2, 8, 4, 2, 2), open_storage(tmp_path)
    lay_out(storage, plan, ["a", "b"])
    arrays = {each.name: np.ones(each.shape, each.dtype) for each in plan.arrays()}
    Store(storage, plan).write(0, arrays)
    path = tmp_path / NAME / "rms" / "c.0.0.0.0"
    damaged = bytearray(path.read_bytes())
    damaged[20] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(Exception, match=r"(?i)checksum|crc-?32c|digest|blosc"):
        read(tmp_path / NAME / "rms")


def test_the_index_is_the_specifications_offsets_and_lengths_then_a_checksum() -> None:
    """Sharding codec of Zarr v3: little-endian uint64 pairs, row-major, at the end, CRC-32C last."""
    plan = ArrayPlan("a", ("sample", "step", "layer", "k"), (2, 4, 3, 5), (2, 4, 3, 5), (2, 2, 1, 5), "int32", 1.0)
    parts = shards.compress(np.arange(120, dtype=np.int32).reshape(plan.shape), plan)
    data = b"".join(parts)
    n_chunks = 2 * 3
    index = np.frombuffer(data[-(16 * n_chunks + 4) : -4], "<u8").reshape(n_chunks, 2)
    assert index[0, 0] == 0
    assert all(end == start for (end, (start, _)) in zip(index.sum(axis=1), index[1:].tolist(), strict=False))
    assert index.sum(axis=1)[-1] == len(data) - 16 * n_chunks - 4


@given(
    hnp.arrays(np.float32, 32, elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
)
def test_rounding_to_bfloat16_is_off_by_one_part_in_256_at_most_and_never_makes_infinities(values: np.ndarray) -> None:
    rounded = round_to_bfloat16(torch.from_numpy(values.copy())).numpy()
    assert (rounded.view(np.uint32) & 0xFFFF == 0)[~np.isnan(values)].all()
    np.testing.assert_array_equal(np.isnan(rounded), np.isnan(values))
    np.testing.assert_array_equal(np.isinf(rounded), np.isinf(values))
    normal = np.isfinite(values) & (np.abs(values) >= np.finfo(np.float32).tiny)
    off = np.abs(rounded[normal].astype(np.float64) - values[normal])
    assert (off <= np.abs(values[normal]) / 256).all()


def test_values_of_a_bfloat16_model_are_rounded_to_themselves() -> None:
    values = torch.randn(1000).mul(1e5).bfloat16().float()
    assert torch.equal(round_to_bfloat16(values), values)


def test_chunks_follow_one_another_without_gaps() -> None:
    plan = layout(3, 4, 2, 8, 4, 2, 3).arrays()[0]
    parts = list(shards.compress(np.random.default_rng(0).normal(size=plan.shape).astype(np.float32), plan))
    index = np.frombuffer(bytes(parts[-1][:-4]), "<u8").reshape(-1, 2)
    assert [length for _, length in index.tolist()] == [
        len(packed) + len(checksum) for packed, checksum in zip(parts[:-1:2], parts[1:-1:2], strict=True)
    ]
    assert all(a + length == b for ((a, length), (b, _)) in pairwise(index.tolist()))
