"""Random draws that depend only on the cell they are for, not on the order of work or on other cells."""

import numpy as np


def cell_keys(seed: int, *parts: np.ndarray | int) -> np.ndarray:
    """A number for each cell that depends on a seed and on the cell's name, such as (sample, layer, step).

    Args:
        seed: random seed of the run or the analysis.
        parts: integers, or arrays of integers, that broadcast against each other.

    Returns:
        Keys, uint64, of the parts' common shape.
    """
    key = _mixed(np.array(seed, np.uint64))
    with np.errstate(over="ignore"):
        for part in parts:
            key = _mixed(key + _mixed(np.asarray(part).astype(np.uint64)))
    return key


def uniforms(keys: np.ndarray, *shape: int) -> np.ndarray:
    """Uniform random numbers in [0, 1) for each cell, generated from the cell's own key.

    Args:
        keys: ``(cell,)`` uint64, from :func:`cell_keys`.
        shape: shape of each cell's numbers. A smaller first axis gives the first numbers of a larger one.

    Returns:
        ``(cell, *shape)`` float64.
    """
    drawn = cell_keys(0, keys[:, None], np.arange(np.prod(shape, dtype=int))[None])
    return ((drawn >> np.uint64(11)) * 2.0**-53).reshape(len(keys), *shape)


def random_channels(keys: np.ndarray, n_channels: int, k: int) -> np.ndarray:
    """``k`` distinct random channels for each cell, all equally likely, drawn with the cell's own key.

    Args:
        keys: ``(cell,)`` uint64, from :func:`cell_keys`.
        n_channels: number of channels to draw from.
        k: number of channels per cell.

    Returns:
        ``(cell, k)`` int64.
    """
    drawn = cell_keys(0, keys[:, None], np.arange(n_channels)[None])
    return np.argsort(drawn, axis=-1, kind="stable")[:, :k]


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014): every bit depends on every bit."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
