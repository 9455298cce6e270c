"""CogView4, whose text is padded to a multiple of 16 tokens that all count."""

from typing import Any

from diffusers import CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import GlmConfig, GlmModel, PreTrainedTokenizerFast

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import byte_tokenizer, noisy, vae


def _tokenizer() -> PreTrainedTokenizerFast:
    before = ["[gMASK]", "<sop>"]
    tokenizer = byte_tokenizer(["<|endoftext|>", *before], pad_token="<|endoftext|>", padding_side="left")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*before, "$A"], special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in before]
    )
    return tokenizer


def _build() -> CogView4Pipeline:
    tokenizer = _tokenizer()
    with seeded(1):
        text_encoder = GlmModel(
            GlmConfig(
                vocab_size=len(tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=[tokenizer.pad_token_id],
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                max_position_embeddings=64,
            )
        )
        transformer = CogView4Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=16,
            time_embed_dim=16,
            condition_dim=8,
            sample_size=8,
        )
        return CogView4Pipeline(
            tokenizer=tokenizer,
            text_encoder=text_encoder.eval(),
            # The pipeline takes multiples of 16 pixels: a token's side with a VAE of three halvings.
            vae=vae(n_halvings=3),
            transformer=noisy(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(
                base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
            ),
        )


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output[0]


def _text(path: str, output: Any, n_image: int) -> Tensor:
    return output[1]


CASES = [
    Case(
        name="cogview4",
        build=_build,
        blocks=listed("transformer_blocks"),
        image_of=_image,
        text_of=_text,
        square=(64, 64),
        tall=(112, 48),
        token_side=16,
        guided={"guidance": 4.0},
        # The first, of 10 bytes and the two tokens before them, is padded to the 16 tokens that the square image
        # has too; the second makes 32.
        prompts=("a red star", "a large blue ring on the left", "a"),
    ),
]
