"""Overlap of top-k sets: all pairs of samples, matched sets, and chance. Arrays in, arrays out."""

from dataclasses import dataclass
from fractions import Fraction
from math import comb, prod

import numpy as np
from scipy.sparse import csr_array

from fewchannels.errors import InputError

# Number of channels per word of bits.
_WORD = 64
# A word of channels costs 0.7 ns for every pair of patterns; without it, every pair of samples that share one of its
# channels costs about 15 ns. So a word is worthwhile if the squares of its channels' frequencies sum to more than this.
_WORTH_A_WORD = 0.7 / 15
# Block sizes: pairs that fit in a core's cache, pairs of rare channels, and matched sets.
_BLOCK_PAIRS, _BLOCK_SHARED, _BLOCK_SETS = 2**17, 2**19, 2**14
# Classes of up to this many samples are compared pair by pair.
_FEW = 64


@dataclass(frozen=True)
class PairSums:
    """Sums over the pairs of samples of one kind, for each group (such as a prompt) over the pairs that include it.

    Attributes:
        jaccard: ``(group,)`` float64, sum of the pairs' Jaccard overlaps (shared / in either).
        shared: ``(group,)`` int64, sum of the numbers of shared channels.
        n_pairs: ``(group,)`` int64, number of pairs.
        groups_per_pair: number of groups that each pair counts for: 1 within groups, 2 across groups.
        k: size of the sets.
    """

    jaccard: np.ndarray
    shared: np.ndarray
    n_pairs: np.ndarray
    groups_per_pair: int
    k: int

    @property
    def total_pairs(self) -> int:
        """Number of pairs, each counted once."""
        return int(self.n_pairs.sum()) // self.groups_per_pair

    @property
    def mean_overlap(self) -> float:
        """Mean share of a set that is also in the other set, 0 to 1; NaN without pairs."""
        return int(self.shared.sum()) / (self.k * int(self.n_pairs.sum())) if self.total_pairs else float("nan")


@dataclass(frozen=True)
class PairOverlap:
    """Overlap of the sets of all pairs of samples, by kind of pair.

    Attributes:
        groups: ``(group,)`` int64, the groups' labels, ascending: the order of all sums.
        within: sums over pairs of samples of one group (two seeds of one prompt).
        across: sums over pairs of samples of two groups.
        within_category: sums over the pairs of ``across`` whose samples have the same category; None without
            categories.
    """

    groups: np.ndarray
    within: PairSums
    across: PairSums
    within_category: PairSums | None


def selection_counts(channels: np.ndarray, n_channels: int) -> np.ndarray:
    """Count the samples that select each channel.

    Args:
        channels: ``(sample, k)`` int, selected channels, each row without repeats.
        n_channels: number of channels of the hidden state.

    Returns:
        Counts, ``(channel,)`` int64.

    Raises:
        ValueError: a channel is not in ``[0, n_channels)``.
    """
    if channels.size and not 0 <= channels.min() <= channels.max() < n_channels:
        raise ValueError(f"channels run from {channels.min()} to {channels.max()}; there are {n_channels}")
    return np.bincount(channels.ravel(), minlength=n_channels)


def expected_jaccard(k: int, n_channels: int) -> float:
    """Expected Jaccard overlap of two independent uniform k-sets of channels: hypergeometric, with exact fractions.

    Raises:
        InputError: ``k`` is not in 1 to ``n_channels``.
    """
    if not 1 <= k <= n_channels:
        raise InputError(f"k is {k}; it must be 1 to {n_channels}, the number of channels. Choose another top-k.")
    ways = ((comb(k, shared) * comb(n_channels - k, k - shared), shared) for shared in range(k + 1))
    return float(sum(n * Fraction(shared, 2 * k - shared) for n, shared in ways) / comb(n_channels, k))


