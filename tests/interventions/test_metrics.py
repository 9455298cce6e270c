"""Metrics of images against arithmetic by hand, a second library, and planted truth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fewchannels.demo.world import Scene, draw
from fewchannels.interventions.metrics import METRICS
from fewchannels.interventions.metrics.images import FIVE_SCALES, LOW_PASS, VISIBLE, compare
from fewchannels.interventions.metrics.world import judged, scene_of, shown
from fewchannels.tables import schema


def images(n: int, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_pixel_metrics_are_those_of_arithmetic_by_hand() -> None:
    before = torch.full((1, 3, 32, 32), 0.5)
    after = before.clone()
    after[0, :, :16, :] += 0.2  # the upper half, in all colours
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[0, :16, :16] = True
    found = {name: float(values[0]) for name, values in compare(after, before, mask, torch.tensor([True])).items()}
    assert found["mse"] == pytest.approx(0.5 * 0.04, rel=1e-5)
    assert found["psnr"] == pytest.approx(10 * math.log10(1 / 0.02), rel=1e-5)
    assert found["mse_inside"] == pytest.approx(0.04, rel=1e-5)
    assert found["mse_outside"] == pytest.approx(0.04 * 256 / 768, rel=1e-5)
    assert found["changed_share"] == 0.5  # 0.2 in three colours is 0.35 apart
    assert found["change_iou"] == 0.5
    assert math.isnan(found["ms_ssim"])


def test_layout_and_detail_are_parted_by_frequency() -> None:
    x = torch.arange(64) * 2 * math.pi / 64
    wave = {"slow": 0.1 * torch.sin(x), "fast": 0.1 * torch.sin(16 * x)}
    before = torch.full((1, 3, 64, 64), 0.5)
    for name, values in wave.items():
        found = compare(before + values, before)
        low, high = float(found["mse_low"][0]), float(found["mse_high"][0])
        assert (low > 4 * high) if name == "slow" else (high > 20 * low)
    difference = (before + wave["slow"] - before)[0].double().numpy()
    expected = np.stack([ndimage.gaussian_filter(channel, 64 * LOW_PASS, mode="nearest") for channel in difference])
    found = compare(before + wave["slow"], before)
    assert found["mse_low"][0] == pytest.approx(np.square(expected).mean(), rel=1e-9)


def test_equal_images_differ_in_nothing() -> None:
    same = images(2, 192)
    found = compare(same, same, torch.ones(2, 192, 192, dtype=torch.bool), torch.tensor([True, False]))
    assert np.isnan(found["psnr"]).all()
    for name in ("mse", "mse_low", "mse_high", "changed_share"):
        assert (found[name] == 0).all()
    np.testing.assert_allclose(found["ssim"], 1, atol=1e-6)
    np.testing.assert_allclose(found["ms_ssim"], 1, atol=1e-6)
    assert found["mse_inside"][0] == 0
    assert np.isnan(found["mse_inside"][1])
    assert np.isnan(found["mse_outside"]).all()  # the mask leaves nothing outside


def structure(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Wang et al. 2004 by SciPy's filter: the mean SSIM and its contrast part, where the 11 x 11 window fits."""
    x, y = x.astype(np.float64), y.astype(np.float64)

    def mean(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, (0, 1.5, 1.5), radius=(0, 5, 5))[:, 5:-5, 5:-5]

    over, under = mean(x), mean(y)
    covariance = mean(x * y) - over * under
    variances = mean(x * x) - over**2 + mean(y * y) - under**2
    contrast = (2 * covariance + 0.03**2) / (variances + 0.03**2)
    return float(((2 * over * under + 0.01**2) / (over**2 + under**2 + 0.01**2) * contrast).mean()), contrast.mean()


def halved(x: np.ndarray) -> np.ndarray:
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


