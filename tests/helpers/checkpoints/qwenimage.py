"""Qwen-Image, and its two editing pipelines with a reference image."""

from functools import partial
from typing import Any

from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from torch import Tensor
from transformers import PaddleOCRVLProcessor, Qwen2Tokenizer, Qwen2VLImageProcessor

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import noisy, qwen_tokenizer, qwen_vl

_DESCRIBE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
_EDIT = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where "
    "appropriate.<|im_end|>\n<|im_start|>user\nPicture 1: {}<|im_end|>\n<|im_start|>assistant\n"
)
PROMPTS = ("a small red star", "a large blue ring on the left", "a")
EDITS = ("make the small red star a large ring", *PROMPTS[1:])
PLUS_EDITS = ("one red star", *PROMPTS[1:])


def _parts(template: str, seed: int, n_halvings: int, **transformer: Any) -> dict[str, Any]:
    tokenizer = qwen_tokenizer("\n".join((template, *PROMPTS, *EDITS, *PLUS_EDITS)))
    with seeded(seed):
        return {
            "tokenizer": tokenizer,
            "text_encoder": qwen_vl(tokenizer, 16),
            "transformer": noisy(
                QwenImageTransformer2DModel(
                    in_channels=16,
                    out_channels=4,
                    num_layers=2,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    joint_attention_dim=16,
                    axes_dims_rope=(8, 4, 4),
                    **transformer,
                )
            ),
            "vae": AutoencoderKLQwenImage(
                base_dim=4,
                z_dim=4,
                dim_mult=[1] * (n_halvings + 1),
                num_res_blocks=0,
                temperal_downsample=[False] * n_halvings,
                latents_mean=[0.0] * 4,
                latents_std=[1.0] * 4,
            ).eval(),
            "scheduler": FlowMatchEulerDiscreteScheduler(),
        }


def _processor(tokenizer: Qwen2Tokenizer) -> PaddleOCRVLProcessor:
    """Puts an image's tokens into the text as Qwen2VLProcessor does, which wants torchvision, for its videos."""
    images = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28)
    return PaddleOCRVLProcessor(images, tokenizer)


def _build() -> QwenImagePipeline:
    return QwenImagePipeline(**_parts(_DESCRIBE, seed=1, n_halvings=1))


# The reference image is scaled to 1024 x 1024 pixels whatever its own size: a VAE of five halvings makes 16 x 16
# tokens of that.
def _build_edit() -> QwenImageEditPipeline:
    parts = _parts(_EDIT, seed=2, n_halvings=5)
    return QwenImageEditPipeline(processor=_processor(parts["tokenizer"]), **parts)


def _build_edit_plus() -> QwenImageEditPlusPipeline:
    parts = _parts(_EDIT, seed=3, n_halvings=5, zero_cond_t=True)
    return QwenImageEditPlusPipeline(processor=_processor(parts["tokenizer"]), **parts)


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output[1][:, :n_image]


def _text(path: str, output: Any, n_image: int) -> Tensor:
    return output[0]


_case = partial(
    Case,
    blocks=listed("transformer_blocks"),
    image_of=_image,
    text_of=_text,
    guided={"true_cfg_scale": 4.0},
)
_edit_case = partial(_case, square=(256, 256), tall=(384, 192), token_side=64, reference="must")

# In the square image the first prompt's text is as long as the image, 9 and 16 tokens: behind the prompt are 5 of the
# template, and before it are a reference image's 3, and 5 more of its name in the last.
CASES = [
    _case(
        name="qwen-image",
        build=_build,
        prompts=PROMPTS,
        text_lengths=(9, 12, 6),
        square=(12, 12),
        tall=(24, 12),
        token_side=4,
    ),
    _edit_case(name="qwen-image-edit", build=_build_edit, prompts=EDITS),
    _edit_case(name="qwen-image-edit-plus", build=_build_edit_plus, prompts=PLUS_EDITS),
]
