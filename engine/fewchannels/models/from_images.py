"""An image's own trajectory: its latent noised to each step's level instead of being drawn from noise.

``z_t = (1 - sigma_t) z + sigma_t noise``, as in DiTF (arXiv 2505.18584). The pipeline runs its own loop; only the
latents that its scheduler returns are replaced, so every forward is one that the pipeline would make.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewchannels.errors import FamilyMismatchError, InputError
from fewchannels.models.patching import replaced

_PURE_NOISE = 0.99  # some flow-matching schedules begin at 0.999
Draw = Callable[..., Tensor]
"""Same signature as ``diffusers.utils.torch_utils.randn_tensor``: a shape, and how to draw."""


@contextmanager
def drawn_by(pipeline: Any, other: Callable[[Draw], Draw]) -> Iterator[None]:
    """Inside the context, replace the pipeline's function that draws noise by ``other(function)``."""
    module: Any = inspect.getmodule(type(pipeline))
    own = module.randn_tensor
    module.randn_tensor = other(own)
    try:
        yield
    finally:
        module.randn_tensor = own


def latent(pipeline: Any, image: Image.Image, height: int, width: int) -> Tensor:
    """An image's latent as the pipeline's denoising loop has it before packing, ``(1, ...)``.

    Args:
        pipeline: pipeline whose VAE is one of :data:`fewchannels.models.families.NOISED_VAES`.
        image: image of any size; it is resized.
        height: pixels.
        width: pixels.
    """
    vae = pipeline.vae
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32) / 127.5 - 1
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(vae.device, vae.dtype)
    config, kind = vae.config, type(vae).__name__
    if kind == "AutoencoderKLFlux2":
        return pipeline._encode_vae_image(x, generator=torch.Generator())
    if kind == "AutoencoderDC":
        return vae.encode(x).latent * config.scaling_factor
    if kind == "AutoencoderKLQwenImage":
        mean, std = (
            torch.tensor(each).view(1, -1, 1, 1, 1).to(x) for each in (config.latents_mean, config.latents_std)
        )
        return ((vae.encode(x[:, :, None]).latent_dist.mode() - mean) / std).transpose(1, 2)
    return (vae.encode(x).latent_dist.mode() - (config.shift_factor or 0)) * config.scaling_factor


@contextmanager
def noised(
    pipeline: Any,
    images: Mapping[int, Image.Image],
    height: int,
    width: int,
    runs: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Set the pipeline's latents to images noised to each step's level, regardless of the predictions, inside the
    context.

    Args:
        pipeline: flow matching.
        images: images of any size, by row of the batch; other rows are left alone.
        height: height of the images that the pipeline makes, pixels.
        width: width in pixels; same conventions as ``height``.
        runs: whether the transformer runs in the next step; only images can skip it.

    Raises:
        InputError: the pipeline's noise has another shape than an image's latent.
        FamilyMismatchError: inside the context, if the pipeline starts within the schedule.
    """
    scheduler, transformer = pipeline.scheduler, pipeline.transformer
    rows = {row: latent(pipeline, image, height, width) for row, image in images.items()}
    at = list(rows)
    kept: dict[str, Tensor] = {}
    own_prepare, own_step, own_forward = pipeline.prepare_latents, scheduler.step, transformer.forward

    def first(prepared: Any) -> Tensor:
        return prepared[0] if isinstance(prepared, tuple) else prepared

    def images_for_noise(shape: Any, *arguments: Any, **keywords: Any) -> Tensor:
        latents = torch.zeros(tuple(shape)).to(kept["noise"])
        for row, clean in rows.items():
            # Kandinsky 5 has frames and channels in other dimensions.
            other = clean.permute(0, 2, 3, 1)[:, None] if clean.ndim == 4 else clean
            found = next((each for each in (clean, other) if each.shape[1:] == latents.shape[1:]), None)
            if found is None:
                raise InputError(f"the image's latent is {tuple(clean.shape)}, the pipeline's noise {tuple(shape)}")
            latents[row] = found[0].to(latents)
        return latents

    def prepare_latents(*arguments: Any, **keywords: Any) -> Any:
        prepared = own_prepare(*arguments, **keywords)  # the first noise is the one that a generation starts from
        kept["noise"] = first(prepared)
        with drawn_by(pipeline, lambda own: images_for_noise):
            kept["clean"] = first(own_prepare(*arguments, **keywords))
        kept["noise"] = kept["noise"].clone()  # a pipeline may modify this tensor in place
        return prepared

    @functools.wraps(own_step)  # pipelines inspect its signature
    def step(*arguments: Any, **keywords: Any) -> Any:
        before = scheduler.step_index
        latents, *rest = own_step(*arguments, **keywords)
        if before is None and (begins := float(scheduler.sigmas[scheduler.step_index - 1])) < _PURE_NOISE:
            raise FamilyMismatchError(
                f"{type(pipeline).__name__} starts at noise level {begins:.3g}, but the trajectory of an image must "
                "start as pure noise, at 1. Use a model that generates from pure noise."
            )
        sigma = float(scheduler.sigmas[scheduler.step_index])
        latents[at] = ((1 - sigma) * kept["clean"][at] + sigma * kept["noise"][at]).to(latents.dtype)
        return (latents, *rest)

    @functools.wraps(own_forward)
    def forward(*arguments: Any, **keywords: Any) -> Any:
        if runs():
            return own_forward(*arguments, **keywords)
        latents = arguments[0] if arguments else next(iter(keywords.values()))
        return (
            [torch.zeros_like(each) for each in latents] if isinstance(latents, list) else torch.zeros_like(latents),
        )

    with ExitStack() as stack:
        stack.enter_context(replaced(pipeline, "prepare_latents", prepare_latents))
        stack.enter_context(replaced(scheduler, "step", step))
        stack.enter_context(replaced(transformer, "forward", forward))
        yield
