"""Intervals against SciPy's bootstrap, all resamples listed, closed forms and planted truth."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from fewchannels.errors import InputError
from fewchannels.measures import intervals
from fewchannels.measures.intervals import cluster_bootstrap, pair_bootstrap
from fewchannels.measures.overlap import pair_overlap


def clusters(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts, (cluster, 1), of clusters of 1 to 5 values that share an effect."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, 6, (n, 1))
    return counts * random.normal(1, 0.5, (n, 1)) + np.sqrt(counts) * random.normal(0, 1, (n, 1)), counts


@pytest.mark.parametrize(("n", "level"), [(12, 0.95), (60, 0.8)])
def test_ends_are_those_of_scipys_bootstrap_of_the_same_ratio(n: int, level: float) -> None:
    sums, counts = clusters(n, seed=n)
    mean, low, high = cluster_bootstrap(sums, counts, 40_000, seed=1, level=level)

    def ratio(s: np.ndarray, c: np.ndarray, axis: int) -> np.ndarray:
        return s.sum(axis) / c.sum(axis)

    theirs = bootstrap(
        (sums[:, 0], counts[:, 0]),
        ratio,
        n_resamples=40_000,
        paired=True,
        method="percentile",
        confidence_level=level,
        rng=np.random.default_rng(2),
    )
    assert mean[0] == pytest.approx(sums.sum() / counts.sum())
    # The standard error of a 2.5 % quantile of 40,000 draws is 1.3 % of the spread.
    tolerance = 5 * 0.013 * theirs.standard_error
    assert low[0] == pytest.approx(theirs.confidence_interval.low, abs=tolerance)
    assert high[0] == pytest.approx(theirs.confidence_interval.high, abs=tolerance)


def test_ends_are_percentiles_over_all_resamples_of_four_clusters() -> None:
    sums, counts = np.array([[1.0], [5.0], [2.5], [9.0]]), np.array([[1], [2], [3], [2]])
    draws = itertools.product(range(4), repeat=4)
    every = np.array([sums[list(draw)].sum() / counts[list(draw)].sum() for draw in draws])
    for level in (0.5, 0.71, 0.95):
        _, low, high = cluster_bootstrap(sums, counts, 100_000, seed=0, level=level)
        for end, tail in ((low[0], (1 - level) / 2), (high[0], (1 + level) / 2)):
            assert np.mean(every < end - 1e-9) - 0.005 < tail < np.mean(every <= end + 1e-9) + 0.005


def test_a_95_percent_interval_of_clustered_values_covers_the_truth_and_one_without_clusters_does_not() -> None:
    random = np.random.default_rng(0)
    n_trials, n_clusters, n_seeds = 600, 40, 4
    values = random.normal(0, 1, (n_clusters, 1, n_trials)) + random.normal(0, 1, (n_clusters, n_seeds, n_trials))
    _, low, high = cluster_bootstrap(values.sum(1), np.full((n_clusters, n_trials), n_seeds), 1000, seed=3)
    assert 0.91 < ((low < 0) & (high > 0)).mean() < 0.98
    flat = values.reshape(-1, n_trials)
    _, low, high = cluster_bootstrap(flat, np.ones(flat.shape), 1000, seed=3)
    assert ((low < 0) & (high > 0)).mean() < 0.85


@given(
    st.integers(0, 9),
    st.integers(2, 9),
    st.integers(1, 4),
    st.sampled_from([1, 20, 2**21]),
    st.sampled_from([60, 2**22]),
)
@settings(max_examples=50)
def test_a_cells_interval_does_not_depend_on_the_other_cells_or_on_blocks(
    seed: int, n: int, n_cells: int, block: int, ratios: int
) -> None:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 3, (n, n_cells))
    sums = counts * random.normal(size=(n, n_cells))
    together = cluster_bootstrap(sums, counts, 50, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "_BLOCK_WEIGHTS", block)
        patch.setattr(intervals, "_BLOCK_RATIOS", ratios)
        for cell in range(n_cells):
            alone = cluster_bootstrap(sums[:, [cell]], counts[:, [cell]], 50, seed)
            for ours, theirs in zip(alone, together, strict=True):
                np.testing.assert_allclose(ours[0], theirs[cell], rtol=1e-12)


def test_cells_without_enough_clusters_have_no_interval() -> None:
    counts = np.array([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
    sums = counts * np.array([[1.0], [2.0], [4.0]])
    mean, low, high = cluster_bootstrap(sums, counts, 2000)
    np.testing.assert_allclose(mean, [np.nan, 1, 1.5, 7 / 3])
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [True, True, False, False]
    # A resample of the third cell that draws neither of its two clusters does not count; the others lie in 1 to 2.
    assert (low[2], high[2]) == (1, 2)
    _, low, _ = pair_bootstrap(sums, counts, 2000)
    assert np.isnan(low).tolist() == [True, True, True, False]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sum_that_is_not_finite_shows_in_its_cell_only(bad: float) -> None:
    sums = np.array([[1.0, 1], [bad, 2], [4, 4]])
    mean, low, high = cluster_bootstrap(sums, np.ones((3, 2)), 100)
    assert not np.isfinite(mean[0])
    assert np.isnan([low[0], high[0]]).all()
    assert np.isfinite([mean[1], low[1], high[1]]).all()


def test_no_clusters_and_no_cells_give_no_numbers() -> None:
    assert np.isnan(cluster_bootstrap(np.empty((0, 2)), np.empty((0, 2)))).all()
    assert [len(part) for part in cluster_bootstrap(np.empty((3, 0)), np.empty((3, 0)))] == [0, 0, 0]


def sets_of_prompts(n_prompts: int, n_seeds: int, random: np.random.Generator) -> np.ndarray:
    """Top-4 sets of 12 channels whose scores have an effect of the prompt: (prompt x seed, 4)."""
    effects = np.repeat(random.normal(0, 0.6, (n_prompts, 12)), n_seeds, axis=0)
    scores = np.linspace(2, 0, 12) + effects + random.normal(0, 0.4, (n_prompts * n_seeds, 12))
    return np.argsort(-scores, axis=1)[:, :4]


def across(channels: np.ndarray, n_seeds: int) -> tuple[np.ndarray, np.ndarray]:
    sums = pair_overlap(channels, np.arange(len(channels)) // n_seeds).across
    return sums.jaccard, sums.n_pairs


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_a_95_percent_interval_over_pairs_of_prompts_covers_the_truth(n_seeds: int) -> None:
    random = np.random.default_rng(n_seeds)
    population = sets_of_prompts(20_000, 1, random)
    pairs = pair_overlap(population, np.arange(20_000)).across
    truth = pairs.jaccard.sum() / pairs.n_pairs.sum()
    trials = [across(sets_of_prompts(100, n_seeds, random), n_seeds) for _ in range(600)]
    sums, counts = (np.stack(part, axis=1) for part in zip(*trials, strict=True))
    mean, low, high = pair_bootstrap(sums, counts, 1000, seed=4)
    assert mean.mean() == pytest.approx(truth, abs=0.005)
    assert 0.91 < ((low < truth) & (truth < high)).mean() < 0.98
    # Without the factor of two of a mean over pairs, intervals are half as wide and miss the truth.
    _, low, high = cluster_bootstrap(sums, counts, 1000, seed=4)
    assert ((low < truth) & (truth < high)).mean() < 0.8


def test_the_interval_over_pairs_is_as_wide_as_its_normal_form() -> None:
    sums, counts = across(sets_of_prompts(200, 2, np.random.default_rng(0)), 2)
    mean = sums.sum() / counts.sum()
    error = 2 * np.sqrt(200 / 199 * np.square(sums - mean * counts).sum()) / counts.sum()
    got, low, high = (part[0] for part in pair_bootstrap(sums[:, None], counts[:, None], 40_000, seed=0))
    assert got == pytest.approx(mean)
    assert (high - low) / (2 * 1.959964 * error) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("n_resamples", "level", "says"), [(0, 0.95, "0 resamples"), (9, 1.0, "level of an interval is 1")]
)
def test_settings_that_cannot_work_are_refused(n_resamples: int, level: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        cluster_bootstrap(np.ones((3, 1)), np.ones((3, 1)), n_resamples, level=level)


@pytest.mark.parametrize(
    ("sums", "counts"), [([[1.0], [2]], [[1], [0]]), ([[1.0], [2]], [[1], [-1]]), ([[1.0]], [[1], [1]])]
)
def test_sums_without_counts_are_refused(sums: list, counts: list) -> None:
    with pytest.raises(ValueError, match="count"):
        cluster_bootstrap(np.array(sums), np.array(counts))
