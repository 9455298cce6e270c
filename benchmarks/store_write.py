"""Speed of writing a task's arrays as durable files: ``python benchmarks/store_write.py``.

The same values, interleaved in one process, round by round in rotating order, each followed by fsync of every file:

- ``one file``: a plain write of the raw values, the limit of the file system;
- ``one file, flushed early``: the same, with the kernel asked to start writing to disk at once;
- ``one file, our bytes``: a plain write of the bytes that our store has already compressed;
- ``ours``: :meth:`fewchannels.runs.arrays.Store.write`;
- Zarr v3 by zarr-python (its defaults; sharded without a codec; sharded with our codecs), tensorstore and the zarrs
  pipeline (sharded), HDF5 by h5py (our chunks, no codec), and one safetensors file.

What is laid out once for a whole run (metadata, coordinates) is not timed. Values are standard normal (``random``, the
worst case for a codec), those with bfloat16's mantissa in ``massive_value`` as a bfloat16 model gives them
(``bfloat16``), or a small capture of the bundled model (``real``). MB are 10^6 bytes of values in memory. At the end
every reader must read from our files what was written.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import safetensors.numpy
import tensorstore as ts
import xarray as xr
import zarr
import zarrs  # noqa: F401 - registers its pipeline
from measurement import Rows, options, ratio, rotated, save

from fewchannels import manifest
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.models.family import Block
from fewchannels.runs import shards
from fewchannels.runs.arrays import NAME, Store, lay_out, read
from fewchannels.runs.layout import Layout
from fewchannels.runs.storage import open_storage

Arrays = dict[str, np.ndarray]
Write = Callable[[], object]
ZARRS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
GOALS = {("flux", "ours"): 0.8}


def layout(shape: str, n_samples: int | None = None) -> Layout:
    """One task of the bundled model's shape, or of FLUX.1-dev's at 1024 x 1024 pixels; or more samples."""
    n_shard, n_steps, n_layers, n_channels, n_tokens = {
        "demo": (16, 20, 6, 128, 64),
        "flux": (1, 28, 57, 3072, 4096),
    }[shape]
    blocks = tuple(Block(i, f"blocks.{i}", "single") for i in range(n_layers))
    return Layout(n_samples or n_shard, tuple(range(n_steps)), blocks, n_channels, n_tokens, 12, n_shard)


def random_values(shape: Layout, seed: int = 0) -> Arrays:
    """One task's arrays of standard normal values."""
    random = np.random.default_rng(seed)
    values: Arrays = {}
    for plan in shape.arrays():
        if plan.dtype == "int32":
            values[plan.name] = random.integers(0, shape.n_channels, plan.shard, np.int32)
        else:
            values[plan.name] = random.standard_normal(plan.shard, np.float32)
    return values


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Float32 values with bfloat16's mantissa, to the nearest, ties to even; finite ones far from the largest."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def real_values() -> Arrays:
    """The arrays of a task of the bundled model, captured in this process."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "manifest.parquet")
        manifest.ingest(["demo:16"], path)
        job = prepare(path, Path(temporary, "run"), CaptureConfig(shard_samples=16))
        begin(job, path)
        CaptureWorker(job, 1)(0)
        return read(job.storage, [plan.name for plan in job.layout.arrays()], 0, 16)


def laid_out(folder: Path, shape: Layout, codec: str) -> zarr.Group:
    """A Zarr group for the arrays: with zarr-python's ``defaults``, sharded with ``none``, or as ``ours``."""
    if codec == "ours":
        lay_out(open_storage(folder), shape, [str(i) for i in range(shape.n_samples)])
        return zarr.open_group(folder / NAME, mode="r+")
    group = zarr.create_group(folder / NAME, zarr_format=3)
    for plan in shape.arrays():
        sharded = {} if codec == "defaults" else {"shards": plan.shard, "chunks": plan.chunk, "compressors": None}
        group.create_array(plan.name, shape=plan.shape, dtype=plan.dtype, fill_value=plan.fill, **sharded)
    return group


