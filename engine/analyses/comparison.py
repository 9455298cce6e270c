"""Two runs of the same samples, side by side: which channels are massive in both, and how their profiles differ.

Samples are matched by ``sample_id``. All is computed anew from both stores with one score and one k, whatever the runs
ranked by themselves; only ``token_norm_ratio``, in which neither takes part, is that of the runs' ``cells``.

A unit of work is a layer. Its scores are read in batches of samples, and of steps where all samples of all steps would
be too many, so that memory does not grow with the number of channels times samples: what is kept of a layer is its
top-k channels and five numbers for each sample and step. A batch reads every task that it touches once, in either run.
So a run whose samples come in another order is read once as well, as long as one step of one layer of all samples fits
into a batch, and once for every batch beyond that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from scipy.stats import rankdata
from torch import Tensor

from engine.analyses.massive import ratio_by_rank
from engine.analyses.selected import Selected
from engine.catalog import Catalog
from engine.channels import energy_share, gini, top_k
from engine.errors import InputError, unknown
from engine.statistics import STATISTICS
from engine.store import read

METRICS = ("ratio", "energy_share", "gini", "token_norm_ratio")
MATCHES = ("auto", "number", "depth")
_GINI_RANKS = 32
_RESAMPLES = 1000
_BATCH_BYTES = 2**28
_BLOCK_SCORES = 2**20  # that stay in a CPU's cache while they are sorted
_TASKS_AT_ONCE = 16  # neighbours that are read in one call

Rows = list[dict[str, object]]


def place(number: int, n: int) -> float:
    """How far along the ``number``-th of ``n`` layers or steps is: 0 for the first, 1 for the last or only one."""
    return number / (n - 1) if n > 1 else 1.0


def partners(a: Sequence[int], b: Sequence[int], n_a: int, n_b: int) -> list[tuple[int, int]]:
    """Match layers or steps of two models by where they are.

    Each of the model with fewer goes to the one of the other whose :func:`place` is nearest, the lower of two as near;
    with as many, that is the one of the same number. No two have one partner.

    Args:
        a: numbers of those that one run kept, ascending.
        b: likewise of the other.
        n_a: how many the one's model has.
        n_b: how many the other's has.

    Returns:
        Positions in ``a`` and in ``b`` of those whose partner was kept, ascending.
    """
    if n_a > n_b:
        return [(i, j) for j, i in partners(b, a, n_b, n_a)]
    kept = {number: j for j, number in enumerate(b)}
    found = []
    for i, number in enumerate(a):
        # In whole numbers: number * over / below, to the nearest, halves down.
        over, below = (n_b - 1, n_a - 1) if n_a > 1 else (n_b - 1, 1)
        nearest = -((below - 2 * over * (number if n_a > 1 else 1)) // (2 * below))
        if nearest in kept:
            found.append((i, kept[nearest]))
    return found


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman correlation of corresponding rows, average ranks for ties.

    Args:
        a: ``(..., channel)`` float scores.
        b: likewise, the same shape.

    Returns:
        ``(...)`` float64, -1 to 1; NaN where either has a NaN or the same score everywhere: its ranks are not defined.
    """
    n_channels = a.shape[-1]
    x, y = (rankdata(scores, axis=-1, nan_policy="propagate") - (n_channels + 1) / 2 for scores in (a, b))
    lengths = np.sqrt(np.square(x).sum(axis=-1) * np.square(y).sum(axis=-1))
    return np.divide((x * y).sum(axis=-1), lengths, out=np.full(a.shape[:-1], np.nan), where=lengths > 0)


