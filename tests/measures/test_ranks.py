"""Rank agreement against SciPy pair by pair, the definitions written out, and values known from elsewhere."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.stats import chisquare, spearmanr

from fewchannels.errors import InputError
from fewchannels.measures.ranks import draw_pairs, kendall, rank_biased_overlap, spearman

# Few different values, so that there are ties.
scores_with_ties = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=7),
    elements=st.floats(0, 4, width=16).map(round).map(float),
)


def is_constant(scores: np.ndarray) -> bool:
    return bool((scores == scores[:, :1]).all(axis=1).any())


@given(scores_with_ties)
def test_kendall_is_tau_b_by_counting_pairs_of_channels(scores: np.ndarray) -> None:
    a, b = scores[:-1], scores[1:]
    for one, other, got in zip(a, b, kendall(a, b), strict=True):
        signs = [
            (np.sign(one[i] - one[j]), np.sign(other[i] - other[j]))
            for i, j in itertools.combinations(range(len(one)), 2)
        ]
        untied = sum(s != 0 for s, _ in signs) * sum(t != 0 for _, t in signs)
        expected = sum(s * t for s, t in signs) / np.sqrt(untied) if untied else np.nan
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_kendall_of_no_pairs_is_empty_and_nan_of_a_nan() -> None:
    assert kendall(np.empty((0, 5)), np.empty((0, 5))).shape == (0,)
    assert np.isnan(kendall(np.array([[1.0, np.nan, 2]]), np.array([[1.0, 2, 3]]))).all()


@given(scores_with_ties)
def test_spearman_is_scipys_pair_by_pair(scores: np.ndarray) -> None:
    a, b = scores[:-1], scores[1:]
    with warnings.catch_warnings(action="ignore"):  # of constant scores, whose rho is NaN
        expected = [spearmanr(one, other).statistic for one, other in zip(a, b, strict=True)]
    np.testing.assert_allclose(spearman(a, b), np.array(expected, float), atol=1e-12)


def test_spearman_by_hand_and_of_no_pairs_and_of_a_nan() -> None:
    """Ranks 1 2.5 2.5 4 and 1 3 2 4 differ from 2.5 by products 2.25, 0, 0 and 2.25, with squares of 4.5 and 5."""
    found = spearman(np.array([[0.0, 1, 1, 2], [np.nan, 1, 2, 3]]), np.array([[0.0, 2, 1, 3], [0, 1, 2, 3]]))
    np.testing.assert_allclose(found, [4.5 / np.sqrt(4.5 * 5), np.nan])
    assert spearman(np.empty((0, 5)), np.empty((0, 5))).shape == (0,)


def ranking(scores: np.ndarray) -> list[int]:
    return sorted(range(len(scores)), key=lambda channel: (-scores[channel], channel))


@given(scores_with_ties, st.floats(0.01, 0.99))
def test_rank_biased_overlap_is_its_definition_depth_by_depth(scores: np.ndarray, p: float) -> None:
    got = rank_biased_overlap(scores[:-1], scores[1:], p)
    for i in range(len(scores) - 1):
        a, b = ranking(scores[i]), ranking(scores[i + 1])
        n = len(a)
        shares = [len(set(a[:d]) & set(b[:d])) / d for d in range(1, n + 1)]
        expected = shares[-1] * p**n + (1 - p) / p * sum(share * p**d for d, share in enumerate(shares, 1))
        assert got[i] == pytest.approx(expected, abs=1e-12)


def test_rank_biased_overlap_of_a_published_example() -> None:
    # 1 2 3 4 5 against 2 3 4 1 5 at 0.9 is 0.828 in several implementations; by hand, 0.59049 + 0.1 * 2.3751.
    a, b = np.array([5, 4, 3, 2, 1.0]), np.array([2, 5, 4, 3, 1.0])
    assert rank_biased_overlap(a, b) == pytest.approx(0.828, abs=1e-9)


def test_rank_biased_overlap_looks_at_the_top_first() -> None:
    scores = np.random.default_rng(0).permutation(3072.0 + np.arange(3072))
    order = np.argsort(-scores)
    swapped_top, swapped_bottom = scores.copy(), scores.copy()
    swapped_top[order[:2]], swapped_bottom[order[-2:]] = scores[order[1::-1]], scores[order[:-3:-1]]
    same, top, bottom = rank_biased_overlap(scores, np.stack([scores, swapped_top, swapped_bottom]))
    assert same == pytest.approx(1, abs=1e-12)
    assert top == pytest.approx(0.9, abs=1e-12)
    assert bottom == pytest.approx(1, abs=1e-12)


def test_rank_biased_overlap_of_a_nan_is_nan_and_of_its_neighbour_not() -> None:
    a = np.array([[1.0, np.nan], [1, 2]])
    assert np.isnan(rank_biased_overlap(a, np.array([[1.0, 2], [1, 2]]))).tolist() == [True, False]


@pytest.mark.parametrize("p", [0, 1, -0.5, float("nan")])
def test_rank_biased_overlap_refuses_other_persistence(p: float) -> None:
    with pytest.raises(InputError, match="it must be between 0 and 1"):
        rank_biased_overlap(np.arange(3.0), np.arange(3.0), p)


def all_pairs(groups: list[int], kind: str) -> set[tuple[int, int]]:
    pairs = itertools.combinations(range(len(groups)), 2)
    return {(i, j) for i, j in pairs if (groups[i] == groups[j]) == (kind == "within")}


@given(st.lists(st.integers(-2, 3), max_size=12), st.sampled_from(["within", "across"]), st.integers(0, 99), st.data())
def test_drawn_pairs_are_different_and_of_their_kind(
    groups: list[int], kind: str, seed: int, data: st.DataObject
) -> None:
    every = all_pairs(groups, kind)
    n = data.draw(st.integers(0, len(every) + 3))
    got = draw_pairs(np.array(groups, int), n, kind, seed)
    assert got.shape == (min(n, len(every)), 2)
    drawn = {(int(i), int(j)) for i, j in got}
    assert len(drawn) == len(got)
    assert drawn <= every
    np.testing.assert_array_equal(got, draw_pairs(np.array(groups, int), n, kind, seed))


@pytest.mark.parametrize("kind", ["within", "across"])
def test_every_pair_is_drawn_equally_often(kind: str) -> None:
    groups = [0, 1, 0, 2, 0, 1, 3, 2, 0]
    counts = dict.fromkeys(all_pairs(groups, kind), 0)
    for seed in range(2000):
        for i, j in draw_pairs(np.array(groups), 3, kind, seed).tolist():
            counts[i, j] += 1
    # Without replacement counts vary less than the test assumes, so that it is a mild one.
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_pairs_of_a_million_samples_are_drawn_without_listing_them() -> None:
    groups = np.random.default_rng(0).permutation(np.arange(1_000_000) // 4)
    within, across = (draw_pairs(groups, 1000, kind, seed=1) for kind in ("within", "across"))
    assert (groups[within[:, 0]] == groups[within[:, 1]]).all()
    assert (groups[across[:, 0]] != groups[across[:, 1]]).all()
    assert len(np.unique(within, axis=0)) == len(np.unique(across, axis=0)) == 1000


def test_an_unknown_kind_of_pair_is_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'within'"):
        draw_pairs(np.zeros(3, int), 1, "with", 0)
