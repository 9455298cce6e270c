"""Random draws that depend on what they are for and on nothing else: not on the order of work, nor on its company."""

import numpy as np


def cell_keys(seed: int, *parts: np.ndarray | int) -> np.ndarray:
    """A number for each cell that depends on a seed and on what names the cell, such as (sample, layer, step).

    Args:
        seed: random seed of the run or the analysis.
        parts: integers, or arrays of them, that broadcast against each other.

    Returns:
        uint64, of the parts' common shape.
    """
    key = _mixed(np.array(seed, np.uint64))
    with np.errstate(over="ignore"):
        for part in parts:
            key = _mixed(key + _mixed(np.asarray(part).astype(np.uint64)))
    return key


def uniforms(keys: np.ndarray, *shape: int) -> np.ndarray:
    """Numbers in [0, 1) for each cell, all equally likely, drawn by the cell's own key.

    Args:
        keys: ``(cell,)`` uint64, from :func:`cell_keys`.
        shape: shape of each cell's numbers. Fewer along its first axis are the first of more.

    Returns:
        ``(cell, *shape)`` float64.
    """
    drawn = cell_keys(0, keys[:, None], np.arange(np.prod(shape, dtype=int))[None])
    return ((drawn >> np.uint64(11)) * 2.0**-53).reshape(len(keys), *shape)


def random_channels(keys: np.ndarray, n_channels: int, k: int) -> np.ndarray:
    """``k`` different channels for each cell, all equally likely, drawn by the cell's own key.

    Args:
        keys: ``(cell,)`` uint64, from :func:`cell_keys`.
        n_channels: number of channels to draw from.
        k: how many.

    Returns:
        ``(cell, k)`` int64.
    """
    drawn = cell_keys(0, keys[:, None], np.arange(n_channels)[None])
    return np.argsort(drawn, axis=-1, kind="stable")[:, :k]


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): every bit depends on every bit."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
