"""SANA 1.5 and SANA-Sprint, whose text enters by cross-attention alone, with a deep-compression VAE."""

import inspect
from typing import Any

from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from torch import Tensor

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import gemma2, noisy

PROMPTS = ("a small red star", "a large blue ring on the left", "a")
INSTRUCTION = "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)
"""What the pipelines put before a prompt, and take off the encoded text."""


def _components(sprint: bool) -> dict[str, Any]:
    # As many text tokens as the square image's 16.
    tokenizer, text_encoder = gemma2("\n".join((INSTRUCTION + PROMPTS[0], *PROMPTS)), n_tokens=16)
    # Six widths as in the real one, since the pipelines take multiples of 32 pixels only.
    widths = (4, 4, 4, 4, 8, 8)
    kinds = ("ResBlock",) * 5 + ("EfficientViTBlock",)
    scales = ((),) * 5 + ((5,),)
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=16,
        qk_norm="rms_norm_across_heads",
        guidance_embeds=sprint,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": vae.eval(),
        "transformer": noisy(transformer, std=0.1),
    }


def _sana() -> SanaPipeline:
    with seeded(1):
        return SanaPipeline(
            scheduler=DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            **_components(sprint=False),
        )


def _sprint() -> SanaSprintPipeline:
    with seeded(2):
        return SanaSprintPipeline(scheduler=SCMScheduler(), **_components(sprint=True))


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output


CASES = [
    Case(
        name="sana",
        build=_sana,
        blocks=listed("transformer_blocks"),
        image_of=_image,
        square=(128, 128),
        tall=(160, 96),
        token_side=32,
        guided={"guidance": 4.5},
        batched=True,
        prompts=PROMPTS,
    ),
    Case(
        name="sana-sprint",
        build=_sprint,
        blocks=listed("transformer_blocks"),
        image_of=_image,
        square=(128, 128),
        tall=(160, 96),
        token_side=32,
        prompts=PROMPTS,
    ),
]
