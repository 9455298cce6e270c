"""Parts that several checkpoints share: text encoders with their tokenizers, and VAEs, all tiny and random."""

import re
import string

from diffusers import AutoencoderKL
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from fewchannels.demo.build import build_tokenizers


def clip(width: int = 16, *, projection: bool = False) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """A CLIP tokenizer and text encoder of 77 tokens; with a projection where the pipeline pools by it."""
    tokenizer, _ = build_tokenizers(77)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return tokenizer, (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5(width: int = 32, n_tokens: int = 16) -> tuple[T5Tokenizer, T5EncoderModel]:
    """A T5 tokenizer and encoder of so many tokens."""
    _, tokenizer = build_tokenizers(n_tokens)
    return tokenizer, t5_encoder(len(tokenizer), width)


def t5_encoder(vocab_size: int, width: int = 32) -> T5EncoderModel:
    """A T5 encoder of one layer."""
    config = T5Config(
        vocab_size=vocab_size,
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config).eval()


def qwen3_config(tokenizer: Qwen2Tokenizer, n_layers: int = 2) -> Qwen3Config:
    """Of a Qwen 3, 16 channels wide."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
    )


def byte_tokenizer(special: list[str], n_tokens: int = 64, **roles: str) -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token a byte and the special tokens named, which come first.

    Args:
        special: tokens.
        n_tokens: its ``model_max_length``.
        roles: ``pad_token`` and so on.
    """
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    bytes_only.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only, model_max_length=n_tokens, **roles)


def vae(
    latent_channels: int = 4, n_halvings: int = 1, side: int = 16, width: int = 8, n_resnets: int = 1
) -> AutoencoderKL:
    """An AutoencoderKL in which a latent cell is ``2 ** n_halvings`` pixels; 4 wide without resnets is a fast one."""
    widths = (width,) * (n_halvings + 1)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=n_resnets,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=side,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    ).eval()


def qwen_tokenizer(text: str, n_tokens: int = 512) -> Qwen2Tokenizer:
    """A Qwen tokenizer with one token for each word and special token of a text, and for each byte of any other.

    Args:
        text: a pipeline's template, so that the template has as many tokens as with the real tokenizer, and prompts.
        n_tokens: its ``model_max_length``.
    """
    vocabulary = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, model_max_length=n_tokens, extra_special_tokens={"image_token": "<|image_pad|>"}
    )
    tokenizer.add_tokens(
        [
            AddedToken(name, special=True)
            for name in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
        ]
    )
    add_words(tokenizer, re.sub(r"<\|\w+\|>", "\n", text))
    return tokenizer


def add_words(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Give a byte-level tokenizer one more token for each word of a text, with the space before it."""
    pieces = dict.fromkeys(re.findall(r"'s| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+", text))
    tokenizer.add_tokens([piece for piece in pieces if len(piece) > 1])


def qwen_vl(tokenizer: Qwen2Tokenizer, width: int = 16) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of two layers, for text and for images."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_scaling": {"type": "mrope", "mrope_section": [width // 8, width // 16, width // 16]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": width,
            "intermediate_size": width,
            "num_heads": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [0],
        },
        image_token_id=tokenizer.image_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def noisy(module: nn.Module, std: float = 0.2) -> nn.Module:
    """A module for inference, its matrices normal: none is zero, and each input acts well on what comes out."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std)
    return module.eval()


def gemma2(text: str, n_tokens: int = 64, width: int = 16) -> tuple[GemmaTokenizer, Gemma2Model]:
    """A Gemma tokenizer, with one token for each word of a text and each character of any other, and a Gemma 2.

    Args:
        text: what a pipeline puts before prompts, so that it has as many tokens as with the real one, and prompts.
        n_tokens: the tokenizer's ``model_max_length``.
        width: of the encoder.
    """
    characters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    tokenizer = GemmaTokenizer(vocab=vocabulary, add_bos_token=True, model_max_length=n_tokens)
    add_words(tokenizer, text)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=width // 2,
        max_position_embeddings=2048,
    )
    return tokenizer, Gemma2Model(config).eval()
