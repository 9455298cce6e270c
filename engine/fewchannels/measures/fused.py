"""Triton kernels that reduce a hidden state to its statistics and token norms with one read of it.

:func:`read` passes over the tokens once and leaves partial sums, :func:`finish` adds them. Sums are float32, in an
order that depends only on a sample's own tokens, channels and dtype, not on its batch or its place in memory:

- there are no atomics, and every size that divides the work is fixed here;
- tensors whose place in memory would make the compiler distribute a tile otherwise are copied first;
- multiplications and additions are not contracted, which compilers do in one place and not in another.

Only :mod:`fewchannels.measures.kernels` imports this module, which needs Triton.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

VERSION: str = triton.__version__
SPAN = 256
"""Tokens of a program, which leave one partial sum per channel."""
TOKENS, CHANNELS = 16, 128
"""Tokens and channels that a program reads at once."""
_ROWS, _COLUMNS = 16, 32  # of partial sums that are added at once
_UNIT = 16  # in bytes the widest load, in elements what Triton's analysis knows as aligned
_HOW = {"enable_fp_fusion": False}


@dataclass(frozen=True)
class Partial:
    """Partial sums of a hidden state.

    Attributes:
        channels: ``(sample, span, statistic, channel)`` float32 over the tokens of a span: sums of ``|x|`` and ``x``,
            the largest ``|x|``, and the sum of squares.
        tokens: ``(sample, part, token)`` float32: sums of squares over the channels of a part.
    """

    channels: Tensor
    tokens: Tensor


def partial_shapes(shape: torch.Size) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the two tensors of :class:`Partial`, for hidden states ``(sample, token, channel)``."""
    n_samples, n_tokens, n_channels = shape
    n_spans, n_parts = triton.cdiv(n_tokens, SPAN), triton.cdiv(n_channels, CHANNELS)
    return (n_samples, n_spans, 4, n_channels), (n_samples, n_parts, n_tokens)


def reduced(x: Tensor) -> tuple[Tensor, Tensor]:
    """Read and finish at once, on the current stream; for ``x`` and the results see :func:`read` and :func:`finish`."""
    channels, tokens = (torch.empty(shape, dtype=torch.float32, device=x.device) for shape in partial_shapes(x.shape))
    partial = Partial(channels, tokens)
    read(x, partial)
    return finish(partial)


def read(x: Tensor, partial: Partial, copy: Tensor | None = None) -> None:
    """Reduce spans of tokens and parts of channels, and copy what is read.

    Args:
        x: hidden state, ``(sample, token, channel)``, any float dtype and strides.
        partial: contiguous tensors of :func:`partial_shapes`, which are overwritten.
        copy: contiguous tensor like ``x``, which is overwritten; None copies nothing.
    """
    n_samples, n_tokens, n_channels = x.shape
    # Widths that are no multiple of it are read element by element, wherever they are in memory.
    unit = _UNIT if n_channels % _UNIT == 0 else 1
    if x.stride(2) != 1 or (unit > 1 and not _is_aligned(x)):
        x = x.clone(memory_format=torch.contiguous_format)
    _read[triton.cdiv(n_channels, CHANNELS), triton.cdiv(n_tokens, SPAN), n_samples](
        x,
        x if copy is None else copy,
        partial.channels,
        partial.tokens,
        n_tokens,
        n_channels // unit,
        x.stride(0) // unit,
        x.stride(1) // unit,
        copies=copy is not None,
        unit=unit,
        span_tokens=SPAN,
        tile_tokens=TOKENS,
        tile_channels=CHANNELS,
        num_warps=8,
        **_HOW,
    )


def finish(partial: Partial) -> tuple[Tensor, Tensor]:
    """Add partial sums.

    Returns:
        Results of :func:`fewchannels.measures.scores.statistics` and :func:`fewchannels.measures.scores.token_norms`.
    """
    n_samples, n_spans, n_statistics, n_channels = partial.channels.shape
    _, n_parts, n_tokens = partial.tokens.shape
    statistics = partial.channels.new_empty((n_statistics, n_samples, n_channels))
    norms = partial.tokens.new_empty((n_samples, n_tokens))
    n_of_channels, n_of_tokens = triton.cdiv(n_channels, _COLUMNS), triton.cdiv(n_tokens, _COLUMNS)
    _finish[n_of_channels + n_of_tokens, n_samples](
        partial.channels,
        partial.tokens,
        statistics,
        norms,
        n_samples,
        n_tokens,
        n_channels,
        n_spans,
        n_parts,
        n_of_channels,
        tile_rows=_ROWS,
        tile_columns=_COLUMNS,
        num_warps=4,
        **_HOW,
    )
    return statistics, norms


def _is_aligned(x: Tensor) -> bool:
    strides = [stride for size, stride in zip(x.shape[:2], x.stride()[:2], strict=True) if size > 1]
    return x.data_ptr() % _UNIT == 0 and all(stride % _UNIT == 0 for stride in strides)


