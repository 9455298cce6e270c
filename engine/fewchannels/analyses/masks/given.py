"""Masks that somebody drew: the files that a manifest's ``mask`` column names."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewchannels.analyses.masks.base import OneByOne, SampleImage, SubjectMask
from fewchannels.errors import InputError
from fewchannels.files import expanded

_RANGES = {"L": 255, "I": 65535, "I;16": 65535, "I;16B": 65535}


def manifest_masks() -> OneByOne:
    """Masks from the files that the manifest names, read as :func:`read_mask` says."""
    return OneByOne(_find, {"source": "manifest"})


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """Read the mask in a picture file.

    The subject is what is brighter than half of the format's range (127.5 of 8 bits). Three kinds of file are read in
    their own way: where no value reaches half of the range they are labels, and every label but 0 is the subject; of
    a palette the same holds for the indices; and where the alpha channel varies it is the mask (a cut-out).

    Returns:
        ``(y, x)`` bool, of the file's size.

    Raises:
        InputError: the file is missing, no picture, or of floating point.
    """
    try:
        with Image.open(expanded(path)) as file:
            file.load()
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for a damaged PNG
        raise InputError(f"the mask {str(path)!r} cannot be read: {error}") from None
    if file.mode in ("RGBA", "LA", "PA"):
        alpha = np.asarray(file.getchannel("A"))
        if alpha.min() != alpha.max():
            return alpha > 127
    if file.mode == "P":
        return np.asarray(file) != 0
    gray = file if file.mode in _RANGES or file.mode in ("1", "F") else file.convert("L")
    if gray.mode == "F":
        raise InputError(f"the mask {str(path)!r} holds floating point; save it with 8 or 16 bits a pixel.")
    values = np.asarray(gray)
    if gray.mode == "1":
        return values
    half = _RANGES[gray.mode] / 2
    return values > half if values.max() > half else values > 0


def _find(sample: SampleImage) -> SubjectMask:
    if sample.mask is None:
        raise InputError("the sample's manifest row names no mask; fill its mask column or use another source.")
    mask = read_mask(sample.mask)
    if mask.shape == sample.size:
        return SubjectMask(mask)
    resized = Image.fromarray(mask).resize(sample.image.size, Image.Resampling.NEAREST)
    return SubjectMask(np.array(resized), resized_from=(mask.shape[0], mask.shape[1]))
