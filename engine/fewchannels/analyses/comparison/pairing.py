"""Two runs of the same samples, side by side: which channels are massive in both, and how far they stand out.

Samples are matched by ``sample_id``. Everything is recomputed from both stores, with the same score and k, whatever the
runs themselves used; only ``token_norm_ratio``, which depends on neither, is taken from the runs' ``cells``.

A unit of work is a layer. Its scores are read in batches that fit into memory: all samples and as many steps as
possible, or some samples of one step. A batch reads each task that it needs once per run. So a different order of
samples in B costs nothing, unless one step of one layer of all samples is too large for a batch: then every batch may
read all of B's tasks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from fewchannels.analyses.selection import Selected, select
from fewchannels.analyses.settings import Criteria
from fewchannels.errors import InputError, unknown
from fewchannels.measures.massive import ratio_by_rank
from fewchannels.measures.overlap import matched_jaccard
from fewchannels.measures.scores import energy_share, gini, top_k
from fewchannels.runs.arrays import read
from fewchannels.runs.description import read_description
from fewchannels.runs.identity import differences, shared
from fewchannels.runs.sql.catalog import Catalog

RANGES = {
    "ratio": (1.0, math.inf),
    "energy_share": (0.0, 1.0),
    "gini": (0.0, 1.0),
    "token_norm_ratio": (1.0, math.inf),
}
"""The least and the most that each metric can be."""
METRICS = tuple(RANGES)
MATCHES = ("auto", "number", "depth")
_GINI_RANKS = 32
_BLOCK_SCORES = 2**20  # sorting and ranking take many times the memory of their input
_TASKS_AT_ONCE = 16  # neighbors that are read in one call


def place(number: int, n: int) -> float:
    """Relative position of a layer or step among ``n``: 0 for the first, 1 for the last and for a single one."""
    return number / (n - 1) if n > 1 else 1.0


def partners(a: Sequence[int], b: Sequence[int], n_a: int, n_b: int) -> list[tuple[int, int]]:
    """Match layers or steps of two models by their relative positions.

    Each one of the model with fewer is matched with the one of the other model whose :func:`place` is nearest, the
    lower of two equally near ones; if both have the same number, that is the one with the same index. No two have the
    same partner.

    Args:
        a: numbers of those that one run kept, ascending.
        b: same for the other.
        n_a: number in model A.
        n_b: number in model B.

    Returns:
        Positions in ``a`` and in ``b``, ascending, of those whose partners were kept.
    """
    if n_a > n_b:
        return [(i, j) for j, i in partners(b, a, n_b, n_a)]
    kept = {number: j for j, number in enumerate(b)}
    steps, last = max(1, n_a - 1), n_b - 1
    # In whole numbers: x / y to the nearest, halves down, is -((y - 2 x) // (2 y)).
    nearest = (-((steps - 2 * last * (number if n_a > 1 else 1)) // (2 * steps)) for number in a)
    return [(i, kept[number]) for i, number in enumerate(nearest) if number in kept]


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman correlation of corresponding rows, average ranks for ties.

    Args:
        a: ``(..., channel)`` float scores.
        b: scores of the other, same shape.

    Returns:
        ``(...)`` float64, -1 to 1; NaN if either has a NaN or only equal scores, so that its ranks are undefined.
    """
    x, y = (rankdata(scores, axis=-1, nan_policy="propagate") - (a.shape[-1] + 1) / 2 for scores in (a, b))
    lengths = np.sqrt(np.square(x).sum(axis=-1) * np.square(y).sum(axis=-1))
    return np.divide((x * y).sum(axis=-1), lengths, out=np.full(a.shape[:-1], np.nan), where=lengths > 0)


