"""Confidence intervals of means over samples that come in clusters, such as the seeds of a prompt."""

import numpy as np
from scipy.special import stdtrit

from fewchannels.errors import InputError

FEWEST = 5
"""Minimum number of clusters for an interval: the spread of fewer clusters is a poor estimate of the true spread."""
_EQUAL = 1e-9  # of the largest value: a smaller spread is rounding
_BLOCK_VALUES = 2**21

Interval = tuple[np.ndarray, np.ndarray, np.ndarray]
Bound = float | np.ndarray


def cluster_interval(
    sums: np.ndarray, counts: np.ndarray, least: Bound = -np.inf, most: Bound = np.inf, level: float = 0.95
) -> Interval:
    """Interval of a mean if clusters, but not their values, are independent: Student's t and the jackknife.

    The mean of a cell is ``sum of sums / sum of counts``. Its standard error is the jackknife's, which leaves out one
    cluster after the other (Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 11). With clusters of
    equal size, it is the standard error of the mean of their means. Without a range, the interval is
    ``mean +- t standard error`` with Student's t, whose degrees of freedom are the number of clusters minus one.

    The mean of values with a range is inside the range, and near its ends the spread is small. So the interval contains
    every ``m`` that is at most t standard errors from the mean, where the squared standard error at ``m`` is that of
    the mean times ``V(m) / V(mean)``: ``V`` is ``(m - least) (most - m)`` for a range, and ``m - least`` or
    ``most - m`` if one end is open. For shares, this is Wilson's interval with the effective number of samples (Dean
    and Pagano 2015, Evaluating confidence interval methods for binomial proportions in clustered surveys). It stays in
    the range, and equals the plain interval if the standard error is small. ``benchmarks/interval_coverage.py``
    measures its coverage.

    Args:
        sums: ``(cluster, cell)`` float, sums of values, 0 if the cluster has no values in the cell.
        counts: ``(cluster, cell)``, number of values in each sum, 0 or more.
        least: smallest possible value, ``(cell,)`` or a scalar for all cells.
        most: largest possible value, same format.
        level: nominal probability that the interval covers the mean, between 0 and 1.

    Returns:
        ``(mean, low, high)``, each ``(cell,)`` float64. The mean is NaN without counts. The ends are NaN with fewer
        than :data:`FEWEST` clusters that have counts, if the means of all clusters are equal, which does not determine
        their spread, and if a sum is not finite.

    Raises:
        InputError: ``level`` is not between 0 and 1.
        ValueError: shapes differ, or a cluster without counts has a sum.
    """
    return _interval(sums, counts, 1, least, most, level)


def pair_interval(
    sums: np.ndarray, counts: np.ndarray, least: Bound = -np.inf, most: Bound = np.inf, level: float = 0.95
) -> Interval:
    """Interval of a mean over pairs of clusters, where each pair is in the sums of two clusters.

    Such a mean is a U-statistic of degree 2 (Hoeffding 1948). The jackknife leaves out a cluster with all of its pairs;
    everything else is the same as in :func:`cluster_interval`.

    Args:
        sums: ``(cluster, cell)`` float, over each cluster's pairs with other clusters, such as ``across.jaccard`` of
            :func:`fewchannels.measures.overlap.pair_overlap`.
        counts: ``(cluster, cell)``, number of these pairs.
        least: smallest possible value of a pair, ``(cell,)`` or a scalar for all cells.
        most: largest possible value of a pair, same format.
        level: nominal probability that the interval covers the mean, between 0 and 1.

    Returns:
        ``(mean, low, high)`` as from :func:`cluster_interval`; the ends are also NaN if one cluster is in every pair.

    Raises:
        InputError: same cases as for :func:`cluster_interval`.
        ValueError: same cases as for :func:`cluster_interval`.
    """
    return _interval(sums, counts, 2, least, most, level)


def missing(n_clusters: int, of: str = "prompts") -> str:
    """The reason, in words, why a mean has no interval.

    Args:
        n_clusters: number of clusters with values.
        of: name of the clusters, in the plural.
    """
    if n_clusters >= FEWEST:
        return f"all {n_clusters:,} {of} equal"
    return f"{n_clusters:,} {of if n_clusters != 1 else of.removesuffix('s')}: too few for an interval"


def _interval(
    sums: np.ndarray, counts: np.ndarray, per_value: int, least: Bound, most: Bound, level: float
) -> Interval:
    """The interval if every value is in the sums of ``per_value`` clusters."""
    if not 0 < level < 1:
        raise InputError(f"the level of an interval is {level}; it must be between 0 and 1, such as 0.95.")
    if sums.shape != counts.shape or sums.ndim != 2:
        raise ValueError(f"sums has shape {sums.shape} and counts {counts.shape}; both must be (cluster, cell)")
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
    """Mean, standard error and number of clusters with counts of every cell; the error is NaN if all are equal."""
    there = counts > 0
    n = there.sum(axis=0)
    total, number = sums.sum(axis=0) / per_value, counts.sum(axis=0) / per_value
    without = np.where(there, (total - sums) / (number - counts), 0)
    spread = np.where(there, without - without.sum(axis=0) / n, 0)
    error = np.sqrt((n - 1) / n * np.square(spread).sum(axis=0))
    largest = np.abs(np.where(there, sums / counts, 0)).max(axis=0, initial=0)
    return total / number, np.where(error > _EQUAL * largest, error, np.nan), n


def _within(mean: np.ndarray, reach: np.ndarray, least: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval, by the spread at each end; ``reach`` is the distance by the spread at the mean."""
    below, above = mean - least, most - mean
    width = below + above
    # For a range: (m - mean)^2 = reach^2 V(m) / V(mean), a quadratic equation in m.
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
