"""Tasks, arrays, bytes and files of a run, computed from a manifest's length and a model's geometry. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewchannels.errors import InputError
from fewchannels.measures import STATISTICS
from fewchannels.models.family import BRANCHES, STREAMS, Block
from fewchannels.runs.choices import choose_controls, choose_pool_side, choose_words

TOKENS = ("all", "pool:N")
RANKED = 12  # channels that ``cells`` names if no token maps are kept
_CHUNK_BYTES = 256 * 1024
_TASK_BYTES = 512 * 2**20
_MOST_SHARD_SAMPLES = 16
_CHUNK_OVERHEAD_BYTES = 36  # Blosc's header and a CRC-32C, then offset and length in the shard's index
# Bytes stored per byte of values, where nothing has been measured: benchmarks/README.md, Number formats.
_EXACT, _ROUNDED, _INDICES = 0.88, 0.40, 0.40


@dataclass(frozen=True)
class ArrayPlan:
    """One array of the store.

    Attributes:
        name: its path in the Zarr group.
        dims: names of its dimensions, sample first.
        shape: one extent per dimension.
        shard: extents of a shard, the unit of write.
        chunk: extents of a chunk, the unit of read.
        dtype: numpy name; every dtype here takes 4 bytes.
        ratio: expected compression ratio, stored bytes per byte of values.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    ratio: float

    @property
    def fill(self) -> float:
        """Value of unwritten elements: NaN, or -1 if the dtype has no NaN."""
        return -1 if self.dtype == "int32" else math.nan

    @property
    def n_shards(self) -> int:
        """Files that the finished array has."""
        return math.ceil(self.shape[0] / self.shard[0])

    @property
    def value_bytes(self) -> int:
        """Bytes of the finished array's values in memory."""
        return 4 * math.prod(self.shape)

    @property
    def expected_bytes(self) -> int:
        """Expected bytes on disk of the finished array's shards."""
        n_chunks = math.prod(self.shard) // math.prod(self.chunk)
        return round(self.ratio * self.value_bytes) + self.n_shards * n_chunks * _CHUNK_OVERHEAD_BYTES

    def key(self, task: int) -> str:
        """Key of a task's shard below the group; it depends only on the task."""
        return "/".join((self.name, ".".join(("c", str(task), *["0"] * (len(self.shape) - 1)))))


@dataclass(frozen=True)
class Track:
    """One stream of one branch.

    Attributes:
        stream: ``image`` or ``text``. Token maps are kept only for the image, since text has no grid.
        branch: ``cond`` or ``uncond``.
    """

    stream: str
    branch: str

    @property
    def prefix(self) -> str:
        """Prefix of its arrays' names; empty for the conditional branch of the image stream."""
        stream = "text_" if self.stream == "text" else ""
        return stream + ("uncond_" if self.branch == "uncond" else "")