def profile(scores: Tensor, rms: Tensor, k: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A cell's top channels, and how far they stand out.

    Args:
        scores: ``(..., channel)`` float32, non-negative.
        rms: ``(..., channel)`` float32 root mean squares.
        k: size of the top-k sets, at most the number of channels.

    Returns:
        ``(..., k)`` int64 channels, largest score first, and ``ratio``, ``energy_share`` and ``gini`` as defined in the
        schema of ``cells``, ``(...)`` float32 each; NaN if a score is NaN.
    """
    channels = top_k(scores, k)
    largest = scores.topk(min(_GINI_RANKS, scores.shape[-1])).values
    return channels, {
        "ratio": ratio_by_rank(scores, 1)[..., 0],
        "energy_share": energy_share(rms, channels),
        "gini": gini(largest),
    }


@dataclass(frozen=True)
class Side:
    """One of two runs. Has only plain values, since it is sent to workers.

    Attributes:
        name: ``a`` or ``b``.
        selected: its samples that the other run also has, in its own order.
        order: ``(sample,)`` int, the position among them of each sample of the comparison.
        n_layers: layers of its model, or a common number if layers are matched by number.
        n_steps: denoising steps of its samples; the largest number if they differ.
    """

    name: str
    selected: Selected
    order: np.ndarray
    n_layers: int
    n_steps: int

    def read(self, names: Sequence[str], at: slice, layer: int, steps: Sequence[int]) -> dict[str, np.ndarray]:
        """Arrays ``(sample, step, channel)`` of some of the comparison's samples, of one layer.

        Args:
            names: without the stream's prefix.
            at: positions of the samples.
            layer: position on the store's layer axis.
            steps: positions on its step axis, ascending.
        """
        chosen = self.selected
        samples = chosen.samples[self.order[at]]
        found = {name: np.empty((len(samples), len(steps), chosen.layout.n_channels), np.float32) for name in names}
        rows = np.argsort(samples)
        tasks = samples[rows] // chosen.layout.shard_samples
        cuts = np.flatnonzero((np.diff(tasks) > 1) | (np.diff(tasks // _TASKS_AT_ONCE) > 0)) + 1
        for some in np.split(rows, cuts):
            start, stop = int(samples[some[0]]), int(samples[some[-1]]) + 1
            stored = read(chosen.storage, [chosen.prefix + name for name in names], start, stop, (steps, [layer]))
            for name in names:
                found[name][some] = stored[chosen.prefix + name][samples[some] - start, :, 0]
        return found

    def token_norm_ratios(self, layer: int, steps: Sequence[int]) -> np.ndarray:
        """``(sample, step)`` float64 of one layer, from ``cells``; NaN without a row."""
        chosen, numbers = self.selected, [self.selected.layout.steps[i] for i in steps]
        with Catalog(chosen.run) as catalog:
            rows = catalog.sql(
                "select sample, step, token_norm_ratio as value from cells "
                f"where layer = {chosen.layout.blocks[layer].layer} and step in ({_listed(numbers)}) "
                f"and stream = '{chosen.stream}' and branch = '{chosen.branch}'"
            ).df()
        rows = rows[rows["sample"].isin(chosen.samples)]
        found = np.full((len(chosen.samples), len(steps)), np.nan)
        at = np.searchsorted(chosen.samples, rows["sample"]), np.searchsorted(numbers, rows["step"])
        found[at] = rows["value"]
        return found[self.order]


@dataclass(frozen=True)
class Unit:
    """A layer of both runs with the steps that both have, or a layer of one run with the steps that only it has.

    Attributes:
        sides: the runs.
        layers: position on each run's layer axis.
        steps: positions on each run's step axis, ascending, the same number in each.
    """

    sides: tuple[Side, ...]
    layers: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Pairing:
    """Two runs whose samples, layers and steps are matched.

    Attributes:
        a: run A.
        b: the other; differences are B - A.
        sample_ids: ids of the samples that both finished, in A's order.
        prompts: ``(sample,)`` int, number of each sample's prompt.
        n_only: numbers of samples of A and of B that the other has not finished or that are not selected there.
        layers_by: ``number`` or ``relative depth``.
        steps_by: ``number`` or ``relative step``.
        settings: settings that differ between the captures: ``name: A's -> B's``.
    """

    a: Side
    b: Side
    sample_ids: tuple[str, ...]
    prompts: np.ndarray
    n_only: tuple[int, int]
    layers_by: str
    steps_by: str
    settings: tuple[str, ...]

    @property
    def n_channels(self) -> tuple[int, int]:
        """Widths of the two hidden states. Channels correspond only if the widths are equal."""
        return self.a.selected.layout.n_channels, self.b.selected.layout.n_channels

    def units(self) -> list[Unit]:
        """First the layers that both runs have, then the cells that only one has.

        Raises:
            InputError: they have no layer or no step in common.
        """
        sides, chosen = (self.a, self.b), (self.a.selected, self.b.selected)
        layers = self._matched("layer", self.layers_by, [[block.layer for block in each.blocks] for each in chosen])
        steps = self._matched("step", self.steps_by, [list(each.step_numbers) for each in chosen])
        of_both = tuple(tuple(each.steps[pair[i]] for pair in steps) for i, each in enumerate(chosen))
        units = [
            Unit(sides, tuple(c.layers[at] for c, at in zip(chosen, pair, strict=True)), of_both) for pair in layers
        ]
        for i, side in enumerate(sides):
            matched = {chosen[i].layers[pair[i]] for pair in layers}
            lone = tuple(step for step in chosen[i].steps if step not in of_both[i])
            rest = [(layer, lone if layer in matched else chosen[i].steps) for layer in chosen[i].layers]
            units += [Unit((side,), (layer,), (own,)) for layer, own in rest if own]
        return units

    def _matched(self, kind: str, by: str, numbers: list[list[int]]) -> list[tuple[int, int]]:
        n_a, n_b = ((side.n_layers if kind == "layer" else side.n_steps) for side in (self.a, self.b))
        if found := partners(numbers[0], numbers[1], n_a, n_b):
            return found
        raise InputError(
            f"{self.a.selected.run!r} and {self.b.selected.run!r} have no {kind} in common by {by}: A has "
            f"{_listed(numbers[0])} and B {_listed(numbers[1])}. Choose others with --{kind}s, or capture them."
        )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def side_by_side(run_a: str, run_b: str, *, match: str = "auto", **choice: str | None) -> Pairing:
    """Select and match the parts of two runs to compare.

    Layers are matched by number. But if either run kept every layer up to its last, their last layers differ and so do
    the weights, the models are assumed to differ in depth, and layers are matched by relative depth. Steps are matched
    by number if every sample has the same number in both runs, else by relative step.

    Args:
        run_a: path or URL.
        run_b: path or URL of the other run.
        match: ``auto``, or how layers are matched in any case: by ``number``, or by ``depth``, with each run's last
            layer at 1.
        choice: arguments of :func:`fewchannels.analyses.selection.select` for both runs: ``where``, ``layers``,
            ``steps``, ``stream`` and ``branch``.

    Raises:
        InputError: a run lacks the selected data, or the runs have no finished sample in common.
    """
    if match not in MATCHES:
        raise unknown("way to match layers", match, MATCHES)
    a, b = (_select(run, choice) for run in (run_a, run_b))
    _, at_a, at_b = np.intersect1d(a.sample_ids, b.sample_ids, assume_unique=True, return_indices=True)
    n_only = len(a.sample_ids) - len(at_a), len(b.sample_ids) - len(at_b)
    if not len(at_a):
        raise InputError(
            f"{run_a!r} and {run_b!r} have no finished sample in common, of {n_only[0]} and {n_only[1]} selected "
            "ones. They are matched by sample_id, which depends on prompt, seed and the settings of a manifest's "
            "row; capture both with the same manifest, or with rows of it."
        )
    at_b = at_b[np.argsort(at_a)]
    order = np.argsort(np.argsort(at_b))
    a, b = _only(a, np.sort(at_a)), _only(b, np.sort(at_b))
    identities = [read_description(each.storage)["identity"] for each in (a, b)]
    mine, theirs = shared(identities), shared(identities[::-1])
    n_layers, layers_by = _depths(a, b, match, _weights(mine) == _weights(theirs))
    n_steps, steps_by = _lengths(_n_steps(a), _n_steps(b)[order])
    return Pairing(
        Side("a", _ran(a, n_steps[0]), np.arange(len(order)), n_layers[0], n_steps[0]),
        Side("b", _ran(b, n_steps[1]), order, n_layers[1], n_steps[1]),
        a.sample_ids,
        np.unique(a.prompts, return_inverse=True)[1],
        n_only,
        layers_by,
        steps_by,
        tuple(differences(theirs, mine)),
    )


def _weights(identity: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The entries of an identity for a model's weights: safetensors and pickled ones."""
    files = identity.get("files", {})
    return identity["weights"], {name: digest for name, digest in files.items() if name.endswith(".bin")}


def _select(run: str, choice: Mapping[str, str | None]) -> Selected:
    try:
        return select(run, **choice)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"{run}: {error}") from None


