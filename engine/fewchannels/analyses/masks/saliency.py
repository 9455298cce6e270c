"""Find a subject without a model: pixels whose color differs from the image's border.

The border is assumed to be mostly background, as in Wei et al. 2012 ("Geodesic Saliency Using Background Priors").
The border's colors are modeled by one Gaussian, fitted to the most common ones by the concentration steps of Rousseeuw
and Van Driessen 1999 (FAST-MCD), so a subject may touch the border. A pixel's contrast is its Mahalanobis distance
from this Gaussian, and Otsu's threshold (1979) separates the subject. It is a fallback without a segmentation model:
it finds a subject with a different color from its surroundings, and fails on backgrounds of several colors.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fewchannels.analyses.masks.base import OneByOne, SampleImage, SubjectMask
from fewchannels.errors import InputError

_BLUR = 1 / 256  # standard deviation of the blur, share of the longer side: finer structures are grain
_BORDER = 0.05  # width, share of the shorter side
_COMMON = 0.7  # share of the border's pixels that the Gaussian is fitted to
_STEPS = 2  # of concentration
_SMALLEST = 16  # pixels; below it the border has too few to fit a Gaussian to
_GRAIN = 1e-3  # variance added to each colour: flat backgrounds would make every difference infinite


def saliency_masks() -> OneByOne:
    """Masks by :func:`border_contrast` and :func:`otsu`; the score is Otsu's separability, in [0, 1]."""
    return OneByOne(_find, {"source": "saliency", "method": "border contrast, Otsu"})


def border_contrast(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each pixel's color from those of the border.

    Args:
        image: ``(y, x, rgb)`` in [0, 1].

    Returns:
        ``(y, x)`` Mahalanobis distances, at least 0.
    """
    height, width = image.shape[:2]
    sigma = _BLUR * max(height, width)
    smooth = ndimage.gaussian_filter(image, (sigma, sigma, 0))
    n = max(1, round(_BORDER * min(height, width)))
    at_border = np.ones((height, width), bool)
    at_border[n:-n, n:-n] = False
    border = smooth[at_border]
    common = border
    for _ in range(_STEPS):
        distance = _mahalanobis(border, common)
        common = border[distance <= np.quantile(distance, _COMMON)]
    return _mahalanobis(smooth, common)


def otsu(values: NDArray[np.float64]) -> tuple[float, float]:
    """Otsu's threshold: the cut with the smallest variance within the two classes (Otsu 1979).

    Args:
        values: values of any shape, finite.

    Returns:
        The largest value of the lower class (the upper class is above it), and the share of the variance that is
        between the classes, in [0, 1]; the value and 0 if all values are equal.
    """
    ranked = np.sort(values, axis=None)
    n = ranked.size
    below = np.arange(1, n)
    sums = np.cumsum(ranked - ranked.mean())[:-1]
    between = np.where(ranked[1:] > ranked[:-1], sums**2 / (below * (n - below)), 0)
    if not between.any():
        return float(ranked[-1]), 0.0
    best = int(between.argmax())
    return float(ranked[best]), float(between[best] / ranked.var())


def _mahalanobis(colours: NDArray[np.float64], image: NDArray[np.float64]) -> NDArray[np.float64]:
    away = colours - image.mean(axis=0)
    precision = np.linalg.inv(np.cov(image, rowvar=False) + _GRAIN * np.eye(3))
    return np.sqrt(np.einsum("...i,ij,...j->...", away, precision, away))


def _find(sample: SampleImage) -> SubjectMask:
    if min(sample.size) < _SMALLEST:
        raise InputError(f"the image's size is {sample.size}; saliency needs sides of at least {_SMALLEST} pixels.")
    contrast = border_contrast(np.asarray(sample.image, dtype=np.float64) / 255)
    threshold, separability = otsu(contrast)
    return SubjectMask(contrast > threshold, score=separability)
