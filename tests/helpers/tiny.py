"""The smallest FLUX pipeline that has all of its parts."""

from fewchannels.demo.build import Architecture

TINY = Architecture(
    grid=4,
    n_dual=2,
    n_single=2,
    n_heads=2,
    head_dim=16,
    text_dim=32,
    text_layers=1,
    text_tokens=16,
    pooled_dim=16,
    vae_channels=(8, 16),
)
