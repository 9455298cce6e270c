"""Encode a job's prompts before its transformer is loaded, so that text encoders and transformer never share memory."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fewchannels.captures.job import Job
from fewchannels.captures.stored_embeddings import StoredEmbeddings
from fewchannels.manifest import Sample
from fewchannels.models.embeddings import Kept, remembering
from fewchannels.models.load import load
from fewchannels.models.placeholder import ReachedError, placeholder
from fewchannels.models.sampler import Sampler
from fewchannels.models.source import find
from fewchannels.runs.storage import FolderStorage


@contextmanager
def encoded_prompts(job: Job, samples: Sequence[Sample], device: str) -> Iterator[Kept | None]:
    """A few samples' embeddings in a temporary folder; None if the job does not encode first.

    Raises:
        InputError: the model cannot be loaded.
    """
    if not job.config.encode_first:
        yield None
        return
    with TemporaryDirectory() as folder:
        kept = StoredEmbeddings(FolderStorage(Path(folder)))
        for _ in encode_prompts(job, samples, kept, device):
            pass
        yield kept


def encode_prompts(job: Job, samples: Iterable[Sample], kept: Kept, device: str) -> Iterator[str | None]:
    """Encode every sample's prompts, each distinct one once, with the pipeline's own code and no transformer.

    Args:
        job: job that provides model and settings.
        samples: samples with the prompts, negative prompts and references to encode.
        kept: store of embeddings; prompts that it has are not encoded again.
        device: device of the text encoders.

    Yields:
        After each sample, the reason why it could not be encoded, or None. Generating it will report the error again.

    Raises:
        InputError: the model cannot be loaded.
    """
    source = find(job.config.model, job.config.revision)
    how = replace(job.config, quantization="none", compile=False, attention=None, device_map=None)
    transformer = placeholder(source, job.geometry.transformer, getattr(torch, how.dtype))
    pipeline = load(source, job.geometry, replace(how, transformer_file=None), device, {"transformer": transformer})
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
                except ReachedError:
                    pass
                except Exception as failed:  # whatever the pipeline raises; only this sample fails
                    error = f"{type(failed).__name__}: {failed}"
            yield error
