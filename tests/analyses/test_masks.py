"""Masks of subjects: the geometry against pixels counted one by one, the sources against drawn and planted subjects."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from sklearn.metrics import jaccard_score

from fewchannels.analyses.masks import NoMask, OneByOne, SampleImage, SubjectMask, open_mask_source
from fewchannels.analyses.masks.saliency import border_contrast, otsu
from fewchannels.demo.world import choose_scenes, draw
from fewchannels.errors import InputError
from fewchannels.measures.coverage import chance_iou, token_coverage
from fewchannels.measures.localization import fit
from fewchannels.runs.images import from_png, to_png

Mask = NDArray[np.bool_]
few = st.integers(1, 4)


def bits(*shape: int) -> st.SearchStrategy[Mask]:
    return arrays(np.bool_, shape)


def rgb(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def foreground_iou(tokens: torch.Tensor, coverage: torch.Tensor) -> torch.Tensor:
    """Of foregrounds ``(cell, token)`` bool with coverages of the same shape."""
    front = torch.ones(len(tokens), dtype=torch.int64)
    return fit(tokens.long(), front, coverage, torch.ones_like(tokens), 2).iou


def iou(one: Mask, other: Mask) -> float:
    return (one & other).sum() / (one | other).sum()


def found(result: SubjectMask | NoMask) -> SubjectMask:
    assert isinstance(result, SubjectMask), result
    return result


# Geometry


@given(st.data(), few, few, few, few)
def test_coverage_is_the_share_of_each_tokens_pixels_counted_one_by_one(
    data: st.DataObject, rows: int, columns: int, tall: int, wide: int
) -> None:
    mask = data.draw(bits(rows * tall, columns * wide))
    expected = [
        sum(bool(mask[r * tall + y, c * wide + x]) for y in range(tall) for x in range(wide)) / (tall * wide)
        for r in range(rows)
        for c in range(columns)
    ]
    got = token_coverage(torch.from_numpy(mask), (rows, columns))
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-15)


@given(st.data(), few, few, few, few)
def test_iou_from_coverage_is_the_iou_of_the_upsampled_token_mask_in_pixels(
    data: st.DataObject, rows: int, columns: int, tall: int, wide: int
) -> None:
    mask, tokens = data.draw(bits(rows * tall, columns * wide)), data.draw(bits(2, 3, rows * columns))
    upsampled = np.kron(tokens.reshape(2, 3, rows, columns), np.ones((tall, wide))) > 0
    expected = np.full((2, 3), np.nan)
    for at in np.ndindex(2, 3):
        if upsampled[at].any() or mask.any():
            expected[at] = jaccard_score(mask.ravel(), upsampled[at].ravel(), zero_division=0)
    coverage = token_coverage(torch.from_numpy(mask), (rows, columns))
    got = foreground_iou(torch.from_numpy(tokens).flatten(0, 1), coverage.expand(6, -1)).view(2, 3)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-13)


@given(st.data(), few, few, few, few)
def test_iou_leaves_out_pixels_that_are_not_known(
    data: st.DataObject, rows: int, columns: int, tall: int, wide: int
) -> None:
    shape = rows * tall, columns * wide
    known, tokens = data.draw(bits(*shape)), data.draw(bits(rows * columns))
    subject = data.draw(bits(*shape)) & known
    upsampled = np.kron(tokens.reshape(rows, columns), np.ones((tall, wide))) > 0
    shared, either = (upsampled & subject).sum(), ((upsampled | subject) & known).sum()
    of_subject, of_known = (token_coverage(torch.from_numpy(each), (rows, columns))[None] for each in (subject, known))
    one = torch.from_numpy(tokens)[None]
    found = fit(one.long(), torch.ones(1, dtype=torch.int64), of_subject, torch.ones_like(one), 2, of_known)
    np.testing.assert_allclose(found.iou.numpy(), [shared / either if either else np.nan], rtol=1e-13)
    share = (upsampled & known).sum() / known.sum() if known.any() else np.nan
    np.testing.assert_allclose(found.area.numpy(), [share], rtol=1e-13)


def test_iou_is_nan_only_where_both_are_empty_or_a_coverage_is_nan() -> None:
    none, one = torch.tensor([False, False]), torch.tensor([True, False])
    tokens = torch.stack([none, one, none, one])
    coverage = torch.tensor([[0, 0], [0, 0], [0.5, 0], [0.5, torch.nan]], dtype=torch.float64)
    torch.testing.assert_close(
        foreground_iou(tokens, coverage),
        torch.tensor([torch.nan, 0, 0, torch.nan], dtype=torch.float64),
        equal_nan=True,
    )


def test_a_mask_that_the_grid_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="10 x 8 pixels on a grid of 4 x 4 tokens"):
        token_coverage(torch.zeros(10, 8, dtype=torch.bool), (4, 4))


@given(st.integers(0, 8), st.integers(0, 8))
def test_chance_is_the_iou_of_a_band_of_rows_with_a_band_of_columns(n_rows: int, n_columns: int) -> None:
    rows, columns = np.zeros((2, 8, 8), np.bool_)
    rows[:n_rows], columns[:, :n_columns] = True, True  # such bands are independent
    got = chance_iou(torch.tensor(n_rows / 8), torch.tensor(n_columns / 8)).item()
    assert got == pytest.approx(iou(rows, columns) if n_rows or n_columns else math.nan, nan_ok=True)


def test_chance_for_a_half_and_a_quarter_is_a_fifth() -> None:
    half, quarter = torch.tensor(0.5), torch.tensor(0.25)
    assert chance_iou(half, quarter).item() == pytest.approx(0.2)


# Packing


@given(st.data(), st.integers(1, 19), st.integers(1, 19))
def test_a_mask_comes_back_from_its_png(data: st.DataObject, height: int, width: int) -> None:
    mask = data.draw(bits(height, width))
    np.testing.assert_array_equal(from_png(to_png(mask)), mask)


def test_a_packed_mask_has_one_bit_a_pixel() -> None:
    noise = np.random.default_rng(0).random((256, 512)) > 0.5
    png = to_png(noise)
    assert png[24:26] == b"\x01\x00"  # bit depth 1, grayscale, in PNG's header
    assert len(png) < 1.1 * noise.size / 8


def test_what_is_no_packed_mask_is_refused() -> None:
    with pytest.raises(InputError, match="are not a PNG"):
        from_png(b"GIF89a")
    with pytest.raises(InputError, match="are not a PNG"):
        from_png(to_png(np.ones((64, 64), bool))[:40])
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="PNG")
    with pytest.raises(InputError, match="has the mode 'L'; masks have one bit"):
        from_png(buffer.getvalue())


# Every source


def test_one_image_that_fails_does_not_touch_the_others() -> None:
    def find(picture: SampleImage) -> SubjectMask:
        if picture.mask == "broken":
            raise RuntimeError("CUDA out of memory\nand more")
        if picture.mask == "wrong":
            raise InputError("the mask is not here.")
        return SubjectMask(np.ones((2, 2) if picture.mask == "small" else (4, 6), bool))

    image = Image.new("RGB", (6, 4))
    good, *bad, last = OneByOne(find, {})([SampleImage(image, mask) for mask in ("a", "broken", "wrong", "small", "b")])
    assert isinstance(good, SubjectMask)
    assert isinstance(last, SubjectMask)
    assert bad == [
        NoMask("RuntimeError: CUDA out of memory"),
        NoMask("the mask is not here."),
        NoMask("the mask is (2, 2), its image (4, 6)"),
    ]


def test_an_image_that_is_not_rgb_is_refused() -> None:
    with pytest.raises(ValueError, match="mode 'L'"):
        SampleImage(Image.new("L", (4, 4)))


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("salience", {}, "'salience' is not a source of masks or a folder. Valid: manifest, demo, saliency"),
        ("saliency", {"labels": ["cat"]}, "the source 'saliency' does not use it"),
        ("manifest", {"revision": "main"}, "the source 'manifest' does not use it"),
        ("demo", {"side": 512}, "the source 'demo' does not use it"),
    ],
)
def test_a_wrong_source_says_what_is_valid(text: str, options: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_mask_source(text, **options)


# Drawn masks


SUBJECT = np.zeros((6, 8), bool)
SUBJECT[1:4, 2:7] = True


def test_a_drawn_mask_of_another_size_is_resized_by_nearest_neighbour_and_says_so(tmp_path: Path) -> None:
    Image.fromarray(SUBJECT).save(tmp_path / "mask.png")
    path = str(tmp_path / "mask.png")
    same, larger, smaller = (
        found(open_mask_source("manifest")([SampleImage(Image.new("RGB", size), path)])[0])
        for size in ((8, 6), (24, 18), (4, 3))
    )
    np.testing.assert_array_equal(same.pixels, SUBJECT)
    np.testing.assert_array_equal(larger.pixels, np.kron(SUBJECT, np.ones((3, 3))) > 0)
    np.testing.assert_array_equal(smaller.pixels, SUBJECT[1::2, 1::2])
    assert [each.resized_from for each in (same, larger, smaller)] == [None, (6, 8), (6, 8)]
    assert [each.rule for each in (same, larger, smaller)] == ["black_and_white"] * 3


def test_a_drawn_mask_of_another_shape_than_its_image_is_no_mask(tmp_path: Path) -> None:
    Image.fromarray(SUBJECT).save(tmp_path / "mask.png")
    (turned,) = open_mask_source("manifest")([SampleImage(Image.new("RGB", (6, 8)), str(tmp_path / "mask.png"))])
    assert isinstance(turned, NoMask)
    assert "8 x 6 pixels (width x height), but its image has 6 x 8: a different shape" in turned.reason
    assert "would fit if rotated" in turned.reason


def test_samples_without_a_readable_mask_say_why(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    (tmp_path / "half.png").write_bytes(to_png(np.random.default_rng(0).random((64, 64)) > 0.5)[:200])
    Image.fromarray(SUBJECT).save(tmp_path / "good.png")
    names = (None, "missing.png", "text.png", "half.png", ".", "good.png")
    image = Image.new("RGB", (8, 6))
    results = open_mask_source("manifest")([SampleImage(image, n and str(tmp_path / n)) for n in names])
    assert isinstance(results[-1], SubjectMask)
    assert isinstance(results[0], NoMask)
    assert "has no mask" in results[0].reason
    for name, result in zip(names[1:-1], results[1:-1], strict=True):
        assert isinstance(result, NoMask)
        assert f"the mask {str(tmp_path / str(name))!r} cannot be read" in result.reason


# The demo's judge


def world(n: int, side: int, seed: int) -> tuple[list[SampleImage], list[Mask]]:
    pictures, masks = draw(choose_scenes(n, seed), seed, side=side)
    return [SampleImage(rgb(each.permute(1, 2, 0).numpy())) for each in pictures], list(masks.numpy())


def test_the_judge_finds_the_worlds_subjects() -> None:
    pictures, masks = world(24, 64, seed=1)
    results = [found(each) for each in open_mask_source("demo")(pictures)]
    assert min(iou(each.pixels, mask) for each, mask in zip(results, masks, strict=True)) > 0.9
    assert min(each.score or 0 for each in results) > 0.7


def test_the_judge_takes_square_images_only() -> None:
    tall, square = open_mask_source("demo")(
        [SampleImage(Image.new("RGB", (32, 48))), SampleImage(Image.new("RGB", (32, 32)))]
    )
    assert isinstance(tall, NoMask)
    assert "48 x 32 pixels" in tall.reason
    assert not found(square).pixels.any()


# Saliency


def disc(rng: np.random.Generator, side: int, center: tuple[float, float], radius: float) -> tuple[SampleImage, Mask]:
    """A bright textured disc on a dark textured ground, its middle and radius in shares of the side."""
    y, x = np.mgrid[:side, :side] / side
    mask = (y - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2

    def textured(low: float, high: float) -> np.ndarray:
        texture = ndimage.gaussian_filter(rng.normal(size=(side, side, 3)), (side / 64, side / 64, 0))
        return texture / texture.std() * 0.06 + rng.uniform(low, high, 3)

    return SampleImage(rgb(np.where(mask[..., None], textured(0.65, 0.9), textured(0.2, 0.5)))), mask


def saliency_ious(pictures: list[SampleImage], masks: list[Mask]) -> np.ndarray:
    results = [found(each).pixels for each in open_mask_source("saliency")(pictures)]
    return np.array([iou(each, mask) for each, mask in zip(results, masks, strict=True)])


def test_saliency_finds_bright_discs_small_and_large_and_at_the_edge() -> None:
    rng = np.random.default_rng(0)
    for top, left, radii in ((0.5, 0.3, (0.12, 0.3)), (0.5, 0.48, (0.38, 0.43)), (0.95, 0.3, (0.2, 0.35))):
        cases = [disc(rng, 96, (top, rng.uniform(left, 1 - left)), rng.uniform(*radii)) for _ in range(8)]
        ious = saliency_ious([picture for picture, _ in cases], [mask for _, mask in cases])
        assert ious.min() > 0.95


@pytest.mark.parametrize("side", [64, 160])
def test_saliency_finds_the_worlds_subjects(side: int) -> None:
    pictures, masks = world(32, side, seed=2)
    ious = saliency_ious(pictures, masks)
    areas = torch.tensor([mask.mean() for mask in masks])
    assert ious.mean() > 0.95
    assert ious.min() > 0.8
    assert ious.mean() > 10 * chance_iou(areas, areas).mean().item()


def test_saliency_sees_no_subject_in_a_flat_image_and_refuses_tiny_ones() -> None:
    flat, tiny = open_mask_source("saliency")(
        [SampleImage(Image.new("RGB", (40, 30), "teal")), SampleImage(Image.new("RGB", (9, 99)))]
    )
    assert not found(flat).pixels.any()
    assert found(flat).score == 0
    assert isinstance(tiny, NoMask)
    assert "at least 16 pixels" in tiny.reason


def test_contrast_grows_with_the_difference_in_units_of_the_borders_spread() -> None:
    image = Image.new("RGB", (100, 100), (100, 100, 100))
    ImageDraw.Draw(image).rectangle((20, 40, 40, 60), fill=(120, 100, 100))
    ImageDraw.Draw(image).rectangle((60, 40, 80, 60), fill=(100, 100, 160))
    contrast = border_contrast(np.asarray(image) / 255)
    # The border is flat: all of its spread is the added variance, 1e-3.
    for at, difference in (((50, 30), 20), ((50, 70), 60), ((2, 2), 0)):
        assert contrast[at] == pytest.approx(difference / 255 / 1e-3**0.5, abs=1e-6)


@given(arrays(np.float64, st.integers(1, 12), elements=st.integers(0, 6).map(float)))
def test_otsus_cut_leaves_the_least_variance_within_the_classes(values: np.ndarray) -> None:
    def within(cut: float) -> float:
        low, high = values[values <= cut], values[values > cut]
        return sum(((each - each.mean()) ** 2).sum() for each in (low, high) if len(each))

    threshold, separability = otsu(values)
    least = min(within(cut) for cut in values)
    assert within(threshold) == pytest.approx(least, abs=1e-9)
    total = ((values - values.mean()) ** 2).sum()
    assert separability == pytest.approx(1 - least / total if total else 0, abs=1e-9)


def test_a_mask_does_not_depend_on_the_other_images() -> None:
    pictures, _ = world(6, 64, seed=3)
    for name in ("demo", "saliency"):
        source = open_mask_source(name)
        together, alone = source(pictures), [source([picture])[0] for picture in reversed(pictures)]
        for one, other in zip(together, reversed(alone), strict=True):
            np.testing.assert_array_equal(found(one).pixels, found(other).pixels)
