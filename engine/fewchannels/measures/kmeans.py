"""K-means of tokens, for many cells and starts at once: the localization protocol clusters each cell by itself.

scikit-learn takes one cell at a time; most of its time is not arithmetic. Here all starts of a cell share each pass
over its tokens (``benchmarks/analyses.py``). On the same starts the inertia is scikit-learn's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_PASSES = 300


@dataclass(frozen=True)
class Clusters:
    """What clustering found for each cell: of its starts, the one with the least inertia.

    Attributes:
        labels: ``(cell, token)`` int64 in ``[0, n_clusters)``, also of tokens of weight 0: their nearest center's.
            Clusters are numbered by the sum of their center's channels, ascending.
        centers: ``(cell, cluster, channel)`` float32.
        inertia: ``(cell,)`` float32, summed squared distance of tokens, times their weight, to their center.
        converged: ``(cell,)`` bool, whether labels stood still within :data:`MOST_PASSES` passes.
    """

    labels: Tensor
    centers: Tensor
    inertia: Tensor
    converged: Tensor

    def to(self, device: str | torch.device) -> "Clusters":
        """The same on another device."""
        return Clusters(*(each.to(device) for each in (self.labels, self.centers, self.inertia, self.converged)))


def k_means(x: Tensor, starts: Tensor, weights: Tensor | None = None) -> Clusters:
    """Lloyd's algorithm from given tokens, until no token changes its cluster.

    A cluster that loses all its tokens keeps its center.

    Args:
        x: ``(cell, channel, token)`` float32, finite.
        starts: ``(cell, start, cluster)`` int64, tokens whose values are the first centers.
        weights: ``(cell, token)`` float32, 0 for tokens that have no say; None for all ones.
    """
    n_cells, n_channels, n_tokens = x.shape
    _, n_starts, n_clusters = starts.shape
    w = torch.ones(n_cells, n_tokens, dtype=x.dtype, device=x.device) if weights is None else weights
    # About their mean, sums lose nothing to cancellation.
    middle = (torch.bmm(x, w[:, :, None]) / w.sum(dim=1)[:, None, None].clamp_min(1e-30))[:, :, 0]
    x = x - middle[:, :, None]
    index = starts.reshape(n_cells, 1, -1).expand(-1, n_channels, -1)
    centers = x.gather(2, index).view(n_cells, n_channels, n_starts, n_clusters).permute(0, 2, 3, 1).contiguous()
    best = centers.clone()
    converged = torch.zeros(n_cells, dtype=torch.bool, device=x.device)
    active = torch.arange(n_cells, device=x.device)
    here, weight_here, before = x, w, torch.empty(0)
    for _ in range(MOST_PASSES):
        labels = _nearest(here, centers)
        if before.shape == labels.shape:
            still = (labels == before).flatten(1).all(dim=1)
            if still.any():
                best[active[still]] = centers[still]
                converged[active[still]] = True
                if still.all():
                    break
                moving = ~still
                active, here, weight_here = active[moving], here[moving], weight_here[moving]
                centers, labels = centers[moving], labels[moving]
        centers = _means(here, weight_here, labels, centers)
        before = labels
        best[active] = centers
    return _least(x, w, best, middle, converged)


def _nearest(x: Tensor, centers: Tensor) -> Tensor:
    """Each token's nearest center: bool ``(cell, start, token)`` for two clusters, else int64."""
    n_cells, n_starts, n_clusters, _ = centers.shape
    half = centers.square().sum(dim=-1) / 2
    if n_clusters == 2:
        way, bias = centers[:, :, 1] - centers[:, :, 0], half[:, :, 1] - half[:, :, 0]
        return torch.bmm(way, x) > bias[:, :, None]
    scores = torch.bmm(centers.flatten(1, 2), x).view(n_cells, n_starts, n_clusters, -1) - half[..., None]
    return scores.argmax(dim=2)


def _means(x: Tensor, w: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    n_clusters = centers.shape[2]
    if n_clusters == 2:
        second = labels * w[:, None]
        n_second = second.sum(dim=-1)
        sum_second = torch.bmm(second, x.transpose(1, 2))
        # x is about its mean: what is not in the second cluster sums to the opposite.
        sums = torch.stack([-sum_second, sum_second], dim=2)
        sizes = torch.stack([w.sum(dim=1)[:, None] - n_second, n_second], dim=2)
    else:
        members = (labels[:, :, None] == torch.arange(n_clusters, device=x.device)[:, None]) * w[:, None, None]
        sizes = members.sum(dim=-1)
        sums = torch.bmm(members.flatten(1, 2), x.transpose(1, 2)).view(centers.shape)
    return torch.where(sizes[..., None] > 0, sums / sizes[..., None].clamp_min(1e-30), centers)


def _least(x: Tensor, w: Tensor, centers: Tensor, middle: Tensor, converged: Tensor) -> Clusters:
    labels = _nearest(x, centers).long()
    n_clusters = centers.shape[2]
    total = (x.square().sum(dim=1) * w).sum(dim=1)
    members = (labels[:, :, None] == torch.arange(n_clusters, device=x.device)[:, None]) * w[:, None, None]
    sums = torch.bmm(members.flatten(1, 2), x.transpose(1, 2)).view(centers.shape)
    spread = (centers.square().sum(-1) * members.sum(-1) - 2 * (centers * sums).sum(-1)).sum(-1)
    inertia, start = (total[:, None] + spread).min(dim=1)
    cell = torch.arange(len(x), device=x.device)
    found = centers[cell, start]
    # Two starts may come to one partition under other names, and rounding would choose between them.
    order = found.sum(dim=-1).argsort(dim=-1, stable=True)
    labels = order.argsort(dim=-1).gather(1, labels[cell, start])
    found = found.gather(1, order[..., None].expand_as(found))
    return Clusters(labels, found + middle[:, None], inertia.clamp_min(0), converged)
