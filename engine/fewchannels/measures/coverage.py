"""Masks of pixels and masks of tokens: the share of each token that a subject covers, and chance agreement.

A token represents one rectangle of pixels; tokens are row-major over their grid. Everything is torch, in float64.
"""

from torch import Tensor

from fewchannels.errors import InputError


def token_coverage(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Exact share of each token's rectangle of pixels that a mask covers.

    Args:
        mask: ``(..., y, x)`` bool.
        grid: tokens along height and width.

    Returns:
        ``(..., token)`` float64 in [0, 1].

    Raises:
        InputError: the mask's size is not a whole multiple of the grid.
    """
    height, width = mask.shape[-2:]
    rows, columns = grid
    if height % rows or width % columns or not height or not width:
        raise InputError(
            f"a mask of {height} x {width} pixels on a grid of {rows} x {columns} tokens: a token must cover whole "
            "pixels. Give the mask the size of the generated image."
        )
    rectangles = mask.double().unflatten(-1, (columns, width // columns)).unflatten(-3, (rows, height // rows))
    return rectangles.mean(dim=(-3, -1)).flatten(-2)


def chance_iou(p: Tensor, g: Tensor) -> Tensor:
    """Intersection over union of independent masks with areas ``p`` and ``g``: ``p g / (p + g - p g)``.

    Args:
        p: ``(...)`` share of one mask that is True, in [0, 1].
        g: the same share of the other mask.

    Returns:
        ``(...)`` in [0, 1]; NaN if both are 0 or one is NaN.
    """
    return p * g / (p + g - p * g)
