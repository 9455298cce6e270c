"""PixArt-alpha, which is told the image's size, and PixArt-Sigma; their text enters by cross-attention alone."""

from functools import partial
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from torch import Tensor

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import noisy, t5, vae


def _build(
    pipeline: type[PixArtAlphaPipeline | PixArtSigmaPipeline],
    seed: int,
    scheduler: type[DDIMScheduler | DPMSolverMultistepScheduler],
    **transformer: Any,
) -> PixArtAlphaPipeline | PixArtSigmaPipeline:
    with seeded(seed):
        # As many text tokens as the square image's 16.
        tokenizer, text_encoder = t5(32, n_tokens=16)
        return pipeline(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae(n_halvings=2),
            transformer=noisy(
                PixArtTransformer2DModel(
                    num_attention_heads=2,
                    attention_head_dim=24,
                    in_channels=4,
                    out_channels=8,
                    num_layers=3,
                    cross_attention_dim=48,
                    caption_channels=32,
                    **transformer,
                ),
                std=0.1,
            ),
            scheduler=scheduler(),
        )


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output


# The pipelines take multiples of 8 pixels only.
_case = partial(
    Case,
    blocks=listed("transformer_blocks"),
    image_of=_image,
    square=(32, 32),
    tall=(40, 24),
    token_side=8,
    guided={"guidance": 4.5},
    batched=True,
)

CASES = [
    # Of this size, the alpha transformer has embeddings of the image's size and shape. For a single step its pipeline
    # takes what a scheduler of the DPMSolver kind does not return.
    _case(name="pixart-alpha", build=partial(_build, PixArtAlphaPipeline, 1, DDIMScheduler, sample_size=128)),
    _case(
        name="pixart-sigma",
        build=partial(
            _build, PixArtSigmaPipeline, 2, DPMSolverMultistepScheduler, sample_size=8, use_additional_conditions=False
        ),
    ),
]
