"""Intervals against SciPy's, the jackknife and the quadratic equation written out, and planted truth."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from fewchannels.errors import InputError
from fewchannels.measures import intervals
from fewchannels.measures.intervals import cluster_interval, missing, pair_interval
from fewchannels.measures.overlap import pair_overlap


def clusters(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts, (cluster, 1), of clusters of 1 to 5 values that share an effect."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, 6, (n, 1))
    return counts * random.normal(1, 0.5, (n, 1)) + np.sqrt(counts) * random.normal(0, 1, (n, 1)), counts


def ones(values: np.ndarray) -> np.ndarray:
    return np.ones(values.shape)


@pytest.mark.parametrize(("n", "level"), [(5, 0.95), (8, 0.95), (60, 0.8)])
def test_of_single_values_it_is_students_t(n: int, level: float) -> None:
    values = np.random.default_rng(n).normal(3, 2, (n, 1))
    mean, low, high = (each[0] for each in cluster_interval(values, ones(values), level=level))
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(stats.t.interval(level, n - 1, values.mean(), stats.sem(values[:, 0])))


@pytest.mark.parametrize("n", [5, 12, 60])
def test_its_standard_error_is_the_jackknifes_of_the_ratio(n: int) -> None:
    sums, counts = clusters(n, seed=n)
    left_out = [np.delete(sums, i).sum() / np.delete(counts, i).sum() for i in range(n)]
    error = np.sqrt((n - 1) / n * sum((each - np.mean(left_out)) ** 2 for each in left_out))
    mean, low, high = (each[0] for each in cluster_interval(sums, counts))
    assert mean == pytest.approx(sums.sum() / counts.sum())
    assert (low, high) == pytest.approx((mean - stats.t.ppf(0.975, n - 1) * error, 2 * mean - low))


def test_seeds_of_a_prompt_are_one_value_of_it() -> None:
    values = np.random.default_rng(0).random((9, 4))
    found = cluster_interval(values.sum(axis=1)[:, None], np.full((9, 1), 4), 0, 1)
    of_means = cluster_interval(values.mean(axis=1)[:, None], np.ones((9, 1)), 0, 1)
    np.testing.assert_allclose(found, of_means)


RANGES = {"both": (0.0, 1.0), "least": (0.0, np.inf), "most": (-np.inf, 1.0)}


@pytest.mark.parametrize("ends", RANGES)
def test_of_a_range_an_end_is_t_errors_away_as_large_as_they_are_there(ends: str) -> None:
    least, most = RANGES[ends]
    values = np.random.default_rng(3).beta(1, 3, (9, 1))
    mean, low, high = (each[0] for each in cluster_interval(values, ones(values), least, most))
    reach = stats.t.ppf(0.975, 8) * stats.sem(values[:, 0])

    def spread(m: float) -> float:
        return (m - least if least > -np.inf else 1) * (most - m if most < np.inf else 1)

    def apart(m: float) -> float:
        return (m - mean) ** 2 - reach**2 * spread(m) / spread(mean)

    reaches = max(least, mean - 9), min(most, mean + 9)
    assert low == pytest.approx(optimize.brentq(apart, reaches[0], mean))
    assert high == pytest.approx(optimize.brentq(apart, mean, reaches[1]))


def wilson(p: Any, n: float, z: float) -> tuple[Any, Any]:
    """Wilson's interval of a share, written out."""
    center, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (center - half) / (1 + z**2 / n), (center + half) / (1 + z**2 / n)


def test_of_shares_it_is_wilsons_of_the_effective_number_of_samples() -> None:
    scipys = stats.binomtest(180, 200).proportion_ci(0.95, method="wilson")
    assert wilson(0.9, 200, 1.959964) == pytest.approx((scipys.low, scipys.high), rel=1e-6)
    values = np.repeat([1.0, 0.0], [180, 20])[:, None]  # with n - 1 in its variance, a sample is worth 199 / 200
    _, low, high = (each[0] for each in cluster_interval(values, ones(values), 0, 1))
    assert (low, high) == pytest.approx(wilson(0.9, 199, stats.t.ppf(0.975, 199)))
    # Four seeds that all do the same are worth one.
    _, low, high = (each[0] for each in cluster_interval(4 * values, np.full(values.shape, 4), 0, 1))
    assert (low, high) == pytest.approx(wilson(0.9, 199, stats.t.ppf(0.975, 199)))