@dataclass(frozen=True)
class Layout:
    """The shape of a run: its samples, and the data recorded for each.

    Attributes:
        n_samples: rows of the manifest.
        steps: step indices kept, ascending.
        blocks: layers kept, ascending.
        n_channels: width of the hidden state.
        n_tokens: tokens kept of the largest image; smaller images have NaN after their last token.
        top_k: channels whose token maps are kept; 0 keeps only the channels' statistics.
        shard_samples: samples in a task and a shard.
        pool: side of the square of tokens whose mean is kept as one token; 1 keeps them all.
        rounded: whether token maps have bfloat16's mantissa, which compresses better.
        streams: streams that are kept.
        branches: branches that are kept.
        controls: further selections of ``top_k`` channels, whose token maps are kept for the image: ``bottom``,
            ``random_0``, ``random_1``, ...
    """

    n_samples: int
    steps: tuple[int, ...]
    blocks: tuple[Block, ...]
    n_channels: int
    n_tokens: int
    top_k: int
    shard_samples: int
    pool: int = 1
    rounded: bool = False
    streams: tuple[str, ...] = ("image",)
    branches: tuple[str, ...] = ("cond",)
    controls: tuple[str, ...] = ()

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> "Layout":
        """The layout of a run, from its ``run.json``.

        Raises:
            InputError: the run has format version 1, whose stores have another layout.
        """
        if description["format_version"] < 2:
            raise InputError(
                "this run has format version 1, which can be read and queried, but has no checksums to verify and "
                "cannot be merged, extended or exported. Capture it again for that."
            )
        config, geometry = description["config"], description["geometry"]
        return cls(
            n_samples=geometry["n_samples"],
            steps=tuple(config["steps"]),
            blocks=tuple(Block(block["layer"], block["path"], block["kind"]) for block in geometry["blocks"]),
            n_channels=geometry["n_channels"],
            n_tokens=geometry["n_tokens"],
            top_k=config["top_k"],
            shard_samples=description["shard_samples"],
            pool=choose_pool_side(config["tokens"]),
            rounded=is_rounded(config["value_precision"], config["dtype"], config["tokens"]),
            streams=choose_words("streams", config.get("streams", "image"), STREAMS),
            branches=choose_words("branches", config.get("branches", "cond"), BRANCHES),
            controls=choose_controls(config.get("controls", "none")),
        )

    @property
    def tracks(self) -> tuple[Track, ...]:
        """Every stream of every branch."""
        return tuple(Track(stream, branch) for stream in self.streams for branch in self.branches)

    @property
    def n_tasks(self) -> int:
        """Tasks of the run; task ``t`` owns manifest rows ``[t*S, min((t+1)*S, n))``."""
        return math.ceil(self.n_samples / self.shard_samples)

    @property
    def has_ranks(self) -> bool:
        """Return whether the store names the largest channels."""
        return self.top_k > 0

    @property
    def has_maps(self) -> bool:
        """Return whether the store has token maps."""
        return self.top_k > 0 and "image" in self.streams

    @property
    def n_ranked(self) -> int:
        """Channels that ``cells`` names, largest score first."""
        return self.top_k or min(RANKED, self.n_channels)

    def rows(self, task: int) -> range:
        """Manifest rows, which are indices on the sample axis, that a task owns."""
        start = task * self.shard_samples
        return range(start, min(start + self.shard_samples, self.n_samples))

    def arrays(self) -> tuple[ArrayPlan, ...]:
        """Every array of the store.

        A chunk holds one layer of all of a shard's samples, and as many steps as fit in a chunk's size. So one
        (step, layer) of all samples can be read without the rest, and chunks of small models are not too small.
        """
        n_steps, n_layers = len(self.steps), len(self.blocks)

        def array(name: str, dtype: str, ratio: float, **rest: int) -> ArrayPlan:
            head, tail = (self.n_samples, n_steps, n_layers), tuple(rest.values())
            most_steps = _CHUNK_BYTES // (4 * self.shard_samples * math.prod(tail))
            chunk_steps = max(d for d in range(1, n_steps + 1) if n_steps % d == 0 and d <= max(1, most_steps))
            return ArrayPlan(
                name,
                dims=("sample", "step", "layer", *rest),
                shape=(*head, *tail),
                shard=(self.shard_samples, n_steps, n_layers, *tail),
                chunk=(self.shard_samples, chunk_steps, 1, *tail),
                dtype=dtype,
                ratio=ratio,
            )

        maps = _ROUNDED if self.rounded else _EXACT
        arrays = []
        for track in self.tracks:
            name = track.prefix
            arrays += [array(name + each, "float32", _EXACT, channel=self.n_channels) for each in STATISTICS]
            if self.top_k and track.stream == "image":
                arrays.append(array(name + "massive_value", "float32", maps, k=self.top_k, token=self.n_tokens))
            if self.top_k:
                arrays.append(array(name + "massive_channel", "int32", _INDICES, k=self.top_k))
            if self.top_k and track.stream == "image":
                arrays.append(array(name + "token_norm", "float32", _EXACT, token=self.n_tokens))
            if self.controls and track.stream == "image":
                each = {"control": len(self.controls), "k": self.top_k}
                arrays.append(array(name + "control_value", "float32", maps, **each, token=self.n_tokens))
                arrays.append(array(name + "control_channel", "int32", _INDICES, **each))
        return tuple(arrays)

    @property
    def sample_value_bytes(self) -> int:
        """Bytes of one sample's values in memory."""
        return sum(array.value_bytes for array in self.arrays()) // self.n_samples

    @property
    def expected_bytes(self) -> int:
        """Expected bytes on disk of all arrays."""
        return sum(array.expected_bytes for array in self.arrays())

    @property
    def n_files(self) -> int:
        """Files of the finished run: shards, two Parquet parts and a record per task, and files of the whole run."""
        n_coordinates = 6 + self.has_ranks + self.has_maps + bool(self.controls)
        n_metadata, n_once = len(self.arrays()) + n_coordinates + 1, 2
        return sum(array.n_shards for array in self.arrays()) + 3 * self.n_tasks + n_coordinates + n_metadata + n_once


def default_shard_samples(layout: Layout) -> int:
    """Default number of samples per task: as many as keep a task's values within 512 MiB, 1 to 16."""
    return max(1, min(_MOST_SHARD_SAMPLES, _TASK_BYTES // layout.sample_value_bytes))


def is_rounded(value_precision: str, dtype: str, tokens: str) -> bool:
    """Whether token maps have bfloat16's mantissa: by choice, or because the model computes in bfloat16."""
    return value_precision == "bfloat16" or (dtype == "bfloat16" and choose_pool_side(tokens) == 1)
