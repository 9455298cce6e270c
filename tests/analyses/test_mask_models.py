"""Masks by tiny segmentation models, against a forward of the same weights done by hand."""

from pathlib import Path

import mask_models
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    CLIPConfig,
    MaskFormerForInstanceSegmentation,
    SamModel,
    SegformerForSemanticSegmentation,
    SegformerModel,
)

from fewchannels.analyses.masks import NoMask, SampleImage, SubjectMask, open_mask_source
from fewchannels.analyses.masks.segmenters import Segment, is_background, main_object, subject_of
from fewchannels.errors import InputError

HEIGHT, WIDTH = 96, 128
SIZE = (HEIGHT, WIDTH)


@pytest.fixture(scope="module", autouse=True)
def _code_is_kept_elsewhere(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model of every kind, each under the name of the function that makes it."""
    folder = tmp_path_factory.mktemp("segmenters")
    for make in (mask_models.birefnet_like, mask_models.segformer, mask_models.maskformer, mask_models.sam):
        make(folder / make.__name__)
    return folder


@pytest.fixture(scope="module")
def image() -> Image.Image:
    blots = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def mask_of(source, image: Image.Image) -> SubjectMask:
    (result,) = source([SampleImage(image)])
    assert isinstance(result, SubjectMask), result
    return result


def normalized(image: Image.Image, side: tuple[int, int]) -> torch.Tensor:
    """``(1, rgb, y, x)`` as models of ImageNet's colours take it."""
    pixels = np.array(image.resize(side, Image.Resampling.BILINEAR), dtype=np.float64) / 255
    normal = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.tensor(normal, dtype=torch.float32).permute(2, 0, 1)[None]


def resized(maps: torch.Tensor, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """``(map, y, x)`` to another size, bilinear."""
    return functional.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


# Models with their own code


def direct_probability(folder: Path, image: Image.Image, side: int) -> NDArray[np.float32]:
    """The sigmoid of the fine logits, ``(y, x)`` at the image's size, resized by Pillow."""
    code = mask_models.code_of(folder)
    model = code.TinyBiRefNet(code.TinyConfig())
    model.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
    with torch.no_grad():
        logits = model(normalized(image, (side, side)))[1][0, 0]
    probability = Image.fromarray((1 / (1 + (-logits).exp())).numpy())
    return np.array(probability.resize(image.size, Image.Resampling.BILINEAR))


@pytest.mark.parametrize("side", [None, 64])
def test_a_model_with_its_own_code_is_thresholded_at_one_half_of_its_last_output(
    models: Path, image: Image.Image, side: int | None
) -> None:
    folder = models / "birefnet_like"
    probability = direct_probability(folder, image, side or 1024)
    source = open_mask_source(str(folder), trust_remote_code=True, side=side)
    pixels = mask_of(source, image).pixels
    clear = abs(probability - 0.5) > 1e-4
    assert clear.mean() > 0.99
    assert 0.2 < pixels.mean() < 0.8
    np.testing.assert_array_equal(pixels[clear], (probability > 0.5)[clear])
    assert source.description["code"] == "tiny.TinyBiRefNet"
    assert source.description["rule"] == f"sigmoid > 0.5 at {side or 1024} x {side or 1024}"


def test_code_that_comes_with_a_model_does_not_run_unasked(tmp_path: Path) -> None:
    folder = mask_models.birefnet_like(tmp_path / "unasked", needs="a_library_that_is_not_here")
    with pytest.raises(InputError, match=r"own Python code \(tiny.TinyBiRefNet\).* allow it with trust_remote_code"):
        open_mask_source(str(folder))
    with pytest.raises(InputError, match=r"needs a library that is not installed: .*a_library_that_is_not_here"):
        open_mask_source(str(folder), trust_remote_code=True)


def test_a_model_whose_last_output_is_no_map_of_logits_says_so(tmp_path: Path, image: Image.Image) -> None:
    folder = mask_models.birefnet_like(tmp_path / "features", last="features")
    (result,) = open_mask_source(str(folder), trust_remote_code=True, side=64)([SampleImage(image)])
    assert isinstance(result, NoMask)
    assert r"(1, 4, 8, 8); a model like BiRefNet gives logits (1, 1, y, x)" in result.reason


def test_values_that_are_not_a_number_fail_their_own_image_only(tmp_path: Path, image: Image.Image) -> None:
    folder = mask_models.birefnet_like(tmp_path / "nan_for_red", last="nan for red")
    red = Image.new("RGB", (64, 64), "red")
    first, second, third = open_mask_source(str(folder), trust_remote_code=True, side=64)(
        [SampleImage(each) for each in (image, red, image)]
    )
    assert isinstance(first, SubjectMask)
    assert second == NoMask("ValueError: TinyBiRefNet returned values that are not finite")
    assert isinstance(third, SubjectMask)
    np.testing.assert_array_equal(first.pixels, third.pixels)


# Models that label


def test_a_semantic_models_subject_is_all_but_the_background_or_the_wanted_labels(
    models: Path, image: Image.Image
) -> None:
    folder = models / "segformer"
    model = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        label = resized(model(normalized(image, (64, 64))).logits[0]).argmax(0).numpy()
    shares = [(label == i).mean() for i in range(3)]
    assert min(shares) > 0.05
    for labels, ids in (((), (1, 2)), (("cat",), (1,)), ((" Dog ", "background"), (0, 2))):
        got = mask_of(open_mask_source(str(folder), labels=labels), image)
        # Pixels between two labels fall to either by rounding.
        assert (got.pixels == np.isin(label, ids)).mean() > 0.998
        assert got.score is None


def direct_segments(folder: Path, image: Image.Image) -> list[tuple[int, float, NDArray[np.bool_]]]:
    """Label, score and pixels of each query of a MaskFormer that is surer than 0.9 and not mostly hidden by others."""
    model = MaskFormerForInstanceSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(normalized(image, (64, 64)))
    classes, masks = output.class_queries_logits[0].softmax(-1), output.masks_queries_logits[0].sigmoid()
    sure = [(row.argmax().item(), row.max().item(), mask) for row, mask in zip(classes, masks, strict=True)]
    sure = [each for each in sure if each[0] != 3 and each[1] > 0.9]  # 3 is "nothing"
    weighted = resized(torch.stack([score * mask for _, score, mask in sure]))
    owner = weighted.argmax(0)
    segments = []
    for i, (label, score, _) in enumerate(sure):
        own, all_of_it = owner == i, weighted[i] >= 0.5
        if own.sum() > 0.5 * all_of_it.sum() > 0:
            segments.append((label, score, own.numpy()))
    return segments


def test_an_instance_models_subject_is_its_surest_thing_or_the_wanted_labels(
    models: Path, tmp_path: Path, image: Image.Image
) -> None:
    segments = direct_segments(models / "maskformer", image)
    surest = max(segments, key=lambda each: each[1])
    (cat,) = (each for each in segments if each[0] == 1)
    background = [pixels for label, _, pixels in segments if label == 0]
    assert len(background) > 2
    assert surest[0] == 0
    for labels, wanted, pixels, score in (
        (("tree", "cat", "dog"), [], surest[2], surest[1]),
        (("background", "cat", "dog"), [], cat[2], cat[1]),
        (("background", "void", "dog"), [], np.zeros(SIZE, bool), None),
        (("background", "cat", "dog"), ["background"], np.logical_or.reduce(background), None),
        (("background", "cat", "dog"), ["dog"], np.zeros(SIZE, bool), None),
    ):
        folder = mask_models.maskformer(tmp_path / "-".join(labels), labels)
        got = mask_of(open_mask_source(str(folder), labels=wanted), image)
        assert (got.pixels == pixels).mean() > 0.998
        assert got.score == (score and pytest.approx(score, abs=1e-5))


def blank(*rows: int) -> NDArray[np.bool_]:
    """20 x 20 pixels, True in these rows."""
    mask = np.zeros((20, 20), bool)
    mask[list(rows)] = True
    return mask


def test_the_surest_thing_is_the_larger_of_two_that_are_equally_sure() -> None:
    small, large, sky = Segment("cat", blank(1), 0.9), Segment("dog", blank(2, 3), 0.9), Segment("sky", blank(9), 0.8)
    assert subject_of([small, large, sky], (), (20, 20)).pixels is large.pixels
    assert subject_of([sky, Segment("_background_", blank(0), 1.0)], (), (20, 20)).pixels is sky.pixels
    np.testing.assert_array_equal(subject_of([small, large, sky], ("sky", "CAT"), (20, 20)).pixels, blank(1, 9))
    assert not subject_of([sky], ("cat",), (20, 20)).pixels.any()
    assert not subject_of([], (), (20, 20)).pixels.any()


def test_a_label_is_background_by_its_whole_name_only() -> None:
    assert all(map(is_background, ("background", "Background ", "_background_", "VOID", "unlabeled")))
    assert is_background("Unlabelled")  # codespell:ignore unlabelled
    assert not any(map(is_background, ("avoid", "background building", "")))


# Mask generators


def direct_candidates(folder: Path, image: Image.Image) -> list[tuple[float, NDArray[np.bool_]]]:
    """Predicted IoU and pixels of SAM's sure and stable masks for 32 x 32 points, all in one forward."""
    model = SamModel.from_pretrained(folder).eval()
    x, y = np.meshgrid((np.arange(32) + 0.5) / 32 * 64, (np.arange(32) + 0.5) / 32 * 48)  # 96 x 128 seen at 48 x 64
    points = torch.tensor(np.stack([x.ravel(), y.ravel()], axis=-1), dtype=torch.float32)[None, :, None]
    pixels = functional.pad(normalized(image, (64, 48)), (0, 0, 0, 16))
    with torch.no_grad():
        output = model(pixel_values=pixels, input_points=points)
    found = []
    for score, logits in zip(output.iou_scores.flatten().tolist(), output.pred_masks.flatten(0, 2), strict=True):
        if score > 0.88:
            large = resized(resized(logits[None], (64, 64))[:, :48])[0]
            if (large > 1).sum() > 0.95 * (large > -1).sum():
                found.append((score, (large > 0).numpy()))
    return found


def test_a_mask_generators_subject_is_its_largest_sure_mask_off_the_border(models: Path, image: Image.Image) -> None:
    candidates = direct_candidates(models / "sam", image)
    off_border = []
    for score, mask in candidates:
        outermost = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
        if outermost.mean() <= 0.25:
            off_border.append((mask.sum(), score, mask))
    largest, score, expected = max(off_border, key=lambda each: each[:2])
    assert 100 < len(off_border) < len(candidates) - 100
    assert max(mask.sum() for _, mask in candidates) > largest > max(off_border, key=lambda each: each[1])[0]
    got = mask_of(open_mask_source(str(models / "sam")), image)
    assert (got.pixels == expected).mean() > 0.998
    assert got.score == pytest.approx(score, abs=1e-4)


def test_the_main_object_of_several_of_one_size_is_the_surest_and_none_is_an_empty_mask() -> None:
    middle, lower, most = blank(8, 9), blank(12, 13), blank(*range(1, 8))
    assert main_object([(middle, 0.90), (lower, 0.95), (middle, 0.91)], (20, 20)).pixels is lower
    assert main_object([(middle, 0.90), (blank(0), 0.99)], (20, 20)).pixels is middle  # the top row is over a quarter
    assert main_object([(middle, 0.90), (most, 0.89)], (20, 20)).pixels is most
    for masks in ([], [(blank(0), 0.99)], [(blank(), 0.99)]):
        got = main_object(masks, (20, 20))
        assert not got.pixels.any()
        assert got.score is None


# Any model


def test_a_models_mask_does_not_depend_on_the_other_images(models: Path, image: Image.Image) -> None:
    other = image.transpose(Image.Transpose.ROTATE_90)
    for name in ("birefnet_like", "segformer", "maskformer"):
        source = open_mask_source(str(models / name), trust_remote_code=True)
        for one, size in zip(source([SampleImage(other), SampleImage(image)]), ((WIDTH, HEIGHT), SIZE), strict=True):
            assert isinstance(one, SubjectMask)
            assert one.pixels.shape == size
        np.testing.assert_array_equal(one.pixels, mask_of(source, image).pixels)


def test_a_description_changes_with_the_weights(tmp_path: Path) -> None:
    folder = mask_models.segformer(tmp_path / "model")
    before = dict(open_mask_source(str(folder)).description)
    assert before["source"] == str(folder)
    assert before == open_mask_source(str(folder)).description
    weights = load_file(folder / "model.safetensors")
    weights["decode_head.classifier.bias"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert open_mask_source(str(folder)).description != before


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = mask_models.segformer(tmp_path / "model")
    model = SegformerForSemanticSegmentation.from_pretrained(folder)
    assert isinstance(model.segformer, SegformerModel)
    config = (folder / "config.json").read_text(encoding="utf-8")
    model.segformer.save_pretrained(folder)  # the encoder alone, as it is before it is trained to segment
    (folder / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(InputError, match=r"lack .* weights of SegformerForSemanticSegmentation, such as 'decode"):
        open_mask_source(str(folder))


def test_a_checkpoint_with_a_weight_that_its_model_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = mask_models.segformer(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["block_99.weight"] = torch.zeros(2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"contain 1 weights that Segformer\w+ does not have, such as 'block_99.weight'"
    ):
        open_mask_source(str(folder))


def test_what_does_not_fit_a_model_is_refused(models: Path, tmp_path: Path) -> None:
    no_background = mask_models.segformer(tmp_path / "no_background", labels=("wall", "sky", "person"))
    clip, one_former, broken = (tmp_path / name for name in ("clip", "one_former", "broken"))
    CLIPConfig().save_pretrained(clip)
    for folder, config in ((one_former, '{"model_type": "oneformer"}'), (broken, "{"), (tmp_path / "list", "[]")):
        folder.mkdir()
        (folder / "config.json").write_text(config, encoding="utf-8")
    for path, options, says in (
        (no_background, {}, "has no background label.* from wall, sky, person"),
        (models / "segformer", {"labels": ["cta"]}, "unknown label of .* Did you mean 'cat'"),
        (models / "segformer", {"side": 64}, "has its own input size"),
        (models / "segformer", {"revision": "main"}, "only hub models have revisions"),
        (models / "sam", {"labels": ["cat"]}, "does not predict labels"),
        (models / "birefnet_like", {"labels": ["cat"], "trust_remote_code": True}, "does not predict labels"),
        (models / "birefnet_like", {"side": 0, "trust_remote_code": True}, "side is 0"),
        (clip, {}, "the model type 'clip' of .* does not predict masks"),
        (one_former, {}, "is a OneFormer"),
        (broken, {}, "no readable config.json"),
        (tmp_path / "list", {}, "is not a JSON object"),
        (tmp_path, {}, "has no config.json"),
    ):
        with pytest.raises(InputError, match=says):
            open_mask_source(str(path), **options)
    person = mask_of(open_mask_source(str(no_background), labels=["person"]), Image.new("RGB", (64, 64), "red"))
    assert person.pixels.shape == (64, 64)


def test_a_model_without_an_image_processor_is_refused(tmp_path: Path) -> None:
    folder = mask_models.segformer(tmp_path / "model")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="no image processor"):
        open_mask_source(str(folder))


def test_weights_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    folder = mask_models.segformer(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot be loaded"):
        open_mask_source(str(folder))


# The hub


def test_a_hub_model_is_taken_at_one_commit(models: Path, image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits are found by the hub's own client, from a cache laid out as it lays it."""
    cache = models / "cache"
    commit = "0123456789abcdef0123456789abcdef01234567"
    at = cache / "models--owner--segformer"
    (at / "refs").mkdir(parents=True)
    (at / "refs" / "main").write_text(commit, encoding="utf-8")
    (at / "snapshots").mkdir()
    (at / "snapshots" / commit).symlink_to(models / "segformer", target_is_directory=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = open_mask_source("owner/segformer")
    assert source.description == {"source": "owner/segformer", "rule": "all but background", "revision": commit}
    folder = open_mask_source(str(models / "segformer"))
    np.testing.assert_array_equal(mask_of(source, image).pixels, mask_of(folder, image).pixels)
    with pytest.raises(InputError, match="no model of that name could be downloaded"):
        open_mask_source("owner/another")


def test_a_gated_hub_model_says_how_to_get_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError

    def refuse(*arguments: object, **keywords: object) -> None:
        raise GatedRepoError.__new__(GatedRepoError, "403 Client Error")  # its __init__ wants a whole response

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(InputError, match=r"'owner/model' is gated: accept its license on https://huggingface.co/owner"):
        open_mask_source("owner/model")
