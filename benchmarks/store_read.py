"""Speed of reading parts of a run: ``python benchmarks/store_read.py``.

A store of demo-shaped samples with random values, written by :meth:`fewchannels.runs.arrays.Store.write`, against the
obvious alternatives with the same values: an ``.npy`` file per sample and array, opened memory-mapped; one HDF5
file with our chunks and no codec; a safetensors file per sample. Three questions:

- ``massive_value`` and ``mean_abs``: one (step, layer) of all samples;
- ``sample``: every array of one sample.

Each answer is timed from opening the files to values in memory, round by round in rotating order: ``warm`` from the
page cache, ``cold`` after the kernel was told to drop the files from it. ``MB read`` is the amount that the process
then read from the disk, including read-ahead. Ratios are relative to ``.npy``, and below 1 is faster; every answer is
checked.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import safetensors
import safetensors.numpy
import xarray as xr
import zarr
from measurement import Rows, options, ratio, rotated, save
from store_write import ZARRS, files_of, laid_out, layout, open_tensorstore, random_values

from fewchannels.runs.arrays import NAME, Store
from fewchannels.runs.layout import Layout
from fewchannels.runs.storage import open_storage

STATES = ("warm", "cold")
Where = tuple[int | slice, ...]
Read = Callable[[str, Where], np.ndarray]
EVERYTHING = slice(None)


def build(folder: Path, shape: Layout) -> dict[str, tuple[Path, Callable[[], Read]]]:
    """Write the same values in every format; return each one's path and a function that opens it, by name."""
    group, npy, tensors = folder / "run", folder / "npy", folder / "safetensors"
    for each in (group, npy, tensors):
        each.mkdir()
    laid_out(group, shape, "ours")
    written = Store(open_storage(group), shape)
    hdf5 = folder / "hdf5"
    hdf5.mkdir()
    with h5py.File(hdf5 / "file.h5", "w") as file:
        for plan in shape.arrays():
            file.create_dataset(plan.name, shape=plan.shape, dtype=plan.dtype, chunks=plan.chunk)
        for task in range(shape.n_tasks):
            values, rows = random_values(shape, task), shape.rows(task)
            written.write(rows.start, values)
            for name, array in values.items():
                file[name][rows.start : rows.stop] = array
            for position, row in enumerate(rows):
                sample = {name: np.ascontiguousarray(array[position]) for name, array in values.items()}
                safetensors.numpy.save_file(sample, tensors / f"{row}.safetensors")
                for name, array in sample.items():
                    np.save(npy / f"{row}.{name}.npy", array)
    path = group / NAME

    def samples_of(where: Where) -> list[int]:
        return list(range(shape.n_samples)) if isinstance(where[0], slice) else [where[0]]

    def open_npy() -> Read:
        def read(name: str, where: Where) -> np.ndarray:
            # A copy per sample: memory maps of all samples at once would use up a process' file descriptors.
            parts = [np.array(np.load(npy / f"{i}.{name}.npy", mmap_mode="r")[where[1:]]) for i in samples_of(where)]
            return np.stack(parts) if isinstance(where[0], slice) else parts[0]

        return read

    def open_safetensors() -> Read:
        def read_one(name: str, row: int, where: Where) -> np.ndarray:
            with safetensors.safe_open(tensors / f"{row}.safetensors", "np") as file:
                return file.get_slice(name)[where] if where else file.get_tensor(name)

        def read(name: str, where: Where) -> np.ndarray:
            parts = [read_one(name, i, where[1:]) for i in samples_of(where)]
            return np.stack(parts) if isinstance(where[0], slice) else parts[0]

        return read

    def open_hdf5() -> Read:
        file = h5py.File(hdf5 / "file.h5")
        return lambda name, where: file[name][where]

    def open_xarray() -> Read:
        dataset = xr.open_zarr(path, chunks=None, zarr_format=3)
        dims = ("sample", "step", "layer")
        return lambda name, where: dataset[name].isel(dict(zip(dims, where, strict=False))).values

    def open_zarr(config: dict[str, str]) -> Callable[[], Read]:
        def opened() -> Read:
            with zarr.config.set(config):
                arrays = zarr.open_group(path, mode="r")

            def read(name: str, where: Where) -> np.ndarray:
                with zarr.config.set(config):
                    return np.asarray(arrays[name][where])

            return read

        return opened

    return {
        ".npy per sample": (npy, open_npy),
        "HDF5": (hdf5, open_hdf5),
        "safetensors per sample": (tensors, open_safetensors),
        "ours, xarray": (group, open_xarray),
        "ours, zarr-python": (group, open_zarr({})),
        "ours, tensorstore": (
            group,
            lambda: lambda name, where: open_tensorstore(path / name)[where].read().result(),
        ),
        "ours, zarrs": (group, open_zarr(ZARRS)),
    }


