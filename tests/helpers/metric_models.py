"""Tiny checkpoints with random weights that embed images and texts, saved as their authors' are."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from checkpoints.case import seeded
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from fewchannels.demo.build import build_tokenizers
from fewchannels.interventions.metrics.encoders import quietly

_LAYER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_PATCHES = {"image_size": 32, "patch_size": 16}


def clip(folder: Path, n_tokens: int = 16) -> Path:
    """A CLIP model of 32 x 32 pixels, so many tokens and 8 features."""
    tokenizer, _ = build_tokenizers(n_tokens)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=n_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=8,
        **_LAYER,
    )
    vision = CLIPVisionConfig(projection_dim=8, **_LAYER, **_PATCHES)
    with seeded(0), quietly():
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        model.save_pretrained(folder)
        _processor().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def dino(folder: Path) -> Path:
    """A DINOv2 model of 32 x 32 pixels and 16 features."""
    with seeded(1), quietly():
        Dinov2Model(Dinov2Config(mlp_ratio=2, **_LAYER, **_PATCHES)).save_pretrained(folder)
        _processor().save_pretrained(folder)
    return folder


def vit_without_pooler(folder: Path) -> Path:
    """A DINO model as its authors have published it: nothing behind the tokens."""
    with seeded(3), quietly():
        ViTModel(ViTConfig(**_LAYER, **_PATCHES), add_pooling_layer=False).save_pretrained(folder)
        _processor().save_pretrained(folder)
    return folder


def swin(folder: Path) -> Path:
    """A vision transformer without a class token."""
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1], num_heads=[1], window_size=4)
    with seeded(2), quietly():
        SwinModel(config).save_pretrained(folder)
        _processor().save_pretrained(folder)
    return folder


def changed(model: Path, name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """A copy of a model beside it, with other weights."""
    folder = shutil.copytree(model, model.parent / name)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def improved_predictor() -> torch.nn.Sequential:
    """LAION's improved predictor, narrower: layers and dropout only, in the places that name its weights."""
    linear, dropout = torch.nn.Linear, torch.nn.Dropout
    with seeded(3):
        return torch.nn.Sequential(
            linear(8, 12),
            dropout(0.2),
            linear(12, 6),
            dropout(0.2),
            linear(6, 4),
            dropout(0.1),
            linear(4, 3),
            linear(3, 1),
        ).eval()


def _processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
