"""Pixel metrics: how much and where an image differs from another. Pure tensor functions."""

from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

LOW_PASS = 1 / 16
"""Standard deviation of the Gaussian that parts layout from detail, as a share of the image's shorter side."""
VISIBLE = 0.1
"""RGB distance above which a pixel counts as changed: about 6 % of the way from black to white."""
BORDER = 5
"""Pixels at each border where SSIM's window of 11 reaches beyond the image."""
FIVE_SCALES = 176
"""Pixels of the shorter side from which there is an MS-SSIM: halved four times, its window of 11 still fits."""


def compare(
    edited: Tensor,
    undisturbed: Tensor,
    masks: Tensor | None = None,
    has_mask: Tensor | None = None,
    known: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Compare images with others; each image's metrics do not depend on the rest of the batch, to the last bit.

    Args:
        edited: ``(image, rgb, y, x)`` floating point in [0, 1].
        undisturbed: unedited images of the same shape.
        masks: ``(image, y, x)`` bool, the unedited subject; None if no image has a mask.
        has_mask: ``(image,)`` bool, whether each image has a mask; None if all have one.
        known: ``(image, y, x)`` bool, known pixels of the masks; None if all are known. Other pixels are neither
            inside nor outside, and are excluded from ``change_iou``.

    Returns:
        Columns of :data:`fewchannels.interventions.metrics.METRICS`, ``(image,)`` float64; NaN if undefined: ``psnr``
        of equal images, ``ssim_inner`` of images smaller than its window of 11, ``ms_ssim`` of images smaller than
        :data:`FIVE_SCALES`, and metrics whose mask is missing or empty or, for ``mse_outside``, leaves nothing outside.

    Raises:
        ValueError: images or masks have other shapes, or images are not floating point.
    """
    if edited.ndim != 4 or edited.shape[1] != 3 or edited.shape != undisturbed.shape or not len(edited):
        raise ValueError(
            f"images of shapes {tuple(edited.shape)} and {tuple(undisturbed.shape)}; both must be the same "
            "(image, 3, y, x), at least one image"
        )
    if not (edited.is_floating_point() and undisturbed.is_floating_point()):
        raise ValueError(f"images of {edited.dtype} and {undisturbed.dtype}; both must be floating point in [0, 1]")
    n, _, *size = edited.shape
    if masks is None:
        masks = torch.zeros(n, *size, dtype=torch.bool)
    elif masks.shape != (n, *size):
        raise ValueError(f"masks of shape {tuple(masks.shape)} for images of shape {tuple(edited.shape)}")
    elif has_mask is not None:
        masks = masks & has_mask.to(masks.device)[:, None, None]
    # One by one: in a batch, the rounding of sums and convolutions depends on the number of images.
    found = [
        _compare_one(
            edited[i].float().clone(),
            undisturbed[i].float().clone(),
            masks[i].to(edited.device, copy=True),
            None if known is None else known[i].to(edited.device, copy=True),
        )
        for i in range(n)
    ]
    return {name: np.array([float(each[name]) for each in found]) for name in found[0]}


def _compare_one(edited: Tensor, undisturbed: Tensor, mask: Tensor, known: Tensor | None) -> dict[str, Tensor | float]:
    """Compare one image ``(rgb, y, x)``; an empty mask gives no values."""
    difference = edited.double() - undisturbed.double()
    by_pixel = difference.square().mean(dim=0)
    mse = by_pixel.mean()
    low = _low_pass(difference)
    changed = difference.square().sum(dim=0).sqrt() > VISIBLE
    has_mask, outside, similarity = bool(mask.any()), ~mask, _ssim(edited, undisturbed)
    if known is not None:
        outside, changed_there = outside & known, changed & known
    else:
        changed_there = changed
    return {
        "psnr": -10 * mse.log10() if mse > 0 else torch.nan,
        "mse": mse,
        "ssim": similarity.mean(),
        "ssim_inner": similarity[..., BORDER:-BORDER, BORDER:-BORDER].mean(),
        "ms_ssim": _ms_ssim(edited, undisturbed) if min(edited.shape[1:]) >= FIVE_SCALES else torch.nan,
        "mse_low": low.square().mean(),
        "mse_high": (difference - low).square().mean(),
        "mse_inside": by_pixel[mask].mean(),
        "mse_outside": by_pixel[outside].mean() if has_mask else torch.nan,
        "changed_share": changed.double().mean(),
        "change_iou": (changed_there & mask).sum() / (changed_there | mask).sum() if has_mask else torch.nan,
    }


def _low_pass(difference: Tensor) -> Tensor:
    """Filter ``(rgb, y, x)`` with a Gaussian, with edges repeated outward."""
    height, width = difference.shape[1:]
    sigma = LOW_PASS * min(height, width)
    along_y, along_x = (_smoothing(side, sigma).to(difference.device) for side in (height, width))
    return along_y @ difference @ along_x.T


@lru_cache(maxsize=4)
def _smoothing(side: int, sigma: float) -> Tensor:
    """A Gaussian along one axis as a matrix ``(to, from)``: at this width, several times as fast as a convolution."""
    return torch.from_numpy(ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0, mode="nearest"))


def _ssim(edited: Tensor, undisturbed: Tensor) -> Tensor:
    """SSIM at every pixel ``(1, rgb, y, x)``; the images are mirrored beyond their borders."""
    _, by_pixel = structural_similarity_index_measure(
        edited[None], undisturbed[None], data_range=1.0, return_full_image=True
    )
    assert isinstance(by_pixel, Tensor)
    return by_pixel


def _ms_ssim(edited: Tensor, undisturbed: Tensor) -> Tensor:
    return multiscale_structural_similarity_index_measure(edited[None], undisturbed[None], data_range=1.0)