def matched_jaccard(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Jaccard overlap of corresponding sets, for example for drift over steps or for two score definitions.

    The first dimension is processed in blocks, so that memory beyond the arrays themselves stays small.

    Args:
        a: ``(..., k)`` int, channels without repeats, in any order.
        b: sets to compare with, with the same k; the other dimensions broadcast.

    Returns:
        ``(...)`` float64 in [0, 1].

    Raises:
        ValueError: the arrays differ in k.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"sets have {a.shape[-1]} and {b.shape[-1]} channels; matched sets must have the same size")
    if a.ndim == b.ndim == 1:
        return matched_jaccard(a[None], b[None])[0]
    k, shape = a.shape[-1], np.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    a, b = np.broadcast_to(a, (*shape, k)), np.broadcast_to(b, (*shape, k))
    jaccard = np.empty(shape)
    step = max(1, _BLOCK_SETS // max(1, prod(shape[1:])))
    for start in range(0, shape[0], step):
        rows = slice(start, start + step)
        shared = _n_shared(a[rows].reshape(-1, k), b[rows].reshape(-1, k)).reshape(jaccard[rows].shape)
        jaccard[rows] = shared / (2 * k - shared)
    return jaccard


def _n_shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Number of channels that the two sets of each row share: two ``(row, k)`` to ``(row,)``."""
    n = np.zeros(len(a), np.int16)
    columns_a, columns_b = (np.ascontiguousarray(sets.T) for sets in (a, b))
    for one in columns_a:
        for other in columns_b:
            n += one == other
    return n


def pair_overlap(channels: np.ndarray, groups: np.ndarray, categories: np.ndarray | None = None) -> PairOverlap:
    """Overlap of the sets of all pairs of samples, without exception, within groups and across groups.

    Frequent channels are compared as bits, for pairs of distinct patterns; rare channels only for samples that share
    one. 10,000 samples with 12 of 3,072 channels take 40 to 80 ms on one core if a few channels are massive, at worst
    300 ms, and less than 50 MB; to compare several cells at once, use one thread for each. A cell that is not finite
    has no top-k set: omit its sample.

    Args:
        channels: ``(sample, k)`` int, each sample's top-k channels, in any order, without repeats.
        groups: ``(sample,)`` int, group of each sample, such as the prompt.
        categories: ``(sample,)`` int, coarser than groups, such as a column of the manifest; a negative number means
            that the sample has no category, and is not in any pair of one category.

    Returns:
        Sums by group; all integers are exact, Jaccard is summed in float64.

    Raises:
        ValueError: shapes differ, a channel is negative, or a set contains a channel twice.
    """
    n, k = channels.shape
    if groups.shape != (n,) or (categories is not None and categories.shape != (n,)):
        raise ValueError(f"channels has {n} samples; each must have one group, and one category if any")
    ordered = np.sort(channels, axis=1)
    if (ordered[:, :1] < 0).any() or (ordered[:, 1:] == ordered[:, :-1]).any():
        raise ValueError("a set of channels contains a channel twice, or a negative channel")
    sets = _Sets.of(channels)
    labels, group = np.unique(groups, return_inverse=True)

    def by_group(rows: _Rows, groups_per_pair: int) -> PairSums:
        sums = (np.bincount(group, row, minlength=len(labels)) for row in (rows.jaccard, rows.shared, rows.n_others))
        # Each pair within a group is in the rows of both its samples.
        jaccard, shared, n_pairs = (total * groups_per_pair / 2 for total in sums)
        return PairSums(jaccard, shared.astype(np.int64), n_pairs.astype(np.int64), groups_per_pair, k)

    within = _rows(sets, group)
    across = _rows(sets, np.zeros(n, np.intp)) - within
    alike = None
    if categories is not None:
        alone = np.maximum(categories.max(initial=-1), -1) + 1 + np.arange(n)
        _, category = np.unique(np.where(categories < 0, alone, categories), return_inverse=True)
        alike = by_group(_rows(sets, category) - _rows(sets, category * len(labels) + group), 2)
    return PairOverlap(labels, by_group(within, 1), by_group(across, 2), alike)


@dataclass(frozen=True)
class _Rows:
    """Each sample's sums over other samples, all ``(sample,)``: Jaccard, shared channels, number of other samples."""

    jaccard: np.ndarray
    shared: np.ndarray
    n_others: np.ndarray

    def __sub__(self, part: "_Rows") -> "_Rows":
        """Sums over the other samples that are not in ``part``."""
        n = self.n_others - part.n_others
        return _Rows(np.where(n > 0, self.jaccard - part.jaccard, 0.0), self.shared - part.shared, n)


@dataclass(frozen=True)
class _Sets:
    """Sets of k channels, prepared for comparison.

    Attributes:
        channels: ``(sample, k)`` int, the channels of each set.
        words: ``(word, sample)`` uint64, one bit for every frequent channel.
        rare: ``(sample, rare channel)`` sparse, ones for the rare channels of each set.
    """

    channels: np.ndarray
    words: np.ndarray
    rare: csr_array

    @classmethod
    def of(cls, channels: np.ndarray) -> "_Sets":
        """Sort channels by descending frequency, and store those for which it is worthwhile in words."""
        n = len(channels)
        counts = np.bincount(channels.ravel())
        order = np.argsort(-counts, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        places = place[channels]
        squares = np.square(counts[order] / n)
        n_words = int((np.add.reduceat(squares, np.arange(0, len(order), _WORD)) > _WORTH_A_WORD).sum())
        words = np.zeros((n_words, n), np.uint64)
        rows = np.arange(n)
        for column in places.T:
            frequent = column < n_words * _WORD
            word, bit = np.divmod(column[frequent], _WORD)
            words[word, rows[frequent]] |= np.uint64(1) << bit.astype(np.uint64)
        rare = places >= n_words * _WORD
        starts = np.concatenate([[0], np.cumsum(rare.sum(axis=1))])
        ones = np.ones(starts[-1], np.int16)
        shape = (n, max(1, int(np.count_nonzero(counts)) - n_words * _WORD))
        return cls(channels, words, csr_array((ones, places[rare] - n_words * _WORD, starts), shape=shape))

    def take(self, samples: np.ndarray) -> "_Sets":
        """The sets of some of the samples."""
        return _Sets(self.channels[samples], self.words[:, samples], self.rare[samples])


def _rows(sets: _Sets, classes: np.ndarray) -> _Rows:
    """Each sample's sums over the other samples of its class; ``classes`` is ``(sample,)`` int."""
    n, k = sets.channels.shape
    order = np.argsort(classes, kind="stable")
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    jaccard, shared, n_others = np.zeros(n), np.zeros(n, np.int64), np.empty(n, np.int64)
    n_others[order] = np.repeat(sizes - 1, sizes)
    for size in np.unique(sizes):
        members = order[starts[sizes == size][:, None] + np.arange(size)]
        if size > _FEW:
            for one in members:
                subset = sets.take(one)
                counts = np.bincount(subset.channels.ravel())
                jaccard[one], shared[one] = _jaccard_rows(subset), counts[subset.channels].sum(axis=1) - k
            continue
        left, right = np.triu_indices(size, 1)
        step = max(1, _BLOCK_SETS // max(1, len(left)))
        for start in range(0, len(members), step):
            some = members[start : start + step]
            a, b = some[:, left].ravel(), some[:, right].ravel()
            n_shared = _n_shared(sets.channels[a], sets.channels[b])
            for one in (a, b):
                shared += np.bincount(one, n_shared, n).astype(np.int64)
                jaccard += np.bincount(one, n_shared / (2 * k - n_shared), n)
    return _Rows(jaccard, shared, n_others)


def _jaccard_rows(sets: _Sets) -> np.ndarray:
    """Each sample's sum of Jaccard overlaps with all other samples, ``(sample,)``.

    For sets of k that share m, ``m / (2k - m) = 2k / (2k - m) - 1``, so ``1 / (2k - m)`` is summed.
    """
    n, k = sets.channels.shape
    patterns, inverse, weights = np.unique(sets.words, axis=1, return_inverse=True, return_counts=True)
    sums = _frequent_sums(patterns, weights.astype(np.float64), k)[inverse]
    _add_rare(sums, sets, k)
    # The sum includes a sample's overlap with itself, which is 1.
    return 2 * k * sums - n - 1


def _frequent_sums(words: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """Weighted sums of ``1 / (2k - m)`` over all patterns, m the number of shared frequent channels: ``(pattern,)``."""
    n = len(weights)
    sums = np.zeros(n)
    step = max(1, _BLOCK_PAIRS // n)
    for start in range(0, n, step):
        # From this block on: the rest is its mirror image.
        mine, rest = slice(start, start + step), slice(start, n)
        below = np.full((min(step, n - start), n - start), 2 * k, np.min_scalar_type(2 * k))
        for word in words:
            below -= np.bitwise_count(word[mine, None] & word[rest])
        inverse = below.astype(np.float64)
        np.divide(1, inverse, out=inverse)
        sums[mine] += inverse @ weights[rest]
        sums[start + step :] += weights[mine] @ inverse[:, step:]
    return sums


def _add_rare(sums: np.ndarray, sets: _Sets, k: int) -> None:
    """Add to every sample's sum the change of ``1 / (2k - m)`` due to shared rare channels."""
    n = len(sums)
    n_products = int(np.square(sets.rare.sum(axis=0, dtype=np.int64)).sum())
    step = max(1, n * _BLOCK_SHARED // max(1, n_products))
    transposed = sets.rare.T.tocsr()
    inverses = 1 / np.maximum(1, np.arange(2 * k + 1))
    for start in range(0, n if n_products else 0, step):
        both = sets.rare[start : start + step] @ transposed
        below = np.full(both.nnz, 2 * k, np.min_scalar_type(2 * k))
        if len(sets.words):
            i = np.repeat(np.arange(start, start + both.shape[0]), np.diff(both.indptr))
            for word in sets.words:
                below -= np.bitwise_count(word[i] & word[both.indices])
        # Nothing is out of range; clipping is faster than checking.
        change = inverses.take(below - both.data, mode="clip") - inverses.take(below, mode="clip")
        sums[start : start + step] += csr_array((change, both.indices, both.indptr), shape=both.shape).sum(axis=1)
