"""Comparison of formats for the values of a run on disk: ``python benchmarks/number_formats.py``.

Candidates: float32 unchanged, and rounded to bfloat16's 8 bits of mantissa, each raw, with zstd (``bytes`` + ``zstd``
in Zarr v3), and with Blosc's lz4 and zstd after a shuffle of bytes or bits, at several levels. float16 is included to
show what it loses. Values: ``massive_value`` of a small capture of the bundled model (``real``), and simulated token
maps like FLUX.1-dev's (``flux``): 12 channels per cell with means from tens to thousands, smooth over a grid of 64 x 64
tokens, plus noise. Chunks have the size of the store's chunks.

Printed: bytes stored per byte of float32 values; MB of float32 values encoded and decoded per second by one thread and
by two (fastest of the rounds, candidates interleaved); the largest and the median relative error; special values that
are preserved (within 1 part in 256 if rounded); and the Zarr readers that open such an array and read the same bits.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
import zarr.codecs
from measurement import Rows, options, ratio, rotated, save
from numcodecs import blosc, zstd
from store_write import ZARRS, layout, open_tensorstore, real_values

from fewchannels.measures.scores import round_to_bfloat16
from fewchannels.runs.layout import ArrayPlan

SPECIAL = {
    "91,648": 91_648.0,
    "2e7": 2e7,
    "1e8": 1e8,
    "NaN": np.nan,
    "inf": np.inf,
    "-inf": -np.inf,
    "-0.0": -0.0,
    "subnormal": 1e-40,
}
Code = Callable[[Any], Any]


@dataclass(frozen=True)
class Format:
    """A candidate: how values are changed first, how chunks are encoded and decoded, and the same codecs for Zarr."""

    name: str
    change: Callable[[np.ndarray], np.ndarray]
    encode: Code
    decode: Code
    codecs: list[Any]


def rounded(values: np.ndarray) -> np.ndarray:
    """The package's own rounding to bfloat16's mantissa."""
    return round_to_bfloat16(torch.from_numpy(values)).numpy()


def halved(values: np.ndarray) -> np.ndarray:
    """Values converted to float16."""
    with np.errstate(over="ignore"), warnings.catch_warnings():
        return values.astype(np.float16)


def formats() -> list[Format]:
    """Every candidate."""

    def raw(chunk: np.ndarray) -> bytes:
        return chunk.tobytes()

    def same(data: bytes) -> bytes:
        return bytes(memoryview(data))

    def with_zstd(level: int) -> Code:
        return lambda chunk: zstd.compress(chunk, level)

    def with_blosc(name: str, level: int, shuffle: int) -> Code:
        return lambda chunk: blosc.compress(chunk, name.encode(), level, shuffle)

    found = []
    for kind, change in (("float32", lambda values: values), ("bfloat16", rounded)):
        found.append(Format(f"{kind} raw", change, raw, same, []))
        for level in (1, 3):
            codec = zarr.codecs.ZstdCodec(level=level)
            found.append(Format(f"{kind} zstd {level}", change, with_zstd(level), zstd.decompress, [codec]))
        for name, levels in (("lz4", (1, 5, 9)), ("zstd", (1, 3, 5))):
            for shuffle, way in ((blosc.SHUFFLE, "shuffle"), (blosc.BITSHUFFLE, "bitshuffle")):
                for level in levels:
                    codec = zarr.codecs.BloscCodec(typesize=4, cname=name, clevel=level, shuffle=way)
                    title = f"{kind} {name} {way} {level}"
                    found.append(Format(title, change, with_blosc(name, level, shuffle), blosc.decompress, [codec]))
    return [*found, Format("float16 raw", halved, raw, same, [])]


def flux_values(n_cells: int) -> np.ndarray:
    """Token maps like FLUX.1-dev's, ``(cell, k, token)``."""
    random = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    noise = np.fft.fft2(random.standard_normal((n_cells, 12, 64, 64)))
    smooth = np.fft.ifft2(noise / (1 + (20 * frequency) ** 2)).real
    smooth /= smooth.std(axis=(-2, -1), keepdims=True)
    means = random.choice([-1, 1], (n_cells, 12, 1, 1)) * np.exp(random.uniform(np.log(20), np.log(5e3), (12, 1, 1)))
    values = means * (1 + 0.3 * smooth + 0.1 * random.standard_normal(smooth.shape))
    return values.reshape(n_cells, 12, 64 * 64).astype(np.float32)


def real_chunks() -> np.ndarray:
    """Chunks of ``massive_value`` of the bundled model, as its store divides it."""
    plan = next(plan for plan in layout("demo").arrays() if plan.name == "massive_value")
    return chunks_of(real_values()[plan.name], plan)


