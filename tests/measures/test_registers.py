"""Token outliers told from channel outliers: planted hidden states, SciPy, the standard library and loops."""

import math
from statistics import median_low

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from fewchannels.errors import InputError
from fewchannels.measures.registers import (
    TWO_MODES,
    bimodality,
    border_tokens,
    elevation,
    excised_norms,
    own_tokens,
    register_share,
    register_summary,
    registers_by_mad,
    registers_by_ratio,
    selectivity,
    token_outliers,
    typical_magnitude,
)
from fewchannels.measures.scores import lower_median, statistics, token_norms

GRID = torch.tensor([8, 8])
REGISTERS = [0, 29]  # a corner, and row 3, column 5
CHANNEL, TOKEN, BOTH = 3, 5, 7
PADDING = 6
norms = arrays(np.float32, (3, 9), elements=st.floats(0, 1e8, width=32, allow_subnormal=False))
own_masks = arrays(np.bool_, (3, 9))


def planted() -> Tensor:
    """64 tokens of 32 normal channels. Channel 3 is -200 at all, 5 is 2000 at two, 7 is 100 at all and 3000 at two."""
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    x[:, CHANNEL] -= 200
    x[REGISTERS, TOKEN] = -2000
    x[:, BOTH] += 100
    x[REGISTERS, BOTH] = 3000
    return x


def padded(x: Tensor, fill: float = math.nan) -> Tensor:
    return torch.nn.functional.pad(x, (0, PADDING), value=fill)


def norm_of(x: Tensor) -> Tensor:
    return padded(token_norms(x[None])[0])


def maps(x: Tensor, *channels: int) -> Tensor:
    return padded(x[:, channels].T.contiguous())


OWN = own_tokens(GRID, 64 + PADDING)


def found() -> Tensor:
    return registers_by_ratio(norm_of(planted()), OWN, 3)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4))
def test_own_and_border_tokens_are_those_that_a_walk_over_the_grid_meets(sides: list[tuple[int, int]]) -> None:
    grid = torch.tensor(sides)
    own, border = own_tokens(grid, 25).tolist(), border_tokens(grid, 25).tolist()
    for cell, (height, width) in enumerate(sides):
        places = [(row, column) for row in range(height) for column in range(width)]
        edge = [row in (0, height - 1) or column in (0, width - 1) for row, column in places]
        assert own[cell] == [True] * len(places) + [False] * (25 - len(places))
        assert border[cell] == edge + [False] * (25 - len(places))


@given(norms, own_masks, st.sampled_from([1.0, 2.0, 3.5, 10.0]))
def test_the_ratio_rule_is_a_comparison_with_the_lower_median(norm: np.ndarray, own: np.ndarray, times: float) -> None:
    filled = np.where(own, norm, np.float32(1e9))  # larger than any
    got = registers_by_ratio(torch.from_numpy(filled), torch.from_numpy(own), times).tolist()
    for row, mine, registers in zip(norm.astype(float), own, got, strict=True):
        median = median_low(row[mine].tolist()) if mine.any() else math.nan
        assert registers == [bool(o) and n > times * median for n, o in zip(row, mine, strict=True)]


@given(arrays(np.float32, (2, 9), elements=st.integers(0, 1000).map(float)), st.sampled_from([0.5, 1.0, 3.5]))
def test_the_mad_rule_is_scipys_normal_median_absolute_deviation(norm: np.ndarray, n_sigmas: float) -> None:
    # Of 9 tokens, an odd number, the lower median is the median.
    deviation = scipy.stats.median_abs_deviation(norm.astype(float), axis=-1, scale="normal")
    least = np.median(norm, axis=-1) + n_sigmas * deviation
    got = registers_by_mad(torch.from_numpy(norm), torch.ones(2, 9, dtype=torch.bool), n_sigmas).numpy()
    clear = np.abs(norm - least[:, None]) > 0.02  # SciPy's factor has more digits
    assert np.array_equal(got[clear], (norm > least[:, None])[clear])


def test_the_mad_rule_is_strict_and_names_what_stands_out_of_equal_norms() -> None:
    norm = torch.tensor([[5.0, 5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0, 5.01]])
    own = torch.ones(5, dtype=torch.bool)
    assert registers_by_mad(norm, own, 3.5).sum(-1).tolist() == [0, 1]
    assert registers_by_mad(norm, torch.arange(5) < 4, 3.5).sum(-1).tolist() == [0, 0]


