"""Masks of the channels that a condition edits, from ranks. Pure tensor functions.

A *rank* is a channel's position by descending score, 0 for the largest; a *draw* is a position in a random order.
"""

import numpy as np
import torch
from torch import Tensor

from fewchannels.measures.draws import cell_keys, random_channels
from fewchannels.measures.localization import matched_channels


def ranked(scores: Tensor) -> Tensor:
    """Each channel's rank, ties by ascending channel: ``(row, channel)`` to int64 of the same shape."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order.argsort(dim=-1)


def draws(ids: np.ndarray, trials: np.ndarray, n_channels: int, *cell: int) -> Tensor:
    """Each channel's position in a random order.

    Args:
        ids: ``(row,)`` uint64, of the samples.
        trials: ``(row,)`` draws of one sample, from 0.
        n_channels: number of channels to order.
        cell: further numbers that the draw depends on, such as layer and step.

    Returns:
        ``(row, channel)`` int64.
    """
    orders = random_channels(cell_keys(0, ids, trials, *cell), n_channels, n_channels)
    return torch.from_numpy(orders).argsort(dim=-1)


def between(places: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Channels whose position is in ``[first, last)``: ``(row, channel)`` bool; both ends are ``(row,)``."""
    return (places >= first[:, None]) & (places < last[:, None])


def matched(ranks: Tensor, energy: Tensor, k: int) -> Tensor:
    """Other channels that hold as much energy as the top ``k``, or all others: :func:`matched_channels` from ranks.

    Args:
        ranks: ``(row, channel)`` int64.
        energy: ``(row, channel)``.
        k: number of top channels.

    Returns:
        ``(row, channel)`` bool.
    """
    return matched_channels(ranks.argsort(dim=-1), energy, k)


def others(ranks: Tensor, places: Tensor, k: int) -> Tensor:
    """The first ``k`` in a random order that are not among the top ``k``.

    Args:
        ranks: ``(row, channel)`` int64.
        places: ``(row, channel)`` int64, from :func:`draws`.
        k: number of channels.

    Returns:
        ``(row, channel)`` bool.
    """
    behind = places + ranks.shape[-1] * (ranks < k)
    return behind.argsort(dim=-1).argsort(dim=-1) < k


def balance(change: Tensor, top: Tensor, chosen: Tensor) -> Tensor:
    """The factor by which the chosen channels' change must be multiplied to be as large as the top channels' would be.

    Args:
        change: ``(row, channel)`` squared change of each channel if it were edited.
        top: ``(row, channel)`` bool.
        chosen: ``(row, channel)`` bool.

    Returns:
        ``(row,)``; 1 if the chosen channels would not change at all.
    """
    wanted, found = (change * top).sum(dim=-1), (change * chosen).sum(dim=-1)
    return torch.where(found > 0, (wanted / found.clamp_min(torch.finfo(found.dtype).tiny)).sqrt(), 1.0)