@triton.jit(do_not_specialize=["n_tokens", "n_channels", "sample_stride", "token_stride"])
def _read(
    x,
    copy,
    channels,
    tokens,
    n_tokens,
    n_channels,
    sample_stride,
    token_stride,
    copies: tl.constexpr,
    unit: tl.constexpr,
    span_tokens: tl.constexpr,
    tile_tokens: tl.constexpr,
    tile_channels: tl.constexpr,
):
    part, span, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    # 64 bits: a batch of long streams has more than 2**31 values. The factor is what the compiler knows of a stride.
    n_channels = n_channels * unit
    token_stride, width = token_stride.to(tl.int64) * unit, n_channels.to(tl.int64)
    sample, first = sample.to(tl.int64), span.to(tl.int64) * span_tokens
    row, column = tl.arange(0, tile_tokens), part * tile_channels + tl.arange(0, tile_channels)
    has_column = column < n_channels
    source = x + sample * (sample_stride.to(tl.int64) * unit) + first * token_stride
    source = source + row[:, None] * token_stride + column[None, :]
    place = copy + (sample * n_tokens + first) * width + row[:, None] * width + column[None, :]
    of_tokens = tokens + (sample * tl.num_programs(0) + part) * n_tokens + first
    left = tl.minimum(n_tokens - first, span_tokens).to(tl.int32)

    magnitude = tl.zeros([tile_tokens, tile_channels], tl.float32)
    total = tl.zeros([tile_tokens, tile_channels], tl.float32)
    largest = tl.zeros([tile_tokens, tile_channels], tl.float32)
    squares = tl.zeros([tile_tokens, tile_channels], tl.float32)
    following = tl.load(source, (row < left)[:, None] & has_column[None, :], other=0.0)
    for start in range(0, left, tile_tokens):
        values = following
        # The next tile is on its way while this one is added up.
        source += tile_tokens * token_stride
        following = tl.load(source, (start + tile_tokens + row < left)[:, None] & has_column[None, :], other=0.0)
        has_row = start + row < left
        if copies:
            tl.store(place, values, has_row[:, None] & has_column[None, :])
            place += tile_tokens * width
        wide = values.to(tl.float32)
        size, square = tl.abs(wide), wide * wide
        magnitude += size
        total += wide
        largest = tl.maximum(largest, size)
        squares += square
        tl.store(of_tokens + start + row, tl.sum(square, axis=1), has_row)

    of_channels = channels + (sample * tl.num_programs(1) + span) * 4 * width + column
    tl.store(of_channels, tl.sum(magnitude, axis=0), has_column)
    tl.store(of_channels + width, tl.sum(total, axis=0), has_column)
    tl.store(of_channels + 2 * width, tl.max(largest, axis=0), has_column)
    tl.store(of_channels + 3 * width, tl.sum(squares, axis=0), has_column)


@triton.jit(
    do_not_specialize=["n_samples", "n_tokens", "n_channels", "n_spans", "n_parts", "n_of_channels"],
    do_not_specialize_on_alignment=["channels", "tokens", "statistics", "norms"],
)
def _finish(
    channels,
    tokens,
    statistics,
    norms,
    n_samples,
    n_tokens,
    n_channels,
    n_spans,
    n_parts,
    n_of_channels,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
):
    program, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = tl.arange(0, tile_rows)
    if program < n_of_channels:
        column = program * tile_columns + tl.arange(0, tile_columns)
        inside = column < n_channels
        width = n_channels.to(tl.int64)
        source = channels + sample * n_spans * 4 * width + row[:, None] * (4 * width) + column[None, :]
        magnitude = tl.zeros([tile_rows, tile_columns], tl.float32)
        total = tl.zeros([tile_rows, tile_columns], tl.float32)
        largest = tl.zeros([tile_rows, tile_columns], tl.float32)
        squares = tl.zeros([tile_rows, tile_columns], tl.float32)
        for start in range(0, n_spans, tile_rows):
            mask = (start + row < n_spans)[:, None] & inside[None, :]
            magnitude += tl.load(source, mask, other=0.0)
            total += tl.load(source + width, mask, other=0.0)
            largest = tl.maximum(largest, tl.load(source + 2 * width, mask, other=0.0))
            squares += tl.load(source + 3 * width, mask, other=0.0)
            source += tile_rows * 4 * width
        n = n_tokens.to(tl.float32)
        mean_abs = tl.div_rn(tl.sum(magnitude, axis=0), n)
        mean = tl.div_rn(tl.sum(total, axis=0), n)
        rms = tl.sqrt_rn(tl.div_rn(tl.sum(squares, axis=0), n))
        # A maximum may drop NaN; a sum of magnitudes never does.
        max_abs = tl.where(mean_abs == mean_abs, tl.max(largest, axis=0), mean_abs)
        place = statistics + sample * width + column
        tl.store(place, mean_abs, inside)
        tl.store(place + n_samples * width, tl.abs(mean), inside)
        tl.store(place + 2 * n_samples * width, max_abs, inside)
        tl.store(place + 3 * n_samples * width, rms, inside)
    else:
        column = (program - n_of_channels) * tile_columns + tl.arange(0, tile_columns)
        inside = column < n_tokens
        width = n_tokens.to(tl.int64)
        source = tokens + sample * n_parts * width + row[:, None] * width + column[None, :]
        squares = tl.zeros([tile_rows, tile_columns], tl.float32)
        for start in range(0, n_parts, tile_rows):
            squares += tl.load(source, (start + row < n_parts)[:, None] & inside[None, :], other=0.0)
            source += tile_rows * width
        tl.store(norms + sample * width + column, tl.sqrt_rn(tl.sum(squares, axis=0)), inside)
