"""FLUX.2: klein, its step-distilled form, which is never guided, and dev, which embeds guidance."""

from functools import partial
from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from diffusers.configuration_utils import FrozenDict
from tokenizers import processors
from torch import Tensor
from transformers import (
    LlavaProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessorPil,
    Qwen3ForCausalLM,
)

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import add_words, byte_tokenizer, noisy, qwen3_config, qwen_tokenizer

PROMPTS = ("a small red star", "a large blue ring", "a")

_KLEIN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Text is padded, here not at all for the longer prompts, to as many tokens as the square image has: 4 x 4, and 6 x 6.
KLEIN_TOKENS, DEV_TOKENS = 16, 36

_DEV_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set name = {'system': 'SYSTEM_PROMPT', 'user': 'INST'}[message.role] %}"
    "[{{ name }}]{% for part in message.content %}{{ '[IMG]' if part.type == 'image' else part.text }}{% endfor %}"
    "[/{{ name }}]{% endfor %}"
)
_DEV_SYSTEM = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)


def _transformer_and_vae(text_width: int, *, guidance_embeds: bool) -> dict[str, Any]:
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text_width,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    autoencoder = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    return {
        "transformer": noisy(transformer),
        "vae": autoencoder.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def _build_klein(seed: int, *, is_distilled: bool) -> Flux2KleinPipeline:
    tokenizer = qwen_tokenizer("\n".join(("user", "assistant", *PROMPTS)), KLEIN_TOKENS)
    tokenizer.add_tokens(["<think>", "</think>", "\n\n"])
    tokenizer.chat_template = _KLEIN_TEMPLATE
    with seeded(seed):
        # The pipeline reads behind the encoder's layers 9, 18 and 27.
        text_encoder = Qwen3ForCausalLM(qwen3_config(tokenizer, 28))
        return Flux2KleinPipeline(
            tokenizer=tokenizer,
            text_encoder=noisy(text_encoder),
            is_distilled=is_distilled,
            **_transformer_and_vae(3 * 16, guidance_embeds=False),
        )


def _build_dev() -> Flux2Pipeline:
    special = ["<unk>", "<s>", "</s>", "<pad>", "[IMG]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"]
    tokenizer = byte_tokenizer(
        special, DEV_TOKENS, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    add_words(tokenizer, "\n".join((_DEV_SYSTEM, *PROMPTS)))
    # PixtralProcessor, which the published checkpoint has, is this for text and wants torchvision.
    processor = LlavaProcessor(
        PixtralImageProcessorPil(), tokenizer, patch_size=14, chat_template=_DEV_TEMPLATE, image_token="[IMG]"
    )
    with seeded(3):
        # The pipeline reads behind the encoder's layers 10, 20 and 30.
        text_encoder = Mistral3ForConditionalGeneration(
            Mistral3Config(
                text_config={
                    "model_type": "mistral",
                    "vocab_size": len(tokenizer),
                    "bos_token_id": tokenizer.bos_token_id,
                    "eos_token_id": tokenizer.eos_token_id,
                    "pad_token_id": tokenizer.pad_token_id,
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": 30,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "head_dim": 8,
                    "max_position_embeddings": 512,
                },
                vision_config={
                    "model_type": "pixtral",
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "head_dim": 8,
                    "image_size": 28,
                    "patch_size": 14,
                },
                image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
            )
        )
        parts = _transformer_and_vae(3 * 16, guidance_embeds=True)
    # The published checkpoint's configuration is older than this key.
    config = dict(parts["transformer"].config)
    del config["guidance_embeds"]
    parts["transformer"]._internal_dict = FrozenDict(config)
    return Flux2Pipeline(tokenizer=processor, text_encoder=noisy(text_encoder), **parts)


def _is_single(path: str) -> bool:
    return path.startswith("single_transformer_blocks")


def _image(path: str, output: Any, n_image: int, *, n_text: int) -> Tensor:
    return output[:, n_text : n_text + n_image] if _is_single(path) else output[1][:, :n_image]


def _text(path: str, output: Any, n_image: int, *, n_text: int) -> Tensor:
    return output[:, :n_text] if _is_single(path) else output[0]


_case = partial(
    Case,
    blocks=listed("transformer_blocks", "single_transformer_blocks"),
    prompts=PROMPTS,
    tall=(24, 12),
    token_side=4,
    reference="may",
)
_klein_case = partial(
    _case,
    image_of=partial(_image, n_text=KLEIN_TOKENS),
    text_of=partial(_text, n_text=KLEIN_TOKENS),
    square=(16, 16),
)

CASES = [
    _klein_case(
        name="flux2-klein",
        build=partial(_build_klein, 1, is_distilled=False),
        guided={"guidance": 4.0},
    ),
    # It passes over the scale that guides the other.
    _klein_case(
        name="flux2-klein-distilled",
        build=partial(_build_klein, 2, is_distilled=True),
        unguided={"guidance": 4.0},
    ),
    _case(
        name="flux2-dev",
        build=_build_dev,
        image_of=partial(_image, n_text=DEV_TOKENS),
        text_of=partial(_text, n_text=DEV_TOKENS),
        square=(24, 24),
        unguided={"guidance": 4.0},
    ),
]