def _only(selected: Selected, at: np.ndarray) -> Selected:
    ids = tuple(selected.sample_ids[i] for i in at)
    samples, prompts, grids = selected.samples[at], selected.prompts[at], selected.grids[at]
    return replace(selected, samples=samples, sample_ids=ids, prompts=prompts, grids=grids)


def _ran(selected: Selected, n_steps: int) -> Selected:
    """Exclude steps that only longer samples of the run have."""
    return replace(selected, steps=tuple(i for i in selected.steps if selected.layout.steps[i] < n_steps))


def _depths(a: Selected, b: Selected, match: str, have_same_weights: bool) -> tuple[tuple[int, int], str]:
    # A run states which layers it kept, not how many the model has.
    kept = [[block.layer for block in each.layout.blocks] for each in (a, b)]
    n_a, n_b = (layers[-1] + 1 for layers in kept)
    are_whole = all(layers == list(range(len(layers))) for layers in kept)
    if match == "depth" or (match == "auto" and are_whole and not have_same_weights and n_a != n_b):
        return (n_a, n_b), "relative depth"
    return (max(n_a, n_b), max(n_a, n_b)), "number"


def _n_steps(selected: Selected) -> np.ndarray:
    with Catalog(selected.run) as catalog:
        rows = catalog.sql("select sample, n_steps from samples order by sample").df()
    return rows["n_steps"].to_numpy()[np.searchsorted(rows["sample"], selected.samples)]


