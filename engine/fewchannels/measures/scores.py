"""Channel scores and selections: tensors in, tensors out."""

import torch
from torch import Tensor

from fewchannels.measures.kernels import kernels_for, on

_CACHED_VALUES = 2**19


def statistics(x: Tensor) -> Tensor:
    """Compute the four score definitions over tokens.

    ``mean_abs`` is the mean of ``|x|`` (SPARK, arXiv 2609.03813), ``abs_mean`` is ``|mean of x|`` (the first project
    page of arXiv 2605.13974), ``max_abs`` the largest ``|x|``, ``rms`` the root of the mean square.

    Args:
        x: hidden state, ``(sample, token, channel)``, any float dtype.

    Returns:
        ``(statistic, sample, channel)`` float32, in the order of :data:`fewchannels.measures.STATISTICS`. A
        channel with a NaN token is NaN.
    """
    if kernels := kernels_for(x.device):
        with on(x.device):
            return kernels.reduced(x)[0]
    n_tokens = x.shape[1]
    parts = torch.stack([_sums(block.float()) for block in _blocks(x)])
    mean_abs, mean, _, mean_square = parts.sum(dim=0) / n_tokens
    return torch.stack([mean_abs, mean.abs_(), parts[:, 2].amax(dim=0), mean_square.sqrt_()])


def _sums(x: Tensor) -> Tensor:
    magnitude = x.abs()
    # Not vector_norm: over a middle dimension it is 40 times slower on a CPU.
    return torch.stack([magnitude.sum(dim=1), x.sum(dim=1), magnitude.amax(dim=1), x.square().sum(dim=1)])


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    """Blocks of tokens that fit in a CPU's cache, which is six times as fast; all tokens at once on a GPU."""
    if x.device.type != "cpu":
        return (x,)
    return x.split(max(1, _CACHED_VALUES // (x.shape[0] * x.shape[2])), dim=1)


def sum_squares(x: Tensor) -> Tensor:
    """Sum of squares of every channel over tokens: ``(sample, token, channel)`` to ``(sample, channel)`` float32."""
    return torch.stack([block.float().square().sum(dim=1) for block in _blocks(x)]).sum(dim=0)


def token_norms(x: Tensor) -> Tensor:
    """Euclidean norm of every token over channels: ``(sample, token, channel)`` to ``(sample, token)`` float32."""
    return torch.cat([torch.linalg.vector_norm(block.float(), 2, dim=-1) for block in _blocks(x)], dim=1)


def top_k(scores: Tensor, k: int) -> Tensor:
    """The ``k`` channels with the largest scores.

    Args:
        scores: ``(..., channel)`` scores; NaN ranks above every number, so that it is visible.
        k: number of channels to select, at most the number of channels.

    Returns:
        ``(..., k)`` int64 channel indices, largest score first, ties by ascending channel.

    Raises:
        ValueError: k is larger than the number of channels.
    """
    if k > scores.shape[-1]:
        raise ValueError(f"top_k is {k}; there are {scores.shape[-1]} channels")
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def take_channels(x: Tensor, channels: Tensor) -> Tensor:
    """Token maps of each sample's own channels.

    Args:
        x: hidden state, ``(sample, token, channel)``.
        channels: ``(sample, k)`` int64 channel indices.

    Returns:
        ``(sample, k, token)`` float32.
    """
    index = channels[:, None, :].expand(-1, x.shape[1], -1)
    return x.gather(2, index).transpose(1, 2).float()


def pool_tokens(values: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Means over squares of ``side`` x ``side`` tokens.

    Args:
        values: ``(..., token)`` float32, row-major over the grid.
        grid: tokens along height and width, multiples of ``side``.
        side: side of the squares; 1 returns the values unchanged.

    Returns:
        ``(..., token)`` over the coarser grid, row-major.
    """
    if side == 1:
        return values
    height, width = grid
    squares = values.unflatten(-1, (height // side, side, width // side, side))
    return squares.mean(dim=(-3, -1)).flatten(-2)


def round_to_bfloat16(values: Tensor) -> Tensor:
    """Round float32 values to bfloat16's 8 bits of mantissa, to nearest, ties to even: error at most 1 part in 256.

    A finite value beyond bfloat16's largest (3.39e38) becomes that value, not infinity; NaN and infinities stay.
    """
    rounded = values.bfloat16().float()
    overflowed = rounded.isinf() & values.isfinite()
    return rounded.where(~overflowed, values.sign() * torch.finfo(torch.bfloat16).max)


def lower_median(values: Tensor) -> Tensor:
    """The lower of the two middle values over the last dimension, as in ``torch.median`` and Sun et al. 2024."""
    return values.median(dim=-1).values


def energy_share(rms: Tensor, channels: Tensor) -> Tensor:
    """Share of the hidden state's squared values that the given channels hold.

    Args:
        rms: ``(..., channel)`` root mean squares.
        channels: ``(..., k)`` int64 channel indices.

    Returns:
        ``(...)`` float32 in [0, 1]; NaN if the hidden state is all zero.
    """
    energy = rms.double().square()  # squares of massive values overflow float32
    return (energy.gather(-1, channels).sum(-1) / energy.sum(-1)).float()


def gini(scores: Tensor, n_top: int = 32) -> Tensor:
    """Gini coefficient of the largest ``n_top`` scores: 0 if they are equal, close to 1 if one has everything.

    Args:
        scores: ``(..., channel)`` of non-negative values.
        n_top: number of the largest scores to use; all, if there are fewer.

    Returns:
        ``(...)`` float32; NaN if they sum to zero.
    """
    ranked = scores.double().sort(dim=-1).values[..., -n_top:]
    n = ranked.shape[-1]
    rank = torch.arange(1, n + 1, dtype=ranked.dtype, device=ranked.device)
    weighted = ((2 * rank - n - 1) * ranked).sum(-1)
    return (weighted / (n * ranked.sum(-1))).float()
