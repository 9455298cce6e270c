"""K-means of tokens, for many cells and starts at once: the localization protocol clusters each cell separately.

scikit-learn takes one cell at a time; most of its time is not arithmetic. Here all starts of a cell share each pass
over its tokens (``benchmarks/analyses.py``). With the same starts, the inertia equals scikit-learn's.

If tokens form no clear clusters, Lloyd's algorithm ends in one of many local minima. Exchanging single tokens
afterward (Hartigan 1975) escapes most of them: ``docs/analyses.md`` lists how many cells then reach the lowest inertia.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_PASSES = 300
ALIKE = 1e-5
"""Relative difference below which the inertias of two starts count as equal."""
_LEAST_GAIN = 1e-5
"""Minimum decrease of the inertia for moving a token, in mean squared distances of a token from the mean."""


@dataclass(frozen=True)
class Clusters:
    """Clusters of each cell, from the start with the lowest inertia.

    Attributes:
        labels: ``(cell, token)`` int64 in ``[0, n_clusters)``; tokens of weight 0 have the label of the nearest center.
            Clusters are numbered by the sum of their center's channels, ascending.
        centers: ``(cell, cluster, channel)`` float32.
        inertia: ``(cell,)`` float32, sum over tokens of weight times squared distance to the token's center.
        converged: ``(cell,)`` bool, whether every start converged within :data:`MOST_PASSES` passes.
        n_best: ``(cell,)`` int64, number of starts that reached the lowest inertia, within :data:`ALIKE`; 1 means that
            no second start confirms it.
    """

    labels: Tensor
    centers: Tensor
    inertia: Tensor
    converged: Tensor
    n_best: Tensor

    def to(self, device: str | torch.device) -> "Clusters":
        """The same clusters on another device."""
        return Clusters(*(each.to(device) for each in vars(self).values()))


def plus_plus(x: Tensor, uniform: Tensor, n_clusters: int, weights: Tensor | None = None) -> Tensor:
    """Initial centers by greedy k-means++, identical draw by draw to scikit-learn's ``kmeans_plusplus``.

    The first center is a random token; each further center is the best of several tokens, drawn with probabilities
    proportional to their squared distance to the nearest center so far (Arthur and Vassilvitskii 2007).

    Args:
        x: ``(cell, channel, token)`` float32, finite.
        uniform: ``(cell, start, draw)`` float64 in [0, 1), :func:`n_draws` numbers for each start.
        n_clusters: number of clusters of each start.
        weights: ``(cell, token)`` float32, 0 for tokens that cannot be centers, else 1; None for all ones.

    Returns:
        ``(cell, start, cluster)`` int64, token indices. With fewer distinct tokens than clusters, some are equal.
    """
    n_cells, n_channels, n_tokens = x.shape
    n_tried = _tried(n_clusters)
    w = x.new_ones(n_cells, n_tokens) if weights is None else weights
    x = x - _middle(x, w)[:, :, None]
    size = x.square().sum(dim=1)

    def distances(tokens: Tensor) -> Tensor:
        """Squared distances of all tokens to the given token of each start: ``(cell, start, token)``."""
        centers = x.gather(2, tokens[:, None].expand(-1, n_channels, -1)).transpose(1, 2)
        found = (size[:, None] - 2 * torch.bmm(centers, x) + size.gather(1, tokens)[:, :, None]).clamp_min(0)
        return found.scatter(2, tokens[:, :, None], 0.0) * w[:, None]

    def drawn(chances: Tensor, at: Tensor, *, right: bool) -> Tensor:
        """The tokens at which the cumulative probabilities reach shares ``at`` of their sum."""
        summed = chances.double().cumsum(dim=-1)
        tokens = torch.searchsorted(summed, (at * summed[..., -1:]).contiguous(), right=right)
        last = n_tokens - 1 - (chances > 0).flip(-1).to(torch.uint8).argmax(dim=-1, keepdim=True)
        return tokens.minimum(last)

    uniform = uniform.to(x.device)
    first = drawn(w[:, None], uniform[:, :, :1].transpose(1, 2), right=True)[:, 0]
    chosen, nearest = [first], distances(first)
    for i in range(1, n_clusters):
        at = uniform[:, :, 1 + (i - 1) * n_tried : 1 + i * n_tried]
        candidates = drawn(nearest, at, right=False)
        tried = torch.stack([nearest.minimum(distances(each)) for each in candidates.unbind(dim=-1)], dim=2)
        best = tried.sum(dim=-1, dtype=torch.float64).argmin(dim=2, keepdim=True)
        chosen.append(candidates.gather(2, best)[:, :, 0])
        nearest = tried.gather(2, best[..., None].expand(-1, -1, -1, n_tokens))[:, :, 0]
    return torch.stack(chosen, dim=-1)


def n_draws(n_clusters: int) -> int:
    """Number of random numbers per start of :func:`plus_plus`."""
    return 1 + (n_clusters - 1) * _tried(n_clusters)


def _tried(n_clusters: int) -> int:
    """Number of tokens that are tried as each further center, the same as in scikit-learn."""
    return 2 + int(math.log(n_clusters))


def k_means(
    x: Tensor, starts: Tensor, weights: Tensor | None = None, *, tolerance: float = 0.0, exchange: bool = False
) -> Clusters:
    """Run Lloyd's algorithm from given tokens until no token changes its cluster.

    A cluster that loses all its tokens keeps its center.

    Args:
        x: ``(cell, channel, token)`` float32, finite.
        starts: ``(cell, start, cluster)`` int64, tokens whose values are the initial centers.
        weights: ``(cell, token)`` float32, 0 for tokens that are excluded, else 1; None for all ones.
        tolerance: scikit-learn's ``tol`` (there 1e-4 by default): a start also ends if the squared movement of its
            centers is at most this multiple of the channels' mean variance.
        exchange: whether to then move single tokens, until no move lowers the inertia.
    """
    n_cells, n_channels, n_tokens = x.shape
    _, n_starts, n_clusters = starts.shape
    w = torch.ones(n_cells, n_tokens, dtype=x.dtype, device=x.device) if weights is None else weights
    # Centered at the mean, sums lose no precision to cancellation.
    middle = _middle(x, w)
    x = x - middle[:, :, None]
    index = starts.reshape(n_cells, 1, -1).expand(-1, n_channels, -1)
    centers = x.gather(2, index).view(n_cells, n_channels, n_starts, n_clusters).permute(0, 2, 3, 1).contiguous()
    centers, converged = _lloyd(x, w, centers, tolerance)
    if exchange:
        centers, stood_still = _exchanged(x, w, centers)
        converged &= stood_still
    return _least(x, w, centers, middle, converged)


def _middle(x: Tensor, w: Tensor) -> Tensor:
    return (torch.bmm(x, w[:, :, None]) / w.sum(dim=1)[:, None, None].clamp_min(1e-30))[:, :, 0]


def _lloyd(x: Tensor, w: Tensor, centers: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Final centers ``(cell, start, cluster, channel)`` of Lloyd's algorithm, and the cells that converged."""
    best = centers.clone()
    converged = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    active = torch.arange(len(x), device=x.device)
    near = tolerance * ((x.square() * w[:, None]).sum(dim=(1, 2)) / (w.sum(dim=1) * x.shape[1]).clamp_min(1e-30))
    arrived = torch.zeros(centers.shape[:2], dtype=torch.bool, device=x.device)
    here, weight_here, before = x, w, torch.empty(0)
    for _ in range(MOST_PASSES):
        labels = _nearest(here, centers)
        still = arrived.all(dim=1)
        if before.shape == labels.shape:
            still = ((labels == before).all(dim=2) | arrived).all(dim=1)
        if still.any():
            best[active[still]] = centers[still]
            converged[active[still]] = True
            if still.all():
                break
            moving = ~still
            active, here, weight_here, near = active[moving], here[moving], weight_here[moving], near[moving]
            centers, labels, arrived = centers[moving], labels[moving], arrived[moving]
        means = _means(here, weight_here, labels, centers)
        if tolerance > 0:
            means = torch.where(arrived[:, :, None, None], centers, means)
            arrived = arrived | ((means - centers).square().sum(dim=(2, 3)) <= near[:, None])
        centers, before = means, labels
        best[active] = centers
    return best, converged


