"""AuraFlow, which puts register tokens of its own before the text."""

from typing import Any

from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import noisy, t5, vae

# 8 registers and 17 tokens of the prompt are as many as the 5 x 5 image tokens of the square image.
N_TEXT = 8 + 17


def _build() -> AuraFlowPipeline:
    with seeded(1):
        tokenizer, _ = t5(n_tokens=17)
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer),
                d_model=16,
                d_kv=8,
                d_ff=32,
                num_layers=2,
                num_heads=2,
                dropout_rate=0.0,
                is_encoder_decoder=False,
                use_cache=False,
            )
        )
        return AuraFlowPipeline(
            tokenizer=tokenizer,
            text_encoder=text_encoder.eval(),
            vae=vae(),
            transformer=noisy(
                AuraFlowTransformer2DModel(
                    sample_size=10,
                    patch_size=2,
                    in_channels=4,
                    out_channels=4,
                    num_mmdit_layers=2,
                    num_single_dit_layers=2,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    joint_attention_dim=16,
                    caption_projection_dim=32,
                    pos_embed_max_size=64,
                )
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        )


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output[1] if path.startswith("joint") else output[:, N_TEXT:]


def _text(path: str, output: Any, n_image: int) -> Tensor:
    return output[0] if path.startswith("joint") else output[:, :N_TEXT]


CASES = [
    Case(
        name="auraflow",
        build=_build,
        blocks=listed("joint_transformer_blocks", "single_transformer_blocks"),
        image_of=_image,
        text_of=_text,
        square=(20, 20),
        tall=(28, 12),
        token_side=4,
        guided={"guidance": 3.5},
        batched=True,
    ),
]