def forget(folder: Path) -> None:
    """Tell the kernel to drop a folder's files from its cache; they are on the disk already."""
    for path in files_of(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def bytes_fetched() -> int:
    """Bytes that this process has read from disks so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def look(
    folder: Path, opened: Callable[[], Read], parts: list[tuple[str, Where]], expected: list[np.ndarray]
) -> dict[str, float]:
    """Seconds to the answer with a cold and then with a warm page cache, and the bytes fetched when cold."""
    found: dict[str, float] = {}
    forget(folder)
    for state in ("cold", "warm"):
        before, started = bytes_fetched(), time.perf_counter()
        read = opened()
        answer = [read(*part) for part in parts]
        found[f"{state}_s"] = time.perf_counter() - started
        expected[:] = expected or answer
        for mine, theirs in zip(answer, expected, strict=True):
            assert np.array_equal(mine, theirs), f"{folder.name} answers otherwise"
        found.setdefault("bytes_read", bytes_fetched() - before)
    return found


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("--samples", type=int, default=512, help="a multiple of a shard's 16")
    found.add_argument("--rounds", type=int, default=5)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table per question; ``--json FILE`` also writes them."""
    chosen = parser().parse_args(argv)
    shape = layout("demo", chosen.samples)
    names = [plan.name for plan in shape.arrays()]
    cell: Where = (EVERYTHING, len(shape.steps) // 2, len(shape.blocks) // 2)
    questions: dict[str, list[tuple[str, Where]]] = {
        "massive_value": [("massive_value", cell)],
        "mean_abs": [("mean_abs", cell)],
        "sample": [(name, (chosen.samples // 2 + 1,)) for name in names],
    }
    rows: Rows = {}
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        formats = build(Path(temporary), shape)
        os.sync()
        on_disk = {name: sum(path.stat().st_size for path in files_of(at)) for name, (at, _) in formats.items()}
        for question, parts in questions.items():
            expected: list[np.ndarray] = []
            found = rotated(formats, 1 + chosen.rounds, lambda way: look(*way, parts, expected))  # noqa: B023
            value_bytes = sum(answer.nbytes for answer in expected)
            print(f"\n{question}: {value_bytes / 1e6:.2f} MB of values, {chosen.rounds} rounds")
            print(f"{'':24} {'warm ms':>8} {'ratio':>6} {'cold ms':>8} {'ratio':>6} {'MB read':>8}")
            for name, looks in found.items():
                measured = {key: [each[key] for each in looks[1:]] for key in looks[0]}  # the first round warms up
                rows[f"{question}: {name}"] = measured | {"value_bytes": value_bytes, "bytes_on_disk": on_disk[name]}
                plain = f"{question}: {next(iter(formats))}"
                to = {
                    state: ratio(rows, f"{question}: {name}", plain, of=f"{state}_s", by="median") for state in STATES
                }
                ratios += to.values()
                shown = " ".join(
                    f"{1e3 * statistics.median(measured[f'{state}_s']):8.1f} {to[state]['ratio']:6.2f}"
                    for state in STATES
                )
                print(f"{name:24} {shown} {statistics.median(measured['bytes_read']) / 1e6:8.2f}")
        print(f"\nMB on disk: {', '.join(f'{name} {size / 1e6:.0f}' for name, size in on_disk.items())}")
    save(chosen, ("zarr", "tensorstore", "zarrs", "xarray", "h5py", "safetensors"), rows, ratios)


if __name__ == "__main__":
    main()
