"""Figures, by the colours of their pixels."""

import io

import numpy as np
from PIL import Image

from fewchannels.analyses.figures.drawings import HeatMap
from fewchannels.analyses.figures.still import still


def colours(values: list[float], **look: bool) -> np.ndarray:
    """Red, green and blue, 0 to 255, in the middle of each of three cells side by side."""
    about = {"title": "", "row": "", "column": "", "value": ""}
    drawing = HeatMap(values=np.array([values]), rows=[0], columns=[0, 1, 2], **about, **look)
    with Image.open(io.BytesIO(still(drawing)["png"])) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    return pixels[height // 2, [int(share * width) for share in (0.2, 0.43, 0.66)]]


def test_a_difference_is_pale_at_zero_and_as_strong_on_either_side() -> None:
    below, zero, above = colours([-1, 0, 4], is_difference=True)
    assert zero.min() > 240
    assert below[2] > below[1] < below[0], "purple"
    assert above[0] > above[1] > above[2], "orange"
    assert below.min() > above.min() + 50, "a fourth of the difference is paler"
    opposite = colours([-4, 0, 1], is_difference=True)
    assert opposite[0].sum() < below.sum()


def test_what_is_not_known_is_not_the_colour_of_zero() -> None:
    unknown, zero, _ = colours([np.nan, 0, 1], is_difference=True)
    assert (zero - unknown).min() > 50
    assert colours([np.nan, 0, 1])[0].tolist() == [255, 255, 255]
