"""Copy a tap's results from its device to memory without blocking the device."""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

_MOST_PENDING = 128


class Transfer:
    """Asynchronous copies from a device into memory.

    On a GPU, each result goes through pinned memory, which PyTorch reuses, while the GPU continues. Only if many copies
    are in progress does it wait for the oldest ones, which have long finished. On a CPU, a result is copied at once.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[list[tuple[Tensor, Tensor]], torch.cuda.Event]] = deque()

    def move(self, moves: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Start copies.

        Args:
            moves: pairs of a part of a tensor in memory and the result to copy to it; all results are on one device.
        """
        device = moves[0][1].device
        if device.type != "cuda":
            _copy(moves)
            return
        # PyTorch uses pinned memory for a non-blocking copy.
        begun = [(place, result.to("cpu", non_blocking=True)) for place, result in moves]
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        self._pending.append((begun, event))
        if len(self._pending) > _MOST_PENDING:
            self._finish_oldest()

    def finish(self) -> None:
        """Wait for all copies; call it before reading."""
        while self._pending:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        moves, event = self._pending.popleft()
        event.synchronize()
        _copy(moves)


def _copy(moves: Sequence[tuple[Tensor, Tensor]]) -> None:
    for place, result in moves:
        place.copy_(result)