def one_file(parts: list[memoryview], most: int | None = None) -> Callable[[Path], Write]:
    """Prepares a plain write of buffers into one file; in pieces that the kernel shall flush at once, if ``most``."""

    def prepare_file(folder: Path) -> Write:
        def write() -> None:
            with open(folder / "file", "wb", buffering=0) as file:
                for part in parts:
                    while part:
                        part = part[file.write(part[:most]) :]
                        if most:
                            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        return write

    return prepare_file


def with_zarr(shape: Layout, values: Arrays, codec: str, config: dict[str, str]) -> Callable[[Path], Write]:
    """Prepares a write with zarr-python, or with the pipeline that ``config`` names."""

    def prepare_group(folder: Path) -> Write:
        laid_out(folder, shape, codec)
        with zarr.config.set(config):
            group = zarr.open_group(folder / NAME, mode="r+")
            arrays = {name: group[name] for name in values}

        def write() -> None:
            with zarr.config.set(config):
                for name, array in arrays.items():
                    array[:] = values[name]

        return write

    return prepare_group


def with_tensorstore(shape: Layout, values: Arrays, codec: str) -> Callable[[Path], Write]:
    """Prepares a write with tensorstore, of all arrays at once."""

    def prepare_arrays(folder: Path) -> Write:
        laid_out(folder, shape, codec)
        arrays = {name: open_tensorstore(folder / NAME / name) for name in values}

        def write() -> None:
            for written in [array.write(values[name]) for name, array in arrays.items()]:
                written.result()

        return write

    return prepare_arrays


def open_tensorstore(path: Path) -> ts.TensorStore:
    """An existing Zarr v3 array."""
    return ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}).result()


def writers(shape: Layout, values: Arrays, n_threads: int) -> dict[str, Callable[[Path], Write]]:
    """Every way to write, by name: a function that prepares a folder and returns what is timed."""

    def ours(folder: Path) -> Write:
        laid_out(folder, shape, "ours")
        written = Store(open_storage(folder), shape, n_threads)
        return lambda: written.write(0, values)

    def hdf5(folder: Path) -> Write:
        def write() -> None:
            with h5py.File(folder / "file.h5", "w") as file:
                for plan in shape.arrays():
                    file.create_dataset(plan.name, data=values[plan.name], chunks=plan.chunk)

        return write

    plain = [memoryview(each.reshape(-1)).cast("B") for each in values.values()]
    encoded = [memoryview(b"".join(shards.compress(values[plan.name], plan))) for plan in shape.arrays()]
    return {
        "one file": one_file(plain),
        "one file, flushed early": one_file(plain, 2**20),
        "one file, our bytes": one_file(encoded),
        "ours": ours,
        "zarr-python, defaults": with_zarr(shape, values, "defaults", {}),
        "zarr-python, sharded": with_zarr(shape, values, "none", {}),
        "zarr-python, our codecs": with_zarr(shape, values, "ours", {}),
        "tensorstore, sharded": with_tensorstore(shape, values, "none"),
        "tensorstore, our codecs": with_tensorstore(shape, values, "ours"),
        "zarrs, sharded": with_zarr(shape, values, "none", ZARRS),
        "zarrs, our codecs": with_zarr(shape, values, "ours", ZARRS),
        "h5py, chunked": hdf5,
        "safetensors": lambda folder: lambda: safetensors.numpy.save_file(values, folder / "file.safetensors"),
    }


