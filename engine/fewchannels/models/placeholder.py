"""A placeholder for a transformer, to run the part of a pipeline before it."""

from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import nn

from fewchannels.models.source import ModelSource, transformer_config


class ReachedError(BaseException):
    """Signal that the pipeline has reached its transformer."""


def placeholder(source: ModelSource, name: str, dtype: torch.dtype) -> nn.Module:
    """An object of the transformer's class with its configuration and no weights; run, it raises ReachedError.

    Args:
        source: the model.
        name: name of the transformer's class.
        dtype: data type that it reports.
    """

    def forward(*arguments: Any, **keywords: Any) -> None:
        raise ReachedError

    with init_empty_weights():
        module = getattr(diffusers, name).from_config(transformer_config(source))
    for held in (module._modules, module._parameters, module._buffers):
        held.clear()
    module.register_parameter("nothing", nn.Parameter(torch.zeros(1, dtype=dtype), requires_grad=False))
    module.forward = forward
    return module
