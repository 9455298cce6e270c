"""Read image files of common formats as 8-bit RGB, or reject them with a reason; see ``docs/images.md``."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fewchannels.errors import InputError
from fewchannels.files.durable import expanded

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM")
"""Pillow's names of the file formats that are read."""
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_TWELVE_BITS = 4096  # bit depths that cameras and scanners store in 16 bits
_KNOWN = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr", "HSV", "F", *SIXTEEN_BITS)
_UNKNOWN = {
    "CMYK": "amounts of ink, whose colors depend on a profile",
    "LAB": "Lab colors, whose white point it does not say",
    "I": "32-bit whole numbers, whose white it does not say",
}


def read_image(file: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Read an image file as RGB with 8 bits per channel, upright, on white if it is transparent.

    Args:
        file: its path, or its bytes.
        name: its name in messages; None for its path.

    Raises:
        InputError: it cannot be read, or the meaning of its values is unknown.
    """
    name = name or ("the image" if isinstance(file, bytes) else f"the image {str(file)!r}")
    return as_rgb(open_upright(file, name), name)


def as_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert an image of any mode to RGB with 8 bits per channel, on white if it is transparent.

    Args:
        image: result of :func:`open_upright`.
        name: its name in messages.

    Raises:
        InputError: the meaning of its values is unknown.
    """
    check_mode(image, name)
    alpha = alpha_of(image)
    colors = _colors(image, name)
    if alpha is None or alpha.min() == 255:
        return colors
    white = Image.new("RGB", image.size, (255, 255, 255))
    return Image.composite(colors, white, Image.fromarray(alpha))


def open_upright(file: str | Path | bytes, name: str) -> Image.Image:
    """Read an image file completely with Pillow, rotated according to its EXIF orientation.

    Args:
        file: its path, or its bytes.
        name: its name in messages.

    Raises:
        InputError: it is missing or damaged, of another format, or holds several images.
    """
    try:
        # Not by its path: for a TIFF that Pillow maps into memory, it would rotate the size but not the pixels.
        data = file if isinstance(file, bytes) else expanded(file).read_bytes()
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            n_frames = getattr(opened, "n_frames", 1)
            if opened.format == "MPO":  # a JPEG with additional images of a camera after the photograph
                n_frames = 1
            if n_frames == 1:
                opened.load()
                image = ImageOps.exif_transpose(opened)
                image.format = opened.format
    except Exception as error:  # decoders may raise anything for a damaged file
        reason = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "it is none"
        raise InputError(f"{name} cannot be read: {reason}. Images are {', '.join(FORMATS)} files.") from None
    if n_frames > 1:
        raise InputError(f"{name} contains {n_frames} images, but exactly one is needed. Save that one as a file.")
    return image


def check_mode(image: Image.Image, name: str) -> None:
    """Refuse an image whose values have no known meaning.

    Raises:
        InputError: its values have no known meaning; the message names them.
    """
    if image.mode not in _KNOWN:
        what = _UNKNOWN.get(image.mode, f"pixels of the unusual mode {image.mode}")
        raise InputError(f"{name} contains {what}. Save it as 8-bit RGB or gray.")


def alpha_of(image: Image.Image) -> NDArray[np.uint8] | None:
    """Opacity of each pixel, ``(y, x)`` uint8, 255 is opaque; None for an image without transparency.

    Args:
        image: result of :func:`open_upright`.
    """
    if not image.has_transparency_data:
        return None
    if image.mode in SIXTEEN_BITS:  # one value is transparent; Pillow would compare it after clipping
        return np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8)
    straight = image.convert("LA") if image.mode == "La" else image
    return np.asarray(straight.convert("RGBA").getchannel("A"))


def _colors(image: Image.Image, name: str) -> Image.Image:
    """Colors as RGB, ignoring transparency."""
    if image.mode in SIXTEEN_BITS:
        largest = int(np.asarray(image).max())
        if 0 < largest < _TWELVE_BITS:
            raise InputError(
                f"{name} has 16 bits, but no value above {largest} of 65535: it is almost black, or contains "
                f"{max(8, largest.bit_length())} bits that were not scaled. Save it with 8 bits, or scaled to 16."
            )
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise InputError(
                f"{name} contains floating-point values of {values.min():g} to {values.max():g}; they must be between "
                f"0 "
                "(black) and 1 (white). Save it with 8 or 16 bits."
            )
        return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
    straight = image.convert("LA") if image.mode == "La" else image
    if straight.has_transparency_data:
        return straight.convert("RGBA").convert("RGB")
    return straight.convert("RGB")
