"""Concentration of channels and tests of being massive, against arithmetic by hand, the standard library and loops."""

import math
from fractions import Fraction
from statistics import median_low

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from fewchannels.errors import InputError
from fewchannels.measures.massive import (
    ScalarTest,
    effective_channels,
    energy_shares,
    median_bounds,
    median_over,
    n_massive_channels,
    participation_ratio,
    ratio_by_rank,
    scalar_test,
)
from fewchannels.measures.scores import statistics, take_channels, top_k

magnitudes = st.just(0.0) | st.floats(2.0**-20, 1e8, width=32)
some_scores = arrays(np.float32, array_shapes(min_dims=1, max_dims=1, max_side=12), elements=magnitudes)
# Values on both sides of both thresholds and on them: some are exactly 1000 times others.
steps = st.sampled_from([0.0, 0.0625, 0.125, -0.25, 1.0, -62.5, 100.0, -100.5, 125.0, 250.0, -1000.0, 5e6])
hidden_states = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=steps)


def test_ratio_by_rank_by_hand() -> None:
    scores = torch.tensor([8.0, 1.0, 2.0, 4.0])
    assert ratio_by_rank(scores, 3).tolist() == [4.0, 2.0, 1.0]  # the lower median is 2
    assert ratio_by_rank(scores, 2, over="mean").tolist() == pytest.approx([32 / 15, 16 / 15])


@given(some_scores, st.data())
def test_ratio_by_rank_is_the_sorted_scores_over_the_lower_median(scores: np.ndarray, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(scores)))
    middle = median_low(scores.tolist())
    ranked = sorted(scores.tolist(), reverse=True)[:n]
    expected = [s / middle if middle else (math.inf if s else math.nan) for s in ranked]
    np.testing.assert_allclose(ratio_by_rank(torch.from_numpy(scores), n).numpy(), expected, rtol=1e-6)


def test_a_nan_score_makes_every_ratio_and_count_nan() -> None:
    scores = torch.tensor([[1.0, torch.nan, 50.0], [1.0, 1.0, 50.0]])
    assert ratio_by_rank(scores, 2).isnan().all(dim=-1).tolist() == [True, False]
    assert n_massive_channels(scores, 10).isnan().tolist() == [True, False]


@given(arrays(np.float32, (2, 9), elements=magnitudes), st.permutations(range(9)))
def test_energy_shares_are_sums_of_squares_in_the_given_order(rms: np.ndarray, order: list[int]) -> None:
    ks = (1, 4, 9, 2)
    got = energy_shares(torch.from_numpy(rms), torch.tensor([order, order]), ks).numpy()
    for cell, row in enumerate(rms.astype(np.float64)):
        total = float(sum(row**2))
        for i, k in enumerate(ks):
            held = float(sum(row[c] ** 2 for c in order[:k]))
            assert got[cell, i] == pytest.approx(held / total if total else math.nan, nan_ok=True, rel=1e-6)


@given(arrays(np.float32, 8, elements=st.integers(0, 5000).map(float)), st.sampled_from([1, 2.5, 10, 1000]))
def test_the_channel_test_counts_as_exact_fractions_do(scores: np.ndarray, threshold: float) -> None:
    exact = [Fraction(s) for s in scores.tolist()]
    least = Fraction(threshold) * median_low(exact)
    assert n_massive_channels(torch.from_numpy(scores), threshold) == sum(s > 0 and s >= least for s in exact)


