"""An item's mask: of the target at the size of its images, of a reference image as that image is brought to it."""

from pathlib import Path

import numpy as np
import pytest
from image_files import STORED, turned
from PIL import Image

from fewchannels.errors import InputError
from fewchannels.files.images import read_image
from fewchannels.interventions.measure import mask_of
from fewchannels.interventions.rows import Item
from fewchannels.manifest import Sample

SUBJECT = np.zeros((6, 8), bool)
SUBJECT[1:4, 2:7] = True


def saved(values: np.ndarray, path: Path, orientation: int = 1) -> str:
    Image.fromarray(np.ascontiguousarray(STORED[orientation](values))).save(path, exif=turned(orientation))
    return str(path)


def item(mask: str, image: str | None = None) -> Item:
    return Item(0, "0" * 16, Sample("0" * 16, "a prompt", 0), mask=mask, image=image)


def test_a_target_s_mask_is_brought_to_its_images_size_and_refused_of_another_shape(tmp_path: Path) -> None:
    mask = saved(SUBJECT, tmp_path / "mask.png")
    np.testing.assert_array_equal(mask_of(item(mask), 12, 16).pixels, np.kron(SUBJECT, np.ones((2, 2))))
    with pytest.raises(InputError, match="a different shape"):
        mask_of(item(mask), 16, 16)


def test_an_image_s_mask_has_the_image_s_shape_and_is_squeezed_as_the_image_is(tmp_path: Path) -> None:
    image = saved(np.where(SUBJECT, 250, 5).astype(np.uint8), tmp_path / "picture.png", orientation=6)
    mask = saved(SUBJECT, tmp_path / "mask.png", orientation=3)
    squeezed = mask_of(item(mask, image), 48, 48).pixels
    shown = np.asarray(read_image(image).resize((48, 48), Image.Resampling.NEAREST))[..., 0] > 127
    np.testing.assert_array_equal(squeezed, shown)
    with pytest.raises(InputError, match=r"its image has 8 x 6: a different shape.*rotated"):
        mask_of(item(saved(SUBJECT.T, tmp_path / "sideways.png"), image), 48, 48)
