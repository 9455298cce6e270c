"""FLUX.1: dev (embedded guidance), schnell (none) and Kontext (a reference image), with true guidance beside it."""

from functools import partial
from typing import Any

from diffusers import FluxKontextPipeline, FluxPipeline, FluxTransformer2DModel
from tiny import TINY
from torch import Tensor

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import vae
from fewchannels.demo.build import build_pipeline


def _build_schnell() -> FluxPipeline:
    pipeline = build_pipeline(TINY, seed=2)
    with seeded(2):
        transformer = FluxTransformer2DModel.from_config(pipeline.transformer.config, guidance_embeds=False)
    pipeline.register_modules(transformer=transformer.eval())
    return pipeline


# The square reference image is scaled to 1024 x 1024 pixels whatever its own size: a VAE of five halvings makes
# 16 x 16 tokens of that.
def _build_kontext() -> FluxKontextPipeline:
    parts = build_pipeline(TINY, seed=3).components
    with seeded(3):
        parts["vae"] = vae(n_halvings=5, side=256, width=4, n_resnets=0)
    return FluxKontextPipeline(**parts)


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output[1][:, :n_image]


def _text(path: str, output: Any, n_image: int) -> Tensor:
    return output[0]


_case = partial(
    Case,
    blocks=listed("transformer_blocks", "single_transformer_blocks"),
    image_of=_image,
    text_of=_text,
    square=(16, 16),
    tall=(24, 12),
    token_side=4,
    guided={"true_cfg_scale": 4.0},
)

# TINY has 4 x 4 image tokens and 16 text tokens: a tap that went by length could take the wrong stream.
CASES = [
    _case(name="flux", build=partial(build_pipeline, TINY, seed=1)),
    _case(name="flux-schnell", build=_build_schnell),
    _case(
        name="flux-kontext",
        build=_build_kontext,
        square=(256, 256),
        tall=(384, 192),
        token_side=64,
        reference="may",
    ),
]