def test_the_participation_ratio_is_the_number_of_equal_shares() -> None:
    energy = torch.tensor([[7.0, 7.0, 7.0, 7.0], [0.0, 3.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    assert participation_ratio(energy).tolist() == pytest.approx([4.0, 1.0, 16 / 10])
    assert participation_ratio(torch.zeros(3, dtype=torch.float64)).isnan()


def test_effective_channels_take_squares_that_leave_float32() -> None:
    assert effective_channels(torch.tensor([1e30, 1e30, 2e30])).item() == pytest.approx(36 / 18)


@given(arrays(np.float32, (3, 7), elements=magnitudes), arrays(np.bool_, (3, 7)))
def test_median_over_is_the_standard_librarys_low_median_of_own_entries(values: np.ndarray, own: np.ndarray) -> None:
    padded = np.where(own, values, np.nan).astype(np.float32)
    got = median_over(torch.from_numpy(padded), torch.from_numpy(own)).tolist()
    for median, row, mine in zip(got, values, own, strict=True):
        kept = row[mine].tolist()
        assert median == pytest.approx(median_low(kept) if kept else math.nan, nan_ok=True)


def test_median_over_one_row_and_over_an_own_nan() -> None:
    row, own = torch.tensor([3.0, 1.0, torch.nan]), torch.tensor([True, True, False])
    assert median_over(row, own).item() == 1.0
    assert median_over(row, torch.ones(3, dtype=torch.bool)).isnan()


@settings(max_examples=300)
@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=8),
        elements=st.floats(-1e8, 1e8, width=32, allow_subnormal=False) | st.floats(-4, 4, width=32),
    )
)
def test_the_median_is_never_outside_its_bounds(x: np.ndarray) -> None:
    mean_abs, _, max_abs, rms = statistics(torch.from_numpy(x)[None])[:, 0]
    low, high = median_bounds(mean_abs, rms, max_abs.amax()).tolist()
    assert low <= median_low(np.abs(x).ravel().tolist()) <= high


def test_bounds_of_squares_that_vanish_in_float32_are_honest() -> None:
    x = torch.tensor([1e-25] * 6 + [9e-25] * 5)[None, :, None]
    mean_abs, _, max_abs, rms = statistics(x)[:, 0]
    low, high = median_bounds(mean_abs, rms, max_abs.amax()).tolist()
    assert low <= 1e-25 <= high


def test_bounds_where_half_of_the_channels_are_all_zero_are_zero() -> None:
    assert median_bounds(torch.tensor([0.0, 5.0]), torch.tensor([0.0, 5.0]), torch.tensor(5.0)).tolist() == [0.0, 0.0]


def test_a_mean_square_beyond_float32_spoils_its_channel_only_and_nan_the_whole_cell() -> None:
    mean_abs, rms = torch.tensor([5.0, 5.0, 1e18]), torch.tensor([5.0, 5.0, torch.inf])
    assert median_bounds(mean_abs, rms, torch.tensor(1e20)).tolist() == pytest.approx([5.0, 5.0], rel=0.02)
    for place in range(2):
        spoilt = [mean_abs, mean_abs]
        spoilt[place] = torch.tensor([5.0, torch.nan, 5.0])
        assert median_bounds(*spoilt, torch.tensor(5.0)).isnan().all()


def test_bounds_of_the_median_are_as_close_as_two_moments_allow() -> None:
    def bounds(tokens: list[float], n_channels: int = 64) -> list[float]:
        x = torch.tensor(tokens)[None, :, None].expand(1, -1, n_channels)
        mean_abs, _, max_abs, rms = statistics(x)[:, 0]
        return median_bounds(mean_abs, rms, max_abs.amax()).tolist()

    # Mean 2, deviation 1: half the values at 1 and half at 3 has the lower median 1; one more at 3 makes it 3.
    assert bounds([1.0] * 50 + [3.0] * 50) == pytest.approx([1.0, 3.0], rel=0.01)
    assert bounds([5.0] * 9) == pytest.approx([5.0, 5.0], rel=0.01)
    # Mean 1, deviation 3.99: Cantelli's inequality would allow 4.99, Markov's allows 2.
    assert bounds([1.0] * 60 + [0.0] * 39 + [40.0])[1] == pytest.approx(2.0, rel=0.01)


def test_bounds_of_normal_channels_and_one_massive_are_what_the_documentation_says() -> None:
    x = torch.randn(1, 2048, 256, generator=torch.Generator().manual_seed(0))
    x[..., 9] += 5000
    mean_abs, _, max_abs, rms = statistics(x)[:, 0]
    median = median_low(x.abs().flatten().tolist())
    low, high = median_bounds(mean_abs, rms, max_abs.amax()).tolist()
    assert (low / median, high / median) == pytest.approx((0.29, 2.08), abs=0.03)


