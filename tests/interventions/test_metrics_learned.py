"""Metrics that need weights, on tiny local checkpoints, against transformers called directly."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import metric_models
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, Dinov2Model

from fewchannels.errors import InputError
from fewchannels.interventions.metrics import METRICS
from fewchannels.interventions.metrics.learned import LearnedMetrics, as_one_map, read_head
from fewchannels.interventions.metrics.specifications import KINDS, metric_digests, pinned, read_specifications

PROMPTS = ["a small red star", "a large blue ring on a gray background"]
SOURCES = ["a heart", None]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    for make in (metric_models.clip, metric_models.dino, metric_models.swin):
        make(folder / make.__name__)
    save_file({"weight": torch.randn(1, 8), "bias": torch.randn(1)}, folder / "head.safetensors")
    return folder


def drawn(seed: int) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in PROMPTS]


def as_tensor(images: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.asarray(image) / np.float32(255)).permute(2, 0, 1) for image in images])


def cosine(x: Tensor, y: Tensor) -> np.ndarray:
    return torch.nn.functional.cosine_similarity(x, y).double().numpy()


class Direct:
    """The same models by transformers alone, one text at a time and without padding."""

    def __init__(self, models: Path) -> None:
        self.clip, self.dino = CLIPModel.from_pretrained(models / "clip"), Dinov2Model.from_pretrained(models / "dino")
        self.processor = CLIPImageProcessor.from_pretrained(models / "clip")
        self.tokenizer = AutoTokenizer.from_pretrained(models / "clip")

    def pixels(self, images: list[Image.Image]) -> Tensor:
        return self.processor(images, return_tensors="pt").pixel_values

    def embed(self, images: list[Image.Image], texts: list[str]) -> tuple[Tensor, Tensor]:
        given = [self.tokenizer(text, return_tensors="pt") for text in texts]
        found = [self.clip(pixel_values=self.pixels(images), **each) for each in given]
        return found[0].image_embeds, torch.cat([each.text_embeds for each in found])

    def first_token(self, images: list[Image.Image]) -> Tensor:
        return self.dino(self.pixels(images)).last_hidden_state[:, 0]


@torch.inference_mode()
def test_metrics_are_what_transformers_says_of_the_same_images(models: Path) -> None:
    direct, edited, undisturbed = Direct(models), drawn(0), drawn(1)
    image, text = direct.embed(edited, PROMPTS)
    before, source = direct.embed(undisturbed, ["a heart"])
    metrics = LearnedMetrics.of([f"clip={models / 'clip'}", f"dino={models / 'dino'}"], "cpu")
    found = metrics.measure(as_tensor(edited), as_tensor(undisturbed), PROMPTS, SOURCES)
    assert set(found) <= set(METRICS)
    np.testing.assert_allclose(found["clip_score"], 100 * cosine(image, text).clip(0), atol=1e-3)
    np.testing.assert_allclose(found["clip_image"], cosine(image, before), atol=1e-5)
    np.testing.assert_allclose(found["clip_source_score"][0], 100 * cosine(image, source).clip(0)[0], atol=1e-3)
    assert np.isnan(found["clip_source_score"][1])
    np.testing.assert_allclose(
        found["dino"], cosine(direct.first_token(edited), direct.first_token(undisturbed)), atol=1e-5
    )
    of_sets = metrics.embeddings(as_tensor(edited))
    np.testing.assert_allclose(of_sets["clip"], torch.nn.functional.normalize(image).numpy(), atol=1e-6)
    assert of_sets["dino"].shape == (2, 16)


@torch.inference_mode()
def test_scores_of_quality_are_logits_and_a_linear_head(models: Path) -> None:
    direct, edited = Direct(models), drawn(0)
    image, text = direct.embed(edited, PROMPTS)
    given = [f"pickscore={models / 'clip'}", f"aesthetic={models / 'clip'},{models / 'head.safetensors'}"]
    found = LearnedMetrics.of(given, "cpu").measure(as_tensor(edited), as_tensor(drawn(1)), PROMPTS, SOURCES)
    assert set(found) == {"pickscore", "aesthetic"}
    np.testing.assert_allclose(
        found["pickscore"], direct.clip.logit_scale.exp().item() * cosine(image, text), atol=1e-4
    )
    head = read_head(models / "head.safetensors")
    expected = torch.nn.functional.linear(torch.nn.functional.normalize(image), head["weight"], head["bias"])
    np.testing.assert_allclose(found["aesthetic"], expected[:, 0].numpy(), atol=1e-5)


def test_opposite_images_and_prompts_score_zero_and_not_less(models: Path) -> None:
    def turn(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return weights | {"text_projection.weight": -weights["text_projection.weight"]}

    other = metric_models.changed(models / "clip", "turned", turn)
    images = as_tensor(drawn(0))
    scores = np.stack(
        [
            LearnedMetrics("cpu", clip=str(each)).measure(images, images, PROMPTS, SOURCES)["clip_score"]
            for each in (models / "clip", other)
        ]
    )
    assert (scores.min(axis=0) == 0).all()
    assert (scores.max(axis=0) > 0).all()


def test_a_prompt_longer_than_the_model_is_cut_off(models: Path) -> None:
    folder = metric_models.clip(models / "short", n_tokens=8)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("model_max_length")  # as many hub checkpoints: only the model knows how long a text may be
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    images = as_tensor(drawn(0))
    metrics = LearnedMetrics("cpu", clip=str(folder))
    long = ["a small red star " * 40, "a small red star at the left of it"]
    scores = metrics.measure(images[:1].repeat(2, 1, 1, 1), images, long, [None, None])["clip_score"]
    assert np.isfinite(scores).all()


def test_half_precision_weights_are_computed_with_in_single(models: Path) -> None:
    def halve(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: x.half() if x.is_floating_point() else x for name, x in weights.items()}

    def round_off(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: x.half().float() if x.is_floating_point() else x for name, x in weights.items()}

    stored = metric_models.changed(models / "dino", "half", halve)
    settings = json.loads((stored / "config.json").read_text(encoding="utf-8"))
    (stored / "config.json").write_text(json.dumps(settings | {"dtype": "float16"}), encoding="utf-8")
    same = metric_models.changed(models / "dino", "rounded", round_off)
    found = [LearnedMetrics("cpu", dino=str(each)).embeddings(as_tensor(drawn(0)))["dino"] for each in (stored, same)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_the_improved_predictor_is_a_linear_map(suffix: str, tmp_path: Path) -> None:
    predictor = metric_models.improved_predictor()
    weights = {f"layers.{name}": value for name, value in predictor.state_dict().items()}
    save = save_file if suffix == "safetensors" else torch.save
    save(weights, tmp_path / f"head.{suffix}")
    weight, bias = as_one_map(read_head(tmp_path / f"head.{suffix}"), 8)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose((x.double() @ weight.T + bias).numpy(), predictor(x).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ({"weight": torch.zeros(8)}, "has weight; it must have weight and bias, or those of layers.0"),
        ({"weight": torch.zeros(1, 9), "bias": torch.zeros(1)}, r"of shape \(1, 9\); on 8 features"),
        ({"weight": torch.zeros(2, 8), "bias": torch.zeros(2)}, "outputs 2 values per image"),
        (
            {f"layers.{i}.{part}": torch.zeros(1, 8) for i in (0, 3, 6, 9, 11) for part in ("weight", "bias")},
            "it must have weight and bias",
        ),
    ],
)
def test_a_head_of_another_kind_is_refused(weights: dict[str, Tensor], why: str) -> None:
    with pytest.raises(InputError, match=why):
        as_one_map(weights, 8)


def without_projection(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name != "visual_projection.weight"}


def damaged(models: Path) -> str:
    folder = metric_models.changed(models / "clip", "damaged", dict)
    (folder / "model.safetensors").write_bytes(b"no weights" * 10)
    (models / "damaged.safetensors").write_bytes(b"no weights" * 10)
    return f"clip={folder}"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (lambda _: "clipp=x", "Did you mean 'clip'"),
        (lambda _: "clip", "it must be clip=FOLDER"),
        (lambda _: "clip=/nowhere/at/all", "the CLIP model '/nowhere/at/all' cannot be opened: .*Give a folder"),
        (lambda _: "dino=nobody/nothing", "the DINO model 'nobody/nothing' cannot be opened: .*or a hub id"),
        (lambda models: f"clip={models / 'dino'}", "is a Dinov2Model, which does not compare images with texts"),
        (lambda models: f"dino={models / 'clip'}", "is a CLIPModel, which has no class token"),
        (lambda models: f"dino={models / 'swin'}", "is a SwinModel, which has no class token"),
        (
            lambda models: f"pickscore={metric_models.changed(models / 'clip', 'part', without_projection)}",
            r"lack 1 of the \d+ weights of CLIPModel, such as 'visual_projection.weight'; they would be init",
        ),
        (damaged, "the CLIP model .*damaged' cannot be opened: SafetensorError"),
        (lambda _: "aesthetic=/nowhere", "a comma and the head's file"),
        (lambda models: f"aesthetic={models / 'clip'},/nowhere.pth", "the aesthetic model '/nowhere.pth' cannot be op"),
        (lambda _: "lpips=resnet", "unknown LPIPS network 'resnet'"),
    ],
)
def test_a_metric_that_cannot_be_is_refused_with_the_remedy(
    given: Callable[[Path], str], why: str, models: Path
) -> None:
    with pytest.raises(InputError, match=why):
        LearnedMetrics.of([given(models)], "cpu")


def test_lpips_without_torchvision_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchmetrics.utilities.imports._TORCHVISION_AVAILABLE", False)
    with pytest.raises(
        InputError, match=r"needs torchvision, which is not installed\. Install the version that matches your torch"
    ):
        LearnedMetrics.of(["lpips=alex"], "cpu")


def test_a_hub_model_is_pinned_to_its_commit_which_is_part_of_what_decides(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--org--clip"
    one, other = "1" * 40, "2" * 40
    for commit in (one, other):
        shutil.copytree(models / "clip", place / "snapshots" / commit)
    weights = load_file(models / "clip" / "model.safetensors")
    save_file(
        {name: 1.3 * value for name, value in weights.items()},
        place / "snapshots" / other / "model.safetensors",
        {"format": "pt"},
    )
    (place / "refs").mkdir()
    found, scores = [], []
    images = as_tensor(drawn(1))
    for commit in (one, other):
        (place / "refs" / "main").write_text(commit)
        (text,) = pinned(["clip=org/clip"])
        assert text == f"clip=org/clip@{commit}"
        assert pinned([text]) == (text,)
        assert pinned([f"aesthetic=org/clip,{models / 'head.safetensors'}"])[0].endswith(
            f"@{commit},{models / 'head.safetensors'}"
        )
        found.append(metric_digests([text]))
        (place / "refs" / "main").write_text(other)  # whatever main has become by then
        scores.append(LearnedMetrics.of([text], "cpu").embeddings(images)["clip"])
    assert found[0] != found[1]
    wanted = LearnedMetrics.of([f"clip={models / 'clip'}"], "cpu").embeddings(images)["clip"]
    np.testing.assert_array_equal(scores[0], wanted)
    assert np.abs(scores[1] - wanted).max() > 1e-3
    with pytest.raises(InputError, match="metric dino: there is no folder 'org/none', and no hub model"):
        pinned(["dino=org/none"])
    assert pinned(["lpips=alex", f"clip={models / 'clip'}"]) == ("lpips=alex", f"clip={models / 'clip'}")


def test_metrics_are_named_once_each_and_travel_as_texts() -> None:
    texts = [f"{kind}=a/b" for kind in KINDS]
    assert read_specifications(pickle.loads(pickle.dumps(texts))) == dict.fromkeys(KINDS, "a/b")
    with pytest.raises(InputError, match="--metric has clip twice"):
        read_specifications(["clip=a", "clip=b"])


def test_weights_that_a_metrics_model_does_not_have_are_refused_but_not_what_it_does_not_use(models: Path) -> None:
    def with_more(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        return lambda weights: weights | {name: torch.zeros(2)}

    for model in ("clip", "dino"):
        folder = metric_models.changed(models / model, f"more_{model}", with_more("block_99.weight"))
        with pytest.raises(
            InputError, match=r"contain 1 weights that \w+Model does not have, such as 'block_99.weight'"
        ):
            LearnedMetrics.of([f"{model}={folder}"], "cpu")
    head = metric_models.changed(models / "dino", "head", with_more("classifier.weight"))
    LearnedMetrics.of([f"dino={head}"], "cpu")
    LearnedMetrics.of([f"dino={metric_models.vit_without_pooler(models / 'vit')}"], "cpu")
