"""The part of a run to analyze: samples, layers and steps, and their arrays."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fewchannels.errors import InputError, unknown
from fewchannels.models.family import BRANCHES, STREAMS, Block
from fewchannels.runs.arrays import read
from fewchannels.runs.choices import choose_layers, choose_words
from fewchannels.runs.description import read_description
from fewchannels.runs.layout import Layout, Track
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.sql.columns import chosen
from fewchannels.runs.storage import Storage, open_storage
from fewchannels.settings.indices import parse_indices
from fewchannels.settings.ranges import shown


@dataclass(frozen=True)
class Selected:
    """Samples, layers and steps of a run. Has only plain values, since it is sent to workers.

    Attributes:
        run: path or URL of the run.
        layout: layout of its store.
        stream: ``image`` or ``text``.
        branch: ``cond`` or ``uncond``.
        layers: positions on the store's layer axis, ascending.
        steps: positions on its step axis, ascending.
        samples: indices on its sample axis, ascending: finished, and chosen by ``where``.
        sample_ids: their ids.
        prompts: number of each sample's prompt; samples with other seeds share it.
        grids: ``(sample, 2)`` tokens along height and width, as the store keeps them.
        categories: number of each sample's category, -1 if it has none; empty if none was requested.
        fingerprint: fingerprint of the run.
    """

    run: str
    layout: Layout
    stream: str
    branch: str
    layers: tuple[int, ...]
    steps: tuple[int, ...]
    samples: np.ndarray
    sample_ids: tuple[str, ...]
    prompts: np.ndarray
    grids: np.ndarray
    fingerprint: str
    categories: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @cached_property
    def storage(self) -> Storage:
        """Storage of the run."""
        return open_storage(self.run)

    @property
    def prefix(self) -> str:
        """Prefix of the names of its arrays."""
        return Track(self.stream, self.branch).prefix

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The layers."""
        return tuple(self.layout.blocks[i] for i in self.layers)

    @property
    def step_numbers(self) -> tuple[int, ...]:
        """The steps, as the sampler counts them."""
        return tuple(self.layout.steps[i] for i in self.steps)

    @property
    def n_scores(self) -> int:
        """Scores of one kind: one for each sample, step, layer and channel."""
        return len(self.samples) * len(self.steps) * len(self.layers) * self.layout.n_channels

    @property
    def tasks(self) -> list[int]:
        """Tasks that own any of the samples, ascending."""
        return sorted(set((self.samples // self.layout.shard_samples).tolist()))

    def of_task(self, task: int) -> np.ndarray:
        """Positions, among the samples, of those that a task owns."""
        return np.flatnonzero(self.samples // self.layout.shard_samples == task)

    def read(self, names: Sequence[str], at: np.ndarray, layers: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Arrays ``(sample, step, layer, ...)`` of some samples of one task, of the chosen steps and layers.

        Args:
            names: without the stream's prefix.
            at: positions among the samples.
            layers: positions on the store's layer axis; None for the chosen ones.
        """
        rows = self.samples[at]
        start, stop = int(rows[0]), int(rows[-1]) + 1
        region = (list(self.steps), list(self.layers if layers is None else layers))
        found = read(self.storage, [self.prefix + name for name in names], start, stop, region)
        return {name: found[self.prefix + name][rows - start] for name in names}

    def identity(self) -> dict[str, Any]:
        """Everything that determines its numbers, as plain values."""
        return {
            "run": self.fingerprint,
            "stream": self.stream,
            "branch": self.branch,
            "layers": [block.layer for block in self.blocks],
            "steps": list(self.step_numbers),
            "n_samples": len(self.samples),
            "samples": _digest(self.samples, self.categories),
        }


def _digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.astype("<i8").tobytes() for array in arrays)).hexdigest()[:16]


_CATEGORY = (
    "if(typeof(value) in ('FLOAT', 'DOUBLE') and value::varchar = 'nan', null, "
    "if(trim(value::varchar) = '', null, value::varchar))"
)
"""Name of a sample's category; null without one, as for an empty cell of a CSV file."""


def select(
    run: str,
    *,
    where: str | None = None,
    layers: str = "all",
    steps: str = "all",
    stream: str = "image",
    branch: str = "cond",
    by: str | None = None,
) -> Selected:
    """Select the part of a run to analyze.

    Args:
        run: path or URL.
        where: an SQL condition on columns of ``samples`` and ``manifest``, see :mod:`fewchannels.runs.sql.columns`;
            None takes every finished sample.
        layers: ``all``, a kind, or indices such as ``0,5``, ``2-4`` or ``-1``: of those that the run kept.
        steps: ``all``, ``last``, or indices such as ``0,9,19``: same as above.
        stream: selected stream.
        branch: selected branch.
        by: a column of ``samples`` or ``manifest`` that assigns samples to categories.

    Raises:
        InputError: there is no run, nothing is selected, or the run did not record the selected data.
    """
    storage = open_storage(run)
    description = read_description(storage)
    layout = Layout.of(description)
    for kind, word, known in (("stream", stream, STREAMS), ("branch", branch, BRANCHES)):
        kept = getattr(layout, "streams" if kind == "stream" else "branches")
        if choose_words(kind, word, known) != (word,) or word not in kept:
            raise unknown(f"{kind} of this run", word, kept)
    chosen_layers = _kept("layer", layers, [block.layer for block in layout.blocks], layout)
    chosen_steps = _kept("step", steps, list(layout.steps), layout)
    with Catalog(run) as catalog:
        category = "" if by is None else f", {_CATEGORY} as category"
        table = catalog.sql(
            f"select sample, sample_id, prompt, grid_height, grid_width{category} from samples join "
            f"({chosen(catalog, where, by)}) using (sample) where status = 'done' order by sample"
        ).df()
    if table.empty:
        raise InputError(
            f"no finished sample of {run!r}" + (f" meets --where {where!r}." if where else "; capture it first.")
        )
    pool = layout.pool
    return Selected(
        run=str(run),
        layout=layout,
        stream=stream,
        branch=branch,
        layers=chosen_layers,
        steps=chosen_steps,
        samples=table["sample"].to_numpy(np.int64),
        sample_ids=tuple(table["sample_id"]),
        prompts=table["prompt"].factorize()[0].astype(np.int64),
        grids=table[["grid_height", "grid_width"]].to_numpy(np.int64) // pool,
        fingerprint=description["fingerprint"],
        categories=table["category"].factorize()[0].astype(np.int64) if by is not None else np.zeros(0, np.int64),
    )


def _unrecorded(kept: list[int]) -> str:
    return f"was not recorded by this run; it has {', '.join(map(str, kept))}"


def _kept(kind: str, text: str, kept: list[int], layout: Layout) -> tuple[int, ...]:
    """Positions of layers or steps among the recorded ones."""
    if text == "all":
        return tuple(range(len(kept)))
    if kind == "layer" and text[:1].isalpha() and not text.startswith("last"):
        wanted = [block.layer for block in choose_layers(text, layout.blocks)]
    else:
        if text[:1].isalpha() and not text.startswith("last"):
            raise InputError(f"{kind}s is {shown(text)}; it must be all, last or indices such as {kept[0]},{kept[-1]}.")
        wanted = list(parse_indices(kind, text, kept, _unrecorded(kept)))
    for number in wanted:
        if number not in kept:
            raise InputError(f"{kind} {number} {_unrecorded(kept)}.")
    return tuple(kept.index(number) for number in wanted)
