"""Token outliers (registers, attention sinks) versus channel outliers. Pure functions.

A cell is one (sample, step, layer); ``...`` are any leading axes of cells, which all arguments share or broadcast over.

- ``norm``: ``(..., token)`` float32, Euclidean norm of each token over **all** channels.
- ``values``: ``(..., k, token)`` float32, signed maps of some channels.
- ``own``: ``(..., token)`` bool, the image's own tokens (:func:`own_tokens`); values at other tokens are ignored.
- ``registers``: ``(..., token)`` bool, the tokens that one of the two rules selects.
- ``grid``: ``(..., 2)`` int64, tokens along height and width, row-major.

Norms and maps must be of single tokens: means over squares of tokens (``tokens: pool:N``) hide registers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewchannels.errors import InputError
from fewchannels.measures.massive import median_over

_NORMAL_SIGMAS = 1.4826  # standard deviation of a normal distribution, in median absolute deviations
TWO_MODES = 5 / 9
_ROUNDING = torch.finfo(torch.float64).eps  # deviations below this share of the mean count as zero


def own_tokens(grid: Tensor, n_tokens: int) -> Tensor:
    """Mask of the image's own tokens on a stored token axis: the first height x width entries.

    Args:
        grid: ``(..., 2)`` int64, tokens along height and width.
        n_tokens: length of the token axis.

    Returns:
        ``(..., token)`` bool.

    Raises:
        InputError: a grid has more tokens than the axis.
    """
    counts = grid.prod(-1)
    if (counts > n_tokens).any():
        raise InputError(
            f"a grid has {counts.max()} tokens, but the arrays have {n_tokens}. Pass the grid of the stored tokens."
        )
    return torch.arange(n_tokens, device=grid.device) < counts[..., None]


def border_tokens(grid: Tensor, n_tokens: int) -> Tensor:
    """Mask of the image's own tokens in the first or last row or column: ``(..., token)`` bool.

    Args:
        grid: ``(..., 2)`` int64, tokens along height and width.
        n_tokens: length of the token axis.

    Raises:
        InputError: a grid has more tokens than the axis.
    """
    height, width = (side[..., None] for side in grid.unbind(-1))
    token = torch.arange(n_tokens, device=grid.device)
    row, column = token // width, token % width
    edge = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    return edge & own_tokens(grid, n_tokens)


def registers_by_ratio(norm: Tensor, own: Tensor, threshold: float) -> Tensor:
    """Tokens whose norm is above ``threshold`` times the lower median norm of the cell's own tokens.

    Registers of vision transformers (Darcet et al. 2024, arXiv 2309.16588) have norms about 10 times those of other
    tokens; no source gives a number for diffusion transformers.

    Args:
        norm: token norms, see the module.
        own: the image's own tokens, see the module.
        threshold: multiple of the median, at least 1, so that registers are less than half of the tokens.

    Returns:
        ``(..., token)`` bool; no registers in a cell with a NaN norm, whose :func:`register_summary` is NaN.

    Raises:
        InputError: the threshold is below 1.
    """
    if not threshold >= 1:
        raise InputError(f"the threshold of registers is {threshold} median norms; it must be at least 1.")
    median = median_over(norm, own).double()
    return own & (norm > threshold * median[..., None])


def registers_by_mad(norm: Tensor, own: Tensor, n_sigmas: float) -> Tensor:
    """Tokens more than ``n_sigmas`` robust standard deviations above the lower median norm.

    The robust standard deviation is 1.4826 times the median absolute deviation (MAD), both with lower medians;
    Iglewicz and Hoaglin (1993) use a threshold of 3.5. If nearly all norms are equal, the MAD is near zero, and every
    token slightly above them is selected: check :attr:`RegisterSummary.least_ratio`.

    Args:
        norm: token norms, see the module.
        own: the image's own tokens, see the module.
        n_sigmas: number of robust standard deviations, not negative.

    Returns:
        ``(..., token)`` bool; no registers in a cell with a NaN norm, whose :func:`register_summary` is NaN.

    Raises:
        InputError: ``n_sigmas`` is negative or NaN.
    """
    if not n_sigmas >= 0:
        raise InputError(
            f"the threshold of registers is {n_sigmas} robust standard deviations; it must not be negative."
        )
    median = median_over(norm, own)[..., None]
    mad = median_over((norm - median).abs(), own)[..., None]
    return own & (norm > median.double() + n_sigmas * _NORMAL_SIGMAS * mad.double())


@dataclass(frozen=True)
class RegisterSummary:
    """Summary of a cell's registers, ``(...)`` float32 each; all are NaN if an own norm is NaN.

    Attributes:
        n: number of registers.
        share: the registers' share of the sample's tokens; the chance level of any share that registers hold.
        least_ratio: the smallest register's norm over the lower median norm of the own tokens; NaN without registers.
        mean_ratio: the registers' mean norm over the same median; NaN without registers.
        border: share of the registers on the border of the grid; NaN without registers.
        border_by_chance: share of the own tokens on the border.
    """

    n: Tensor
    share: Tensor
    least_ratio: Tensor
    mean_ratio: Tensor
    border: Tensor
    border_by_chance: Tensor


def register_summary(norm: Tensor, registers: Tensor, own: Tensor, grid: Tensor) -> RegisterSummary:
    """Summarize the number of a cell's registers, their norms, and their positions on the border."""
    border = border_tokens(grid, norm.shape[-1])
    median = median_over(norm, own).double()
    n, n_own = registers.sum(-1).double(), own.sum(-1)
    least = norm.double().where(registers, torch.inf).amin(-1)
    total = norm.double().where(registers, 0.0).sum(-1)

    def shown(value: Tensor, needs_registers: bool = False) -> Tensor:
        known = ~median.isnan() & (n > 0) if needs_registers else ~median.isnan()
        return value.float().where(known, torch.nan)

    return RegisterSummary(
        n=shown(n),
        share=shown(n / n_own),
        least_ratio=shown(least / median, needs_registers=True),
        mean_ratio=shown(total / n / median, needs_registers=True),
        border=shown((registers & border).sum(-1) / n, needs_registers=True),
        border_by_chance=shown((border & own).sum(-1) / n_own),
    )


