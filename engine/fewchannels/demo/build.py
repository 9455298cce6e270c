"""Build an untrained FLUX pipeline for the shapes world: real diffusers and transformers classes, small sizes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from fewchannels.demo.world import all_scenes

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-/&"


@dataclass(frozen=True)
class Architecture:
    """Sizes of a small FLUX pipeline. The defaults are the shipped model's; tests build smaller ones.

    An image's side in pixels is ``grid * 2 * 2 ** (len(vae_channels) - 1)``: each token is 2 x 2 latent cells.
    """

    grid: int = 8
    n_dual: int = 2
    n_single: int = 4
    n_heads: int = 4
    head_dim: int = 32
    text_dim: int = 128
    text_layers: int = 2
    text_tokens: int = 16
    pooled_dim: int = 64
    latent_channels: int = 4
    vae_channels: tuple[int, ...] = field(default=(16, 32, 64))

    @property
    def side(self) -> int:
        """Height and width of an image, pixels."""
        return self.grid * 2 * 2 ** (len(self.vae_channels) - 1)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Numbers below the smallest normal one are zero inside, which is many times faster on some CPUs, and not after."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def world_words() -> list[str]:
    """The words of every caption, sorted."""
    return sorted({word for scene in all_scenes() for word in scene.caption.split()})


def build_tokenizers(n_tokens: int) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Tokenizers with one token a word for the world's words, and letters or bytes for anything else."""
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = [f"{letter}</w>" for letter in alphabet]
    # Named as special, the pieces get their ids in this order; the trainer would give them in a random one, and equally
    # frequent merges with them, so that every build would have other token ids.
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, show_progress=False, special_tokens=[*alphabet, *whole], end_of_word_suffix="</w>"
    )
    learned.train_from_iterator(world_words(), trainer)
    merges = [tuple(merge) for merge in json.loads(learned.to_str())["model"]["merges"]]
    vocabulary = [*alphabet, *whole, *("".join(merge) for merge in merges), "<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(vocabulary))},
        merges=merges,
        model_max_length=n_tokens,
    )
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -1.0) for word in world_words() if len(word) > 1]
    pieces += [(letter, -6.0) for letter in _LETTERS]
    pieces += [("▁a", -1.0)]
    t5 = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=n_tokens)
    return clip, t5


def build_pipeline(architecture: Architecture, seed: int = 0) -> FluxPipeline:
    """A FLUX pipeline with random weights, float32, on the CPU.

    Args:
        architecture: its sizes.
        seed: random seed of the weights; the caller's global random state is left as it was.
    """
    clip_tokenizer, t5_tokenizer = build_tokenizers(architecture.text_tokens)
    a = architecture
    rotary = a.head_dim // 4
    rotary_axes = (a.head_dim - 2 * (3 * rotary // 2), 3 * rotary // 2, 3 * rotary // 2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip_tokenizer),
                hidden_size=a.pooled_dim,
                intermediate_size=4 * a.pooled_dim,
                projection_dim=a.pooled_dim,
                num_hidden_layers=a.text_layers,
                num_attention_heads=2,
                max_position_embeddings=a.text_tokens,
                pad_token_id=clip_tokenizer.pad_token_id,
                bos_token_id=clip_tokenizer.bos_token_id,
                eos_token_id=clip_tokenizer.eos_token_id,
            )
        )
        t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(t5_tokenizer),
                d_model=a.text_dim,
                d_kv=a.head_dim,
                d_ff=2 * a.text_dim,
                num_layers=a.text_layers,
                num_heads=a.n_heads,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                is_encoder_decoder=False,
                use_cache=False,
                tie_word_embeddings=False,
            )
        )
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * len(a.vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(a.vae_channels),
            block_out_channels=a.vae_channels,
            layers_per_block=1,
            latent_channels=a.latent_channels,
            norm_num_groups=8,
            sample_size=a.side,
            mid_block_add_attention=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=1.0,
            shift_factor=0.0,
        )
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * a.latent_channels,
            num_layers=a.n_dual,
            num_single_layers=a.n_single,
            attention_head_dim=a.head_dim,
            num_attention_heads=a.n_heads,
            joint_attention_dim=a.text_dim,
            pooled_projection_dim=a.pooled_dim,
            guidance_embeds=True,
            axes_dims_rope=rotary_axes,
        )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae.eval(),
        text_encoder=clip.eval(),
        tokenizer=clip_tokenizer,
        text_encoder_2=t5.eval(),
        tokenizer_2=t5_tokenizer,
        transformer=transformer.eval(),
    )
