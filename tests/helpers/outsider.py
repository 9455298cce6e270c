"""A real pipeline whose transformer class is in no table of the package: Bria 3.2, tiny and random."""

from checkpoints.case import seeded
from checkpoints.parts import t5, vae
from diffusers import BriaPipeline, BriaTransformer2DModel, FlowMatchEulerDiscreteScheduler

# 4 x 4 tokens of 4 pixels, and 16 text tokens.
FAMILY = """\
BriaTransformer2DModel:
  lists:
    - {path: transformer_blocks, kind: dual, count: num_layers, image: {output: 1}, text: {output: 0}}
    - {path: single_transformer_blocks, kind: single, count: num_single_layers, image: {output: 1}, text: {output: 0}}
  pipelines:
    BriaPipeline:
      guidance: batched
      order: [uncond, cond]
      classifier_free: guidance_scale
      default_guidance: 5.0
      max_tokens: 128
  patch: 2
  packed: true
  text: {}
  default_side: 1024
"""


def build() -> BriaPipeline:
    """The pipeline, float32, on the CPU."""
    with seeded(3):
        tokenizer, encoder = t5(32, 16)
        transformer = BriaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=[0, 8, 8],
        )
        decoder = vae(4, 1)
    return BriaPipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=decoder,
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
