"""Confidence intervals of means over samples that come in clusters, such as the seeds of a prompt."""

import numpy as np

from fewchannels.errors import InputError

_BLOCK_WEIGHTS = 2**21
_BLOCK_RATIOS = 2**22

Interval = tuple[np.ndarray, np.ndarray, np.ndarray]


def cluster_bootstrap(
    sums: np.ndarray, counts: np.ndarray, n_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile bootstrap of a mean, resampling whole clusters.

    The mean of a cell is ``sum of sums / sum of counts`` over clusters. Every resample draws as many clusters as there
    are, with replacement; how often it draws each is a row of weights, so that all resamples of all cells are two
    matrix products, made in blocks. All cells have the same resamples: differences of cells are as they were drawn.
    Efron and Tibshirani 1993 (An introduction to the bootstrap, chapter 13).

    Args:
        sums: ``(cluster, cell)`` float, 0 where the cluster has no values in the cell.
        counts: ``(cluster, cell)``, how many values are behind each sum, 0 or more.
        n_resamples: of the bootstrap.
        seed: of the draws.
        level: probability that the interval should cover the mean, between 0 and 1.

    Returns:
        ``(mean, low, high)``, each ``(cell,)`` float64. The mean is NaN without counts, its ends NaN with fewer than 2
        clusters that have counts. A sum that is not finite shows in the mean and makes the ends NaN. A
        resample that drew none of a cell's clusters is no resample of that cell.

    Raises:
        InputError: ``n_resamples`` is below 1, or ``level`` is not between 0 and 1.
        ValueError: shapes differ, or a cluster without counts has a sum.
    """
    _check(sums, counts, n_resamples, level)
    finite = np.isfinite(sums)
    usable = ((counts > 0).sum(axis=0) >= 2) & finite.all(axis=0)
    step = max(1, _BLOCK_RATIOS // n_resamples)
    ends = np.full((2, sums.shape[1]), np.nan)
    for start in range(0, sums.shape[1], step):
        block = np.s_[:, start : start + step]
        ends[block] = _percentiles(np.where(finite[block], sums[block], 0), counts[block], n_resamples, seed, level)
    return _mean(sums, counts), *np.where(usable, ends, np.nan)


def pair_bootstrap(
    sums: np.ndarray, counts: np.ndarray, n_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Bootstrap interval of a mean over pairs of clusters, through its projection on single clusters.

    A mean over pairs across clusters is a U-statistic of degree 2: every pair is in the sums of two clusters. With
    ``T_g`` and ``n_g`` the sum and number of cluster g's pairs and ``U = sum T / sum n``, Hajek's projection is
    ``U + 2 sum_g (T_g - U n_g) / sum_g n_g``: its deviation is twice that of a mean whose clusters were independent
    (Hoeffding 1948; van der Vaart 1998, Asymptotic statistics, chapter 12). So :func:`cluster_bootstrap`'s deviations
    from U are doubled. This is an approximation: it leaves out what two clusters have only with each other, which
    falls as 1 / clusters against 1 / sqrt(clusters). On planted sets, 95 % intervals covered the truth in 88 % of
    trials with 10 clusters, 92 % with 20, 93 % with 40 and 94 % with 100. With many clusters they agree with the normal
    form, whose standard error is ``2 sqrt(n / (n - 1) sum_g (T_g - U n_g)^2) / sum_g n_g`` of n clusters.

    Args:
        sums: ``(cluster, cell)`` float, over each cluster's pairs with others, such as ``across.jaccard`` of
            :func:`fewchannels.measures.overlap.pair_overlap`.
        counts: ``(cluster, cell)``, how many pairs those are.
        n_resamples: of the bootstrap.
        seed: of the draws.
        level: probability that the interval should cover the mean, between 0 and 1.

    Returns:
        ``(mean, low, high)`` as :func:`cluster_bootstrap`'s, the ends NaN with fewer than 3 clusters that have pairs:
        two have only those with each other. The ends are not cut to the values' range.

    Raises:
        InputError: as :func:`cluster_bootstrap`.
        ValueError: likewise.
    """
    mean, low, high = cluster_bootstrap(sums, counts, n_resamples, seed, level)
    enough = (counts > 0).sum(axis=0) >= 3
    return mean, np.where(enough, 2 * low - mean, np.nan), np.where(enough, 2 * high - mean, np.nan)


def _check(sums: np.ndarray, counts: np.ndarray, n_resamples: int, level: float) -> None:
    if n_resamples < 1:
        raise InputError(f"{n_resamples} resamples of a bootstrap; give 1 or more, such as 2000.")
    if not 0 < level < 1:
        raise InputError(f"the level of an interval is {level}; it lies between 0 and 1, such as 0.95.")
    if sums.shape != counts.shape or sums.ndim != 2:
        raise ValueError(f"sums {sums.shape} and counts {counts.shape}; both are (cluster, cell)")
    if (sums[counts == 0] != 0).any() or (counts < 0).any():
        raise ValueError("a cluster without counts in a cell has a sum there, or a count is negative")


def _mean(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    n = counts.sum(axis=0)
    return np.divide(sums.sum(axis=0), n, out=np.full(len(n), np.nan), where=n > 0)


def _percentiles(sums: np.ndarray, counts: np.ndarray, n_resamples: int, seed: int, level: float) -> np.ndarray:
    """Low and high ends, ``(2, cell)``: the draws depend on the seed and the number of clusters only."""
    n_clusters, n_cells = sums.shape
    random = np.random.default_rng(seed)
    ratios = np.full((n_resamples, n_cells), np.nan)
    step = max(1, _BLOCK_WEIGHTS // max(1, n_clusters))
    for start in range(0, n_resamples if n_clusters else 0, step):
        n = min(step, n_resamples - start)
        drawn = random.integers(n_clusters, size=(n, n_clusters)) + n_clusters * np.arange(n)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=n * n_clusters).reshape(n, n_clusters).astype(np.float64)
        below = weights @ counts
        np.divide(weights @ sums, below, out=ratios[start : start + n], where=below > 0)
    tails = [(1 - level) / 2, (1 + level) / 2]
    ends = np.quantile(ratios, tails, axis=0)
    # Slow, so only where a resample had no counts but another had.
    lacking = np.isnan(ratios).any(axis=0) & ~np.isnan(ratios).all(axis=0)
    ends[:, lacking] = np.nanquantile(ratios[:, lacking], tails, axis=0)
    return ends
