"""Confidence intervals of means over samples that come in clusters, such as the seeds of a prompt."""

import numpy as np
from scipy.special import stdtrit

from fewchannels.errors import InputError

FEWEST = 5
"""Clusters without which a mean has no interval: the spread of fewer says little of the spread there is."""
_EQUAL = 1e-9  # of the largest value: a spread below is rounding
_BLOCK_VALUES = 2**21

Interval = tuple[np.ndarray, np.ndarray, np.ndarray]
Bound = float | np.ndarray


def cluster_interval(
    sums: np.ndarray, counts: np.ndarray, least: Bound = -np.inf, most: Bound = np.inf, level: float = 0.95
) -> Interval:
    """Interval of a mean whose clusters, not their values, are independent: Student's t and the jackknife.

    The mean of a cell is ``sum of sums / sum of counts``. Its standard error is the jackknife's, which leaves out one
    cluster after the other (Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 11); with clusters of
    one size it is that of the mean of their means. Without a range, the interval is ``mean +- t standard error`` with
    Student's t of one degree of freedom less than there are clusters.

    Values of a range have a mean inside it, and one near its end has a small spread. So the interval holds every ``m``
    that is at most t standard errors from the mean, where the squared standard error at ``m`` is that of the mean times
    ``V(m) / V(mean)``: ``V`` is ``(m - least) (most - m)`` of a range, ``m - least`` or ``most - m`` where one end is
    open. Of shares that is Wilson's interval with the effective number of samples (Dean and Pagano 2015, Evaluating
    confidence interval methods for binomial proportions in clustered surveys). It stays in the range, and is the plain
    one where the standard error is small. ``benchmarks/interval_coverage.py`` measures how often it covers the truth.

    Args:
        sums: ``(cluster, cell)`` float, 0 where the cluster has no values in the cell.
        counts: ``(cluster, cell)``, how many values are behind each sum, 0 or more.
        least: the least that a value can be, ``(cell,)`` or the same of all.
        most: the most that a value can be.
        level: probability that the interval should cover the mean, between 0 and 1.

    Returns:
        ``(mean, low, high)``, each ``(cell,)`` float64. The mean is NaN without counts. The ends are NaN with fewer
        than :data:`FEWEST` clusters that have counts, where the means of all clusters are equal, which says nothing of
        their spread, and where a sum is not finite.

    Raises:
        InputError: ``level`` is not between 0 and 1.
        ValueError: shapes differ, or a cluster without counts has a sum.
    """
    return _interval(sums, counts, 1, least, most, level)


def pair_interval(
    sums: np.ndarray, counts: np.ndarray, least: Bound = -np.inf, most: Bound = np.inf, level: float = 0.95
) -> Interval:
    """Interval of a mean over pairs of clusters, every pair of which is in the sums of two clusters.

    Such a mean is a U-statistic of degree 2 (Hoeffding 1948). The jackknife leaves out a cluster with all of its pairs;
    all else is as in :func:`cluster_interval`.

    Args:
        sums: ``(cluster, cell)`` float, over each cluster's pairs with others, such as ``across.jaccard`` of
            :func:`fewchannels.measures.overlap.pair_overlap`.
        counts: ``(cluster, cell)``, how many pairs those are.
        least: the least that a pair's value can be, ``(cell,)`` or the same of all.
        most: the most that it can be.
        level: probability that the interval should cover the mean, between 0 and 1.

    Returns:
        ``(mean, low, high)`` as :func:`cluster_interval`'s; the ends are NaN also where one cluster is in every pair.

    Raises:
        InputError: as :func:`cluster_interval`.
        ValueError: as :func:`cluster_interval`.
    """
    return _interval(sums, counts, 2, least, most, level)


def missing(n_clusters: int, of: str = "prompts") -> str:
    """Why a mean has no interval, in words.

    Args:
        n_clusters: number of clusters with values.
        of: what they are, in the plural.
    """
    if n_clusters >= FEWEST:
        return f"all {n_clusters:,} {of} equal"
    return f"{n_clusters:,} {of if n_clusters != 1 else of.removesuffix('s')}: too few for an interval"


def _interval(
    sums: np.ndarray, counts: np.ndarray, per_value: int, least: Bound, most: Bound, level: float
) -> Interval:
    """The interval where every value is in the sums of ``per_value`` clusters."""
    if not 0 < level < 1:
        raise InputError(f"the level of an interval is {level}; it must be between 0 and 1, such as 0.95.")
    if sums.shape != counts.shape or sums.ndim != 2:
        raise ValueError(f"sums {sums.shape} and counts {counts.shape}; both are (cluster, cell)")
    if (sums[counts == 0] != 0).any() or (counts < 0).any():
        raise ValueError("a cluster without counts in a cell has a sum there, or a count is negative")
    n_cells = sums.shape[1]
    mean, error, n = np.full(n_cells, np.nan), np.full(n_cells, np.nan), np.zeros(n_cells)
    step = max(1, _BLOCK_VALUES // max(1, len(sums)))
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, n_cells, step):
            block = slice(start, start + step)
            mean[block], error[block], n[block] = _jackknife(sums[:, block], counts[:, block], per_value)
        error[n < FEWEST] = np.nan
        reach = stdtrit(np.maximum(n - 1, 1), (1 + level) / 2) * error
        low, high = _within(mean, reach, np.broadcast_to(least, n_cells), np.broadcast_to(most, n_cells))
    known = np.isfinite(low) & np.isfinite(high) & (least < mean) & (mean < most)
    return mean, np.where(known, low, np.nan), np.where(known, high, np.nan)


def _jackknife(sums: np.ndarray, counts: np.ndarray, per_value: int) -> Interval:
    """Mean, its standard error, and the clusters that have counts, of every cell; NaN where all are equal."""
    there = counts > 0
    n = there.sum(axis=0)
    total, number = sums.sum(axis=0) / per_value, counts.sum(axis=0) / per_value
    without = np.where(there, (total - sums) / (number - counts), 0)
    spread = np.where(there, without - without.sum(axis=0) / n, 0)
    error = np.sqrt((n - 1) / n * np.square(spread).sum(axis=0))
    largest = np.abs(np.where(there, sums / counts, 0)).max(axis=0, initial=0)
    return total / number, np.where(error > _EQUAL * largest, error, np.nan), n


def _within(mean: np.ndarray, reach: np.ndarray, least: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends that are so far from the mean as the spread there says, where ``reach`` is how far they would be at it."""
    below, above = mean - least, most - mean
    width = below + above
    # Of a range: (m - mean)^2 = reach^2 V(m) / V(mean), a quadratic equation in m.
    share = np.square(reach) / (below * above)
    middle = (mean + share * (least + most) / 2) / (1 + share)
    half = np.sqrt(np.square(reach) + np.square(share * width / 2)) / (1 + share)
    low, high = middle - half, middle + half
    for end, room, sign in ((least, below, 1), (most, above, -1)):
        one = np.isfinite(end) & ~np.isfinite(width)
        shift = sign * np.square(reach) / room / 2
        half = np.sqrt(np.square(reach) + np.square(shift))
        low, high = np.where(one, mean + shift - half, low), np.where(one, mean + shift + half, high)
    free = ~np.isfinite(least) & ~np.isfinite(most)
    low, high = np.where(free, mean - reach, low), np.where(free, mean + reach, high)
    return np.maximum(low, least), np.minimum(high, most)  # rounding
