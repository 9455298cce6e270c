"""Reduction of hidden states beside the model: one read in the model's own stream of work, the rest in another.

A GPU works through the model's stream in order. There, right behind a block, one kernel reads the block's output once:
it leaves partial sums and, if token maps are wanted, a copy. Whatever the model does to that output afterwards, even in
place, comes later in the same stream. All that follows from partial sums and copy (statistics, ranks, maps) runs in a
second stream while the model continues.

Both streams share only the buffers below, in rings: the model's stream waits for what the second one did with a buffer
before it fills it again, which is a few reads ago and long done. So memory does not grow with how far Python is ahead
of the GPU, and no tensor of the model is ever used outside the model's stream.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from types import ModuleType

import torch
from torch import Tensor

from fewchannels.measures.kernels import kernels_for, on
from fewchannels.measures.scores import statistics, token_norms

_N_PARTIALS = 8  # about a megabyte each and sample
_N_COPIES = 2  # as large as the hidden state: image tokens of two branches that run together


@dataclass(frozen=True)
class Reduced:
    """A hidden state after its one read.

    Attributes:
        statistics: result of :func:`fewchannels.measures.scores.statistics`.
        norms: result of :func:`fewchannels.measures.scores.token_norms`.
        x: the hidden state, or its copy, ``(sample, token, channel)``; only valid inside the context.
    """

    statistics: Tensor
    norms: Tensor
    x: Tensor


class Aside:
    """The second stream of each GPU. On other devices, and without Triton, everything runs at once and in order."""

    def __init__(self) -> None:
        self._lanes: dict[torch.device, _Lane] = {}

    @contextmanager
    def reduced(self, x: Tensor, keeps: bool) -> Iterator[Reduced]:
        """Reduce a hidden state; inside the context, the second stream is the current one.

        Args:
            x: hidden state, ``(sample, token, channel)``.
            keeps: whether the context uses the hidden state itself, for token maps.
        """
        kernels = kernels_for(x.device)
        if kernels is None:
            yield Reduced(statistics(x), token_norms(x), x)
            return
        with on(x.device):
            lane = self._lanes.get(x.device) or self._lanes.setdefault(x.device, _Lane(x.device))
            with lane.reduced(kernels, x, keeps) as found:
                yield found


class _Buffer:
    """Memory that the model's stream fills and the second stream reads."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._read = torch.cuda.Event()

    def filled_by(self, model: torch.cuda.Stream, other: torch.cuda.Stream, n_bytes: int) -> Tensor:
        """Memory for the model's stream, which waits until the other one has read the last content."""
        model.wait_event(self._read)
        if self._memory is None or len(self._memory) < n_bytes:
            self._memory = torch.empty(n_bytes, dtype=torch.uint8, device=model.device)
            self._memory.record_stream(other)  # it may be freed, as too small, while that one still reads it
        return self._memory[:n_bytes]

    def read_by(self, other: torch.cuda.Stream) -> None:
        """Mark the end of what the other stream reads."""
        self._read.record(other)


class _Lane:
    """The second stream of one GPU, and the buffers that lead to it."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._partials = cycle([_Buffer() for _ in range(_N_PARTIALS)])
        self._copies = cycle([_Buffer() for _ in range(_N_COPIES)])

    @contextmanager
    def reduced(self, kernels: ModuleType, x: Tensor, keeps: bool) -> Iterator[Reduced]:
        """Reduce a hidden state; arguments as those of :meth:`Aside.reduced`, and the kernels."""
        model, used = torch.cuda.current_stream(x.device), [next(self._partials)]
        channels, tokens = kernels.partial_shapes(x.shape)
        n_values = math.prod(channels), math.prod(tokens)
        sums = used[0].filled_by(model, self._stream, 4 * sum(n_values)).view(torch.float32)
        partial = kernels.Partial(sums[: n_values[0]].view(channels), sums[n_values[0] :].view(tokens))
        copy = None
        if keeps:
            used.append(next(self._copies))
            memory = used[1].filled_by(model, self._stream, x.numel() * x.element_size())
            copy = memory.view(x.dtype).view(x.shape)
        kernels.read(x, partial, copy)
        self._stream.wait_stream(model)
        try:
            with torch.cuda.stream(self._stream):
                found, norms = kernels.finish(partial)
                yield Reduced(found, norms, x if copy is None else copy)
        finally:
            for buffer in used:
                buffer.read_by(self._stream)
