"""The model families: for each transformer class, where its streams are and how its pipelines run it.

Taken from diffusers' sources, version 0.42; ``tests/families/`` checks every line against a real pipeline of the class.
A custom family has the same fields in a YAML file: docs/families.md.
"""

from typing import Any

from fewchannels.models.family import BlockList, Family, Pipeline, Place, TextInput

_UNCOND_FIRST, _COND_FIRST = ("uncond", "cond"), ("cond", "uncond")


def _batched(guidance: float, order: tuple[str, ...] = _UNCOND_FIRST, **rest: Any) -> Pipeline:
    return Pipeline("batched", order, "guidance_scale", default_guidance=guidance, **rest)


def _sequential(guidance: float, **rest: Any) -> Pipeline:
    return Pipeline("sequential", _COND_FIRST, "guidance_scale", default_guidance=guidance, **rest)


def _embedded(guidance: float, **rest: Any) -> Pipeline:
    return Pipeline("none", embedded="guidance_scale", default_guidance=guidance, **rest)


def _true_cfg(scale: float, **rest: Any) -> Pipeline:
    return Pipeline("sequential", _COND_FIRST, "true_cfg_scale", default_true_cfg=scale, **rest)


_FLUX2_SYSTEM_PROMPT = (
    "[SYSTEM_PROMPT]You are an AI that reasons about image descriptions. You give structured responses focusing on "
    "object relationships, object\nattribution and actions without speculation.[/SYSTEM_PROMPT][INST]"
)
_LUMINA_SYSTEM_PROMPT = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts. <Prompt Start> "
)
_CROSS = Place()
# It would clean captions if two more packages are installed; a prompt must mean the same with and without them.
_PIXART = {"use_resolution_binning": False, "clean_caption": False}
_SANA = {"use_resolution_binning": False}
_KANDINSKY_SIZES = ((1024, 1024), (1408, 640), (640, 1408), (1280, 768), (768, 1280), (1152, 896), (896, 1152))