def files_of(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def measure(prepare_folder: Callable[[Path], Write], folder: Path) -> tuple[float, int, int]:
    """Seconds from memory to durable files; how many files with data, and how many bytes."""
    folder.mkdir()
    write = prepare_folder(folder)
    before = set(files_of(folder))
    os.sync()
    started = time.perf_counter()
    write()
    for path in files_of(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    written = [path for path in files_of(folder) if path not in before]
    n_bytes = sum(path.stat().st_size for path in written)
    shutil.rmtree(folder)
    os.sync()
    return seconds, len(written), n_bytes


def check_readers(shape: Layout, values: Arrays, folder: Path) -> list[str]:
    """Write with our store and read with each reader; returns their names.

    Raises:
        AssertionError: a reader sees something else.
    """
    laid_out(folder, shape, "ours")
    Store(open_storage(folder), shape).write(0, values)
    path = folder / NAME
    dataset = xr.open_zarr(path, chunks=None, zarr_format=3, mask_and_scale=False)
    readers: dict[str, Callable[[str], np.ndarray]] = {
        "zarr-python": lambda name: zarr.open_array(path / name, mode="r")[:],
        "xarray": lambda name: dataset[name].values,
        "tensorstore": lambda name: open_tensorstore(path / name).read().result(),
    }
    for reader, stored in readers.items():
        for name, expected in values.items():
            assert np.array_equal(stored(name).view(np.uint32), expected.view(np.uint32)), f"{reader} misreads {name}"
    with zarr.config.set(ZARRS):
        for name, expected in values.items():
            read_back = zarr.open_array(path / name, mode="r")[:]
            assert np.array_equal(read_back.view(np.uint32), expected.view(np.uint32)), f"zarrs misreads {name}"
    return [*readers, "zarrs"]


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("--shape", choices=["demo", "flux"], default="demo")
    found.add_argument("--rounds", type=int, default=9)
    found.add_argument("--threads", type=int, default=os.cpu_count(), help="that compress, of our store")
    found.add_argument("--only", nargs="+", metavar="NAME", help="these ways to write, besides 'one file'")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table per kind of values; ``--json FILE`` also writes them."""
    chosen = parser().parse_args(argv)
    shape = layout(chosen.shape)
    random = random_values(shape)
    kinds = {"random": random, "bfloat16": random | {"massive_value": to_bfloat16(random["massive_value"])}}
    if chosen.shape == "demo":
        kinds["real"] = real_values()
    rows: Rows = {}
    ratios = []
    for kind, values in kinds.items():
        works = writers(shape, values, chosen.threads)
        if chosen.only:
            works = {name: work for name, work in works.items() if name == "one file" or name in chosen.only}
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "round")
            measured = rotated(works, 1 + chosen.rounds, lambda work: measure(work, folder))  # noqa: B023
            readers = check_readers(shape, values, folder)
        value_bytes = sum(each.nbytes for each in values.values())
        print(f"\n{chosen.shape}, {kind} values, {value_bytes / 1e6:.1f} MB a task, {chosen.rounds} rounds")
        print(f"{'':24} {'MB/s':>7} {'of limit':>9} {'min':>6} {'max':>6} {'files':>6} {'bytes':>6}  goal")
        for name, rounds in measured.items():
            seconds = [each for each, _, _ in rounds[1:]]  # the first round warms up
            row = {"seconds": seconds, "mb_per_s": [value_bytes / 1e6 / each for each in seconds]}
            row |= {"files": rounds[0][1], "bytes_per_value_byte": rounds[0][2] / value_bytes}
            rows[f"{kind}: {name}"] = row
            each = ratio(rows, f"{kind}: {name}", f"{kind}: one file", of="mb_per_s")
            ratios.append(each)
            print(
                f"{name:24} {statistics.median(row['mb_per_s']):7.0f} {each['ratio']:9.2f} {each['least']:6.2f} "
                f"{each['most']:6.2f} {row['files']:6} {row['bytes_per_value_byte']:6.3f}  "
                f"{GOALS.get((chosen.shape, name), '')}"
            )
        print(f"read back equal by {', '.join(readers)}")
    save(chosen, ("zarr", "tensorstore", "zarrs", "h5py", "safetensors"), rows, ratios)


if __name__ == "__main__":
    main()