def run_test(x: np.ndarray, k: int, n_padding: int = 0, fill: float = math.nan, **thresholds: float) -> ScalarTest:
    """The scalar test of a hidden state ``(token, channel)`` of which the top-k maps were stored."""
    state = torch.from_numpy(x)[None]
    mean_abs, _, max_abs, rms = statistics(state)
    channels = top_k(mean_abs, k)
    maps = take_channels(state, channels)
    padding = torch.full((1, k, n_padding), fill)
    own = torch.arange(len(x) + n_padding) < len(x)
    return scalar_test(mean_abs, rms, max_abs, torch.cat([maps, padding], -1), channels.int(), own, **thresholds)


def counted(x: np.ndarray) -> tuple[float, int, int, int]:
    """Median, massive scalars, channels and tokens with one, by a loop in exact arithmetic."""
    median = median_low(np.abs(x).ravel().tolist())
    found = [
        (n, c)
        for n in range(x.shape[0])
        for c in range(x.shape[1])
        if abs(x[n, c]) > 100 and Fraction(abs(float(x[n, c]))) >= 1000 * Fraction(median)
    ]
    return median, len(found), len({c for _, c in found}), len({n for n, _ in found})


def pairs(test: ScalarTest) -> list[Tensor]:
    return [test.n_scalars, test.n_channels, test.n_tokens]


@settings(max_examples=300)
@given(hidden_states, st.integers(0, 3), st.sampled_from([math.nan, 1e9, 0.0]))
def test_with_every_map_the_scalar_test_counts_as_a_loop_does(x: np.ndarray, n_padding: int, fill: float) -> None:
    test = run_test(x, x.shape[1], n_padding, fill)
    median, *counts = counted(x)
    assert test.median.item() == median
    assert [pair.tolist() for pair in pairs(test)] == [[[n, n]] for n in counts]
    assert test.passes.item() == (counts[0] > 0)


@settings(max_examples=300)
@given(hidden_states, st.data())
def test_with_few_maps_the_scalar_test_never_excludes_the_truth(x: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, x.shape[1]))
    test = run_test(x, k)
    median, *counts = counted(x)
    assert test.largest.item() == np.abs(x).max()
    assert test.median.isnan().item() == (k < x.shape[1])
    for pair, truth in zip([test.median_bounds, *pairs(test)], [median, *counts], strict=True):
        least, most = pair[0].tolist()
        assert least <= truth <= most
    assert test.passes.isnan().item() or test.passes.item() == (counts[0] > 0)


def planted() -> np.ndarray:
    """32 tokens of 64 channels about 1: channel 5 is 30,000 at every token, channel 8 is 900,000 at token 3 only."""
    x = np.random.default_rng(0).choice([-1.0, 1.0], (32, 64)).astype(np.float32)
    x[:, 5], x[3, 8] = 30_000, -900_000
    return x


def test_a_clear_case_is_exact_without_the_median() -> None:
    test = run_test(planted(), 2)
    assert test.passes.item() == 1.0
    assert [pair.tolist() for pair in pairs(test)] == [[[33.0, 33.0]], [[2.0, 2.0]], [[32.0, 32.0]]]


def test_a_channel_without_a_map_counts_once_at_least_and_as_its_mean_allows_at_most() -> None:
    x = planted()
    x[3, 8] = 2000
    test = run_test(x, 1)  # the map of channel 5 is there, 32 massive scalars
    assert test.n_channels.tolist() == [[2.0, 2.0]]
    # Of channel 8 the sum of |x| is 2031, of which two values could reach the cut of 1000 and no third.
    assert test.n_scalars.tolist() == [[33.0, 34.0]]
    assert test.n_tokens.tolist() == [[32.0, 32.0]]


def test_a_massive_channel_without_a_map_is_at_one_token_at_least() -> None:
    x = np.ones((32, 8), np.float32)
    x[:, 0], x[3, 1] = 150, 2000
    test = run_test(x, 1)
    assert test.n_tokens.tolist() == test.n_scalars.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("n_tokens", range(4, 60))
@pytest.mark.parametrize("n_at_cut", [1, 2, 3])
def test_values_that_just_reach_the_cut_count_however_their_mean_was_rounded(n_tokens: int, n_at_cut: int) -> None:
    x = np.zeros((n_tokens, 5), np.float32)
    x[:, 0], x[:n_at_cut, 1] = 99, np.nextafter(np.float32(100), np.float32(200))
    assert run_test(x, 1).n_scalars.tolist() == [[1.0, n_at_cut]]