def test_both_rules_find_the_planted_registers_and_no_channel_outlier() -> None:
    norm = norm_of(planted())
    for registers in (registers_by_ratio(norm, OWN, 3), registers_by_mad(norm, OWN, 20)):
        assert registers.nonzero().flatten().tolist() == REGISTERS


def test_the_summary_of_planted_registers_by_hand() -> None:
    norm = torch.full((64 + PADDING,), torch.nan)
    norm[:64] = 2.0
    norm[0], norm[29] = 20.0, 40.0
    summary = register_summary(norm, registers_by_ratio(norm, OWN, 5), OWN, GRID)
    assert (summary.n.item(), summary.share.item()) == (2.0, 2 / 64)
    assert (summary.least_ratio.item(), summary.mean_ratio.item()) == (10.0, 15.0)
    assert (summary.border.item(), summary.border_by_chance.item()) == (0.5, 28 / 64)


def test_a_summary_without_registers_and_one_with_a_nan_token_say_so() -> None:
    norm = torch.ones(2, 64)
    norm[1, 7] = torch.nan
    own = own_tokens(GRID, 64)
    summary = register_summary(norm, registers_by_ratio(norm, own, 2), own, GRID)
    assert summary.n[0] == 0
    assert summary.border_by_chance[0] == 28 / 64
    assert summary.least_ratio[0].isnan()
    assert summary.border[0].isnan()
    assert all(getattr(summary, name)[1].isnan() for name in vars(summary))


@given(arrays(np.float32, (2, 3, 6), elements=st.floats(-1e4, 1e4, width=32)), arrays(np.int8, (2, 6)))
def test_register_share_is_a_loop_over_own_tokens(values: np.ndarray, kind: np.ndarray) -> None:
    own, registers = kind % 3 > 0, kind % 3 == 1
    given_values = torch.from_numpy(np.where(own[:, None], values, np.nan).astype(np.float32))
    share = register_share(given_values, torch.from_numpy(registers), torch.from_numpy(own))
    for cell in range(2):
        for k in range(3):
            energy = [float(values[cell, k, n]) ** 2 for n in range(6) if own[cell, n]]
            held = [float(values[cell, k, n]) ** 2 for n in range(6) if registers[cell, n]]
            total = sum(energy)
            expected = sum(held) / total if total else math.nan
            assert share[cell, k].item() == pytest.approx(expected, rel=1e-5, abs=1e-7, nan_ok=True)


def test_planted_channels_are_told_apart() -> None:
    x, registers = planted(), found()
    values = maps(x, CHANNEL, TOKEN, BOTH, 12)
    held = register_share(values, registers, OWN)
    # 200 at every token: what chance gives. 3000 at two and 100 at 62: 18e6 of 18.62e6.
    assert held[:3].tolist() == pytest.approx([2 / 64, 1.0, 18 / 18.62], abs=0.003)
    assert token_outliers(held, torch.tensor(2 / 64)).tolist() == [False, True, True, False]
    everywhere = typical_magnitude(values, OWN) / lower_median(statistics(x[None])[0, 0])
    assert (everywhere > 20).tolist() == [True, False, True, False]


def test_token_outliers_need_most_of_the_energy_in_few_tokens() -> None:
    held = torch.tensor([[0.5, 0.499, torch.nan], [0.9, 0.9, 0.9], [0.9, 0.9, 0.9]])
    by_chance = torch.tensor([0.1, 0.11, torch.nan])
    assert token_outliers(held, by_chance).tolist() == [[True, False, False], [False] * 3, [False] * 3]
    assert token_outliers(held, by_chance, least_held=0.95, most_tokens=0.2).sum() == 0


def test_excised_norms_are_the_norms_of_the_other_channels() -> None:
    x = planted()
    others = [c for c in range(32) if c not in (CHANNEL, TOKEN, BOTH)]
    excised = excised_norms(norm_of(x), maps(x, CHANNEL, TOKEN, BOTH))
    truth = np.linalg.norm(x[:, others].double().numpy(), axis=1)
    error = np.abs(excised.norm[:64].numpy() ** 2 - truth**2)
    assert (error <= excised.floor[:64].numpy() ** 2).all()
    np.testing.assert_allclose(np.delete(excised.norm[:64].numpy(), REGISTERS), np.delete(truth, REGISTERS), rtol=1e-3)
    assert excised.norm[64:].isnan().all()


