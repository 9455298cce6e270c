"""Metrics that need weights, on tiny local checkpoints, against transformers called directly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
)

from engine.errors import InputError
from engine.metrics.learned import LearnedMetrics
from engine.models.source import find

PROMPTS = ["a small red star", "a large blue ring on a gray background"]
SOURCES = ["a heart", None]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    tokenizer = AutoTokenizer.from_pretrained(find("demo").folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(folder / "dino")
    for name in ("clip", "dino"):
        processor.save_pretrained(folder / name)
    save_file({"weight": torch.randn(1, 8), "bias": torch.randn(1)}, folder / "head.safetensors")
    return folder


def drawn(seed: int) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in PROMPTS]


def as_tensor(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.asarray(image) / np.float32(255)).permute(2, 0, 1) for image in images])


def cosine(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.cosine_similarity(x, y).double().numpy()


@torch.inference_mode()
def test_metrics_are_what_transformers_says_of_the_same_pictures(models: Path) -> None:
    clip, dino = CLIPModel.from_pretrained(models / "clip"), Dinov2Model.from_pretrained(models / "dino")
    processor, tokenizer = (
        CLIPImageProcessor.from_pretrained(models / "clip"),
        AutoTokenizer.from_pretrained(models / "clip"),
    )
    edited, undisturbed = drawn(0), drawn(1)

    def clip_of(images: list[Image.Image], texts: list[str]):
        given = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        found = clip(pixel_values=processor(images, return_tensors="pt").pixel_values, **given)
        return found.image_embeds, found.text_embeds

    def dino_of(images: list[Image.Image]) -> torch.Tensor:
        return dino(processor(images, return_tensors="pt").pixel_values).last_hidden_state[:, 0]

    image, text = clip_of(edited, PROMPTS)
    before, _ = clip_of(undisturbed, PROMPTS)
    _, source = clip_of(edited, ["a heart", "a heart"])
    texts = [f"clip={models / 'clip'}", f"dino={models / 'dino'}", f"pickscore={models / 'clip'}"]
    texts.append(f"aesthetic={models / 'clip'},{models / 'head.safetensors'}")
    metrics = LearnedMetrics.of(texts, "cpu")
    found = metrics.measure(as_tensor(edited), as_tensor(undisturbed), PROMPTS, SOURCES)
    np.testing.assert_allclose(found["clip_score"], 100 * cosine(image, text).clip(0), atol=1e-3)
    np.testing.assert_allclose(found["clip_image"], cosine(image, before), atol=1e-5)
    np.testing.assert_allclose(found["clip_source_score"][0], 100 * cosine(image, source).clip(0)[0], atol=1e-3)
    assert np.isnan(found["clip_source_score"][1])
    np.testing.assert_allclose(found["dino"], cosine(dino_of(edited), dino_of(undisturbed)), atol=1e-5)
    scale = float(clip.logit_scale.exp())
    np.testing.assert_allclose(found["pickscore"], scale * cosine(image, text), atol=1e-4)
    from safetensors.torch import load_file

    head = load_file(models / "head.safetensors")
    unit = torch.nn.functional.normalize(image)
    np.testing.assert_allclose(found["aesthetic"], (unit @ head["weight"].T + head["bias"])[:, 0].numpy(), atol=1e-5)
    of_sets = metrics.embeddings(as_tensor(edited))
    np.testing.assert_allclose(of_sets["clip"], unit.numpy(), atol=1e-6)
    assert of_sets["dino"].shape == (2, 16)


def test_a_head_of_another_kind_is_refused(models: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(8)}, tmp_path / "head.safetensors")
    with pytest.raises(InputError, match=r"holds weight; it must hold weight \(1, n\) and bias"):
        LearnedMetrics.of([f"aesthetic={models / 'clip'},{tmp_path / 'head.safetensors'}"], "cpu")
