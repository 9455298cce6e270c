"""Compiled transformers: code that was compiled without hooks skips them, so it must run uncompiled to be seen."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from fewchannels.errors import warn
from fewchannels.models.geometry import uncompiled


def is_compiled(pipeline: Any) -> bool:
    """Return whether a pipeline's transformer, or a module in it, is compiled so that hooks are skipped."""
    transformer = uncompiled(pipeline.transformer)
    if pipeline.transformer is not transformer:
        return True
    return any(getattr(module, "_compiled_call_impl", None) is not None for module in transformer.modules())


def warn_if_compiled(pipeline: Any) -> None:
    """Warn that a pipeline's compiled modules run uncompiled."""
    if is_compiled(pipeline):
        warn(
            "the transformer is compiled, and runs uncompiled while its hidden states are recorded or edited: compiled "
            "code skips hooks. Its images may differ from those of compiled code in the last bits."
        )


def eager(pipeline: Any) -> AbstractContextManager[Any]:
    """A context in which this thread runs a pipeline's compiled modules uncompiled."""
    return torch.compiler.set_stance("force_eager") if is_compiled(pipeline) else nullcontext()
