"""Overlaps of top-k sets against Python's own sets."""

import itertools
import tracemalloc
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from fewchannels.errors import InputError
from fewchannels.measures import overlap
from fewchannels.measures.overlap import (
    PairSums,
    expected_jaccard,
    matched_jaccard,
    pair_overlap,
    selection_counts,
)

KINDS = ("within", "across", "within_category")


def brute_force(channels: np.ndarray, groups: np.ndarray, categories: np.ndarray) -> dict[str, dict[int, list]]:
    """For each kind of pair and group: sum of Jaccard, of shared channels, and number of pairs."""
    sets = [set(row) for row in channels.tolist()]
    sums = {kind: {group: [Fraction(), 0, 0] for group in sorted(set(groups.tolist()))} for kind in KINDS}
    for i, j in itertools.combinations(range(len(sets)), 2):
        shared = len(sets[i] & sets[j])
        pair = (Fraction(shared, len(sets[i] | sets[j])), shared, 1)
        a, b = int(groups[i]), int(groups[j])
        places = [("within", a)] if a == b else [("across", a), ("across", b)]
        if a != b and categories[i] == categories[j] >= 0:  # below 0: without a category
            places += [("within_category", a), ("within_category", b)]
        for kind, group in places:
            sums[kind][group] = [old + new for old, new in zip(sums[kind][group], pair, strict=True)]
    return sums


def mean_jaccard(sums: PairSums) -> float:
    n = sums.n_pairs.sum()
    return float(sums.jaccard.sum() / n) if n else float("nan")


def check(channels: np.ndarray, groups: np.ndarray, categories: np.ndarray) -> None:
    got, expected = pair_overlap(channels, groups, categories), brute_force(channels, groups, categories)
    for kind in KINDS:
        sums: PairSums = getattr(got, kind)
        assert got.groups.tolist() == list(expected[kind])
        jaccard, shared, n_pairs = zip(*expected[kind].values(), strict=True)
        np.testing.assert_allclose(sums.jaccard, np.array(jaccard, float), rtol=1e-12, atol=1e-10)
        assert sums.shared.tolist() == list(shared)
        assert sums.n_pairs.tolist() == list(n_pairs)
        assert sums.total_pairs == sum(n_pairs) / (1 if kind == "within" else 2)
        if sums.total_pairs:
            assert mean_jaccard(sums) == pytest.approx(float(sum(jaccard) / sum(n_pairs)), abs=1e-12)
            assert sums.mean_overlap == pytest.approx(sum(shared) / sum(n_pairs) / channels.shape[1], abs=1e-12)
        else:
            assert np.isnan([mean_jaccard(sums), sums.mean_overlap]).all()


