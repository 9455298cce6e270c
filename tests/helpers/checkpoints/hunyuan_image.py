"""HunyuanImage 2.1: with a guider, under which both branches always run, and distilled, without one."""

from functools import partial
from typing import Any

from diffusers import (
    AdaptiveProjectedMixGuidance,
    AutoencoderKLHunyuanImage,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
)
from torch import Tensor
from transformers import ByT5Tokenizer

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import noisy, qwen_tokenizer, qwen_vl, t5_encoder

_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>"
)
# Of the quoted letter ByT5 makes 11 tokens, which come before the prompt's 4 and the template's last; the other prompt
# has 15 before that last one. The square image has 16 too.
PROMPTS = ('an "o"', "a large blue ring on the left", "a")
LONG = "a large blue ring on the left of a small red star on the right"
TEXT_LENGTHS = (16, 8, 2)


def _build(seed: int, *, distilled: bool) -> HunyuanImagePipeline:
    tokenizer = qwen_tokenizer("\n".join((_TEMPLATE, *PROMPTS, LONG)))
    with seeded(seed):
        text_encoder_2 = t5_encoder(384, 16)
        transformer = HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            guidance_embeds=distilled,
            text_embed_dim=16,
            # Its projection of ByT5's tokens has a fixed width, which makes 17 MB.
            text_embed_2_dim=None if distilled else 16,
            rope_axes_dim=(8, 8),
            use_meanflow=distilled,
        )
        return HunyuanImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=AutoencoderKLHunyuanImage(
                in_channels=3,
                out_channels=3,
                latent_channels=4,
                block_out_channels=(32, 32, 32),
                layers_per_block=1,
                spatial_compression_ratio=4,
                sample_size=16,
                scaling_factor=1.0,
            ).eval(),
            text_encoder=qwen_vl(tokenizer, 16),
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=ByT5Tokenizer(),
            transformer=noisy(transformer),
            guider=None if distilled else AdaptiveProjectedMixGuidance(),
        )


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output[0]


def _text(path: str, output: Any, n_image: int) -> Tensor:
    return output[1][:, : TEXT_LENGTHS[0]]


_case = partial(
    Case,
    blocks=listed("transformer_blocks", "single_transformer_blocks"),
    image_of=_image,
    text_of=_text,
    square=(16, 16),
    tall=(28, 12),
    token_side=4,
    text_lengths=TEXT_LENGTHS,
)

CASES = [
    _case(
        name="hunyuan-image",
        build=partial(_build, 1, distilled=False),
        # The guider has a scale of its own.
        guided={"guidance": 1.0},
        always_guided=True,
        prompts=PROMPTS,
    ),
    _case(
        name="hunyuan-image-distilled",
        build=partial(_build, 2, distilled=True),
        prompts=(LONG, *PROMPTS[1:]),
    ),
]
