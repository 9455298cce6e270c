"""Images compared in a notebook, beside arithmetic by hand and the metrics of a sweep."""

from pathlib import Path

import numpy as np
import pytest
from metric_models import clip
from PIL import Image

import fewchannels as fc
from fewchannels.errors import InputError
from fewchannels.interventions.metrics.learned import LearnedMetrics
from fewchannels.runs.images import pixels


def image(seed: int, side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8))


def test_each_pair_has_a_row_by_arithmetic_by_hand() -> None:
    before, after = [image(1), image(2)], [image(3), image(2)]
    rows = fc.compare_images(before, after)
    difference = (np.asarray(before[0], float) - np.asarray(after[0], float)) / 255
    assert rows.mse.tolist() == pytest.approx([np.square(difference).mean(), 0.0])
    assert rows.psnr[0] == pytest.approx(-10 * np.log10(np.square(difference).mean()))
    assert np.isnan(rows.psnr[1])
    assert rows.ssim[1] == pytest.approx(1)
    assert rows.changed_share[0] == pytest.approx((np.square(difference).sum(axis=2) > 0.01).mean())
    assert not {"mse_inside", "change_iou", "clip_score"} & set(rows)
    assert fc.compare_images(before[0], after[0]).equals(rows.head(1))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((image(1), [image(1), image(2)]), "before has 1 images, but after has 2. Pass lists"),
        ((image(1), image(1, 16)), r"different sizes, \(32, 32\) and \(16, 16\) pixels"),
        ((np.zeros((4, 4, 3)), image(1)), "before must be a PIL image, or a list of them"),
        (([], []), "before must be a PIL image, or a list of them"),
    ],
)
def test_what_are_no_pairs_of_images_is_refused(given: tuple, says: str) -> None:
    with pytest.raises(InputError, match=says):
        fc.compare_images(*given)


def test_a_learned_metric_is_that_of_a_sweep(tmp_path: Path) -> None:
    before, after = image(1), image(2)
    given = [f"clip={clip(tmp_path)}"]
    rows = fc.compare_images(before, after, prompts="a star", metrics=given)
    tensors = pixels(after)[None], pixels(before)[None]
    expected = LearnedMetrics.of(given, "cpu").measure(*tensors, ["a star"], [None])
    assert rows.clip_score[0] == pytest.approx(float(expected["clip_score"][0]))
    assert rows.clip_image[0] == pytest.approx(float(expected["clip_image"][0]))
    assert "clip_score" not in fc.compare_images(before, after, metrics=given)
    with pytest.raises(InputError, match="prompts has 2 texts, but there are 1 pairs"):
        fc.compare_images(before, after, prompts=["a", "b"], metrics=given)