def test_an_infinite_variance_leaves_what_the_mean_says_of_the_count() -> None:
    x = planted()
    x[:, 5], x[3, 8] = 2e19, 1e20
    # Of channel 8 the sum is 1e20: ten values could be above 1e19.
    assert run_test(x, 1, absolute=0.99e19).n_scalars.tolist() == [[33.0, 42.0]]


def test_what_the_bounds_leave_open_is_undecided() -> None:
    x = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    x[7, 3] = 700  # 1000 medians are about 675; by the bounds they could be 200 or 1400
    assert counted(x)[1] == 1
    test = run_test(x, 2)
    assert test.passes.isnan().item()
    assert test.n_scalars.tolist() == [[0.0, 1.0]]
    assert run_test(x, 64).passes.item() == 1.0


def test_a_small_median_leaves_only_the_absolute_threshold() -> None:
    x = np.full((9, 16), 0.01, np.float32)
    x[0, :3] = 100, 100.0625, 99
    test = run_test(x, 3)
    assert [pair.tolist() for pair in pairs(test)] == [[[1.0, 1.0]]] * 3


def test_the_thresholds_are_strict_and_not_strict_as_published_and_can_be_changed() -> None:
    x = np.full((4, 4), 0.25, np.float32)
    x[0, 0], x[1, 1] = 250, 249.9
    assert run_test(x, 4).n_scalars.tolist() == [[1.0, 1.0]]
    assert run_test(x, 4, absolute=250).n_scalars.tolist() == [[0.0, 0.0]]
    assert run_test(x, 4, relative=999).n_scalars.tolist() == [[2.0, 2.0]]


def test_a_nan_of_the_image_makes_the_whole_cell_nan_and_a_cell_that_did_not_run_too() -> None:
    x = planted()
    x[0, 0] = np.nan
    for k in (2, 64):
        test = run_test(x, k)
        assert all(field.isnan().all() for field in [test.largest, test.passes, *pairs(test)])
    nan = torch.full((1, 6), torch.nan)
    unrun = scalar_test(nan, nan, nan, nan[None, :, :4], torch.tensor([[-1]]), torch.ones(4, dtype=torch.bool))
    assert all(field.isnan().all() for field in [unrun.largest, unrun.passes, *pairs(unrun)])


def test_an_infinite_value_is_massive_and_leaves_the_rest_within_bounds() -> None:
    x = planted()
    x[0, 20] = np.inf
    test = run_test(x, 2)
    assert test.largest.isinf()
    assert test.n_channels[0, 0] <= 3 <= test.n_channels[0, 1]


def test_cells_are_independent_of_the_cells_beside_them() -> None:
    states = torch.from_numpy(np.stack([planted(), planted() * 0.5, planted()[::-1] + 2]))
    mean_abs, _, max_abs, rms = (s.view(3, 1, 64) for s in statistics(states))
    channels = top_k(mean_abs, 3)
    maps, own = take_channels(states, channels[:, 0])[:, None], torch.ones(32, dtype=torch.bool)
    together = scalar_test(mean_abs, rms, max_abs, maps, channels, own)
    for i, state in enumerate(states.numpy()):
        alone = run_test(np.ascontiguousarray(state), 3)
        for pair, one in zip(pairs(together), pairs(alone), strict=True):
            assert pair[i].tolist() == one.tolist()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ratio_by_rank(torch.ones(4), 5), "n_ranks is 5; it must be 1 to 4"),
        (lambda: ratio_by_rank(torch.ones(4), 2, over="medain"), "Did you mean 'median'"),
        (lambda: energy_shares(torch.ones(4), torch.tensor([0, 1]), (1, 3)), r"ks includes \[3\]; .* from 1 to 2"),
        (lambda: n_massive_channels(torch.ones(4), 0), "channel test is 0; it must be positive"),
        (lambda: run_test(planted(), 2, absolute=-1.0), "absolute threshold .* is -1.0"),
        (lambda: run_test(planted(), 2, relative=math.nan), "relative threshold .* is nan"),
    ],
)
def test_a_wrong_parameter_is_refused_with_its_rule(call, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()
