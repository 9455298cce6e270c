"""Lumina-Image 2.0, in whose blocks each row's image lies right behind its own text."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
from torch import Tensor

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import gemma2, noisy, vae

_BEFORE = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts. <Prompt Start> "
)
PROMPTS = ("a small red star", "a large blue ring on the left", "a")
TEXT_LENGTHS = (36, 39, 33)
"""Of each prompt, with what the pipeline puts before it; the square image has 36 tokens too."""


def _build() -> Lumina2Pipeline:
    with seeded(1):
        tokenizer, text_encoder = gemma2("\n".join((_BEFORE, *PROMPTS)))
        transformer = Lumina2Transformer2DModel(
            sample_size=12,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(8, 4, 4),
            axes_lens=(300, 32, 32),
            cap_feat_dim=16,
        )
        return Lumina2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae(n_halvings=3),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            transformer=noisy(transformer),
        )


def _image(path: str, output: Any, n_image: int) -> Tensor:
    if path.startswith("noise_refiner"):
        return output
    return torch.stack([row[n : n + n_image] for row, n in zip(output, TEXT_LENGTHS, strict=False)])


def _text(path: str, output: Any, n_image: int) -> Tensor | None:
    return None if path.startswith("noise_refiner") else output[:, : TEXT_LENGTHS[0]]


CASES = [
    Case(
        name="lumina2",
        build=_build,
        blocks=listed("noise_refiner", "layers"),
        image_of=_image,
        text_of=_text,
        square=(96, 96),
        tall=(112, 48),
        token_side=16,
        guided={"guidance": 4.0},
        prompts=PROMPTS,
        text_lengths=TEXT_LENGTHS,
    ),
]
