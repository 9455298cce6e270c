"""Masks as PNG files of one bit a pixel."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewchannels.errors import InputError


def to_png(mask: NDArray[np.bool_]) -> bytes:
    """A mask ``(y, x)`` bool as the bytes of a black and white PNG, white where it is True."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def from_png(data: bytes) -> NDArray[np.bool_]:
    """The mask ``(y, x)`` bool that :func:`to_png` packed.

    Raises:
        InputError: the bytes are no PNG, or one of more than one bit a pixel.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        raise InputError(f"the {len(data)} bytes of a mask are no PNG: {error}") from None
    if image.mode != "1":
        raise InputError(f"the PNG of a mask has the mode {image.mode!r}; masks have one bit a pixel.")
    return np.array(image)
