"""What is kept of one recorded call of a pipeline, and what made it."""

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
    """One call of the pipeline.

    Attributes:
        layout: shape of its arrays.
        arrays: arrays by name, ``(sample, step, layer, ...)``.
        cells: columns of ``cells`` of each sample, without those that name the sample.
        ids: each sample's id.
        prompts: each sample's prompt; None where the call had embeddings instead.
        negative_prompts: each sample's negative prompt, if any.
        seeds: the seed that makes each sample's noise; None where no fresh generator of its own did.
        images: each sample's image; None where the pipeline returned none, such as latents.
        token_grid: image tokens along height and width.
        size: height and width of the images, pixels.
        settings: denoising steps, guidance scale and true CFG scale that were passed.
        n_run: denoising steps that ran.
        prompt_tokens: each prompt's tokens for the sequence text encoder, and whether that one cuts it.
        seconds: time that the call took.
        peak_memory_bytes: highest memory of the process, or of its GPU, so far.
    """

    layout: Layout
    arrays: dict[str, np.ndarray]
    cells: Sequence[dict[str, np.ndarray]]
    ids: tuple[str, ...]
    prompts: tuple[str | None, ...]
    negative_prompts: tuple[str | None, ...]
    seeds: tuple[int | None, ...]
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
    """What made recorded calls.

    Attributes:
        pipeline: the pipeline, which is not kept from being deleted.
        geometry: geometry of its model.
        dtype: data type of its transformer.
        device: device of its transformer, in words.
        n_threads: CPU threads of PyTorch.
    """

    pipeline: "weakref[Any]"
    geometry: ModelGeometry
    dtype: str
    device: str
    n_threads: int