def register_share(values: Tensor, registers: Tensor, own: Tensor) -> Tensor:
    """Share of each channel's squared values that the registers hold.

    Returns:
        ``(..., k)`` float32 in [0, 1]; compare with :attr:`RegisterSummary.share`, the share that the same number of
        tokens hold of a channel that is equally large at every token. NaN if the channel is all zero or not finite.
    """
    energy = _energy(values, own)
    held = energy @ registers.double()[..., None]
    return (held.squeeze(-1) / energy.sum(-1)).float()


def token_outliers(held: Tensor, by_chance: Tensor, least_held: float = 0.5, most_tokens: float = 0.1) -> Tensor:
    """Mask of channels that are token outliers: few tokens, the registers, hold most of their squared values.

    Such a channel may also be large at every token; :func:`typical_magnitude` shows this.

    Args:
        held: ``(..., k)``, shares from :func:`register_share`.
        by_chance: ``(...)``, chance level, :attr:`RegisterSummary.share`.
        least_held: share of the channel's squared values above which tokens hold most of it.
        most_tokens: share of the sample's tokens up to which they count as few.

    Returns:
        ``(..., k)`` bool; False if ``held`` or ``by_chance`` is NaN, so count NaN values separately.

    Raises:
        InputError: a share is not in (0, 1].
    """
    for what, share in (("share of squared values", least_held), ("share of tokens", most_tokens)):
        if not 0 < share <= 1:
            raise InputError(f"the {what} that defines a token outlier is {share}; it must be above 0 and at most 1.")
    return (held >= least_held) & (by_chance <= most_tokens)[..., None]


def typical_magnitude(values: Tensor, own: Tensor) -> Tensor:
    """The lower median over tokens of each channel's ``|x|``, which a few registers cannot change.

    Divided by the median score of channels, it distinguishes a channel outlier, with or without registers, from a
    token outlier.

    Returns:
        ``(..., k)`` float32; NaN if an own value is NaN.
    """
    return median_over(values.abs(), own[..., None, :])


def _energy(values: Tensor, own: Tensor) -> Tensor:
    return values.double().square().where(own[..., None, :], 0.0)