def profile(scores: Tensor, rms: Tensor, k: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A cell's top channels, and how far they stand out.

    Args:
        scores: ``(..., channel)`` float32, non-negative.
        rms: ``(..., channel)`` float32 root mean squares.
        k: of the top channels, at most as many as there are.

    Returns:
        ``(..., k)`` int64 channels, largest score first, and ``ratio``, ``energy_share`` and ``gini``, ``(...)``
        float32 each, as ``cells`` of a run has them; NaN where a score is NaN.
    """
    channels = top_k(scores, k)
    largest = scores.topk(min(_GINI_RANKS, scores.shape[-1])).values
    measured = {
        "ratio": ratio_by_rank(scores, 1)[..., 0],
        "energy_share": energy_share(rms, channels),
        "gini": gini(largest, _GINI_RANKS),
    }
    return channels, measured


@dataclass(frozen=True)
class Criteria:
    """By what two runs are compared.

    Attributes:
        score: the statistic that ranks channels, in both.
        k: size of the sets of top channels, in both.
        seed: of the bootstrap.
    """

    score: str = "mean_abs"
    k: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        if self.score not in STATISTICS:
            raise unknown("score", self.score, STATISTICS)
        if self.k < 1:
            raise InputError(f"k is {self.k}; a set of channels has at least 1.")


@dataclass(frozen=True)
class Side:
    """One of two runs. Plain values only: it travels to workers.

    Attributes:
        name: ``a`` or ``b``.
        selected: its samples that the other has too, in its own order.
        order: ``(sample,)`` int, the position among them of each sample of the comparison.
        n_layers: of its model, as far as the comparison goes by them; see :func:`side_by_side`.
        n_steps: denoising steps of its samples; of the longest, where they differ.
    """

    name: str
    selected: Selected
    order: np.ndarray
    n_layers: int
    n_steps: int

    @property
    def title(self) -> str:
        """What figures call it, such as ``A: RUN``."""
        return f"{self.name.upper()}: {PurePosixPath(self.selected.run).name}"

    @property
    def n_channels(self) -> int:
        """Width of its hidden state."""
        return self.selected.layout.n_channels

    def read(self, names: Sequence[str], at: np.ndarray, layer: int, steps: Sequence[int]) -> dict[str, np.ndarray]:
        """Arrays ``(sample, step, channel)`` of some samples, of one layer. Each of their tasks is read once.

        Args:
            names: without the stream's prefix.
            at: numbers of the comparison's samples, in any order.
            layer: position on the store's layer axis.
            steps: positions on its step axis, ascending.
        """
        selected = self.selected
        samples = selected.samples[self.order[at]]
        found = {name: np.empty((len(at), len(steps), self.n_channels), np.float32) for name in names}
        rows = np.argsort(samples)
        tasks = samples[rows] // selected.layout.shard_samples
        cuts = np.flatnonzero((np.diff(tasks) > 1) | (np.diff(tasks // _TASKS_AT_ONCE) > 0)) + 1
        for some in np.split(rows, cuts):
            start, stop = int(samples[some[0]]), int(samples[some[-1]]) + 1
            stored = read(selected.storage, [selected.prefix + name for name in names], start, stop, (steps, [layer]))
            for name in names:
                found[name][some] = stored[selected.prefix + name][samples[some] - start, :, 0]
        return found

    def token_norm_ratios(self, layer: int, steps: Sequence[int]) -> np.ndarray:
        """``(sample, step)`` float64 of one layer, from ``cells``; NaN where it has no row."""
        selected, layout = self.selected, self.selected.layout
        numbers = np.array([layout.steps[i] for i in steps])
        with Catalog(selected.run) as catalog:
            rows = catalog.sql(
                f"select sample, step, token_norm_ratio from cells where layer = {layout.blocks[layer].layer} and "
                f"stream = '{selected.stream}' and branch = '{selected.branch}' and step in ({', '.join(map(str, numbers))})"
            ).df()
        found = np.full((len(selected.samples), len(steps)), np.nan)
        at = np.searchsorted(selected.samples, rows["sample"]).clip(max=len(selected.samples) - 1)
        own = selected.samples[at] == rows["sample"].to_numpy()
        found[at[own], np.searchsorted(numbers, rows["step"])[own]] = rows["token_norm_ratio"][own]
        return found[self.order]


@dataclass(frozen=True)
class Unit:
    """A layer of both runs and the steps that both have, or a layer of one of them and steps that only it has.

    Attributes:
        sides: the runs.
        layers: position on each one's layer axis.
        steps: positions on each one's step axis, ascending, equally many.
    """

    sides: tuple[Side, ...]
    layers: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]

    @property
    def is_of_both(self) -> bool:
        """Whether it is a layer of both runs."""
        return len(self.sides) == 2

    def numbers(self, side: int, step: int) -> tuple[int, int]:
        """Layer and step as a run's model counts them."""
        layout = self.sides[side].selected.layout
        return layout.blocks[self.layers[side]].layer, layout.steps[self.steps[side][step]]


@dataclass(frozen=True)
class Pairing:
    """Two runs whose samples, layers and steps are matched.

    Attributes:
        a: the one.
        b: the other, of which differences are taken: B - A.
        sample_ids: of the samples that both finished, in A's order.
        prompts: ``(sample,)`` int, number of each one's prompt.
        n_only_a: samples of A that B has not finished, or that were not chosen there.
        n_only_b: likewise of B.
        layers_by: ``number`` or ``relative depth``.
        steps_by: ``number`` or ``relative step``.
        settings: what the runs were captured with, where it differs: ``name: A's -> B's``.
    """

    a: Side
    b: Side
    sample_ids: tuple[str, ...]
    prompts: np.ndarray
    n_only_a: int
    n_only_b: int
    layers_by: str
    steps_by: str
    settings: tuple[str, ...]

    @property
    def has_same_channels(self) -> bool:
        """Whether channels of the one can be those of the other."""
        return self.a.n_channels == self.b.n_channels

    def units(self) -> list[Unit]:
        """Layers that both have, then what only one has.

        Raises:
            InputError: the runs have no layer or no step in common.
        """
        a, b = self.a.selected, self.b.selected
        layers = partners([x.layer for x in a.blocks], [x.layer for x in b.blocks], self.a.n_layers, self.b.n_layers)
        steps = partners(a.step_numbers, b.step_numbers, self.a.n_steps, self.b.n_steps)
        for kind, pairs, by in (("layer", layers, self.layers_by), ("step", steps, self.steps_by)):
            if not pairs:
                mine, other = (
                    [block.layer for block in each.blocks] if kind == "layer" else list(each.step_numbers)
                    for each in (a, b)
                )
                raise InputError(
                    f"{a.run!r} and {b.run!r} have no {kind} in common, by {by}: {_listed(mine)} against "
                    f"{_listed(other)}. Choose others with --{kind}s, or capture them."
                )
        both = tuple(tuple(x.steps[pair[i]] for pair in steps) for i, x in enumerate((a, b)))
        units = [Unit((self.a, self.b), (a.layers[i], b.layers[j]), both) for i, j in layers]
        for i, side in enumerate((self.a, self.b)):
            matched = {pair[i] for pair in layers}
            lone = tuple(step for step in side.selected.steps if step not in both[i])
            for j, layer in enumerate(side.selected.layers):
                if rest := lone if j in matched else side.selected.steps:
                    units.append(Unit((side,), (layer,), (rest,)))
        return units


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
