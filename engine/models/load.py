"""From a model that was found to a loaded pipeline."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from engine.errors import InputError
from engine.models.source import ModelSource


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the libraries' own bars and advice, which would end up between ours."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated", category=FutureWarning)
        try:
            yield
        finally:
            for library, level in zip(libraries, levels, strict=True):
                library.set_verbosity(level)
                library.enable_progress_bar()


def load(source: ModelSource, dtype: str, device: str) -> DiffusionPipeline:
    """Load a pipeline's weights onto a device, with its own progress bars off.

    Raises:
        InputError: diffusers cannot open the model.
    """
    try:
        with _quietly():
            pipeline = DiffusionPipeline.from_pretrained(source.folder, torch_dtype=getattr(torch, dtype))
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise InputError(f"diffusers cannot open {source.name!r}: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
