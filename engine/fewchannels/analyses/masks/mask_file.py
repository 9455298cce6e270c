"""Masks in image files: which pixels are the subject, by which rule, or why that is ambiguous.

The rules are in ``docs/images.md``.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewchannels.errors import InputError
from fewchannels.files.images import SIXTEEN_BITS, alpha_of, check_mode, open_upright

RULES = ("black_and_white", "labels", "soft", "trimap", "cut_out")
"""Rules by which a file's values are read."""
_REMEDY = "Save it as 8-bit gray, 255 where the subject is and 0 elsewhere."
_MOST_LABEL = 31  # besides 255 for unknown pixels: VOC's labels end at 20, the training labels of Cityscapes at 18
_FEW = 32  # different values, below which dark, bright or flat ones may be labels
_MIDDLE = (0.1, 0.9)  # of white: between them, values of an edge are not flat
_LOSSLESS = ("PNG", "TIFF", "GIF", "BMP", "PPM")


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask from a file.

    Attributes:
        pixels: ``(y, x)`` bool, True where the subject is.
        rule: one of :data:`RULES`.
        known: ``(y, x)`` bool, False for pixels that the file marks as unknown, which are not the subject; None if
            all pixels are known.
    """

    pixels: NDArray[np.bool_]
    rule: str
    known: NDArray[np.bool_] | None = None

    def at(self, height: int, width: int, name: str) -> "Mask":
        """The mask resized, by nearest neighbor, to its image's size.

        Args:
            height: height of the image, pixels.
            width: width of the image, pixels.
            name: name of the mask in messages.

        Raises:
            InputError: the aspect ratio differs from the image's, so they do not belong together.
        """
        own_height, own_width = self.pixels.shape
        rounding = max(own_height + own_width, height + width) / 2  # of sides to whole pixels
        if abs(own_height * width - own_width * height) > rounding:
            turned = " It would fit if rotated by 90 degrees." if (own_height, own_width) == (width, height) else ""
            raise InputError(
                f"{name} has {own_width} x {own_height} pixels (width x height), but its image has {width} x "
                f"{height}: a "
                f"different shape, so they cannot correspond.{turned} Crop or rotate it like the image."
            )
        return self.squeezed(height, width)

    def squeezed(self, height: int, width: int) -> "Mask":
        """The mask by nearest neighbor at any size.

        Args:
            height: pixels.
            width: pixels.
        """
        if self.pixels.shape == (height, width):
            return self

        def resized(values: NDArray[np.bool_]) -> NDArray[np.bool_]:
            return np.array(Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST))

        return Mask(resized(self.pixels), self.rule, None if self.known is None else resized(self.known))


def read_mask(path: str | Path) -> Mask:
    """Read the mask in an image file, of the file's own size, upright.

    Raises:
        InputError: the file is missing or not an image, or the subject is ambiguous.
    """
    name = f"the mask {str(path)!r}"
    image = open_upright(path, name)
    return mask_in(image, name, lossless=image.format in _LOSSLESS and image.info.get("compression") != "jpeg")


def mask_in(image: Image.Image, name: str, *, lossless: bool) -> Mask:
    """Interpret an image of any mode as a mask.

    Args:
        image: result of :func:`fewchannels.files.images.open_upright`.
        name: name of the mask in messages.
        lossless: whether its file format keeps every value exactly.

    Raises:
        InputError: the subject is ambiguous.
    """
    check_mode(image, name)
    if image.mode == "F":
        raise InputError(f"{name} has floating-point values. {_REMEDY}")
    alpha = alpha_of(image)
    if alpha is not None and alpha.min() < 255:
        return _of_alpha(image, alpha, name, lossless)
    if image.mode in SIXTEEN_BITS:
        return _of_gray(np.asarray(image), 65535, name, lossless)
    if image.mode == "P":
        return _of_palette(image, name, lossless)
    if image.mode == "1":
        return Mask(np.asarray(image), "black_and_white")
    return _of_colors(_rgb(image), name, lossless)


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Colors ``(y, x, rgb)``, ignoring transparency."""
    straight = image.convert("LA") if image.mode == "La" else image
    return np.asarray((straight.convert("RGBA") if straight.has_transparency_data else straight).convert("RGB"))


def _of_alpha(image: Image.Image, alpha: NDArray[np.uint8], name: str, lossless: bool) -> Mask:
    """The mask of a cut-out: opaque pixels are the subject."""
    if alpha.min() == alpha.max():
        raise InputError(f"{name} has the same transparency everywhere ({alpha.min()} of 255). {_REMEDY}")
    wide = image.mode in SIXTEEN_BITS
    shown = (np.asarray(image)[..., None] >> 8 if wide else _rgb(image))[alpha > 0]
    if (shown == shown[:, :1]).all() and set(np.unique(shown).tolist()) == {0, 255}:
        raise InputError(
            f"{name} is black and white where it is opaque, so both the transparency and the colors could be the mask. "
            f"{_REMEDY}"
        )
    # A transparent color of a palette, or gray, was chosen on purpose; colors under an alpha channel are arbitrary.
    hidden = np.zeros((0, 1)) if "A" in image.mode.upper() or wide else _rgb(image)[alpha == 0]
    if not shown.any() and len(hidden) and (hidden == 255).all():
        raise InputError(
            f"{name} is black beside transparent white, so both the transparency and the colors could be the mask. "
            f"{_REMEDY}"
        )
    found = _of_gray(alpha, 255, name, lossless)
    return Mask(found.pixels, "cut_out", found.known)


