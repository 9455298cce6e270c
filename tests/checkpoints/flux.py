"""FLUX.1: dev (embedded guidance) and true classifier-free guidance."""

from functools import partial
from typing import Any

from torch import Tensor

from checkpoints.case import Case, listed
from engine.demo.build import Architecture, build_pipeline

# 4 x 4 image tokens and 16 text tokens: a tap that went by length could take the wrong stream.
TINY = Architecture(
    grid=4,
    n_dual=2,
    n_single=2,
    n_heads=2,
    head_dim=16,
    text_dim=32,
    text_layers=1,
    text_tokens=16,
    pooled_dim=16,
    vae_channels=(8, 16),
)


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output[1]


def _text(path: str, output: Any, n_image: int) -> Tensor:
    return output[0]


CASES = [
    Case(
        name="flux",
        build=partial(build_pipeline, TINY, seed=1),
        blocks=listed("transformer_blocks", "single_transformer_blocks"),
        image_of=_image,
        text_of=_text,
        square=(16, 16),
        tall=(24, 12),
        token_side=4,
        guided={"true_cfg_scale": 4.0},
    ),
]
