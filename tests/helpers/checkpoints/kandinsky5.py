"""Kandinsky 5 for images, which it makes in a few sizes around 1024 x 1024 only."""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5T2IPipeline, Kandinsky5Transformer3DModel
from torch import Tensor
from transformers import PaddleOCRVLProcessor, Qwen2VLImageProcessor

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import clip, noisy, qwen_tokenizer, qwen_vl, vae

_TEMPLATE = (
    "<|im_start|>system\nYou are a prompt engineer. Describe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>"
)
PROMPTS = ("a small red star", "a large blue ring on the left", "a")


def _build() -> Kandinsky5T2IPipeline:
    tokenizer = qwen_tokenizer("\n".join((_TEMPLATE, *PROMPTS)))
    with seeded(1):
        tokenizer_2, text_encoder_2 = clip(16)
        # It makes 64 x 64 tokens: one head, and no more channels than its three axes of positions need.
        transformer = Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=16,
            time_dim=16,
            out_visual_dim=4,
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 6, 6),
        )
        return Kandinsky5T2IPipeline(
            transformer=noisy(transformer),
            # The pipeline takes a latent cell to be eight pixels.
            vae=vae(n_halvings=3, width=4, n_resnets=0),
            text_encoder=qwen_vl(tokenizer, 16),
            # Tokenises text as Qwen2VLProcessor does, which wants torchvision, for its videos.
            tokenizer=PaddleOCRVLProcessor(Qwen2VLImageProcessor(), tokenizer),
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        )


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output


CASES = [
    Case(
        name="kandinsky5",
        build=_build,
        blocks=listed("visual_transformer_blocks"),
        image_of=_image,
        square=(1024, 1024),
        tall=(1408, 640),
        token_side=16,
        guided={"guidance": 4.0},
        prompts=PROMPTS,
        # Row, frame, height, width, channel.
        noise_axes=(2, 3),
    ),
]