@settings(max_examples=300)
@given(
    arrays(
        np.float32,
        (5, 6),
        elements=st.floats(-100, 100, width=32, allow_subnormal=False) | st.sampled_from([2e7, -91648.0, 0.0]),
    ),
    st.booleans(),
)
def test_the_true_norm_is_within_the_floor_of_the_excised_one(x: np.ndarray, rounded: bool) -> None:
    state = torch.from_numpy(x)
    values = state[:, :2].T.contiguous()
    if rounded:
        values = values.bfloat16().float()
    excised = excised_norms(token_norms(state[None])[0], values, value_error=2**-8 if rounded else 0.0)
    truth = (x[:, 2:].astype(float) ** 2).sum(1)
    error = np.abs(excised.norm.double().numpy() ** 2 - truth)
    assert (error <= excised.floor.double().numpy() ** 2 * 1.001 + 1e-37).all()


def test_a_difference_below_zero_becomes_zero_and_is_named() -> None:
    norm, values = torch.tensor([2e7, 5.0, 3.0, torch.nan]), torch.tensor([[2.0000002e7, 3.0, 3.0, torch.nan]])
    excised = excised_norms(norm, values)
    assert excised.norm[:3].tolist() == [0.0, 4.0, 0.0]
    assert excised.below_zero.tolist() == [True, False, False, False]
    assert excised.norm[3].isnan()
    # sqrt(2^-16) of 2e7: what a channel of 2e7 hides.
    assert excised.floor[0].item() == pytest.approx(2e7 / 256)


def test_elevation_is_the_largest_norm_over_the_lower_median() -> None:
    norm, own = torch.tensor([3.0, 1.0, 2.0, 12.0, 99.0]), torch.tensor([True, True, True, True, False])
    assert elevation(norm, own).item() == 6.0
    assert elevation(torch.tensor([1.0, torch.nan]), torch.tensor([True, True])).isnan()
    assert elevation(torch.tensor([0.0, 0.0, 2.0]), torch.tensor([True, True, True])).isinf()


def test_selectivity_by_hand() -> None:
    own = torch.ones(5, dtype=torch.bool)
    before = torch.tensor([10.0, 1.0, 2.0, 2.0, 3.0])
    registers = registers_by_ratio(before, own, 2)

    def after(register: float) -> float:
        return selectivity(before, torch.tensor([register, 1.0, 1.0, 1.0, 2.0]), registers, own).item()

    assert after(1.0) == 1.0  # an ordinary token
    assert after(9.0) == 0.0  # 8 above the median, as before
    assert after(3.0) == 0.75
    assert after(0.0) == 1.125
    assert after(17.0) == -1.0
    assert math.isnan(selectivity(before, before, torch.zeros(5, dtype=torch.bool), own).item())


def test_excising_the_registers_channels_and_no_others_takes_their_elevation() -> None:
    x, registers, norm = planted(), found(), norm_of(planted())
    others = excised_norms(norm, maps(x, TOKEN, BOTH)).norm
    assert elevation(norm, OWN) > 10
    assert elevation(others, OWN) < 1.1
    assert selectivity(norm, others, registers, OWN).item() == pytest.approx(1.0, abs=0.01)
    without_channel = excised_norms(norm, maps(x, CHANNEL)).norm
    assert elevation(without_channel, OWN) > 20
    assert selectivity(norm, without_channel, registers, OWN).item() < 0


