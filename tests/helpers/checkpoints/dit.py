"""DiT, which makes images of ImageNet's classes, all of one size, without text."""

from typing import Any

from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import noisy, vae


def _build() -> DiTPipeline:
    # The class without an image has the number 1000, and the table of classes a row for it.
    with seeded(1):
        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=8,
            norm_num_groups=4,
            num_embeds_ada_norm=1000,
        )
        pipeline = DiTPipeline(transformer=noisy(transformer), vae=vae(), scheduler=DDIMScheduler())
    # The pipeline does not write its classes into model_index.json itself, though it reads them from there.
    pipeline.register_to_config(id2label={0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 7: "cock"})
    return pipeline


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output


CASES = [
    Case(
        name="dit",
        build=_build,
        blocks=listed("transformer_blocks"),
        image_of=_image,
        square=(16, 16),
        tall=None,
        token_side=4,
        guided={"guidance": 4.0},
        batched=True,
        uncond_first=False,
        prompts=("Tinca tinca", "goldfish", "7"),
    ),
]