@given(
    st.lists(st.floats(0, 1, width=32), min_size=5, max_size=20),
    st.sampled_from([(0.0, 1.0), (0.0, np.inf), (-np.inf, 1.0), (-1.0, 1.0)]),
)
@settings(max_examples=300)
def test_an_interval_stays_in_the_range_and_holds_the_mean(values: list[float], ends: tuple[float, float]) -> None:
    column = np.array(values)[:, None]
    mean, low, high = (each[0] for each in cluster_interval(column, ones(column), *ends))
    if np.isnan(low):
        assert np.isnan(high)
        assert np.ptp(column) <= 1e-6 * column.max()
    else:
        assert ends[0] <= low <= mean * (1 + 1e-12)
        assert mean * (1 - 1e-12) <= high <= ends[1]


def test_a_mean_rank_has_no_interval_below_the_first_rank() -> None:
    ranks = np.array([1.0] * 11 + [2])[:, None]
    _, low, high = (each[0] for each in cluster_interval(ranks, ones(ranks), 1))
    assert 1 < low < 13 / 12 < high < 2
    assert stats.t.interval(0.95, 11, ranks.mean(), stats.sem(ranks[:, 0]))[0] < 1  # the plain one


@pytest.mark.parametrize("n_seeds", [1, 4])
@pytest.mark.parametrize("n", [5, 8, 12, 30])
def test_a_95_percent_interval_covers_a_normal_truth_whatever_the_number_of_prompts(n: int, n_seeds: int) -> None:
    random = np.random.default_rng(n)
    values = random.normal(0, 1, (n, 1, 4000)) + random.normal(0, 1, (n, n_seeds, 4000))
    _, low, high = cluster_interval(values.sum(1), np.full((n, 4000), n_seeds))
    assert ((low < 0) & (high > 0)).mean() == pytest.approx(0.95, abs=0.015)


def test_values_of_a_cluster_taken_as_independent_miss_the_truth() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0, 1, (40, 1, 600)) + random.normal(0, 1, (40, 4, 600))
    flat = values.reshape(-1, 600)
    _, low, high = cluster_interval(flat, ones(flat))
    assert ((low < 0) & (high > 0)).mean() < 0.85


@pytest.mark.parametrize("n", [30, 100])
def test_a_share_of_samples_of_several_seeds_is_covered(n: int) -> None:
    random = np.random.default_rng(n)
    of_prompt = random.beta(1.4, 0.6, (n, 4000))  # the mean is .7, and seeds of a prompt agree
    selected = random.binomial(4, of_prompt)
    _, low, high = cluster_interval(selected, np.full((n, 4000), 4), 0, 1)
    assert ((low < 0.7) & (high > 0.7)).mean() == pytest.approx(0.95, abs=0.015)
    # Wilson's of the samples, as if they were independent.
    low, high = wilson(selected.sum(axis=0) / (4 * n), 4 * n, 1.959964)
    assert ((low < 0.7) & (high > 0.7)).mean() < 0.85


@given(st.integers(0, 9), st.integers(1, 12), st.integers(1, 4), st.sampled_from([1, 20, 2**21]))
@settings(max_examples=50)
def test_a_cells_interval_does_not_depend_on_the_other_cells_or_on_blocks(
    seed: int, n: int, n_cells: int, block: int
) -> None:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 3, (n, n_cells))
    sums = counts * random.normal(size=(n, n_cells))
    together = cluster_interval(sums, counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "_BLOCK_VALUES", block)
        for cell in range(n_cells):
            alone = cluster_interval(sums[:, [cell]], counts[:, [cell]])
            for ours, theirs in zip(alone, together, strict=True):
                np.testing.assert_allclose(ours[0], theirs[cell], rtol=1e-12)


def test_fewer_than_five_clusters_have_no_interval() -> None:
    counts = (np.arange(5)[:, None] <= np.arange(5)[None]).astype(int)
    sums = counts * np.array([[1.0], [2], [4], [8], [16]])
    mean, low, high = cluster_interval(sums, counts)
    np.testing.assert_allclose(mean, [1, 1.5, 7 / 3, 3.75, 6.2])
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [True] * 4 + [False]
    assert np.isnan(pair_interval(sums, counts)[1]).tolist() == [True] * 4 + [False]
    assert missing(4) == "4 prompts: too few for an interval"
    assert missing(1) == "1 prompt: too few for an interval"


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, -7.1])
def test_equal_means_have_no_interval_rather_than_one_without_width(value: float) -> None:
    counts = np.array([[1], [2], [3], [4], [1], [2], [3]])
    mean, low, high = (each[0] for each in cluster_interval(counts * value, counts))
    assert mean == pytest.approx(value)
    assert np.isnan([low, high]).all()
    assert missing(7) == "all 7 prompts equal"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sum_that_is_not_finite_shows_in_its_cell_only(bad: float) -> None:
    sums = np.array([[1.0, 1], [bad, 2], [4, 4], [0, 0], [3, 3]])
    mean, low, high = cluster_interval(sums, ones(sums))
    assert not np.isfinite(mean[0])
    assert np.isnan([low[0], high[0]]).all()
    assert np.isfinite([mean[1], low[1], high[1]]).all()


