"""Coverage of intervals: ``python benchmarks/interval_coverage.py --trials 4000 --json out.json``.

For each kind of value, number of prompts and number of seeds, samples with a known mean are drawn, with prompts that
differ. ``none`` is the share of trials without an interval, because all prompts were equal. Of the others, ``covered``
is the share whose 95 % interval contains the mean, and ``width`` the median width. Compared are ``ours``
(``measures.intervals``: Student's t and the jackknife over prompts, within the range of the values), ``bootstrap``, the
percentile bootstrap over prompts, and ``plain``, which treats samples as independent: 1.96 standard errors, for shares
Wilson's interval, for pairs of samples the plain interval over all pairs. Ratios are ours to plain.

Kinds: ``normal``; ``lognormal``, skewed, 0 upwards; ``iou``, of two modes, 0 to 1; ``share 0.5``, ``share 0.9`` and
``share 0.95`` of samples; ``rank``, 1 upwards; ``pairs``, Jaccard overlap of top sets of two prompts.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from measurement import Rows, options, ratio, save

from fewchannels.measures.intervals import cluster_interval, pair_interval
from fewchannels.measures.overlap import pair_overlap

KINDS = ("normal", "lognormal", "iou", "share 0.5", "share 0.9", "share 0.95", "rank", "pairs")
Ends = tuple[np.ndarray, np.ndarray]
_Z = 1.959964
_RESAMPLES = 1000


def parser() -> argparse.ArgumentParser:
    """The options."""
    options_ = options(__doc__)
    options_.add_argument("--trials", type=int, default=1000)
    options_.add_argument("--prompts", default="5,8,12,20,30,100", help="numbers of prompts (default: %(default)s)")
    options_.add_argument("--seeds", default="1,4", help="samples of each prompt (default: %(default)s)")
    options_.add_argument("--kinds", default=",".join(KINDS), help="kinds of values (default: all)")
    return options_


def values(kind: str, shape: tuple[int, int, int], random: np.random.Generator) -> tuple[np.ndarray, float, Ends]:
    """Draw ``(trial, prompt, seed)``. Returns the values, their mean, and their range."""
    trials, prompts, _ = shape
    of_prompt = (trials, prompts, 1)
    open_, whole = (np.array(-np.inf), np.array(np.inf)), (np.array(0.0), np.array(1.0))
    if kind == "normal":
        return random.normal(0, 1, of_prompt) + random.normal(0, 1, shape), 0.0, open_
    if kind == "lognormal":
        drawn = np.exp(random.normal(0, 0.9, of_prompt) + random.normal(0, 0.5, shape))
        return drawn, float(np.exp((0.9**2 + 0.5**2) / 2)), (np.array(0.0), np.array(np.inf))
    if kind == "iou":
        center = np.broadcast_to(np.where(random.random(of_prompt) < 0.5, 0.75, 0.1), shape)
        return random.beta(12 * center, 12 * (1 - center)), 0.425, whole
    if kind == "rank":
        stays = np.broadcast_to(random.beta(8, 2, of_prompt), shape)
        return random.geometric(stays).astype(float), 9 / 7, (np.array(1.0), np.array(np.inf))
    share = float(kind.removeprefix("share "))
    chance = random.beta(1.5 * share, 1.5 * (1 - share), of_prompt)  # two seeds of a prompt agree: correlation 0.4
    return (random.random(shape) < chance).astype(float), share, whole


def bootstrap(sums: np.ndarray, counts: np.ndarray, random: np.random.Generator, factor: int = 1) -> Ends:
    """Percentiles of means of resampled prompts ``(prompt, trial)``; for pairs, deviations are doubled."""
    n = len(sums)
    weights = random.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)
    mean = sums.sum(axis=0) / counts.sum(axis=0)
    low, high = np.quantile((weights @ sums) / (weights @ counts), [0.025, 0.975], axis=0)
    return mean + factor * (low - mean), mean + factor * (high - mean)


def plain(drawn: np.ndarray, kind: str) -> Ends:
    """The plain interval of ``(trial, value)``, treated as independent."""
    n, mean = drawn.shape[1], drawn.mean(axis=1)
    if kind.startswith("share"):
        center = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z * np.sqrt(mean * (1 - mean) / n + (_Z / n) ** 2 / 4) / (1 + _Z**2 / n)
        return center - half, center + half
    half = _Z * drawn.std(axis=1, ddof=1) / np.sqrt(n)
    return mean - half, mean + half


def of_values(kind: str, trials: int, prompts: int, seeds: int) -> tuple[dict[str, Ends], float]:
    """The ends of each interval of each trial, and the true mean."""
    random = np.random.default_rng([KINDS.index(kind), prompts, seeds])
    drawn, truth, (least, most) = values(kind, (trials, prompts, seeds), random)
    sums = drawn.sum(axis=2).T
    counts = np.full(sums.shape, float(seeds))
    _, *ours = cluster_interval(sums, counts, least, most)
    found = {"ours": (ours[0], ours[1]), "bootstrap": bootstrap(sums, counts, random)}
    return found | {"plain": plain(drawn.reshape(trials, -1), kind)}, truth


def of_pairs(trials: int, prompts: int, seeds: int) -> tuple[dict[str, Ends], float]:
    """The same for the overlap of two prompts' top-4 sets of 12 channels."""
    random = np.random.default_rng([len(KINDS), prompts, seeds])

    def overlap(n: int, n_seeds: int) -> tuple[np.ndarray, np.ndarray]:
        of_prompt = np.repeat(random.normal(0, 0.6, (n, 12)), n_seeds, axis=0)
        scores = np.linspace(2, 0, 12) + of_prompt + random.normal(0, 0.4, (n * n_seeds, 12))
        sums = pair_overlap(np.argsort(-scores, axis=1)[:, :4], np.arange(n * n_seeds) // n_seeds).across
        return sums.jaccard, sums.n_pairs

    every = overlap(20_000, 1)
    sums, counts = (
        np.stack(each, axis=1) for each in zip(*(overlap(prompts, seeds) for _ in range(trials)), strict=True)
    )
    _, *ours = pair_interval(sums, counts, 0, 1)
    mean, n = sums.sum(axis=0) / counts.sum(axis=0), counts.sum(axis=0) / 2
    spread = (sums / counts).std(axis=0, ddof=1)  # of prompts' means, as if pairs were independent
    half = _Z * spread * np.sqrt(prompts) / np.sqrt(n)
    found = {"ours": (ours[0], ours[1]), "bootstrap": bootstrap(sums, counts, random, 2)}
    return found | {"plain": (mean - half, mean + half)}, float(every[0].sum() / every[1].sum())


def row(ends: Ends, truth: float) -> dict[str, Any]:
    """Summary of one kind of interval over its trials."""
    low, high = ends
    known = np.isfinite(low) & (high > low)
    n = max(1, int(known.sum()))
    return {
        "covered": round(float(((low <= truth) & (truth <= high) & known).sum()) / n, 4),
        "width": round(float(np.median((high - low)[known])) if known.any() else 0.0, 4),
        "none": round(1 - n / len(low), 4),
    }


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    chosen = parser().parse_args(words)
    rows: Rows = {}
    for kind in chosen.kinds.split(","):
        measure: Callable[..., Any] = of_pairs if kind == "pairs" else lambda *n, kind=kind: of_values(kind, *n)
        for seeds in map(int, chosen.seeds.split(",")):
            for prompts in map(int, chosen.prompts.split(",")):
                found, truth = measure(chosen.trials, prompts, seeds)
                for name, ends in found.items():
                    rows[f"{kind}, {prompts} prompts, {seeds} seeds: {name}"] = row(ends, truth)
                line = "  ".join(
                    f"{name} {rows[f'{kind}, {prompts} prompts, {seeds} seeds: {name}']['covered']:.1%}"
                    for name in found
                )
                print(f"{kind:10} {prompts:4} prompts {seeds} seeds  {line}", flush=True)
    ratios = [
        ratio(rows, name.removesuffix("plain") + arm, name, of="covered", by="median")
        for name in rows
        if name.endswith(": plain") and rows[name]["covered"]
        for arm in ("ours", "plain")
        if rows[name.removesuffix("plain") + arm]["covered"]
    ]
    save(chosen, ["fewchannels", "numpy", "scipy"], rows, ratios)


if __name__ == "__main__":
    main()
