"""Distances between sets of pictures, through embeddings of each: the formulae of FID, KID and CMMD."""

import numpy as np
from scipy import linalg

from engine.errors import InputError


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Of two Gaussians: FID's formula (Heusel et al. 2017, arXiv 1706.08500), whatever the embeddings are of.

    Args:
        one: ``(picture, feature)`` float.
        other: likewise.

    Raises:
        InputError: a set has no more pictures than features: its covariance would be singular, the distance biased.
    """
    for each in (one, other):
        if len(each) <= each.shape[1]:
            raise InputError(
                f"a Frechet distance over {each.shape[1]} features needs more than as many pictures; there are "
                f"{len(each)}. Use the kernel distance or CMMD."
            )
    one, other = one.astype(np.float64), other.astype(np.float64)
    apart = one.mean(axis=0) - other.mean(axis=0)
    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    return float(apart @ apart + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))


def kernel_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel ``(x y / d + 1)^3``: KID (Binkowski et al. 2018, arXiv 1801.01401).

    Args:
        one: ``(picture, feature)`` float, at least two.
        other: likewise.
    """

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3

    return _mmd(kernel(one, one), kernel(other, other), kernel(one, other), unbiased=True)


def cmmd(one: np.ndarray, other: np.ndarray) -> float:
    """1000 x squared MMD of unit vectors, Gaussian kernel, sigma 10: CMMD (Jayasumana et al. 2024, arXiv 2401.09603).

    Args:
        one: ``(picture, feature)`` float, such as CLIP's embeddings.
        other: likewise.
    """

    def unit(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp(-np.square(x[:, None] - y[None]).sum(axis=-1) / (2 * 10.0**2))

    x, y = unit(one), unit(other)
    return 1000 * _mmd(kernel(x, x), kernel(y, y), kernel(x, y), unbiased=False)


def _mmd(within: np.ndarray, within_other: np.ndarray, across: np.ndarray, *, unbiased: bool) -> float:
    def mean(kernel: np.ndarray) -> float:
        n = len(kernel)
        return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)) if unbiased else kernel.mean())

    return mean(within) + mean(within_other) - 2 * float(across.mean())