class Excised(NamedTuple):
    """Token norms without some channels.

    Attributes:
        norm: ``(..., token)`` float32, ``sqrt(norm^2 - sum x_c^2)``; 0 if rounding made the difference negative.
        floor: ``(..., token)`` float32, resolution limit: a norm at or below it is indistinguishable from zero.
        below_zero: ``(..., token)`` bool, whether the difference was negative.
    """

    norm: Tensor
    floor: Tensor
    below_zero: Tensor


def excised_norms(norm: Tensor, values: Tensor, value_error: float = 0.0, norm_error: float = 2**-16) -> Excised:
    """Token norms without the channels of ``values``.

    The difference of two nearly equal squares has few significant digits: a channel of 2e7 hides all other channels if
    their norm is below 8e4. If all channels' maps are stored, :func:`torch.linalg.vector_norm` of the other channels
    is exact instead.

    Args:
        norm: token norms, see the module.
        values: ``(..., k, token)``, maps of the channels to leave out.
        value_error: largest relative error of ``values``: 2^-8 if the run rounded float32 values to bfloat16. Values of
            a bfloat16 model are not changed by this rounding.
        norm_error: largest relative error of ``norm^2``; a float32 sum over 12,288 channels with one outlier of 2e7 has
            an error of 1.2e-5.
    """
    square, held = norm.double().square(), values.double().square().sum(-2)
    rest = square - held
    floor = (norm_error * square + (2 + value_error) * value_error * held).sqrt()
    return Excised(rest.clamp(min=0).sqrt().float(), floor.float(), rest < 0)


def elevation(norm: Tensor, own: Tensor) -> Tensor:
    """The largest own token's norm over the lower median: ``(...)`` float32, NaN if an own norm is NaN.

    Its values before and after :func:`excised_norms` show whether the massive channels make some tokens large.
    Infinite over a median of zero, NaN for zero over zero.
    """
    return (norm.where(own, -torch.inf).amax(-1).double() / median_over(norm, own).double()).float()


def selectivity(norm: Tensor, excised: Tensor, registers: Tensor, own: Tensor) -> Tensor:
    """Share of the registers' excess norm that vanishes with the excised channels; this project's own definition.

    The value is ``1 - sum(excised - median excised) / sum(norm - median norm)``, with sums over the registers and lower
    medians over all own tokens. 1: without these channels, the registers are ordinary tokens. 0: they stand out as
    before, so other channels make them large. Above 1: they end up below the median. Below 0: they stand out more.

    Args:
        norm: token norms, see the module.
        excised: ``(..., token)``, the same tokens' norms without the channels.
        registers: registers, as found with ``norm``.
        own: the image's own tokens, see the module.

    Returns:
        ``(...)`` float32; NaN without registers, or if an own norm is NaN.
    """
    before, after = (
        (n.double() - median_over(n, own).double()[..., None]).where(registers, 0.0).sum(-1) for n in (norm, excised)
    )
    return (1 - after / before).float()


def bimodality(values: Tensor, own: Tensor) -> Tensor:
    """Sarle's bimodality coefficient over own tokens, corrected for small samples (Pfister et al. 2013).

    The value is ``(G1^2 + 1) / (G2 + 3 (n - 1)^2 / ((n - 2) (n - 3)))``, with the unbiased skewness and excess
    kurtosis. A value above :data:`TWO_MODES`, that of the uniform distribution, suggests two modes. A single mode with
    a heavy tail on one side also suggests two, so check the logarithm of norms too: ``bimodality(norm.log(), own)``.

    Args:
        values: ``(..., token)`` float32, such as norms.
        own: the image's own tokens, see the module.

    Returns:
        ``(...)`` float32, 1 for two equal points; NaN for fewer than 4 tokens, equal values, or values that are not
        finite, such as the logarithm of zero.
    """
    n = own.expand(values.shape).sum(-1).double()
    x = values.double().where(own, 0.0)
    mean = x.sum(-1) / n
    x = (x - mean[..., None]).where(own, 0.0)
    square = x.square()
    second, third, fourth = (power.sum(-1) / n for power in (square, square * x, square.square()))
    squared_skewness = n * (n - 1) / (n - 2) ** 2 * third.square() / second**3
    kurtosis = (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * fourth / second.square() - 3 * (n - 1))
    coefficient = (squared_skewness + 1) / (kurtosis + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3)))
    varies = second > (_ROUNDING * mean).square()
    return coefficient.float().where((n >= 4) & varies, torch.nan)
