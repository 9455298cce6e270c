"""Images and masks: stored as PNG, measured as arrays."""

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewchannels.errors import InputError, StorageError
from fewchannels.files.images import read_image

if TYPE_CHECKING:
    from torch import Tensor


def png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    """A stored image in RGB, all of it read.

    Raises:
        StorageError: the bytes are damaged, or not an image.
    """
    try:
        return read_image(data, "it")
    except InputError as error:
        raise StorageError(
            f"a stored image of {len(data):,} bytes is damaged: {error} Run fewchannels runs verify to identify its "
            f"sample."
        ) from None


def pixels(image: Image.Image) -> "Tensor":
    """An image as ``(rgb, y, x)`` float32 in [0, 1]."""
    import torch

    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)


def to_png(mask: NDArray[np.bool_]) -> bytes:
    """A mask ``(y, x)`` bool as the bytes of a black and white PNG, white where it is True."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def from_png(data: bytes) -> NDArray[np.bool_]:
    """The mask ``(y, x)`` bool that :func:`to_png` packed.

    Raises:
        InputError: the bytes are not PNG, or have more than one bit per pixel.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        raise InputError(f"the {len(data)} bytes of a mask are not a PNG: {error}") from None
    if image.mode != "1":
        raise InputError(f"the PNG of a mask has the mode {image.mode!r}; masks have one bit per pixel.")
    return np.array(image)
