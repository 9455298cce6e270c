"""Masks of the tokens that a condition edits, from clusters or given masks, and their placement. Pure."""

import numpy as np
import torch
from torch import Tensor

from fewchannels.measures.localization import localize
from fewchannels.measures.scores import take_channels


def two_clusters(x: Tensor, ranks: Tensor, k: int, ids: np.ndarray, *cell: int) -> Tensor:
    """The foreground of two clusters of tokens by their top ``k`` channels: the protocol of arXiv 2605.13974.

    Args:
        x: hidden state ``(row, token, channel)``.
        ranks: ``(row, channel)`` of its channels.
        k: channels to cluster by.
        ids: ``(row,)`` uint64, of the samples.
        cell: layer and step, on which the starts depend.

    Returns:
        ``(row, token)`` bool, the cluster with the larger mean heat.
    """
    values = take_channels(x, ranks.argsort(dim=-1)[:, :k])
    own = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return localize(values, own, [ids, *cell]).foreground


def aligned(source: Tensor, target: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Source position of each target token, such that the source's mask covers the target's.

    The source is moved so that the masks' centers of gravity coincide, and scaled by the square root of the ratio of
    their areas; a token takes its nearest counterpart. If a mask is empty, tokens keep their positions.

    Args:
        source: ``(row, token)`` bool, row-major over the grid.
        target: same for the target.
        grid: tokens along height and width.

    Returns:
        The counterpart of each token, ``(row, token)`` int64, and whether it is in the source's mask, bool.
    """
    height, width = grid
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([y, x], dim=-1).reshape(-1, 2).to(source.device, torch.float64)
    sizes = [mask.sum(dim=-1, dtype=torch.float64) for mask in (source, target)]
    centers = [mask.double() @ places / mask.sum(dim=-1).clamp_min(1)[:, None] for mask in (source, target)]
    both = (sizes[0] > 0) & (sizes[1] > 0)
    shrink = torch.where(both, (sizes[0] / sizes[1].clamp_min(1)).sqrt(), 1.0)
    offset = torch.where(both[:, None], centers[0] - shrink[:, None] * centers[1], 0.0)
    found = (places * shrink[:, None, None] + offset[:, None]).round().long()
    last = torch.tensor([height - 1, width - 1], device=source.device)
    inside = ((found >= 0) & (found <= last)).all(dim=-1)
    counterpart = (found.clamp_min(0).minimum(last) * torch.tensor([width, 1], device=source.device)).sum(dim=-1)
    return counterpart, source.gather(1, counterpart) & inside
