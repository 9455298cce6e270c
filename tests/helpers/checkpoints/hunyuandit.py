"""HunyuanDiT 1.x: BERT and T5 by cross-attention, and skips between its first and its last blocks."""

import string
from typing import Any

from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizer

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import noisy, t5, vae


def _bert() -> tuple[BertTokenizer, BertModel]:
    letters = string.ascii_lowercase + string.digits + string.punctuation
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, model_max_length=77)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, BertModel(config).eval()


def _build() -> HunyuanDiTPipeline:
    with seeded(1):
        tokenizer, text_encoder = _bert()
        tokenizer_2, text_encoder_2 = t5(16, 256)
        # Of four blocks the last has a skip, from the first.
        transformer = HunyuanDiT2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=32,
            num_layers=4,
            mlp_ratio=2.0,
            cross_attention_dim=16,
            cross_attention_dim_t5=16,
            pooled_projection_dim=16,
        )
        return HunyuanDiTPipeline(
            # The pipeline takes a latent cell to be eight pixels.
            vae=vae(n_halvings=3),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            transformer=noisy(transformer),
            scheduler=DDPMScheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
        )


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output


CASES = [
    Case(
        name="hunyuandit",
        build=_build,
        blocks=listed("blocks"),
        image_of=_image,
        square=(64, 64),
        tall=(112, 48),
        token_side=16,
        guided={"guidance": 4.0},
        batched=True,
    ),
]
