"""How much, and where, a picture differs from another: pixels against pixels. Pure tensors."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

LOW_PASS = 1 / 16
"""Standard deviation of the Gaussian that parts layout from detail, as a share of the picture's shorter side."""
VISIBLE = 0.1
"""RGB distance from which a pixel counts as changed: about 6 % of the way from black to white."""
_LEAST_SIDE_OF_FIVE_SCALES = 161


def compare(edited: Tensor, undisturbed: Tensor, masks: Tensor, has_mask: Tensor) -> dict[str, np.ndarray]:
    """Metrics of pictures against others; each picture's own, whatever is beside it.

    Args:
        edited: ``(picture, rgb, y, x)`` float32 in [0, 1].
        undisturbed: likewise.
        masks: ``(picture, y, x)`` bool, the undisturbed subject.
        has_mask: ``(picture,)`` bool, whether that is known.

    Returns:
        Columns of :data:`engine.metrics.METRICS`, ``(picture,)`` float64; NaN where there is none: ``psnr`` of equal
        pictures, ``ms_ssim`` of pictures of 160 pixels or fewer, and what needs a mask that is unknown or empty.
    """
    difference = (edited - undisturbed).double()
    squares = difference.square()
    mse = squares.mean(dim=(1, 2, 3))
    sigma = LOW_PASS * min(edited.shape[2:])
    low = ndimage.gaussian_filter(difference.cpu().numpy(), (0, 0, sigma, sigma), mode="nearest")
    high = difference.cpu().numpy() - low
    changed = squares.sum(dim=1).sqrt() > VISIBLE
    by_pixel = squares.mean(dim=1)
    shared, either = (changed & masks).sum(dim=(1, 2)), (changed | masks).sum(dim=(1, 2))
    of_mask = {
        "mse_inside": (by_pixel * masks).sum(dim=(1, 2)) / masks.sum(dim=(1, 2)),
        "mse_outside": (by_pixel * ~masks).sum(dim=(1, 2)) / (~masks).sum(dim=(1, 2)),
        "change_iou": shared.double() / either,
    }
    return {
        "psnr": torch.where(mse > 0, -10 * mse.log10(), torch.nan).cpu().numpy(),
        "mse": mse.cpu().numpy(),
        "ssim": _ssim(edited, undisturbed),
        "ms_ssim": _ms_ssim(edited, undisturbed),
        "mse_low": np.square(low).mean(axis=(1, 2, 3)),
        "mse_high": np.square(high).mean(axis=(1, 2, 3)),
        "changed_share": changed.double().mean(dim=(1, 2)).cpu().numpy(),
    } | {name: torch.where(has_mask, values, torch.nan).cpu().numpy() for name, values in of_mask.items()}


def _ssim(edited: Tensor, undisturbed: Tensor) -> np.ndarray:
    found = structural_similarity_index_measure(edited, undisturbed, data_range=1.0, reduction="none")
    assert isinstance(found, Tensor)
    return found.double().cpu().numpy()


def _ms_ssim(edited: Tensor, undisturbed: Tensor) -> np.ndarray:
    if min(edited.shape[2:]) < _LEAST_SIDE_OF_FIVE_SCALES:
        return np.full(len(edited), np.nan)
    found = multiscale_structural_similarity_index_measure(edited, undisturbed, data_range=1.0, reduction="none")
    return found.double().cpu().numpy()