FAMILIES: dict[str, Family] = {
    "FluxTransformer2DModel": Family(
        lists=(
            BlockList("transformer_blocks", "dual", "num_layers", Place(1), Place(0)),
            BlockList("single_transformer_blocks", "single", "num_single_layers", Place(1), Place(0)),
        ),
        pipelines={
            "FluxPipeline": _true_cfg(1.0, embedded="guidance_scale", default_guidance=3.5, tokenizer="tokenizer_2"),
            "FluxKontextPipeline": _true_cfg(
                1.0,
                embedded="guidance_scale",
                default_guidance=3.5,
                tokenizer="tokenizer_2",
                reference="image",
                area="max_area",
            ),
        },
        patch=2,
        text=TextInput(),
        packed=True,
        default_side="vae",
    ),
    "Flux2Transformer2DModel": Family(
        lists=(
            BlockList("transformer_blocks", "dual", "num_layers", Place(1), Place(0)),
            BlockList(
                "single_transformer_blocks", "single", "num_single_layers", Place(None, "after_text"), Place(None)
            ),
        ),
        pipelines={
            "Flux2Pipeline": _embedded(4.0, negative=False, reference="image", before=_FLUX2_SYSTEM_PROMPT),
            "Flux2KleinPipeline": _sequential(4.0, negative=False, reference="image", before="<|im_start|>user\n"),
        },
        patch=2,
        text=TextInput(),
        packed=True,
        default_side=1024,
        embeds_guidance=True,
    ),
    "QwenImageTransformer2DModel": Family(
        lists=(BlockList("transformer_blocks", "dual", "num_layers", Place(1), Place(0)),),
        pipelines={
            "QwenImagePipeline": _true_cfg(4.0),
            # They truncate no prompt, and have positions for about this many tokens.
            "QwenImageEditPipeline": _true_cfg(
                4.0, reference="image", needs_reference=True, max_tokens=4096, length=None
            ),
            "QwenImageEditPlusPipeline": _true_cfg(
                4.0, reference="image", needs_reference=True, max_tokens=4096, length=None
            ),
        },
        patch=2,
        text=TextInput(masks=("encoder_hidden_states_mask",)),
        packed=True,
        default_side=1024,
    ),
    "SanaTransformer2DModel": Family(
        lists=(BlockList("transformer_blocks", "cross", "num_layers", _CROSS),),
        pipelines={
            "SanaPipeline": _batched(4.5, max_tokens=300, lower_case=True, fixed=_SANA),
            "SanaSprintPipeline": _embedded(
                4.5,
                negative=False,
                max_tokens=300,
                lower_case=True,
                two_steps="intermediate_timesteps",
                fixed=_SANA,
            ),
        },
    ),
    "SD3Transformer2DModel": Family(
        lists=(BlockList("transformer_blocks", "dual", "num_layers", Place(1), Place(0)),),
        pipelines={
            "StableDiffusion3Pipeline": _batched(7.0, tokenizer="tokenizer_3", max_tokens=256),
        },
        text=TextInput(),
    ),
    "PixArtTransformer2DModel": Family(
        lists=(BlockList("transformer_blocks", "cross", "num_layers", _CROSS),),
        pipelines={
            "PixArtAlphaPipeline": _batched(4.5, max_tokens=120, lower_case=True, fixed=_PIXART),
            "PixArtSigmaPipeline": _batched(4.5, max_tokens=300, lower_case=True, fixed=_PIXART),
        },
    ),
    "ZImageTransformer2DModel": Family(
        lists=(
            BlockList("noise_refiner", "refiner", "n_refiner_layers", Place()),
            BlockList("layers", "single", "n_layers", Place(), Place(None, "after_image")),
        ),
        # It adds the scale times the branches' difference to the conditional prediction, so 0 is off.
        pipelines={"ZImagePipeline": _batched(5.0, _COND_FIRST, unguided=0.0, before="<|im_start|>user\n")},
        patch=2,
        width=("dim",),
        text=TextInput(arguments=("cap_feats",)),
        image_argument="x",
        image_multiple=32,
        default_side=1024,
    ),
    "Lumina2Transformer2DModel": Family(
        lists=(
            BlockList("noise_refiner", "refiner", "num_refiner_layers", Place()),
            BlockList("layers", "single", "num_layers", Place(None, "after_own_text"), Place()),
        ),
        pipelines={"Lumina2Pipeline": _sequential(4.0, max_tokens=256, before=_LUMINA_SYSTEM_PROMPT)},
        width=("hidden_size",),
        text=TextInput(masks=("encoder_attention_mask",)),
    ),
    "AuraFlowTransformer2DModel": Family(
        lists=(
            BlockList("joint_transformer_blocks", "dual", "num_mmdit_layers", Place(1), Place(0)),
            BlockList(
                "single_transformer_blocks", "single", "num_single_dit_layers", Place(None, "after_text"), Place()
            ),
        ),
        pipelines={"AuraFlowPipeline": _batched(3.5, max_tokens=256)},
        text=TextInput(extra=8),  # registers
        default_side=1024,
    ),
    "ChromaTransformer2DModel": Family(
        lists=(
            BlockList("transformer_blocks", "dual", "num_layers", Place(1), Place(0)),
            BlockList("single_transformer_blocks", "single", "num_single_layers", Place(None, "after_text"), Place()),
        ),
        pipelines={"ChromaPipeline": _sequential(5.0)},
        patch=2,
        text=TextInput(),  # its mask is added to the scores as floats, so that padding is attended to
        packed=True,
        default_side=1024,
    ),
    "CogView4Transformer2DModel": Family(
        lists=(BlockList("transformer_blocks", "dual", "num_layers", Place(0), Place(1)),),
        pipelines={"CogView4Pipeline": _sequential(5.0, max_tokens=1024)},
        text=TextInput(),
    ),
    "HunyuanImageTransformer2DModel": Family(
        lists=(
            BlockList("transformer_blocks", "dual", "num_layers", Place(0), Place(1)),
            BlockList("single_transformer_blocks", "single", "num_single_layers", Place(0), Place(1)),
        ),
        pipelines={
            "HunyuanImagePipeline": Pipeline(
                "component",
                embedded="distilled_guidance_scale",
                default_guidance=3.25,
                max_tokens=1000,
                length=None,
            ),
        },
        text=TextInput(
            ("encoder_hidden_states", "encoder_hidden_states_2"),
            masks=("encoder_attention_mask", "encoder_attention_mask_2"),
        ),
        default_side=2048,
    ),
    "HunyuanDiT2DModel": Family(
        lists=(BlockList("blocks", "cross", "num_layers", _CROSS),),
        pipelines={
            "HunyuanDiTPipeline": _batched(
                5.0, tokenizer="tokenizer_2", max_tokens=256, length=None, fixed={"use_resolution_binning": False}
            ),
        },
    ),
    "HiDreamImageTransformer2DModel": Family(
        lists=(
            BlockList("double_stream_blocks", "dual", "num_layers", Place(0), Place(1)),
            # Text is behind the image and what pads it, whose length depends on the image's shape: not told.
            BlockList("single_stream_blocks", "single", "num_single_layers", Place()),
        ),
        pipelines={"HiDreamImagePipeline": _batched(5.0, tokenizer="tokenizer_4", max_tokens=128, sizes="area")},
        text=TextInput(("encoder_hidden_states_t5", "encoder_hidden_states_llama3")),
        default_side=1024,
    ),
    "Kandinsky5Transformer3DModel": Family(
        lists=(BlockList("visual_transformer_blocks", "cross", "num_visual_blocks", _CROSS),),
        pipelines={"Kandinsky5T2IPipeline": _sequential(3.5, sizes=_KANDINSKY_SIZES)},
        width=("model_dim",),
        default_side=1024,
    ),
    "DiTTransformer2DModel": Family(
        lists=(BlockList("transformer_blocks", "plain", "num_layers", Place()),),
        pipelines={
            "DiTPipeline": _batched(
                4.0, _COND_FIRST, negative=False, prompt="class_labels", tokenizer=None, length=None, sizes="default"
            ),
        },
    ),
}

VAE_FACTORS: dict[str, str] = {
    "AutoencoderKLQwenImage": "temperal_downsample",
    "AutoencoderDC": "encoder_block_out_channels",
    "AutoencoderKLHunyuanImage": "spatial_compression_ratio",
    "AutoencoderKLHunyuanVideo": "spatial_compression_ratio",
}
"""Key of a VAE's configuration for the pixels per latent cell; ``block_out_channels`` for classes not listed."""

NOISED_VAES = ("AutoencoderKL", "AutoencoderDC", "AutoencoderKLQwenImage", "AutoencoderKLFlux2")
"""VAEs whose encoded images can be used as latents of a pipeline.

:mod:`fewchannels.models.from_images` does.
"""
