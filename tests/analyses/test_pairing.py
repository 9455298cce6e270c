"""What pairs two runs' layers and steps, and correlates their ranks: arithmetic against its definition and SciPy."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from fewchannels.analyses.comparison.pairing import partners, spearman


def relative(i: int, n: int) -> Fraction:
    return Fraction(i, n - 1) if n > 1 else Fraction(1)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_partners_are_the_nearest_by_place_and_no_two_share_one(n_a: int, n_b: int, data: st.DataObject) -> None:
    a, b = (sorted(data.draw(st.sets(st.integers(0, n - 1)))) for n in (n_a, n_b))
    few, many = min(n_a, n_b), max(n_a, n_b)
    expected = set()
    for i in range(few):
        nearest = min(range(many), key=lambda j: (abs(relative(j, many) - relative(i, few)), j))
        expected.add((i, nearest) if n_a <= n_b else (nearest, i))
    found = partners(a, b, n_a, n_b)
    assert {(a[i], b[j]) for i, j in found} == {(x, y) for x, y in expected if x in a and y in b}
    assert found == sorted(found)
    assert len({j for _, j in found}) == len({i for i, _ in found}) == len(found)


@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_rank_correlation_is_scipys_with_ties_and_without_ranks(n_channels: int, n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.integers(0, 4, (2, n, n_channels)).astype(np.float32)
    a[random.random(n) < 0.2, 0] = np.nan
    with np.errstate(invalid="ignore"):
        expected = [spearmanr(x, y).statistic if np.ptp(x) and np.ptp(y) else np.nan for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(spearman(a, b), expected, atol=1e-12)
