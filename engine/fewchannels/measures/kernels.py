"""Which devices reduce hidden states by the Triton kernels of ``fused``, and which by PyTorch's operations.

This is decided here alone. The kernels are used only if the environment variable :data:`VARIABLE` is ``triton``, since
they have never run on a GPU. Triton comes with PyTorch's CUDA builds: without it, on a CPU, or on a GPU where a first
small run fails, PyTorch's operations compute the same statistics, up to the rounding of float32 sums.
"""

import math
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch

from fewchannels.errors import warn

VARIABLE = "FEWCHANNELS_KERNELS"
_OLDEST = (8, 0)  # compute capability: the first one with bfloat16
_SHAPE = 2, 37, 48


@cache
def kernels_for(device: torch.device) -> ModuleType | None:
    """The module :mod:`fewchannels.measures.fused` if its kernels run on a device and compute what they should.

    The first call compiles them (seconds, once per machine) and compares a small run with float64.

    Args:
        device: device of the hidden states, with its index.
    """
    if os.environ.get(VARIABLE) != "triton":
        return None
    if device.type != "cuda" or find_spec("triton") is None or torch.cuda.get_device_capability(device) < _OLDEST:
        return None
    try:
        from fewchannels.measures import fused

        with on(device):
            _check(fused, device)
    except Exception as error:  # a compiler that is missing, a driver too old: errors of no common class
        warn(
            f"Triton's kernels do not work on {torch.cuda.get_device_name(device)} ({type(error).__name__}: {error}); "
            "PyTorch's operations reduce hidden states instead, with a larger overhead."
        )
        return None
    return fused


def version_on(device: str) -> str | None:
    """Triton's version if its kernels reduce the hidden states of a model on ``cuda``; None otherwise."""
    if device != "cuda":
        return None
    kernels = kernels_for(torch.device("cuda", torch.cuda.current_device()))
    return kernels.VERSION if kernels else None


def on(device: torch.device) -> AbstractContextManager[object]:
    """A context in which kernels are launched on a device: Triton asks for the current one, not for its arguments'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _check(kernels: ModuleType, device: torch.device) -> None:
    values = torch.arange(math.prod(_SHAPE), dtype=torch.float32) * 0.7 % 11 - 5
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x = values.to(dtype).view(_SHAPE)
        wide = x.double()
        mean, square = wide.mean(1), wide.square()
        expected = torch.stack([wide.abs().mean(1), mean.abs(), wide.abs().amax(1), square.mean(1).sqrt()])
        statistics, norms = kernels.reduced(x.to(device))
        torch.testing.assert_close(statistics.cpu(), expected.float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norms.cpu(), square.sum(2).sqrt().float(), rtol=1e-5, atol=1e-5)