def test_no_clusters_and_no_cells_give_no_numbers() -> None:
    assert np.isnan(cluster_interval(np.empty((0, 2)), np.empty((0, 2)))).all()
    assert [len(part) for part in cluster_interval(np.empty((3, 0)), np.empty((3, 0)))] == [0, 0, 0]


def sets_of_prompts(n_prompts: int, n_seeds: int, random: np.random.Generator) -> np.ndarray:
    """Top-4 sets of 12 channels whose scores have an effect of the prompt: (prompt x seed, 4)."""
    effects = np.repeat(random.normal(0, 0.6, (n_prompts, 12)), n_seeds, axis=0)
    scores = np.linspace(2, 0, 12) + effects + random.normal(0, 0.4, (n_prompts * n_seeds, 12))
    return np.argsort(-scores, axis=1)[:, :4]


def across(channels: np.ndarray, n_seeds: int) -> tuple[np.ndarray, np.ndarray]:
    sums = pair_overlap(channels, np.arange(len(channels)) // n_seeds).across
    return sums.jaccard, sums.n_pairs


@pytest.mark.parametrize("n_seeds", [1, 3])
@pytest.mark.parametrize(("n_prompts", "least"), [(8, 0.93), (100, 0.91)])
def test_a_95_percent_interval_over_pairs_of_prompts_covers_the_truth(
    n_seeds: int, n_prompts: int, least: float
) -> None:
    random = np.random.default_rng(n_seeds)
    population = sets_of_prompts(20_000, 1, random)
    pairs = pair_overlap(population, np.arange(20_000)).across
    truth = pairs.jaccard.sum() / pairs.n_pairs.sum()
    trials = [across(sets_of_prompts(n_prompts, n_seeds, random), n_seeds) for _ in range(600)]
    sums, counts = (np.stack(part, axis=1) for part in zip(*trials, strict=True))
    mean, low, high = pair_interval(sums, counts, 0, 1)
    assert mean.mean() == pytest.approx(truth, abs=0.01)
    assert least < ((low < truth) & (truth < high)).mean() < 0.985
    # Pairs taken as clusters of their first prompt have intervals half as wide, and miss the truth.
    _, low, high = cluster_interval(sums, counts, 0, 1)
    assert ((low < truth) & (truth < high)).mean() < 0.8


def test_the_interval_over_pairs_leaves_out_each_prompt_with_all_its_pairs() -> None:
    n, n_seeds = 9, 2
    channels = sets_of_prompts(n, n_seeds, np.random.default_rng(0))
    prompt = np.arange(n * n_seeds) // n_seeds

    def mean_of(kept: np.ndarray) -> float:
        each = [
            len(set(channels[i]) & set(channels[j])) / len(set(channels[i]) | set(channels[j]))
            for i in kept
            for j in kept
            if i < j and prompt[i] != prompt[j]
        ]
        return float(np.mean(each))

    left_out = np.array([mean_of(np.flatnonzero(prompt != each)) for each in range(n)])
    error = np.sqrt((n - 1) / n * np.square(left_out - left_out.mean()).sum())
    sums, counts = across(channels, n_seeds)
    mean, low, high = (part[0] for part in pair_interval(sums[:, None], counts[:, None]))
    assert mean == pytest.approx(mean_of(np.arange(n * n_seeds)))
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, n - 1) * error)


def test_pairs_that_all_have_one_cluster_have_no_interval() -> None:
    counts = np.array([5, 1, 1, 1, 1, 1])[:, None]
    sums = np.array([2.0, 0.1, 0.2, 0.4, 0.6, 0.7])[:, None]
    mean, low, high = (part[0] for part in pair_interval(sums, counts))
    assert mean == pytest.approx(0.4)
    assert np.isnan([low, high]).all()


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_level_that_cannot_be_is_refused(level: float) -> None:
    with pytest.raises(InputError, match=f"level of an interval is {level}"):
        cluster_interval(np.ones((3, 1)), np.ones((3, 1)), level=level)


@pytest.mark.parametrize(
    ("sums", "counts"), [([[1.0], [2]], [[1], [0]]), ([[1.0], [2]], [[1], [-1]]), ([[1.0]], [[1], [1]])]
)
def test_sums_without_counts_are_refused(sums: list, counts: list) -> None:
    with pytest.raises(ValueError, match="count"):
        cluster_interval(np.array(sums), np.array(counts))
