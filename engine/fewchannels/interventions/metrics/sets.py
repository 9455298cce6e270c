"""Distances between sets of images, based on their embeddings: the formulas of FID, KID and CMMD."""

import numpy as np
from scipy import linalg
from scipy.spatial.distance import cdist

from fewchannels.errors import InputError

CMMD_SIGMA = 10.0
"""Of the Gaussian kernel; the distances it is of are those of unit vectors."""
CMMD_SCALE = 1000


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Distance of two Gaussians: FID's formula (Heusel et al. 2017, arXiv 1706.08500), for any embeddings.

    Args:
        one: ``(image, feature)`` float.
        other: embeddings of the other set, same format.

    Raises:
        InputError: a set has no more images than features, so that its covariance would be singular and the distance
            biased; or the sets have different features, or are not finite.
    """
    one, other = _comparable(one, other, least=1)
    for each in (one, other):
        if len(each) <= each.shape[1]:
            raise InputError(
                f"a Frechet distance over {each.shape[1]} features needs more images than features; there are "
                f"{len(each)}. Use the kernel distance or CMMD."
            )
    apart = one.mean(axis=0) - other.mean(axis=0)
    covariances = [np.atleast_2d(np.cov(each, rowvar=False)) for each in (one, other)]
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    return float(apart @ apart + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))


def kernel_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel ``(x y / d + 1)^3``: KID (Binkowski et al. 2018, arXiv 1801.01401).

    Args:
        one: ``(image, feature)`` float, at least two.
        other: embeddings of the other set, same format.

    Raises:
        InputError: a set has fewer than two images, or the sets have different features, or are not finite.
    """
    one, other = _comparable(one, other, least=2)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: np.ndarray) -> float:
        pairs = kernel(x, x)
        return float(pairs.sum() - np.trace(pairs)) / (len(x) * (len(x) - 1))

    return within(one) + within(other) - 2 * float(kernel(one, other).mean())


def cmmd(one: np.ndarray, other: np.ndarray) -> float:
    """1000 x squared MMD of unit vectors, Gaussian kernel, sigma 10: CMMD (Jayasumana et al. 2024, arXiv 2401.09603).

    Biased, like the original: an image is also paired with itself, and the distance of equal sets is exactly 0.

    Args:
        one: ``(image, feature)`` float, such as CLIP's embeddings.
        other: embeddings of the other set, same format.

    Raises:
        InputError: a set is empty, or the sets have different features, or are not finite.
    """
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in _comparable(one, other, least=1))

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.exp(-cdist(x, y, "sqeuclidean") / (2 * CMMD_SIGMA**2)).mean())

    return CMMD_SCALE * (mean(one, one) + mean(other, other) - 2 * mean(one, other))


def _comparable(one: np.ndarray, other: np.ndarray, *, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Both sets in float64, after checking that they have the same features."""
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise InputError(f"sets of shapes {one.shape} and {other.shape}; both must be (image, feature) of one model.")
    if min(len(one), len(other)) < least:
        raise InputError(f"sets of {len(one)} and {len(other)} images; each must have at least {least}.")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise InputError("a set has embeddings that are not finite; exclude the images that failed.")
    return one.astype(np.float64), other.astype(np.float64)
