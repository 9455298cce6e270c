"""HiDream, in whose blocks each layer of Llama joins the text in turn, and whose images have one area."""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImagePipeline, HiDreamImageTransformer2DModel
from tokenizers import processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from checkpoints.case import Case, listed, seeded
from checkpoints.parts import byte_tokenizer, clip, noisy, t5, vae

# T5's tokens and as many of Llama's last layer are the text that lasts: together as many as the square image has. To
# the dual blocks a layer of Llama's comes behind them.
_N_TOKENS = 32
_N_TEXT = 2 * _N_TOKENS


def _llama_tokenizer() -> PreTrainedTokenizerFast:
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer = byte_tokenizer([begin, end], _N_TOKENS, bos_token=begin, eos_token=end)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)]
    )
    return tokenizer


def _build() -> HiDreamImagePipeline:
    tokenizer_4 = _llama_tokenizer()
    with seeded(1):
        tokenizer, text_encoder = clip(16, projection=True)
        tokenizer_2, text_encoder_2 = clip(16, projection=True)
        tokenizer_3, text_encoder_3 = t5(32, _N_TOKENS)
        text_encoder_4 = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer_4),
                bos_token_id=tokenizer_4.bos_token_id,
                eos_token_id=tokenizer_4.eos_token_id,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=3,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=128,
            )
        )
        # Patches of 16 cells, for 8 x 8 tokens: the pipeline makes images of 128 x 128 cells, or as many. Of other
        # shapes the tokens are padded to as many as max_resolution has.
        transformer = HiDreamImageTransformer2DModel(
            patch_size=16,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[32, 16],
            text_emb_dim=32,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(128, 128),
            llama_layers=[0, 1, 2, 2],
        )
        return HiDreamImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae(n_halvings=3, width=4, n_resnets=0),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            text_encoder_3=text_encoder_3,
            tokenizer_3=tokenizer_3,
            text_encoder_4=text_encoder_4.eval(),
            tokenizer_4=tokenizer_4,
            transformer=noisy(transformer),
        )


def _image(path: str, output: Any, n_image: int) -> Tensor:
    return output[0][:, :n_image] if path.startswith("double_stream_blocks") else output[:, :n_image]


def _text(path: str, output: Any, n_image: int) -> Tensor | None:
    return output[1][:, :_N_TEXT] if path.startswith("double_stream_blocks") else None


CASES = [
    Case(
        name="hidream",
        build=_build,
        blocks=listed("double_stream_blocks", "single_stream_blocks"),
        image_of=_image,
        text_of=_text,
        square=(1024, 1024),
        tall=(1152, 896),
        token_side=128,
        guided={"guidance": 5.0},
        batched=True,
    ),
]