@pytest.mark.parametrize("contrast", [0.6, 0.1])  # with little contrast the formula's constants count
def test_structural_similarity_is_that_of_the_papers(contrast: float) -> None:
    before = 0.1 + contrast * images(1, 192)
    after = before + contrast / 2 * images(1, 192, seed=1)
    found = compare(after, before)
    x, y = after[0].numpy(), before[0].numpy()
    assert found["ssim"][0] == pytest.approx(structure(x, y)[0], rel=1e-3)
    assert found["ssim_inner"][0] == pytest.approx(structure(x, y)[0], rel=1e-5)
    expected = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        whole, contrast = structure(x, y)
        expected *= (whole if scale == 4 else contrast) ** weight
        x, y = halved(x), halved(y)
    assert found["ms_ssim"][0] == pytest.approx(expected, rel=1e-3)


def test_two_ways_with_the_border_are_two_metrics() -> None:
    before = images(1, 64)
    after = before.clone()
    after[..., :5] = 1 - after[..., :5]  # a border alone
    found = compare(after, before)
    x, y = after[0].numpy(), before[0].numpy()
    assert found["ssim_inner"][0] == pytest.approx(structure(x, y)[0], rel=1e-5)
    wide = [np.pad(each, ((0, 0), (5, 5), (5, 5)), mode="reflect") for each in (x, y)]
    assert found["ssim"][0] == pytest.approx(structure(*wide)[0], rel=1e-5)
    assert found["ssim_inner"][0] - found["ssim"][0] > 0.05
    small = compare(after[..., :10, :10], before[..., :10, :10])
    assert np.isnan(small["ssim_inner"][0])
    assert np.isfinite(small["ssim"][0])


def test_ssim_without_borders_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    before, after = images(1, 64), images(1, 64, seed=1)
    x, y = after[0].numpy().astype(float), before[0].numpy().astype(float)
    settings = {"data_range": 1.0, "channel_axis": 0, "gaussian_weights": True, "sigma": 1.5}
    theirs = metrics.structural_similarity(x, y, use_sample_covariance=False, **settings)
    assert compare(after, before)["ssim_inner"][0] == pytest.approx(theirs, rel=1e-5)


def test_images_too_small_for_five_scales_have_no_ms_ssim() -> None:
    for size in ((FIVE_SCALES - 1, 200), (200, FIVE_SCALES - 1), (FIVE_SCALES, FIVE_SCALES)):
        same = torch.rand(1, 3, *size)
        found = compare(same, same)
        assert np.isnan(found["ms_ssim"][0]) == (FIVE_SCALES - 1 in size)
        assert found["ssim"][0] == pytest.approx(1, abs=1e-6)


def test_pixels_that_a_mask_does_not_know_are_neither_inside_nor_outside() -> None:
    before = torch.zeros(1, 3, 32, 32)
    after = before.clone()
    for column, level in enumerate((0.5, 1.0, 0.25, 0.0)):  # four columns: subject, not known, twice background
        after[..., 8 * column : 8 * column + 8] = level
    mask, known = torch.zeros(1, 32, 32, dtype=torch.bool), torch.ones(1, 32, 32, dtype=torch.bool)
    mask[..., :8], known[..., 8:16] = True, False
    found, otherwise = compare(after, before, mask, None, known), compare(after, before, mask)
    assert found["mse_inside"][0] == otherwise["mse_inside"][0] == 0.25
    assert found["mse_outside"][0] == pytest.approx((0.25**2 + 0) / 2)
    assert otherwise["mse_outside"][0] == pytest.approx((1 + 0.25**2 + 0) / 3)
    # The first three have changed visibly; of those that are known, the first is the subject.
    assert found["change_iou"][0] == 0.5
    assert otherwise["change_iou"][0] == pytest.approx(1 / 3)


