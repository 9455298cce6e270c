"""Metrics of pictures against arithmetic by hand, a second library, and planted truth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from engine.demo.world import Scene, draw
from engine.errors import InputError
from engine.metrics import METRICS
from engine.metrics.learned import LearnedMetrics, read_specifications
from engine.metrics.pictures import LOW_PASS, VISIBLE, compare
from engine.metrics.sets import cmmd, frechet_distance, kernel_distance
from engine.metrics.world import judged, scene_of, shown
from engine.tables import schema


def pictures(n: int, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def no_masks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(len(x), *x.shape[2:], dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)


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
        found = compare(before + values, before, *no_masks(before))
        low, high = float(found["mse_low"][0]), float(found["mse_high"][0])
        assert (low > 4 * high) if name == "slow" else (high > 20 * low)
    difference = (before + wave["slow"] - before)[0].double().numpy()
    expected = np.stack([ndimage.gaussian_filter(channel, 64 * LOW_PASS, mode="nearest") for channel in difference])
    found = compare(before + wave["slow"], before, *no_masks(before))
    assert found["mse_low"][0] == pytest.approx(np.square(expected).mean(), rel=1e-9)


def test_equal_pictures_differ_in_nothing() -> None:
    same = pictures(2, 192)
    found = compare(same, same, torch.ones(2, 192, 192, dtype=torch.bool), torch.tensor([True, False]))
    assert np.isnan(found["psnr"]).all()
    for name in ("mse", "mse_low", "mse_high", "changed_share"):
        assert (found[name] == 0).all()
    np.testing.assert_allclose(found["ssim"], 1, atol=1e-6)
    np.testing.assert_allclose(found["ms_ssim"], 1, atol=1e-6)
    assert found["mse_inside"][0] == 0
    assert np.isnan(found["mse_inside"][1])
    assert np.isnan(found["mse_outside"]).all()  # the mask leaves nothing outside


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_a_pictures_metrics_are_the_same_whatever_is_beside_it(seed: int, n: int) -> None:
    before, after = pictures(n, seed=seed), pictures(n, seed=seed + 1)
    masks, known = before[:, 0] > 0.5, torch.ones(n, dtype=torch.bool)
    together = compare(after, before, masks, known)
    for i in range(n):
        alone = compare(*(each[i : i + 1] for each in (after, before, masks, known)))
        for name, values in together.items():
            np.testing.assert_allclose(alone[name][0], values[i], rtol=1e-5, err_msg=name)


def test_visible_is_a_distance_of_colours() -> None:
    before = torch.zeros(1, 3, 32, 32)
    for step, seen in ((VISIBLE * 0.99, 0.0), (VISIBLE * 1.01, 1.0)):
        after = before.clone()
        after[:, 1] = step
        assert compare(after, before, *no_masks(before))["changed_share"][0] == seen


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


def test_distances_between_sets_are_those_of_torchmetrics() -> None:
    random = np.random.default_rng(1)
    one, other = random.normal(size=(200, 6)), random.normal(0.5, 1.5, size=(150, 6))
    frechet = FrechetInceptionDistance(feature=torch.nn.Identity(), input_img_size=(6,)).set_dtype(torch.float64)
    frechet.orig_dtype = torch.float64
    # Its update wants pictures; its states are sums of features, which is all that its formula uses.
    for name, each in (("real", one), ("fake", other)):
        setattr(frechet, f"{name}_features_sum", torch.from_numpy(each.sum(axis=0)))
        setattr(frechet, f"{name}_features_cov_sum", torch.from_numpy(each.T @ each))
        setattr(frechet, f"{name}_features_num_samples", torch.tensor(len(each)))
    assert frechet_distance(one, other) == pytest.approx(float(frechet.compute()), rel=1e-6)
    kernel = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=1, subset_size=150)
    kernel.real_features, kernel.fake_features = [torch.from_numpy(one[:150])], [torch.from_numpy(other)]
    assert kernel_distance(one[:150], other) == pytest.approx(float(kernel.compute()[0]), rel=1e-6)


def test_cmmd_is_a_mean_over_pairs() -> None:
    random = np.random.default_rng(2)
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in random.normal(size=(2, 7, 4)))

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([math.exp(-sum((a - b) ** 2) / 200) for a in x for b in y]))

    expected = 1000 * (mean(one, one) + mean(other, other) - 2 * mean(one, other))
    assert cmmd(one * 3, other) == pytest.approx(expected, rel=1e-9)
    assert cmmd(one, one) == pytest.approx(0, abs=1e-9)


def test_too_few_pictures_for_a_covariance_are_refused() -> None:
    with pytest.raises(InputError, match="6 features needs more than as many pictures; there are 6"):
        frechet_distance(np.zeros((6, 6)), np.zeros((9, 6)))


def test_every_metric_is_a_column_of_edits_and_says_what_it_is() -> None:
    assert set(METRICS) <= set(schema("edits").names)
    of_pictures = compare(pictures(1), pictures(1), *no_masks(pictures(1)))
    assert set(of_pictures) <= set(METRICS)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("clipp=x", "Did you mean 'clip'"),
        ("clip", "give clip=FOLDER"),
        ("clip=/nowhere/at/all", "the CLIP model '/nowhere/at/all' cannot be opened"),
        ("aesthetic=/nowhere", "a comma and the head's safetensors file"),
        ("lpips=resnet", "unknown LPIPS network 'resnet'"),
        ("lpips=alex", "needs torchvision, which is not installed"),
    ],
)
def test_a_metric_that_cannot_be_is_refused_with_the_remedy(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        LearnedMetrics.of([text], "cpu")


def test_a_metric_is_named_once() -> None:
    with pytest.raises(InputError, match="metric clip is given twice"):
        read_specifications(["clip=a", "clip=b"])