@given(arrays(np.float32, (4, 12), elements=st.integers(0, 50).map(float)), st.lists(st.integers(0, 12), min_size=4))
def test_bimodality_is_sarles_formula_with_scipys_unbiased_moments(values: np.ndarray, counts: list[int]) -> None:
    n_own = np.array(counts[:4])
    own = np.arange(12) < n_own[:, None]
    got = bimodality(torch.from_numpy(np.where(own, values, np.nan).astype(np.float32)), torch.from_numpy(own))
    for row, n, coefficient in zip(values.astype(float), n_own.tolist(), got.tolist(), strict=True):
        if n < 4 or np.ptp(row[:n]) == 0:
            assert math.isnan(coefficient)
            continue
        skewness, kurtosis = (f(row[:n], bias=False) for f in (scipy.stats.skew, scipy.stats.kurtosis))
        expected = (skewness**2 + 1) / (kurtosis + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3)))
        assert coefficient == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("counts", "published"),
    [((3, 5, 5, 10, 17, 20, 17, 10, 5, 5, 3), 0.34), ((2, 26, 14, 6, 2, 0, 2, 6, 14, 26, 2), 0.79)],
)
def test_bimodality_of_pfisters_examples_is_as_published(counts: tuple[int, ...], published: float) -> None:
    values = torch.repeat_interleave(torch.arange(1.0, 12.0), torch.tensor(counts))
    assert bimodality(values, torch.ones(len(values), dtype=torch.bool)).item() == pytest.approx(published, abs=0.005)


def test_bimodality_separates_one_mode_from_two_and_takes_any_own_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(4000, generator=generator) + 20
    two = torch.cat([torch.randn(2000, generator=generator) + 20, torch.randn(2000, generator=generator) + 40])
    uniform = torch.linspace(1, 2, 4000)
    values, own = torch.stack([one, two, uniform]), torch.ones(4000, dtype=torch.bool)
    one_mode, two_modes, even = bimodality(values, own).tolist()
    assert one_mode < 0.4
    assert two_modes > 0.8
    assert even == pytest.approx(TWO_MODES, abs=0.002)
    assert bimodality(two, torch.arange(4000) >= 2000).item() < 0.4  # the upper mode alone


def test_bimodality_of_logarithms_sees_through_a_heavy_tail() -> None:
    powers = torch.rand(2, 4000, generator=torch.Generator().manual_seed(0)).sum(0)
    norm = 10 ** (2 * powers)  # its logarithm is a triangle: one mode
    own = torch.ones(4000, dtype=torch.bool)
    assert bimodality(norm, own) > TWO_MODES
    assert bimodality(norm.log(), own).item() == pytest.approx(1 / 2.4, abs=0.02)
    norm[3] = 0
    assert bimodality(norm.log(), own).isnan()


@pytest.mark.filterwarnings("error")
def test_bimodality_of_equal_or_infinite_norms_is_nan_without_a_warning() -> None:
    norm = torch.full((2, 8), 3.0)
    norm[1, 2] = torch.inf
    assert bimodality(norm, torch.ones(8, dtype=torch.bool)).isnan().all()


def test_two_leading_axes_give_what_their_cells_give_alone() -> None:
    x = torch.stack([planted(), planted().flip(0) * 3])
    norm = torch.stack([norm_of(one) for one in x])[:, None]
    values = torch.stack([maps(one, CHANNEL, BOTH) for one in x])[:, None]
    registers = registers_by_ratio(norm, OWN, 3)
    excised = excised_norms(norm, values)
    together = [
        register_share(values, registers, OWN),
        typical_magnitude(values, OWN),
        selectivity(norm, excised.norm, registers, OWN),
        register_summary(norm, registers, OWN, GRID).mean_ratio,
        bimodality(norm, OWN),
    ]
    for i in range(2):
        alone = [
            register_share(values[i, 0], registers[i, 0], OWN),
            typical_magnitude(values[i, 0], OWN),
            selectivity(norm[i, 0], excised.norm[i, 0], registers[i, 0], OWN),
            register_summary(norm[i, 0], registers[i, 0], OWN, GRID).mean_ratio,
            bimodality(norm[i, 0], OWN),
        ]
        for whole, one in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[i, 0], one)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: own_tokens(torch.tensor([[2, 2], [4, 5]]), 16), "20 tokens, but the arrays have 16"),
        (lambda: registers_by_ratio(torch.ones(4), torch.ones(4, dtype=torch.bool), 0.5), "is 0.5 median norms"),
        (lambda: registers_by_mad(torch.ones(4), torch.ones(4, dtype=torch.bool), -1), "must not be negative"),
        (lambda: token_outliers(torch.ones(2), torch.tensor(0.1), least_held=0), "share of squared values .* is 0;"),
        (lambda: token_outliers(torch.ones(2), torch.tensor(0.1), most_tokens=1.5), "share of tokens .* is 1.5"),
    ],
)
def test_a_wrong_parameter_is_refused_with_its_rule(call, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()