@st.composite
def cells(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sets of few channels, so that many are equal, with groups and categories in any order."""
    n, n_channels = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    k = draw(st.integers(1, n_channels))
    rows = draw(st.lists(st.permutations(range(n_channels)), min_size=n, max_size=n))
    label = st.lists(st.integers(-2, draw(st.sampled_from([-2, 0, 9]))), min_size=n, max_size=n)
    groups = draw(st.one_of(label, st.permutations(range(n))))
    return np.array(rows)[:, :k], np.array(groups), np.array(draw(label))


@given(
    cells(),
    st.sampled_from([0, 3, 64]),
    st.sampled_from([1, 2, 64]),
    st.sampled_from([0.0, 0.1, 1e9]),
    st.sampled_from([1, 7, 2**17]),
)
@settings(max_examples=300)
def test_pairs_are_those_of_python_sets_whichever_way_they_are_compared(
    cell: tuple[np.ndarray, np.ndarray, np.ndarray], few: int, bits: int, worth: float, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_FEW", few)
        patch.setattr(overlap, "_WORD", bits)
        patch.setattr(overlap, "_WORTH_A_WORD", worth)
        for name in ("_BLOCK_PAIRS", "_BLOCK_SHARED", "_BLOCK_SETS"):
            patch.setattr(overlap, name, block)
        check(*cell)


def planted(n: int, k: int, n_core: int, n_channels: int, seed: int = 0) -> np.ndarray:
    """Sets of a core that all samples have, and channels of falling probability."""
    random = np.random.default_rng(seed)
    scores = random.normal(0, 1, (n, n_channels)) + random.normal(0, 1, n_channels)
    scores[:, random.choice(n_channels, n_core, replace=False)] += 100
    return np.argsort(-scores, axis=1)[:, :k]


@pytest.mark.parametrize(
    ("k", "n_core", "n_channels"),
    [(12, 0, 3072), (12, 8, 3072), (12, 2, 60), (40, 0, 200), (3, 3, 9), (1, 0, 500), (140, 20, 300)],
)
def test_pairs_of_a_few_hundred_samples_are_those_of_python_sets(k: int, n_core: int, n_channels: int) -> None:
    random = np.random.default_rng(k)
    groups = random.integers(0, 60, 240)
    check(planted(240, k, n_core, n_channels), groups, groups // 25)


def test_mean_overlap_of_all_pairs_follows_from_how_often_channels_are_selected() -> None:
    channels = planted(700, 12, 5, 400)
    groups = np.arange(700) // 4
    counts = selection_counts(channels, 400)
    got = pair_overlap(channels, groups)
    shared = got.within.shared.sum() + got.across.shared.sum() // 2
    assert shared == sum(n * (n - 1) // 2 for n in counts.tolist())
    alone = pair_overlap(channels, np.arange(700)).across
    assert alone.mean_overlap == pytest.approx((counts * (counts - 1)).sum() / (12 * 700 * 699), rel=1e-14)
    # Jaccard is summed another way; where all pairs share 5 of 12 or more it lies between these.
    assert 5 / 19 <= mean_jaccard(alone) <= alone.mean_overlap


def test_a_core_that_is_the_whole_set_overlaps_entirely_and_disjoint_sets_not_at_all() -> None:
    same = pair_overlap(np.tile(np.arange(12), (500, 1)), np.arange(500) // 5)
    assert (mean_jaccard(same.within), mean_jaccard(same.across)) == pytest.approx((1, 1), abs=1e-14)
    disjoint = pair_overlap(np.arange(500 * 12).reshape(500, 12), np.arange(500) // 5)
    assert (mean_jaccard(disjoint.within), mean_jaccard(disjoint.across)) == pytest.approx((0, 0), abs=1e-14)


@pytest.mark.parametrize("n", [0, 1])
def test_without_a_pair_there_is_no_mean(n: int) -> None:
    got = pair_overlap(np.zeros((n, 1), int), np.zeros(n, int))
    assert np.isnan([mean_jaccard(got.within), got.across.mean_overlap]).all()
    assert got.within_category is None


@pytest.mark.parametrize("n_channels", [64, 480, 3072])
def test_ten_thousand_samples_take_less_than_200_megabytes(n_channels: int) -> None:
    channels = np.argpartition(np.random.default_rng(0).random((10_000, n_channels), np.float32), 12, axis=1)[:, :12]
    channels = channels.copy()
    tracemalloc.start()
    pair_overlap(channels, np.arange(10_000) // 4, np.arange(10_000) // 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.parametrize(
    ("channels", "groups", "says"),
    [
        ([[1, 1], [2, 3]], [0, 0], "contains a channel twice"),
        ([[-1, 1], [2, 3]], [0, 0], "negative"),
        ([[0, 1], [2, 3]], [0], "one group"),
    ],
)
def test_what_is_not_a_set_or_has_no_group_is_refused(channels: list, groups: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pair_overlap(np.array(channels), np.array(groups))


@given(cells())
def test_selection_counts_are_a_counters(cell: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    counter = Counter(cell[0].ravel().tolist())
    assert selection_counts(cell[0], 9).tolist() == [counter[channel] for channel in range(9)]


def test_selection_counts_refuse_a_channel_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="from 2 to 9; there are 9"):
        selection_counts(np.array([[2, 9]]), 9)


@pytest.mark.parametrize(("k", "n_channels"), [(1, 1), (1, 5), (2, 5), (3, 5), (5, 5), (3, 8)])
def test_expected_jaccard_is_the_mean_over_all_pairs_of_sets(k: int, n_channels: int) -> None:
    first, *_ = every = [set(s) for s in itertools.combinations(range(n_channels), k)]
    mean = sum(Fraction(len(first & s), len(first | s)) for s in every) / len(every)
    assert expected_jaccard(k, n_channels) == float(mean)


def test_expected_jaccard_at_flux_size_is_scipys_hypergeometric_mean() -> None:
    m = np.arange(13)
    assert expected_jaccard(12, 3072) == pytest.approx((hypergeom(3072, 12, 12).pmf(m) * m / (24 - m)).sum(), rel=1e-10)


def test_expected_jaccard_refuses_more_channels_than_there_are() -> None:
    with pytest.raises(InputError, match="k is 9; it must be 1 to 8"):
        expected_jaccard(9, 8)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 99), st.sampled_from([1, 5, 999]))
def test_matched_sets_overlap_as_python_sets_and_broadcast(m: int, n: int, k: int, seed: int, block: int) -> None:
    random = np.random.default_rng(seed)
    a, b = (np.argsort(random.random((*shape, 8)), axis=-1)[..., :k] for shape in ((m, n), (1, n)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_BLOCK_SETS", block)
        got = matched_jaccard(a, b)
    for i, j in itertools.product(range(m), range(n)):
        one, other = set(a[i, j].tolist()), set(b[0, j].tolist())
        assert got[i, j] == len(one & other) / len(one | other)
    assert matched_jaccard(a[0, 0], b[0, 0]) == got[0, 0]


def test_matched_sets_are_of_one_size() -> None:
    with pytest.raises(ValueError, match="sets have 3 and 2 channels"):
        matched_jaccard(np.arange(3), np.arange(2))
