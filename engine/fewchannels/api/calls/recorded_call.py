"""The data of one recorded call of a pipeline, and the pipeline that made it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ref as weakref

import numpy as np

from fewchannels.models.family import ModelGeometry
from fewchannels.runs.layout import Layout

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class RecordedCall:
    """One recorded call of the pipeline.

    Attributes:
        layout: shape of the arrays.
        arrays: arrays by name, ``(sample, step, layer, ...)``.
        cells: columns of ``cells`` for each sample, without those that identify the sample.
        ids: each sample's id.
        prompts: each sample's prompt; None if the call had embeddings instead.
        negative_prompts: each sample's negative prompt, if any.
        seeds: seed of each sample's noise; None if the sample had no fresh generator of its own.
        unusual: everything in the call that a capture of the same prompts does not have, as text.
        images: each sample's image; None if the pipeline returned no images but, for example, latents.
        token_grid: image tokens along height and width.
        size: height and width of the images, pixels.
        settings: denoising steps, guidance scale and true CFG scale that were passed.
        n_run: number of denoising steps that ran.
        prompt_tokens: each prompt's number of tokens in the sequence text encoder, and whether it is truncated.
        seconds: duration of the call.
        peak_memory_bytes: highest memory of the process, or of its GPU, so far.
    """

    layout: Layout
    arrays: dict[str, np.ndarray]
    cells: Sequence[dict[str, np.ndarray]]
    ids: tuple[str, ...]
    prompts: tuple[str | None, ...]
    negative_prompts: tuple[str | None, ...]
    seeds: tuple[int | None, ...]
    unusual: tuple[str, ...]
    images: "tuple[Image.Image | None, ...]"
    token_grid: tuple[int, int]
    size: tuple[int, int]
    settings: tuple[int, float, float]
    n_run: int
    prompt_tokens: tuple[tuple[int, bool], ...]
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class MadeBy:
    """The pipeline and machine that made the recorded calls.

    Attributes:
        pipeline: weak reference to the pipeline, which does not prevent its deletion.
        geometry: geometry of its model.
        dtype: data type of its transformer.
        device: name of its transformer's device.
        n_threads: CPU threads of PyTorch.
    """

    pipeline: "weakref[Any]"
    geometry: ModelGeometry
    dtype: str
    device: str
    n_threads: int
