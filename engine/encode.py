"""Encodes a job's prompts before its transformer is loaded, so that the two are never in memory together."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import nn

from engine.embeddings import Kept, Stored, remembering
from engine.job import Job, loading
from engine.manifest import Sample
from engine.models.load import load
from engine.models.source import ModelSource, find, transformer_config
from engine.sampler import Sampler
from engine.storage import FolderStorage


class _Reached(BaseException):
    """The pipeline is done with its prompts: it asks for its transformer."""


@contextmanager
def encoded(job: Job, samples: Sequence[Sample], device: str) -> Iterator[Kept | None]:
    """A few samples' embeddings in a temporary folder; None where the job does not encode first.

    Raises:
        InputError: the model cannot be loaded.
    """
    if not job.config.encode_first:
        yield None
        return
    with TemporaryDirectory() as folder:
        kept = Stored(FolderStorage(Path(folder)))
        for _ in encode(job, samples, kept, device):
            pass
        yield kept


def encode(job: Job, samples: Iterable[Sample], kept: Kept, device: str) -> Iterator[str | None]:
    """Encode every sample's prompts, each distinct one once, with the pipeline's own code and no transformer.

    Args:
        job: whose model and settings.
        samples: whose prompts, negative prompts and references.
        kept: takes what is encoded; what it has is not encoded again.
        device: of the text encoders.

    Yields:
        After each sample: why it could not be encoded, or None. Generating it will say so again.

    Raises:
        InputError: the model cannot be loaded.
    """
    source = find(job.config.model, job.config.revision)
    how = replace(loading(job.config), quantization="none", compile=False, attention=None, device_map=None)
    stand_in = _stand_in(source, job.geometry.transformer, getattr(torch, how.dtype))
    pipeline = load(source, job.geometry, replace(how, transformer_file=None), device, {"transformer": stand_in})
    sampler = Sampler(pipeline, job.geometry)
    asked: set[Any] = set()
    with remembering(pipeline, kept):
        for sample in samples:
            settings = job.settings(sample)
            question = (sample.prompt, sample.negative_prompt, replace(settings, steps=0))
            error = None
            if question not in asked:
                asked.add(question)
                try:
                    sampler.generate([sample], settings)
                except _Reached:
                    pass
                except Exception as failed:  # whatever the pipeline raises; the sample fails alone
                    error = f"{type(failed).__name__}: {failed}"
            yield error


def _stand_in(source: ModelSource, name: str, dtype: torch.dtype) -> nn.Module:
    """An object of the transformer's class with its configuration and none of its weights."""
    kind = getattr(diffusers, name)

    def forward(*arguments: Any, **keywords: Any) -> None:
        raise _Reached

    with init_empty_weights():
        module = kind.from_config(transformer_config(source))
    for held in (module._modules, module._parameters, module._buffers):
        held.clear()
    module.register_parameter("nothing", nn.Parameter(torch.zeros(1, dtype=dtype), requires_grad=False))
    module.forward = forward
    return module