def _exchanged(x: Tensor, w: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Centers after all moves of single tokens that lower the inertia, and the cells where no such move is left.

    A token that leaves a cluster of ``n`` tokens lowers the inertia by ``n / (n - 1)`` times its squared distance, and
    raises it by ``n / (n + 1)`` times its squared distance to the cluster that it joins; both centers move accordingly
    (Hartigan 1975; Telgarsky and Vattani 2010). All tokens that gain by a move are moved at once; if this does not
    lower the total inertia, only the token that gains most is moved.
    """
    n_clusters = centers.shape[2]
    best = centers.clone()
    converged = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    active = torch.arange(len(x), device=x.device)
    labels = _nearest(x, centers).long()
    size = x.square().sum(dim=1)
    least = _LEAST_GAIN * (size * w).sum(dim=1) / w.sum(dim=1).clamp_min(1e-30)
    here, weight_here, old = x, w, centers
    for _ in range(MOST_PASSES):
        sums, sizes = _sums(here, weight_here, labels, n_clusters)
        old = torch.where(sizes[..., None] > 0, sums / sizes[..., None].clamp_min(1e-30), old)
        best[active] = old
        distance = torch.bmm(old.flatten(1, 2), here).view(*labels.shape[:2], n_clusters, -1)
        distance = (size[:, None, None] - 2 * distance + old.square().sum(dim=-1)[..., None]).clamp_min(0)
        leaving = torch.where(sizes > 1, sizes / (sizes - 1).clamp_min(1), 0.0)
        own = (distance * leaving[..., None]).gather(2, labels[:, :, None])
        joining = distance * (sizes / (sizes + 1))[..., None]
        added, to = joining.scatter(2, labels[:, :, None], torch.inf).min(dim=2)
        gain = (own[:, :, 0] - added) * weight_here[:, None]
        most, token = gain.max(dim=2)
        still = (most <= least[:, None]).all(dim=1)
        if still.any():
            converged[active[still]] = True
            if still.all():
                break
            kept = ~still
            active, here, weight_here, size, least = (t[kept] for t in (active, here, weight_here, size, least))
            labels, old, sums, sizes = (t[kept] for t in (labels, old, sums, sizes))
            gain, to, most, token = (t[kept] for t in (gain, to, most, token))
        many = gain > least[:, None, None]
        together = torch.where(many, to, labels)
        lower = _explained(*_sums(here, weight_here, together, n_clusters)) > _explained(sums, sizes)
        one = torch.zeros_like(many).scatter(2, token[:, :, None], value=True) & many
        labels = torch.where(lower[:, :, None], together, torch.where(one, to, labels))
    return best, converged


def _explained(sums: Tensor, sizes: Tensor) -> Tensor:
    """Decrease of the inertia relative to a single cluster, ``(cell, start)``."""
    return (sums.square().sum(dim=-1) / sizes.clamp_min(1e-30)).sum(dim=-1)


def _nearest(x: Tensor, centers: Tensor) -> Tensor:
    """Each token's nearest center: bool ``(cell, start, token)`` for two clusters, else int64."""
    n_cells, n_starts, n_clusters, _ = centers.shape
    half = centers.square().sum(dim=-1) / 2
    if n_clusters == 2:
        way, bias = centers[:, :, 1] - centers[:, :, 0], half[:, :, 1] - half[:, :, 0]
        return torch.bmm(way, x) > bias[:, :, None]
    scores = torch.bmm(centers.flatten(1, 2), x).view(n_cells, n_starts, n_clusters, -1) - half[..., None]
    return scores.argmax(dim=2)


def _sums(x: Tensor, w: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor]:
    """Sums ``(cell, start, cluster, channel)`` and numbers of each cluster's tokens."""
    if n_clusters == 2:
        second = labels * w[:, None]
        n_second = second.sum(dim=-1)
        sum_second = torch.bmm(second, x.transpose(1, 2))
        # x is centered at its mean: tokens outside the second cluster sum to the negative.
        return (
            torch.stack([-sum_second, sum_second], dim=2),
            torch.stack([w.sum(dim=1)[:, None] - n_second, n_second], dim=2),
        )
    members = (labels[:, :, None] == torch.arange(n_clusters, device=x.device)[:, None]) * w[:, None, None]
    sums = torch.bmm(members.flatten(1, 2), x.transpose(1, 2))
    return sums.view(*labels.shape[:2], n_clusters, -1), members.sum(dim=-1)


def _means(x: Tensor, w: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    sums, sizes = _sums(x, w, labels, centers.shape[2])
    return torch.where(sizes[..., None] > 0, sums / sizes[..., None].clamp_min(1e-30), centers)


def _least(x: Tensor, w: Tensor, centers: Tensor, middle: Tensor, converged: Tensor) -> Clusters:
    labels = _nearest(x, centers).long()
    n_clusters = centers.shape[2]
    total = (x.square().sum(dim=1) * w).sum(dim=1)
    members = (labels[:, :, None] == torch.arange(n_clusters, device=x.device)[:, None]) * w[:, None, None]
    sums = torch.bmm(members.flatten(1, 2), x.transpose(1, 2)).view(centers.shape)
    spread = (centers.square().sum(-1) * members.sum(-1) - 2 * (centers * sums).sum(-1)).sum(-1)
    inertias = (total[:, None] + spread).clamp_min(0)
    inertia, start = inertias.min(dim=1)
    # Rounding errors are relative to the total, also for an inertia of 0.
    n_best = (inertias <= inertia[:, None] * (1 + ALIKE) + total[:, None] * 1e-7).sum(dim=1)
    cell = torch.arange(len(x), device=x.device)
    found = centers[cell, start]
    # Two starts may find the same partition with different labels, and rounding would choose between them.
    order = found.sum(dim=-1).argsort(dim=-1, stable=True)
    labels = order.argsort(dim=-1).gather(1, labels[cell, start])
    found = found.gather(1, order[..., None].expand_as(found))
    return Clusters(labels, found + middle[:, None], inertia, converged, n_best)
