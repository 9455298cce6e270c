"""Stable Diffusion 3 and 3.5, whose last block lets its text go, and a scheduler with two forwards a step."""

from functools import partial
from typing import Any

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import clip, noisy, t5, vae


def _build(
    seed: int,
    scheduler: type[FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler] = FlowMatchEulerDiscreteScheduler,
    **transformer: Any,
) -> StableDiffusion3Pipeline:
    with seeded(seed):
        tokenizer, text_encoder = clip(16, projection=True)
        tokenizer_2, text_encoder_2 = clip(16, projection=True)
        tokenizer_3, text_encoder_3 = t5(32, n_tokens=23)
        return StableDiffusion3Pipeline(
            transformer=noisy(
                SD3Transformer2DModel(
                    sample_size=20,
                    in_channels=4,
                    out_channels=4,
                    num_layers=3,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    joint_attention_dim=32,
                    caption_projection_dim=32,
                    pooled_projection_dim=32,
                    pos_embed_max_size=12,
                    **transformer,
                )
            ),
            scheduler=scheduler(shift=3.0),
            vae=vae(),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            text_encoder_3=text_encoder_3,
            tokenizer_3=tokenizer_3,
        )


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output[1]


def _text(path: str, output: Any, n_image: int) -> Tensor | None:
    return output[0]


# The square image has as many image tokens as there are text tokens, 77 of CLIP and 23 of T5.
_case = partial(
    Case,
    blocks=listed("transformer_blocks"),
    image_of=_image,
    text_of=_text,
    square=(40, 40),
    tall=(28, 12),
    token_side=4,
    guided={"guidance": 7.0},
    batched=True,
)

CASES = [
    _case(name="sd3", build=partial(_build, 1)),
    _case(name="sd3.5", build=partial(_build, 2, dual_attention_layers=(0, 1), qk_norm="rms_norm")),
    _case(name="sd3-heun", build=partial(_build, 1, FlowMatchHeunDiscreteScheduler)),
]
