"""Scores and selections against numpy, sorting by hand and brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fewchannels.measures import STATISTICS
from fewchannels.measures.scores import energy_share, gini, lower_median, statistics, take_channels, token_norms, top_k

finite = st.floats(-1e8, 1e8, width=32, allow_subnormal=False)  # workers flush them to zero
hidden_states = arrays(np.float32, array_shapes(min_dims=3, max_dims=3, max_side=7), elements=finite)


@given(hidden_states)
def test_statistics_equal_their_formulas_in_float64(x: np.ndarray) -> None:
    wide = x.astype(np.float64)
    expected = {
        "mean_abs": np.abs(wide).mean(1),
        "abs_mean": np.abs(wide.mean(1)),
        "max_abs": np.abs(wide).max(1),
        "rms": np.sqrt((wide**2).mean(1)),
    }
    got = dict(zip(STATISTICS, statistics(torch.from_numpy(x)).numpy(), strict=True))
    for name in STATISTICS:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-6 * max(1.0, np.abs(wide).max()))


def test_statistics_of_half_precision_input_are_taken_in_float32() -> None:
    x = torch.full((1, 4096, 2), 60000.0, dtype=torch.float16)
    assert statistics(x).dtype == torch.float32
    torch.testing.assert_close(statistics(x), torch.full((4, 1, 2), 60000.0))


@given(arrays(np.float32, (3, 9), elements=st.integers(0, 3).map(float)), st.integers(1, 9))
def test_top_k_is_sorting_by_falling_score_then_rising_channel(scores: np.ndarray, k: int) -> None:
    got = top_k(torch.from_numpy(scores), k).tolist()
    assert got == [sorted(range(9), key=lambda c: (-row[c], c))[:k] for row in scores.tolist()]


def test_top_k_shows_a_nan_channel_first() -> None:
    assert top_k(torch.tensor([1.0, torch.nan, 3.0]), 2).tolist() == [1, 2]


def test_top_k_refuses_more_channels_than_there_are() -> None:
    with pytest.raises(ValueError, match="top_k is 5; there are 4 channels"):
        top_k(torch.zeros(4), 5)


@given(hidden_states, st.data())
def test_take_channels_picks_each_samples_own_columns(x: np.ndarray, data: st.DataObject) -> None:
    chosen = data.draw(arrays(np.int64, (x.shape[0], 3), elements=st.integers(0, x.shape[2] - 1)))
    got = take_channels(torch.from_numpy(x), torch.from_numpy(chosen)).numpy()
    for sample, row in enumerate(chosen):
        for k, channel in enumerate(row):
            np.testing.assert_array_equal(got[sample, k], x[sample, :, channel])


def test_token_norms_are_the_lengths_of_tokens() -> None:
    assert token_norms(torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])).tolist() == [[5.0, 2.0]]


def test_lower_median_is_the_lower_of_the_two_in_the_middle() -> None:
    assert lower_median(torch.tensor([[4.0, 1.0, 3.0, 2.0]])).tolist() == [2.0]


def test_energy_share_by_hand_and_for_values_whose_squares_leave_float32() -> None:
    rms = torch.tensor([[3.0, 4.0, 0.0], [3e30, 4e30, 0.0]])
    share = energy_share(rms, torch.tensor([[1], [1]]))
    torch.testing.assert_close(share, torch.tensor([16 / 25, 16 / 25]))


@given(arrays(np.float32, 12, elements=st.floats(0.125, 1e6, width=32)))
def test_gini_is_half_the_relative_mean_difference(scores: np.ndarray) -> None:
    wide = scores.astype(np.float64)
    brute = np.abs(wide[:, None] - wide[None, :]).mean() / (2 * wide.mean())
    assert gini(torch.from_numpy(scores)).item() == pytest.approx(brute, abs=1e-6)


def test_gini_takes_only_the_largest_scores() -> None:
    scores = torch.cat([torch.full((32,), 7.0), torch.full((100,), 1.0)])
    assert gini(scores).item() == 0.0
    assert gini(scores, n_top=132).item() > 0.1
