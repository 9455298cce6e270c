"""Tiny segmentation checkpoints with random weights, saved as their authors' are."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import torch
from checkpoints.case import seeded
from safetensors.torch import save_file
from torch import nn
from transformers import (
    DetrConfig,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessor,
    SamConfig,
    SamImageProcessor,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SwinConfig,
)

LABELS = ("background", "cat", "dog")

# Called as BiRefNet is: a list of logits from coarse to fine, the last of the input's size.
_CODE = """\
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class TinyConfig(PretrainedConfig):
    model_type = "tiny_birefnet"

    def __init__(self, last="logits", **more):
        self.last = last
        super().__init__(**more)


class TinyBiRefNet(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.encoder = nn.Conv2d(3, 4, 8, stride=8)
        self.decoder = nn.Conv2d(4, 1, 1)
        self.post_init()

    def forward(self, pixels):
        coarse = self.decoder(self.encoder(pixels).tanh())
        fine = nn.functional.interpolate(coarse, size=pixels.shape[2:], mode="bilinear")
        if self.config.last == "features":
            return [fine, self.encoder(pixels)]
        if self.config.last == "nan for red" and pixels[0, 0].mean() > 2:
            fine = fine * torch.nan
        return [coarse, fine]
"""


def birefnet_like(folder: Path, last: str = "logits", needs: str = "torch") -> Path:
    """A model with its own code, stored in float16.

    Args:
        folder: where it is saved; its name must be that of no other, for transformers keeps the code by it.
        last: what its last output is: ``logits``, ``features``, or ``nan for red`` images.
        needs: a library that its code imports.
    """
    folder.mkdir(parents=True)
    (folder / "tiny.py").write_text(f"import {needs}\n{_CODE}", encoding="utf-8")
    auto_map = {"AutoConfig": "tiny.TinyConfig", "AutoModelForImageSegmentation": "tiny.TinyBiRefNet"}
    config = {"architectures": ["TinyBiRefNet"], "auto_map": auto_map, "model_type": "tiny_birefnet", "last": last}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with seeded(5):
        weights = {
            "encoder.weight": torch.randn(4, 3, 8, 8) / 8,
            "encoder.bias": torch.randn(4),
            "decoder.weight": torch.randn(1, 4, 1, 1),
            "decoder.bias": torch.zeros(1),
        }
    halved = {name: value.half() for name, value in weights.items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def code_of(folder: Path) -> ModuleType:
    """The code of :func:`birefnet_like`, imported without transformers."""
    spec = importlib.util.spec_from_file_location(f"direct_{folder.name}", folder / "tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _widen(model: nn.Module) -> None:
    """Random weights large enough for an image's parts to come out differently."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)


def segformer(folder: Path, labels: tuple[str, ...] = LABELS) -> Path:
    """A semantic model that looks at 64 x 64 pixels."""
    with seeded(2):
        model = SegformerForSemanticSegmentation(
            SegformerConfig(
                depths=[1] * 4,
                hidden_sizes=[8] * 4,
                num_attention_heads=[1] * 4,
                sr_ratios=[2, 2, 1, 1],
                decoder_hidden_size=16,
                **_named(labels),
            )
        )
        _widen(model)
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def maskformer(folder: Path, labels: tuple[str, ...] = LABELS) -> Path:
    """An instance and panoptic model that looks at 64 x 64 pixels and is sure of some of its queries."""
    layers = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    with seeded(14):
        model = MaskFormerForInstanceSegmentation(
            MaskFormerConfig(
                backbone_config=SwinConfig(
                    image_size=64,
                    embed_dim=8,
                    depths=[1] * 4,
                    num_heads=[1] * 4,
                    window_size=4,
                    out_features=["stage1", "stage2", "stage3", "stage4"],
                ),
                decoder_config=DetrConfig(
                    d_model=16,
                    encoder_ffn_dim=16,
                    decoder_ffn_dim=16,
                    num_queries=12,
                    backbone_config=SwinConfig(embed_dim=8, depths=[1], num_heads=[1]),
                    **layers,
                ),
                fpn_feature_size=32,
                mask_feature_size=32,
                **_named(labels),
            )
        )
        _widen(model)
        nn.init.normal_(model.model.transformer_module.queries_embedder.weight, std=2)
        nn.init.normal_(model.class_predictor.weight, std=2)
    model.save_pretrained(folder)
    MaskFormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def sam(folder: Path) -> Path:
    """A mask generator that looks at 64 x 64 pixels, with clear-cut masks and predicted IoUs around 0.9."""
    prompts = SamPromptEncoderConfig(hidden_size=32, image_size=64, patch_size=8, mask_input_channels=4)
    vision = SamVisionConfig(
        hidden_size=16,
        output_channels=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        mlp_dim=16,
        window_size=0,
        global_attn_indexes=[0],
        num_pos_feats=16,
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=32, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=8, iou_head_depth=2
    )
    with seeded(4):
        model = SamModel(
            SamConfig(
                vision_config=vision.to_dict(),
                prompt_encoder_config=prompts.to_dict(),
                mask_decoder_config=decoder.to_dict(),
            )
        )
        _widen(model)
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            nn.init.normal_(mlp.proj_out.weight, std=1000)
        nn.init.normal_(model.mask_decoder.iou_prediction_head.proj_out.weight, std=0.05)
        nn.init.constant_(model.mask_decoder.iou_prediction_head.proj_out.bias, 0.9)
    model.save_pretrained(folder)
    sides = {"height": 64, "width": 64}
    SamImageProcessor(size={"longest_edge": 64}, pad_size=sides, mask_size={"longest_edge": 16}).save_pretrained(folder)
    return folder


def _named(labels: tuple[str, ...]) -> dict[str, dict]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
