"""Z-Image, whose image and text tokens are padded to multiples of 32 and are rows of one forward for both branches."""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor
from transformers import Qwen3Model

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import noisy, qwen3_config, qwen_tokenizer, vae

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Eight tokens, and eight of the template around them: as many as the square image has.
PROMPTS = ("make the small red star a large ring", "a large blue ring on the left", "a")
N_TEXT = 16


def _build() -> ZImagePipeline:
    tokenizer = qwen_tokenizer("\n".join(("user", "assistant", *PROMPTS)))
    tokenizer.chat_template = _TEMPLATE
    with seeded(1):
        text_encoder = Qwen3Model(qwen3_config(tokenizer))
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=2,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 32, 32],
        )
        return ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae(),
            text_encoder=text_encoder.eval(),
            tokenizer=tokenizer,
            transformer=noisy(transformer),
        )


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output[:, :n_image]


def _text(path: str, output: Any, n_image: int) -> Tensor | None:
    return None if path.startswith("noise_refiner") else output[:, 32 : 32 + N_TEXT]


CASES = [
    Case(
        name="z-image",
        build=_build,
        blocks=listed("noise_refiner", "layers"),
        image_of=_image,
        text_of=_text,
        square=(16, 16),
        tall=(28, 20),
        token_side=4,
        # Its scale is one less than others', and 0 is off.
        guided={"guidance": 0.5},
        unguided={"guidance": 0.0},
        batched=True,
        uncond_first=False,
        prompts=PROMPTS,
        text_lengths=(N_TEXT, 15, 9),
    ),
]