def _lengths(a: np.ndarray, b: np.ndarray) -> tuple[tuple[int, int], str]:
    if (a == b).all():
        return (int(a.max()), int(a.max())), "number"
    if len(found := np.unique([a, b], axis=1).T) > 1:
        raise InputError(
            f"samples have {found[0][0]} denoising steps in A and {found[0][1]} in B, others {found[1][0]} and "
            f"{found[1][1]}: their steps cannot be matched unambiguously. Select samples by n_steps with --where."
        )
    return (int(a[0]), int(b[0])), "relative step"


@dataclass(frozen=True)
class Cells:
    """Values that are kept for a unit's cells.

    Attributes:
        channels: channels of each side ``(sample, step, k)`` int32, the top channels; -1 where a score is not finite.
        metrics: metrics of each side ``(metric, sample, step)`` float64, in the order of :data:`METRICS`.
        jaccard: ``(sample, step)`` float64, of A's and B's channels; NaN if either has none, or if widths differ.
        spearman: ``(sample, step)`` float64, of A's and B's scores; same conventions.
    """

    channels: tuple[np.ndarray, ...]
    metrics: tuple[np.ndarray, ...]
    jaccard: np.ndarray
    spearman: np.ndarray


def cells(pairing: Pairing, criteria: Criteria, unit: Unit) -> Cells:
    """Read a unit's scores batch by batch, and keep the values whose size does not depend on the number of channels."""
    shape = (len(pairing.prompts), len(unit.steps[0]))
    names = tuple(dict.fromkeys((criteria.score, "rms")))
    channels = tuple(np.full((*shape, criteria.k), -1, np.int32) for _ in unit.sides)
    metrics = tuple(np.full((len(METRICS), *shape), np.nan) for _ in unit.sides)
    jaccard, alike = np.full(shape, np.nan), np.full(shape, np.nan)
    comparable = len(unit.sides) == 2 and len(set(pairing.n_channels)) == 1
    width = sum(side.selected.layout.n_channels for side in unit.sides)
    for at, steps in batches(*shape, 4 * len(names) * width):
        arrays = [
            side.read(names, at, layer, own[steps])
            for side, layer, own in zip(unit.sides, unit.layers, unit.steps, strict=True)
        ]
        n_rows = max(1, _BLOCK_SCORES // (width * (steps.stop - steps.start)))
        for start in range(0, at.stop - at.start, n_rows):
            rows = slice(start, start + n_rows)
            here = slice(at.start + start, min(at.start + start + n_rows, at.stop)), steps
            for i, values in enumerate(arrays):
                scores, rms = (torch.from_numpy(values[name][rows]) for name in (criteria.score, "rms"))
                top, measured = profile(scores, rms, criteria.k)
                channels[i][here] = top.where(scores.isfinite().all(dim=-1, keepdim=True), -1).numpy()
                metrics[i][:-1, *here] = [measured[name].numpy() for name in METRICS[:-1]]
            if comparable:
                alike[here] = spearman(*(values[criteria.score][rows] for values in arrays))
    for i, side in enumerate(unit.sides):
        metrics[i][-1] = side.token_norm_ratios(unit.layers[i], unit.steps[i])
    if comparable:
        known = (channels[0][..., 0] >= 0) & (channels[1][..., 0] >= 0)
        jaccard[known] = matched_jaccard(channels[0][known], channels[1][known])
        alike[~known] = np.nan
    return Cells(channels, metrics, jaccard, alike)


def batches(n_samples: int, n_steps: int, cell_bytes: int, most_bytes: int = 2**28) -> Iterator[tuple[slice, slice]]:
    """Samples and steps to read at once: all samples and as many steps as fit, or some samples of one step."""
    steps = min(n_steps, max(1, most_bytes // (n_samples * cell_bytes)))
    samples = min(n_samples, max(1, most_bytes // (steps * cell_bytes)))
    for step in range(0, n_steps, steps):
        for sample in range(0, n_samples, samples):
            yield slice(sample, min(sample + samples, n_samples)), slice(step, min(step + steps, n_steps))
