"""Chroma: FLUX without pooled text, its modulation from an approximator, and classifier-free guidance."""

from typing import Any

from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import noisy, t5, vae

# Prompts are padded to this many tokens, as many as the square image has, 4 x 4. The pipeline calls its mask of the
# padding one that masks, but hands it to attention as floats, which are added to the scores: padding takes part.
N_TEXT = 16


def _build() -> ChromaPipeline:
    with seeded(1):
        tokenizer, text_encoder = t5(32, n_tokens=N_TEXT)
        return ChromaPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=vae(),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            transformer=noisy(
                ChromaTransformer2DModel(
                    in_channels=16,
                    num_layers=2,
                    num_single_layers=2,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    joint_attention_dim=32,
                    axes_dims_rope=(4, 6, 6),
                    approximator_num_channels=16,
                    approximator_hidden_dim=16,
                    approximator_layers=1,
                )
            ),
        )


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output[:, N_TEXT:] if path.startswith("single") else output[1]


def _text(path: str, output: Any, n_image: int) -> Tensor:
    return output[:, :N_TEXT] if path.startswith("single") else output[0]


CASES = [
    Case(
        name="chroma",
        build=_build,
        blocks=listed("transformer_blocks", "single_transformer_blocks"),
        image_of=_image,
        text_of=_text,
        square=(16, 16),
        tall=(28, 12),
        token_side=4,
        guided={"guidance": 5.0},
    ),
]
