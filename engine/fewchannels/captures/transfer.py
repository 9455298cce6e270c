"""Copy a tap's results from its device to memory without blocking the device."""

import math
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_PAGE_BYTES = 64 * 2**20
_MOST_PENDING = 3

Move = tuple[Tensor, Tensor]
"""A part of a tensor in memory, and the result that goes there."""


def has_streams(device: torch.device) -> bool:
    """Return whether a device works through streams while Python continues."""
    return device.type == "cuda"


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A small tensor in memory, on a device; Python does not wait until the device has it."""
    if has_streams(device):
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class Transfer:
    """Asynchronous copies from a device into memory.

    On a GPU, results are collected in a page, of one denoising step and at most 64 MiB. A page is sent as one copy
    through pinned memory, which PyTorch reuses, while the GPU continues. A page that has arrived is unpacked in small
    portions, as many results with each move as that move adds: unpacking all of it at the start of a step takes
    milliseconds, in which the GPU would run out of work. Only if several pages are in progress does it wait for the
    oldest. On a CPU, a result is copied at once.
    """

    def __init__(self) -> None:
        self._pages: dict[torch.cuda.Stream, _Page] = {}
        self._pending: deque[_Page] = deque()

    def move(self, moves: Sequence[Move], page: Hashable) -> None:
        """Add results to a page; the first result of another page sends this one.

        Args:
            moves: pairs of a part of a tensor in memory and the result to copy to it. Results have four bytes per
                element, are on one device, and were computed in its current stream.
            page: name of the page, such as the step.
        """
        device = moves[0][1].device
        if not has_streams(device):
            for place, result in moves:
                place.copy_(result)
            return
        stream = torch.cuda.current_stream(device)
        found = self._pages.get(stream)
        if found and (found.name != page or found.n_bytes >= _PAGE_BYTES):
            self._send(stream)
            found = None
        if not found:
            found = self._pages[stream] = _Page(page, stream)
        found.add(moves)
        if self._pending and self._pending[0].has_arrived and self._pending[0].place(len(moves)):
            self._pending.popleft()

    def send(self) -> None:
        """Send all pages, before results of another batch."""
        for stream in list(self._pages):
            self._send(stream)

    def discard(self) -> None:
        """Drop results that were not sent yet, and wait for those that were."""
        self._pages.clear()
        self.finish()

    def finish(self) -> None:
        """Wait for all copies; call it before reading."""
        self.send()
        while self._pending:
            self._pending.popleft().arrive()

    def _send(self, stream: torch.cuda.Stream) -> None:
        page = self._pages.pop(stream)
        page.leave()
        self._pending.append(page)
        if len(self._pending) > _MOST_PENDING:
            self._pending.popleft().arrive()


@dataclass
class _Page:
    """Results that are copied together.

    Attributes:
        name: name of the page.
        stream: stream that computed the results.
        moves: the results and their destinations.
        n_bytes: bytes of the results.
    """

    name: Hashable
    stream: torch.cuda.Stream
    moves: list[Move] = field(default_factory=list)
    n_bytes: int = 0

    def add(self, moves: Sequence[Move]) -> None:
        """Add results."""
        self.moves += moves
        self.n_bytes += sum(result.nbytes for _, result in moves)

    def leave(self) -> None:
        """Start the copy, in the results' own stream."""
        with torch.cuda.stream(self.stream):
            packed = torch.cat([result.reshape(-1).view(torch.int32) for _, result in self.moves])
            # PyTorch uses pinned memory for a non-blocking copy.
            self._arriving = packed.to("cpu", non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(self.stream)
        self._parts = deque((place, result.dtype, result.shape) for place, result in self.moves)
        self._n_placed = 0
        self.moves = []  # their memory on the device is free for what the stream does next

    @property
    def has_arrived(self) -> bool:
        """Whether the copy has finished."""
        return self._arrived.query()

    def arrive(self) -> None:
        """Wait for the copy, and unpack all results."""
        self._arrived.synchronize()
        self.place(len(self._parts))

    def place(self, most: int) -> bool:
        """Unpack some of the results that have arrived; return whether none is left.

        Args:
            most: number of results.
        """
        for _ in range(min(most, len(self._parts))):
            place, dtype, shape = self._parts.popleft()
            start, self._n_placed = self._n_placed, self._n_placed + math.prod(shape)
            place.copy_(self._arriving[start : self._n_placed].view(dtype).view(shape))
        return not self._parts