def test_without_a_mask_nothing_is_said_of_one() -> None:
    before, after = images(2), images(2, seed=1)
    nothing, known = torch.zeros(2, 32, 32, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    of_none, of_empty = compare(after, before), compare(after, before, nothing, known)
    for name, values in of_none.items():
        np.testing.assert_array_equal(of_empty[name], values)
        needs_mask = name in ("mse_inside", "mse_outside", "change_iou")
        assert np.isnan(values).all() == (needs_mask or name == "ms_ssim")
    one = nothing.clone()
    one[:, 3, 5] = True
    squares = (after - before).double().square().mean(dim=1)
    found = compare(after, before, one)  # every image's is known
    np.testing.assert_allclose(found["mse_inside"], squares[:, 3, 5].numpy(), rtol=1e-6)
    np.testing.assert_allclose(found["mse_outside"], ((squares.sum((1, 2)) - squares[:, 3, 5]) / 1023).numpy())


@pytest.mark.parametrize(
    ("before", "masks", "why"),
    [
        (torch.rand(2, 3, 32, 16), None, "both must be the same"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), None, "must be floating point"),
        (torch.rand(2, 3, 32, 32), torch.ones(2, 8, 8, dtype=torch.bool), r"masks of shape \(2, 8, 8\)"),
    ],
)
def test_what_cannot_be_compared_is_refused(before: torch.Tensor, masks: torch.Tensor | None, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        compare(images(2), before, masks)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 5))
def test_an_images_metrics_are_the_same_whatever_is_beside_it(seed: int, n: int) -> None:
    before, after = images(n, seed=seed), images(n, seed=seed + 1)
    masks, known = before[:, 0] > 0.5, torch.ones(n, dtype=torch.bool)
    together = compare(after, before, masks, known)
    for i in range(n):
        alone = compare(*(each[i : i + 1] for each in (after, before, masks, known)))
        for name, values in together.items():
            np.testing.assert_array_equal(alone[name][0], values[i], err_msg=name)


def test_visible_is_a_distance_of_colours() -> None:
    before = torch.zeros(1, 3, 32, 32)
    for step, seen in ((VISIBLE * 0.99, 0.0), (VISIBLE * 1.01, 1.0)):
        after = before.clone()
        after[:, 1] = step
        assert compare(after, before)["changed_share"][0] == seen


STAR = Scene("star", "pink", "small", "at the left", "gray")
RING = Scene("ring", "pink", "large", "at the left", "blue")


def test_the_world_says_what_is_shown_of_target_and_source() -> None:
    drawn, _ = draw([STAR, RING], seed=3)
    verdicts, masks = judged(drawn, [STAR, RING])
    assert masks.flatten(1).any(dim=1).all()
    of_target = shown(verdicts[0], STAR, RING)
    assert of_target["n_shown"] == 5
    assert of_target["target_kept"] == 1
    assert of_target["source_taken"] == 0
    # STAR and RING agree in colour and position, which say nothing of what was taken.
    assert {name for name in of_target if name.startswith("source_")} == {
        "source_shape",
        "source_size",
        "source_background",
        "source_taken",
    }
    of_source = shown(verdicts[1], STAR, RING)
    assert of_source["source_taken"] == 1
    assert of_source["target_kept"] == 0
    assert of_source["n_shown"] == 2
    assert scene_of(STAR.caption) == STAR
    assert scene_of("a photograph of a cat") is None
    assert shown(None, STAR, RING) == {}


def test_a_collapsed_image_shows_its_background_at_most() -> None:
    gray = torch.full((2, 3, 64, 64), 0.52)
    verdicts, masks = judged(gray, [STAR, None])
    assert not masks.any()
    assert shown(verdicts[0], STAR, None) == {
        "shows_shape": False,
        "shows_colour": False,
        "shows_size": False,
        "shows_position": False,
        "shows_background": True,
        "n_shown": 1,
    }
    assert verdicts[1] is None  # its prompt is not of the world


def test_every_metric_is_a_column_of_edits_and_says_what_it_is() -> None:
    assert set(METRICS) <= set(schema("edits").names)
    of_images = compare(images(1), images(1))
    assert set(of_images) <= set(METRICS)
