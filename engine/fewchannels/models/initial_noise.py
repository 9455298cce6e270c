"""The noise that a pipeline begins with, drawn otherwise for a while."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

Draw = Callable[..., Tensor]
"""As ``diffusers.utils.torch_utils.randn_tensor``: a shape, and how to draw."""


@contextmanager
def drawn_by(pipeline: DiffusionPipeline, other: Callable[[Draw], Draw]) -> Iterator[None]:
    """Inside, the pipeline draws its noise with what ``other`` makes of its own function."""
    module: Any = inspect.getmodule(type(pipeline))
    own = module.randn_tensor
    module.randn_tensor = other(own)
    try:
        yield
    finally:
        module.randn_tensor = own
