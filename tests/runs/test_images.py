"""Stored images: what is opened is the image, and damage is told in words."""

import numpy as np
import pytest
from PIL import Image

from fewchannels.errors import StorageError
from fewchannels.runs.images import opened, png

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)


def test_an_image_is_decoded_as_it_was_stored() -> None:
    assert np.array_equal(np.asarray(opened(png(Image.fromarray(PIXELS)))), PIXELS)


@pytest.mark.parametrize("cut", [0, 1, 8, 30, -60])
def test_an_image_that_is_cut_short_is_told(cut: int) -> None:
    with pytest.raises(StorageError, match=r"a stored image of [\d,]+ bytes is damaged: .*runs verify"):
        opened(png(Image.fromarray(PIXELS))[:cut])


def test_no_flipped_bit_ends_in_anything_but_words() -> None:
    whole = png(Image.fromarray(PIXELS))
    n_refused = 0
    for at in range(len(whole)):
        try:
            opened(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        except StorageError:
            n_refused += 1
    assert n_refused > len(whole) / 2