def chunks_of(values: np.ndarray, plan: ArrayPlan) -> np.ndarray:
    """A shard's values, one chunk per row."""
    pairs = [(shard // chunk, chunk) for shard, chunk in zip(plan.shard, plan.chunk, strict=True)]
    split = values.reshape([extent for pair in pairs for extent in pair])
    axes = [*range(0, split.ndim, 2), *range(1, split.ndim, 2)]
    return np.ascontiguousarray(split.transpose(axes)).reshape(-1, int(np.prod(plan.chunk)))


def seconds(work: Code, items: list[Any], threads: ThreadPoolExecutor | None) -> float:
    """Seconds that ``work`` takes for all items, in this thread or divided among two."""

    def all_of(part: list[Any]) -> None:
        for item in part:
            work(item)

    started = time.perf_counter()
    if threads:
        list(threads.map(all_of, (items[::2], items[1::2])))
    else:
        all_of(items)
    return time.perf_counter() - started


def surviving(each: Format) -> list[str]:
    """Names of the special values that a candidate preserves."""
    values = np.resize(np.array(list(SPECIAL.values()), np.float32), 4096)
    changed = each.change(values)
    with np.errstate(invalid="ignore"):
        back = np.frombuffer(each.decode(each.encode(changed)), changed.dtype).astype(np.float32)
        close = np.abs(back - values) <= np.abs(values) / 256
    kept = (close & (np.signbit(back) == np.signbit(values))) | (back == values) & np.isinf(values)
    return [name for name, one in zip(SPECIAL, kept | np.isnan(values) & np.isnan(back), strict=False) if one]


def readers_of(each: Format, values: np.ndarray, folder: Path) -> list[str]:
    """Names of the Zarr readers that read a candidate's array, one chunk per row in one shard, bit for bit."""
    changed = each.change(values)
    array = zarr.create_array(
        folder, shape=changed.shape, shards=changed.shape, chunks=(1, changed.shape[1]), dtype=changed.dtype,
        compressors=each.codecs or None, filters=None, overwrite=True,
    )  # fmt: skip
    array[:] = changed

    def by_zarrs() -> np.ndarray:
        with zarr.config.set(ZARRS):
            return zarr.open_array(folder, mode="r")[:]

    readers: dict[str, Callable[[], np.ndarray]] = {
        "zarr-python": lambda: zarr.open_array(folder, mode="r")[:],
        "tensorstore": lambda: open_tensorstore(folder).read().result(),
        "zarrs": by_zarrs,
    }
    found = []
    for name, read in readers.items():
        try:
            found += [name] if read().tobytes() == changed.tobytes() else []
        except Exception as error:  # a reader that cannot is a result, not an end
            print(f"{each.name}: {name} cannot read it: {type(error).__name__}: {str(error).splitlines()[0]}")
    return found


def relative_errors(each: Format, chunks: np.ndarray) -> tuple[float, float]:
    """The largest and the median relative error of values that are not zero."""
    values = chunks.reshape(-1)
    with np.errstate(over="ignore"):
        back = each.change(values).astype(np.float64)
    errors = np.abs(back - values)[values != 0] / np.abs(values[values != 0]).astype(np.float64)
    return float(errors.max()), float(np.median(errors))


def coded(each: Format, chunks: np.ndarray, threads: ThreadPoolExecutor) -> dict[str, float]:
    """Seconds of encoding and decoding by one thread and by two, and the bytes stored; what is read back is checked."""
    changed = list(each.change(chunks))
    encoded = [each.encode(chunk) for chunk in changed]
    for back, chunk in zip(map(each.decode, encoded), changed, strict=True):
        assert back == chunk.tobytes(), f"{each.name} does not come back"
    found: dict[str, float] = {"bytes": sum(map(len, encoded))}
    for name, work, items in (("encode", each.encode, changed), ("decode", each.decode, encoded)):
        found |= {f"{name}_1_s": seconds(work, items, None), f"{name}_2_s": seconds(work, items, threads)}
    return found


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--cells", type=int, default=112, help="(step, layer) cells of FLUX-like values")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table per kind of values; ``--json FILE`` also writes them."""
    chosen = parser().parse_args(argv)
    blosc.use_threads = False
    candidates = {each.name: each for each in formats()}
    kinds = {"real": real_chunks(), "flux": flux_values(chosen.cells).reshape(chosen.cells, -1)}
    lost = {name: [word for word in SPECIAL if word not in surviving(each)] for name, each in candidates.items()}
    rows: Rows = {}
    ratios = []
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as threads:
        folder = Path(temporary, "array")
        readers = {name: readers_of(each, kinds["real"][:4], folder) for name, each in candidates.items()}
        for kind, chunks in kinds.items():
            measured = rotated(candidates, chosen.rounds, lambda each: coded(each, chunks, threads))  # noqa: B023
            print(f"\n{kind}: {len(chunks)} chunks of {chunks[0].nbytes / 1024:.0f} KiB")
            print(
                f"{'':28} {'bytes':>6} {'encode':>7} {'by 2':>6} {'decode':>7} {'by 2':>6} {'largest':>8} {'median':>8}"
            )
            for name, each in candidates.items():
                largest, median = relative_errors(each, chunks)
                row = {key: [found[key] for found in measured[name]] for key in measured[name][0]}
                row |= {"bytes": row["bytes"][0], "value_bytes": chunks.nbytes}
                row |= {"largest_relative_error": largest, "median_relative_error": median}
                rows[f"{kind}: {name}"] = row | {"lost": lost[name], "readers": readers[name]}
                stored = ratio(rows, f"{kind}: {name}", f"{kind}: float32 raw", of="bytes")
                ratios.append(stored)
                speeds = [
                    chunks.nbytes / 1e6 / min(row[key])
                    for key in ("encode_1_s", "encode_2_s", "decode_1_s", "decode_2_s")
                ]
                print(
                    f"{name:28} {stored['ratio']:6.3f} {speeds[0]:7.0f} {speeds[1]:6.0f} "
                    f"{speeds[2]:7.0f} {speeds[3]:6.0f} {largest:8.1e} {median:8.1e}"
                )
    print("\nlost of the special values " + ", ".join(SPECIAL) + ":")
    for words in sorted({", ".join(each) for each in lost.values()}):
        names = [name for name, each in lost.items() if ", ".join(each) == words]
        print(f"  {words or 'none'}: {names[0] if len(names) == 1 else f'{len(names)} candidates'}")
    everywhere = [name for name, who in readers.items() if len(who) == 3]
    print(f"read by zarr-python, tensorstore and zarrs: {len(everywhere)} of {len(readers)} candidates")
    save(chosen, ("numcodecs", "zarr", "tensorstore", "zarrs"), rows, ratios)


if __name__ == "__main__":
    main()
