"""One shard of a Zarr v3 array as the bytes to store, without a copy of the values if their order allows it.

The Zarr libraries that write shards reach a tenth to a half of the disk's rate (``benchmarks/store_write.py``), so this
is the one place where the project writes Zarr itself: chunks of little-endian bytes, bit-shuffled and compressed by
Blosc, each with its CRC-32C; then the index, as specified for ``sharding_indexed``. The Zarr libraries write the
metadata that describe this, and do all reading (:mod:`fewchannels.runs.arrays`). For the choice of codec, see
``benchmarks/README.md``, Number formats.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from crc32c import crc32c
from numcodecs import blosc

from fewchannels.runs.layout import ArrayPlan
from fewchannels.runs.storage import Buffer

LEVEL = 5
_CHECKSUM_BYTES = 4
_BYTES_AT_ONCE = 2**20

blosc.use_threads = False  # chunks are already compressed in parallel


def compress(
    values: np.ndarray, plan: ArrayPlan, apply: Callable[..., Iterable[list[bytes]]] = map
) -> Iterator[Buffer]:
    """A shard's bytes, part by part, so that one part can be written while the next ones are compressed.

    Args:
        values: values of the shard, ``(sample, step, layer, ...)``, of the plan's dtype; the last shard of an array may
            have fewer samples than the others and is padded.
        plan: plan of the array.
        apply: ``map``, or one whose threads share the compression.

    Yields:
        The chunks, row-major over their grid, each with its checksum; then the index with its own.
    """
    if len(values) < plan.shard[0]:
        filled = np.full(plan.shard, plan.fill, plan.dtype)
        filled[: len(values)] = values
        values = filled
    grid = [shard // chunk for shard, chunk in zip(plan.shard, plan.chunk, strict=True)]
    split = values.reshape([extent for pair in zip(grid, plan.chunk, strict=True) for extent in pair])
    chunks = split.transpose([*range(0, split.ndim, 2), *range(1, split.ndim, 2)])
    chunks = np.ascontiguousarray(chunks).reshape(math.prod(grid), -1)
    at_once = max(1, _BYTES_AT_ONCE // chunks[0].nbytes)
    lengths = []
    for parts in apply(_compress_chunks, [chunks[i : i + at_once] for i in range(0, len(chunks), at_once)]):
        lengths += [len(packed) + _CHECKSUM_BYTES for packed in parts[::2]]
        yield from parts
    n_bytes = np.array(lengths, "<u8")
    index = np.stack([np.cumsum(n_bytes) - n_bytes, n_bytes], axis=1).astype("<u8").tobytes()
    yield index + crc32c(index).to_bytes(_CHECKSUM_BYTES, "little")


def _compress_chunks(chunks: np.ndarray) -> list[bytes]:
    parts = []
    for chunk in chunks:
        packed = blosc.compress(chunk, b"lz4", LEVEL, blosc.BITSHUFFLE)
        parts += [packed, crc32c(packed).to_bytes(_CHECKSUM_BYTES, "little")]
    return parts
