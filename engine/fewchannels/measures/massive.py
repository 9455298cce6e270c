"""Concentration of a cell's channels, and published tests of massive activations. Pure functions.

A cell is one (sample, step, layer); ``...`` are any leading axes of cells. Scores are one statistic over the image
tokens, ``(..., channel)``. ``own`` is ``(..., token)`` bool, True at the image's own tokens and False at the padding
after a smaller image's last token. The Gini coefficient of the top 32 and a single energy share are in
:mod:`fewchannels.measures.scores`.

Maps are ``massive_value`` of a run that recorded every token: means over squares of tokens are not values of the hidden
state, and maps that were rounded to bfloat16 may differ from the statistics by 1 part in 256.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewchannels.errors import InputError, unknown
from fewchannels.measures.scores import energy_share, lower_median

# The statistics are float32 sums, accurate to about 1 part in a million: the bounds are widened by ten times that, and
# variances by an amount that covers underflow in float32, such as that of the square of 1e-20.
_SLACK = 1e-5
_TINY = torch.finfo(torch.float32).tiny
_LEAST = torch.finfo(torch.float64).tiny
_HALVINGS = 12


def ratio_by_rank(scores: Tensor, n_ranks: int, over: str = "median") -> Tensor:
    """The largest scores, as multiples of the median or mean score; the first is the cell's main ratio.

    Args:
        scores: ``(..., channel)`` float32, non-negative.
        n_ranks: number of ranks, starting with the largest score.
        over: denominator: ``median``, the lower median over channels, or ``mean``, with which SPARK (arXiv
            2609.03813) compares ranks 1 to 8 with all channels of the block.

    Returns:
        ``(..., rank)`` float32, descending; infinite over a median of zero or beyond float32, NaN for zero over zero.
        All are NaN if any score is NaN.

    Raises:
        InputError: there are fewer channels than ranks, or ``over`` has another value.
    """
    if not 1 <= n_ranks <= scores.shape[-1]:
        raise InputError(f"n_ranks is {n_ranks}; it must be 1 to {scores.shape[-1]}, the number of channels.")
    if over not in ("median", "mean"):
        raise unknown("reference for ratios", over, ("median", "mean"))
    middle = lower_median(scores).double() if over == "median" else scores.double().mean(-1)
    return (scores.topk(n_ranks).values / middle[..., None]).float()


def energy_shares(rms: Tensor, order: Tensor, ks: Sequence[int]) -> Tensor:
    """Share of the hidden state's squared values in the first k channels of any order, for several k.

    Args:
        rms: ``(..., channel)`` float32 root mean squares.
        order: ``(..., rank)`` int64 channel indices, such as :func:`fewchannels.measures.scores.top_k` of any score.
        ks: numbers of channels, each at most the number of ranks.

    Returns:
        ``(..., k)`` float32 in [0, 1], in the order of ``ks``; NaN if the hidden state is all zero or not finite.

    Raises:
        InputError: a k is out of range.
    """
    if wrong := [k for k in ks if not 1 <= k <= order.shape[-1]]:
        raise InputError(f"ks includes {wrong}; each k must be from 1 to {order.shape[-1]}, the number of ranks.")
    return torch.stack([energy_share(rms, order[..., :k]) for k in ks], dim=-1)


def n_massive_channels(scores: Tensor, threshold: float) -> Tensor:
    """The channel test: number of channels whose score is at least ``threshold`` times the lower median score.

    They are the first of the ranking. Zero never passes; if the median is zero, every other score passes.

    Args:
        scores: ``(..., channel)`` float32, non-negative.
        threshold: multiple of the median, positive.

    Returns:
        ``(...)`` float64 counts; NaN if any score is NaN.

    Raises:
        InputError: the threshold is not positive.
    """
    _check_positive("threshold of the channel test", threshold)
    median = lower_median(scores).double()
    # A product, not a quotient: with float32 scores and a whole threshold, it is exact in float64.
    passing = (scores > 0) & (scores >= threshold * median[..., None])
    return passing.sum(-1).double().where(~median.isnan(), torch.nan)


def participation_ratio(energy: Tensor) -> Tensor:
    """Effective number of entries that hold the energy: 1 if one entry has all of it, their number if all are equal.

    The value is ``(sum e)^2 / sum e^2``, the inverse of the sum of squared shares.

    Args:
        energy: ``(..., entry)`` float64, non-negative.

    Returns:
        ``(...)`` float32; NaN if all are zero or any is not finite.
    """
    return (1 / (energy / energy.sum(-1, keepdim=True)).square().sum(-1)).float()


def effective_channels(rms: Tensor) -> Tensor:
    """Effective number of channels: :func:`participation_ratio` of the squares of ``rms``, ``(..., channel)``."""
    return participation_ratio(rms.double().square())


def median_over(values: Tensor, own: Tensor) -> Tensor:
    """The lower median over the image's own entries.

    Args:
        values: ``(..., token)`` float32; values at other tokens are ignored.
        own: mask of the image's own tokens, bool, broadcast to ``values``.

    Returns:
        ``(...)`` float32; NaN if an own entry is NaN, or if there is no own entry.
    """
    own = own.expand(values.shape)
    padded = values.where(own, torch.inf)
    medians = _by_rank(padded, (own.sum(-1) - 1).clamp(min=0) // 2)
    return medians.where(own.any(-1) & ~padded.isnan().any(-1), torch.nan)


def _by_rank(values: Tensor, rank: Tensor) -> Tensor:
    """The entry of each row ``(..., entry)`` at the given rank ``(...)``, 0 for the smallest."""
    if values.device.type != "cpu":
        return values.sort(dim=-1).values.gather(-1, rank[..., None])[..., 0]
    found = torch.empty_like(rank, dtype=values.dtype)
    for at in rank.unique().tolist():
        # NumPy's partition is 15 times faster than torch.median, which also cannot exclude entries.
        rows = values[rank == at].numpy()
        found[rank == at] = torch.from_numpy(np.partition(rows, at, axis=-1)[..., at])
    return found


def median_bounds(mean_abs: Tensor, rms: Tensor, largest: Tensor) -> Tensor:
    """Bounds of the lower median ``|x|`` over all tokens and channels, from two statistics per channel.

    In a channel with mean ``a`` and variance ``v`` of ``|x|``, at most ``min(a / h, v / (v + (h - a)^2))`` of the
    values reach ``h > a``, and at most ``v / (v + (a - h)^2)`` are at or below ``h < a`` (Markov, Cantelli). If the
    median were above ``h``, so would be more than half of all values. With many tokens, no tighter bounds follow from
    means and mean squares. For normal channels with equal scales, they are 0.3 and 2.1 times the median.

    Args:
        mean_abs: ``(..., channel)`` float32, means of ``|x|`` over any number of tokens.
        rms: root mean squares, same shape.
        largest: ``(...)`` float32, the largest ``|x|``.

    Returns:
        ``(..., 2)`` float64, a lower and an upper bound of the median. They allow for rounding of the statistics. NaN
        if any statistic is NaN.
    """
    spread = _Spread.of(mean_abs, rms)
    half = mean_abs.shape[-1] / 2
    middle = lower_median(mean_abs).double()  # it satisfies both inequalities, so it lies between the bounds
    low, low_fails = torch.zeros_like(middle), middle
    high_fails, high = middle, largest.double()
    for _ in range(_HALVINGS):
        between = (low + low_fails) / 2
        proved = spread.most_at_or_below(between).sum(-1) < half
        low, low_fails = between.where(proved, low), low_fails.where(proved, between)
        between = (high_fails * high).sqrt()  # the largest may be a million times the median
        proved = spread.most_at_or_above(between).sum(-1) <= half
        high, high_fails = between.where(proved, high), high_fails.where(proved, between)
    bounds = torch.stack([low * (1 - _SLACK), high * (1 + _SLACK)], dim=-1)
    return bounds.where(~(mean_abs.isnan() | rms.isnan()).any(-1)[..., None], torch.nan)


@dataclass(frozen=True)
class ScalarTest:
    """The scalar test of Sun et al. 2024 (arXiv 2402.17762), as far as the stored data decide it.

    Pairs are ``(..., 2)`` float64, the smallest and the largest value consistent with the stored data; if equal, they
    are exact. All are NaN in a cell with a NaN.

    Attributes:
        largest: ``(...)`` float32, the largest ``|x|`` of the hidden state; exact.
        median: ``(...)`` float32, the lower median ``|x|`` over tokens and channels; NaN unless every channel's map is
            stored.
        median_bounds: a pair, bounds of the median; the median twice if it is known.
        n_scalars: a pair, number of massive scalars.
        n_channels: a pair, number of channels with a massive scalar; exact whenever the median is.
        n_tokens: a pair, number of tokens with a massive scalar.
    """

    largest: Tensor
    median: Tensor
    median_bounds: Tensor
    n_scalars: Tensor
    n_channels: Tensor
    n_tokens: Tensor

    @property
    def passes(self) -> Tensor:
        """Verdict, ``(...)`` float32: 1 if there certainly is a massive scalar, 0 if certainly none, NaN if unknown."""
        least, most = self.n_channels.unbind(-1)
        decided = torch.full_like(self.largest, torch.nan)
        return decided.masked_fill(least > 0, 1.0).masked_fill(most == 0, 0.0)


def scalar_test(
    mean_abs: Tensor,
    rms: Tensor,
    max_abs: Tensor,
    values: Tensor,
    channels: Tensor,
    own: Tensor,
    absolute: float = 100.0,
    relative: float = 1000.0,
) -> ScalarTest:
    """Massive scalars: ``|x| > absolute`` and ``|x| >= relative`` times the lower median ``|x|`` of the hidden state.

    With every channel's map, all results are exact. With the top-k maps, the median is known within
    :func:`median_bounds`. For a channel without a map, ``max_abs`` determines whether it has massive scalars, and its
    mean and mean square bound their number. If ``relative`` times the median is certainly below ``absolute``, the
    median does not matter.

    Args:
        mean_abs: ``(..., channel)`` float32, means of ``|x|`` of all channels.
        rms: root mean squares, same shape.
        max_abs: maxima of ``|x|``, same shape.
        values: ``(..., k, token)`` float32 signed maps.
        channels: ``(..., k)`` integers, channels of these maps, each once.
        own: ``(..., token)`` bool, the image's own tokens.
        absolute: absolute threshold, positive; Sun et al. use 100.
        relative: relative threshold, positive; Sun et al. use "around 1000".

    Raises:
        InputError: a threshold is not positive.
    """
    _check_positive("absolute threshold of the scalar test", absolute)
    _check_positive("relative threshold of the scalar test", relative)
    largest, magnitude = max_abs.amax(-1), values.abs().flatten(-2)
    every_channel = values.shape[-2] == max_abs.shape[-1]
    if every_channel:
        median = median_over(magnitude, own[..., None, :].expand(values.shape).flatten(-2))
        bounds = median.double()[..., None].expand(*median.shape, 2)
    else:
        median = torch.full_like(largest, torch.nan)
        bounds = median_bounds(mean_abs, rms, largest)
    # Channel -1 marks a cell that did not run, whose statistics are NaN.
    stored = torch.zeros_like(max_abs, dtype=torch.bool).scatter(-1, channels.long().clamp(min=0), True)
    cuts = [_least_massive(absolute, relative * bounds[..., i]) for i in (1, 0)]
    passing = [max_abs >= cut[..., None] for cut in cuts]
    mapped = [(magnitude >= cut[..., None]).view(values.shape) & own[..., None, :] for cut in cuts]
    # A sum in 32 bits is ten times as fast as torch's default for bool, and as `any`.
    per_token = [found.sum(-2, dtype=torch.int32) for found in mapped]
    n_own = own.sum(-1)
    n_unmapped = _most_scalars(mean_abs, rms, cuts[1], n_own).where(passing[1] & ~stored, 0.0).sum(-1)
    n_mapped = [found.sum(-1) for found in per_token]
    scalars = n_mapped[0] + (passing[0] & ~stored).sum(-1), n_mapped[1] + n_unmapped
    tokens = [(found > 0).sum(-1) for found in per_token]
    least_tokens = torch.maximum(tokens[0], passing[0].any(-1).long())
    most_tokens = torch.minimum(tokens[1] + n_unmapped, n_own)
    spoilt = largest.isnan() | bounds.isnan().any(-1)

    def pair(least: Tensor, most: Tensor) -> Tensor:
        return torch.stack([least.double(), most.double()], dim=-1).where(~spoilt[..., None], torch.nan)

    return ScalarTest(
        largest=largest,
        median=median,
        median_bounds=bounds,
        n_scalars=pair(*scalars),
        n_channels=pair(*(p.sum(-1) for p in passing)),
        n_tokens=pair(least_tokens, most_tokens),
    )


def _least_massive(absolute: float, relative: Tensor) -> Tensor:
    """The smallest float32 above ``absolute`` and not below ``relative`` (float64): comparing in float32 is exact."""
    least = relative.clamp(min=math.nextafter(absolute, math.inf))
    near = least.float()
    return near.nextafter(torch.full_like(near, torch.inf)).where(near.double() < least, near)


def _most_scalars(mean_abs: Tensor, rms: Tensor, cut: Tensor, n_tokens: Tensor) -> Tensor:
    """Upper bound of the number of a channel's values that reach the cut: ``(..., channel)`` float64."""
    share = _Spread.of(mean_abs, rms).most_at_or_above(cut.double())
    return (share * (1 + _SLACK) * n_tokens[..., None]).floor()