def _of_palette(image: Image.Image, name: str, lossless: bool) -> Mask:
    """Gray colors are interpreted as gray values; with other colors, indices are labels, if black is 0."""
    indices = np.asarray(image)
    used, colors = _used(image, indices)
    different = np.unique(colors, axis=0)
    gray = bool((colors == colors[:, :1]).all())
    if gray and len(different) > 1:
        values = np.zeros(256, np.uint8)
        values[used] = colors[:, 0]
        if (colors[:, 0] != used).any() and colors[:, 0].max() < 128:
            raise InputError(f"{name} has a palette of dark grays only; they may be labels. {_REMEDY}")
        return _of_gray(values[indices], 255, name, lossless)
    if len(used) == 1 and gray:
        white, black = colors[0, 0] > 127, colors[0, 0] == 0
        if white and used[0] != 0:
            return Mask(np.ones(indices.shape, bool), "black_and_white")
        if black and used[0] == 0:
            return Mask(np.zeros(indices.shape, bool), "black_and_white")
        raise InputError(
            f"{name} has one color, {tuple(colors[0].tolist())}, of palette index {used[0]}, which may or may not be "
            f"the subject. {_REMEDY}"
        )
    blacks = used[(colors == 0).all(axis=1)].tolist()
    if len(different) > 1 and blacks != [0]:
        raise InputError(f"{name} has a palette of colors without black at index 0, the background. {_REMEDY}")
    if len(different) == 1 and 0 not in used:
        raise InputError(f"{name} has a palette of one color, and no pixel of index 0, the background. {_REMEDY}")
    return _labels(indices, 255)


def _used(image: Image.Image, indices: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Palette indices that pixels have, and their colors ``(index, rgb)``."""
    used, first = np.unique(indices, return_index=True)
    return used, _rgb(image).reshape(-1, 3)[first]


def _of_colors(colors: NDArray[np.uint8], name: str, lossless: bool) -> Mask:
    if (colors == colors[..., :1]).all():
        return _of_gray(colors[..., 0], 255, name, lossless)
    different = np.unique(colors.reshape(-1, 3), axis=0)
    if len(different) == 2 and not different[0].any():
        return Mask(np.asarray(colors.any(axis=-1)), "labels")
    raise InputError(f"{name} is in color, and it is unclear which of its colors are the subject. {_REMEDY}")


def _of_gray(values: NDArray[np.integer], white: int, name: str, lossless: bool) -> Mask:
    """The subject in gray values, whose largest possible value is ``white``."""
    different = np.unique(values)
    found = set(different.tolist())
    if found <= {0, white}:
        return Mask(values == white, "black_and_white")
    is_dark = different[-1] <= white / 2
    is_bright = white / 2 < different[0] < _MIDDLE[1] * white
    if is_dark and len(found) == 2 and 0 in found and lossless:
        return Mask(values > 0, "labels")
    rest = found - {0, 255, white}
    voids = sorted(found & {255, white})
    if len(voids) == 1 and 0 in found and rest and max(rest) <= _MOST_LABEL and lossless:
        return _labels_and_void(values, voids[0], rest, name)
    if len(found) == 3 and found <= {0, white, white // 2, white // 2 + 1}:
        return Mask(values == white, "trimap", (values == 0) | (values == white))
    if len(found) == 1 and (is_dark or is_bright):
        raise InputError(f"{name} is {different[0]} everywhere, a label or a soft mask. {_REMEDY}")
    if len(found) < _FEW and (is_dark or is_bright or _is_flat(values, white)):
        raise InputError(
            f"{name} contains {len(found)} gray values, {different[0]} to {different[-1]} of {white}: several labels, "
            f"or "
            f"a soft mask{'' if lossless else '; labels do not survive a format that loses detail'}. {_REMEDY}"
        )
    return Mask(values > white / 2, "soft")


def _labels_and_void(values: NDArray[np.integer], void: int, labels: set[int], name: str) -> Mask:
    """Return whether these are labels with an unknown rim, rather than a white subject with a rim of dark noise."""
    n_void, n_labels = int((values == void).sum()), int(np.isin(values, list(labels)).sum())
    if n_void > n_labels or not (min(values.shape) < 3 or _filling(values) & labels):
        raise InputError(
            f"{name} contains 0, {void} and {len(labels)} values up to {max(labels)}, so {void} could be the subject "
            f"or "
            f"the unknown rim around labels. {_REMEDY}"
        )
    return _labels(values, void)


def _is_flat(values: NDArray[np.integer], white: int) -> bool:
    """Return whether a value between dark and bright fills areas, like a label, rather than edges."""
    if len(np.unique(values)) < 3:
        return False
    return any(_MIDDLE[0] * white < value < _MIDDLE[1] * white for value in _filling(values))


def _filling(values: NDArray[np.integer]) -> set[int]:
    """Values that fill a square of 3 x 3 pixels."""
    if min(values.shape) < 3:
        return set()
    squares = np.lib.stride_tricks.sliding_window_view(values, (3, 3))
    middles = values[1:-1, 1:-1]
    return set(np.unique(middles[(squares == middles[..., None, None]).all(axis=(2, 3))]).tolist())


def _labels(values: NDArray[np.integer], void: int) -> Mask:
    """Every label except 0 is the subject; ``void`` is not a label, but marks unknown pixels."""
    known = values != void
    return Mask((values != 0) & known, "labels", None if known.all() else known)
