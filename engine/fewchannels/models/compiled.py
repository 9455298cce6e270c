"""Compiled transformers: code that was compiled without hooks skips them, so it must run uncompiled to be seen."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from fewchannels.models.geometry import uncompiled


def is_compiled(pipeline: Any) -> bool:
    """Return whether a pipeline's transformer, or a module in it, is compiled so that hooks are skipped."""
    transformer = uncompiled(pipeline.transformer)
    if pipeline.transformer is not transformer:
        return True
    return any(getattr(module, "_compiled_call_impl", None) is not None for module in transformer.modules())


def eager(pipeline: Any) -> AbstractContextManager[Any]:
    """A context in which this thread runs a pipeline's compiled modules uncompiled."""
    return torch.compiler.set_stance("force_eager") if is_compiled(pipeline) else nullcontext()