@dataclass(frozen=True)
class _Spread:
    """Means and standard deviations of ``|x|`` over tokens, ``(..., channel)`` float64 each.

    Attributes:
        mean: mean of the channel.
        standard: the mean in standard deviations; 0 if the deviation is infinite.
        per_one: number of standard deviations in 1, the inverse of the deviation; same convention.
    """

    mean: Tensor
    standard: Tensor
    per_one: Tensor

    @classmethod
    def of(cls, mean_abs: Tensor, rms: Tensor) -> "_Spread":
        mean, square = mean_abs.double(), rms.double().square()
        # Never below the true variance: rounding may hide the variation of a nearly constant channel.
        variance = (square - mean.square()).clamp(min=0) + _SLACK * square + _TINY
        # An infinite deviation bounds no share: every value is zero deviations from the mean.
        per_one = variance.rsqrt().nan_to_num(0.0)
        return cls(mean, (mean * per_one).nan_to_num(0.0), per_one)

    def most_at_or_above(self, h: Tensor) -> Tensor:
        """Largest possible share of a channel's values at or above ``h``, ``(..., channel)``."""
        by_deviation = _cantelli(self._below_mean(h).clamp_(max=0))
        # A channel that is all zero has no values above any h, including zero.
        return torch.minimum(by_deviation, self.mean / h[..., None].clamp(min=_LEAST))

    def most_at_or_below(self, h: Tensor) -> Tensor:
        """Largest possible share of a channel's values at or below ``h``, ``(..., channel)``."""
        return _cantelli(self._below_mean(h).clamp_(min=0))

    def _below_mean(self, h: Tensor) -> Tensor:
        """Number of standard deviations by which ``h`` is below the mean."""
        return torch.addcmul(self.standard, h[..., None], self.per_one, value=-1)


def _cantelli(away: Tensor) -> Tensor:
    """Largest share that is this many standard deviations from the mean, on one side; changes its argument."""
    return away.square_().add_(1).reciprocal_()


def _check_positive(what: str, value: float) -> None:
    if not value > 0:
        raise InputError(f"the {what} is {value}; it must be positive.")
