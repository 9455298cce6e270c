"""The localization protocol on arrays: from channels to clusters of tokens, to a foreground, to a mask.

A *cell* is one (sample, step, layer) with one selection of channels. Tokens of weight 0 (padding of smaller images,
excluded registers) do not influence the clusters.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewchannels.measures import STARTS
from fewchannels.measures.draws import cell_keys, uniforms
from fewchannels.measures.kmeans import Clusters, k_means, n_draws, plus_plus

SKLEARN_TOLERANCE = 1e-4
"""scikit-learn's default ``tol``."""


def normalize(values: Tensor, weights: Tensor, clip: float = 0.0) -> tuple[Tensor, Tensor]:
    """Scale each channel to [0, 1] over its cell's tokens: step 2 of the protocol of arXiv 2605.13974.

    Args:
        values: ``(cell, channel, token)`` float32, finite where the weight is 1.
        weights: ``(cell, token)`` bool, tokens that determine the scale; values of other tokens are clipped to [0, 1].
        clip: share of a channel's tokens at either end that is clipped to the largest or smallest of the remaining
            values; 0 clips none.

    Returns:
        The scaled values, and the number ``(cell,)`` of constant channels, which become 0.
    """
    own = weights[:, None].expand_as(values)
    if clip > 0:
        ends = torch.tensor([clip, 1 - clip], dtype=values.dtype, device=values.device)
        low, high = torch.nanquantile(values.masked_fill(~own, torch.nan), ends, dim=-1, keepdim=True)
    else:
        low = values.masked_fill(~own, torch.inf).amin(dim=-1, keepdim=True)
        high = values.masked_fill(~own, -torch.inf).amax(dim=-1, keepdim=True)
    constant = high <= low
    scaled = (values - low) / (high - low).masked_fill(constant, 1)
    scaled = scaled.masked_fill(constant, 0).nan_to_num(0.0).clamp_(0, 1)
    return scaled, constant[..., 0].sum(dim=-1)


def foreground(labels: Tensor, heat: Tensor, weights: Tensor, n_clusters: int) -> Tensor:
    """The cluster with the larger mean heat: step 3 of the protocol.

    Args:
        labels: ``(cell, token)`` int64.
        heat: ``(cell, token)``, the sum of a token's normalized channels.
        weights: ``(cell, token)`` bool.
        n_clusters: number of clusters of the labels.

    Returns:
        ``(cell,)`` int64, the cluster; the first one if several are equal.
    """
    members = (labels[:, None] == torch.arange(n_clusters, device=labels.device)[:, None]) & weights[:, None]
    mean = (members * heat[:, None]).sum(dim=-1) / members.sum(dim=-1)
    return mean.nan_to_num(-torch.inf).argmax(dim=-1)


@dataclass(frozen=True)
class Localization:
    """Result of the protocol in each cell, on the device of the values.

    Attributes:
        heat: ``(cell, token)``, the sum of a token's normalized channels.
        n_constant: ``(cell,)`` number of channels with the same value at every token.
        clusters: clusters of the tokens.
        front: ``(cell,)`` int64, the cluster that is the foreground.
    """

    heat: Tensor
    n_constant: Tensor
    clusters: Clusters
    front: Tensor

    @property
    def foreground(self) -> Tensor:
        """Mask of the foreground, ``(cell, token)`` bool."""
        return self.clusters.labels == self.front[:, None]


def localize(
    values: Tensor,
    weights: Tensor,
    keys: Sequence[np.ndarray | int],
    n_clusters: int = 2,
    n_starts: int = STARTS,
    *,
    kmeans: str = "exchange",
    clip: float = 0.0,
    clustered: Tensor | None = None,
    device: str | None = None,
) -> Localization:
    """Run the protocol of arXiv 2605.13974: scale channels to [0, 1], cluster tokens, take the one with more heat.

    Args:
        values: ``(cell, channel, token)`` float32 of the selected channels, finite where the weight is 1.
        weights: ``(cell, token)`` bool, tokens that determine the clusters and can be initial centers.
        keys: names of the cells, as for :func:`fewchannels.measures.draws.cell_keys`; the starts depend on them.
        n_clusters: number of clusters, K.
        n_starts: number of starts of each cell, by k-means++; the one with the lowest inertia is kept.
        kmeans: one of :data:`fewchannels.measures.KMEANS`. ``exchange``: Lloyd's algorithm until no token changes
            its cluster, then single tokens are moved until no move lowers the inertia. ``sklearn``: Lloyd's algorithm
            with scikit-learn's tolerance; with one start, this is ``sklearn.cluster.KMeans`` with its defaults.
        clip: same as for :func:`normalize`.
        clustered: ``(cell, axis, token)`` float32, values to cluster instead of the normalized channels.
        device: device for clustering; None for the device of the values.
    """
    scaled, n_constant = normalize(values, weights, clip)
    heat = scaled.sum(dim=1)
    uniform = torch.from_numpy(uniforms(cell_keys(n_clusters, *keys), n_starts, n_draws(n_clusters)))
    x = scaled if clustered is None else clustered
    x, say = (each.to(device or values.device) for each in (x, weights.to(x.dtype)))
    starts = plus_plus(x, uniform, n_clusters, say)
    tolerance = {"exchange": 0.0, "sklearn": SKLEARN_TOLERANCE}[kmeans]
    clusters = k_means(x, starts, say, tolerance=tolerance, exchange=kmeans == "exchange").to(values.device)
    return Localization(heat, n_constant, clusters, foreground(clusters.labels, heat, weights, n_clusters))


@dataclass(frozen=True)
class Fit:
    """Agreement of clusters with a subject's mask; each ``(cell,)`` float64.

    Attributes:
        iou: IoU of the foreground; NaN if it and the subject are empty.
        complement: IoU of everything outside the foreground.
        best: IoU of the best-fitting union of clusters, except none and all.
        area: share of tokens that are foreground.
        ari: adjusted Rand index of clusters and subject tokens, which the subject covers by half or more (Hubert and
            Arabie 1985).
        nmi: mutual information of the same over the mean of their entropies, normalized as in scikit-learn.
    """

    iou: Tensor
    complement: Tensor
    best: Tensor
    area: Tensor
    ari: Tensor
    nmi: Tensor


def fit(
    labels: Tensor, front: Tensor, coverage: Tensor, own: Tensor, n_clusters: int, known: Tensor | None = None
) -> Fit:
    """Compare clusters with a mask of pixels, through its coverage of tokens.

    Args:
        labels: ``(cell, token)`` int64.
        front: ``(cell,)`` int64, the foreground's cluster.
        coverage: ``(cell, token)`` float64, share of each token that is subject.
        own: ``(cell, token)`` bool, the image's own tokens.
        n_clusters: number of clusters of the labels.
        known: ``(cell, token)`` float64, share of each token that the mask marks as known; None if all is known.
            Unknown parts do not count, and a token that is mostly unknown is in no class.
    """
    members = (labels[:, None] == torch.arange(n_clusters, device=labels.device)[:, None]) & own[:, None]
    weight = torch.ones_like(coverage) if known is None else known
    sizes = torch.where(members, weight[:, None], 0.0).sum(dim=-1)
    covered = torch.where(members, coverage[:, None], 0.0).sum(dim=-1)
    total, subject = sizes.sum(dim=-1), covered.sum(dim=-1)

    def iou(shared: Tensor, size: Tensor) -> Tensor:
        return shared / (size + subject[:, None] - shared)

    front = front[:, None]
    shared, size = covered.gather(1, front), sizes.gather(1, front)
    unions = [subset for n in range(1, n_clusters) for subset in itertools.combinations(range(n_clusters), n)]
    chosen = torch.zeros(n_clusters, len(unions), dtype=torch.float64, device=labels.device)
    for i, subset in enumerate(unions):
        chosen[list(subset), i] = 1
    classed = members & (weight >= 0.5)[:, None]
    inside = (classed & (coverage >= weight / 2)[:, None]).sum(dim=-1).double()
    table = torch.stack([inside, classed.sum(dim=-1).double() - inside], dim=-1)
    return Fit(
        iou=iou(shared, size)[:, 0],
        complement=iou(subject[:, None] - shared, total[:, None] - size)[:, 0],
        best=iou(covered @ chosen, sizes @ chosen).nan_to_num(-1.0).amax(dim=-1),
        area=size[:, 0] / total,
        ari=_adjusted_rand(table),
        nmi=_mutual_information(table),
    )


def _pairs(n: Tensor) -> Tensor:
    return n * (n - 1) / 2


def _adjusted_rand(table: Tensor) -> Tensor:
    """Adjusted Rand index of contingency tables ``(cell, cluster, class)``."""
    together = _pairs(table).sum(dim=(-2, -1))
    clusters, classes = _pairs(table.sum(dim=-1)).sum(-1), _pairs(table.sum(dim=-2)).sum(-1)
    expected = clusters * classes / _pairs(table.sum(dim=(-2, -1)))
    most = (clusters + classes) / 2
    return torch.where(most == expected, 1.0, (together - expected) / (most - expected))


def _mutual_information(table: Tensor) -> Tensor:
    p = table / table.sum(dim=(-2, -1), keepdim=True)
    clusters, classes = _entropy(p.sum(dim=-1)), _entropy(p.sum(dim=-2))
    shared = clusters + classes - _entropy(p.flatten(-2))
    mean = (clusters + classes) / 2
    alone = (clusters == 0) & (classes == 0)
    return torch.where(alone, 1.0, (shared / mean.clamp_min(1e-300)).clamp(0, 1))


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(dim=-1)


def matched_channels(order: Tensor, energy: Tensor, k: int) -> Tensor:
    """Energy-matched channels: other channels that hold as much energy as the top ``k``, a fair control of these.

    From rank ``k + 1`` on, in order of score, as many channels as needed, or all other channels if they hold less.

    Args:
        order: ``(cell, channel)`` int64, every channel, largest score first.
        energy: ``(cell, channel)``, energy of each channel, such as its mean square.
        k: number of channels of the top selection.

    Returns:
        ``(cell, channel)`` bool, indexed by channel.
    """
    ranked = energy.gather(1, order).double()
    held = ranked[:, k:].cumsum(dim=1)
    before = held - ranked[:, k:]
    wanted = ranked[:, :k].sum(dim=1, keepdim=True)
    chosen = torch.zeros_like(order, dtype=torch.bool)
    return chosen.scatter(1, order[:, k:], before < wanted)


def principal_components(values: Tensor, weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Coordinates of tokens on the first ``k`` principal components of all channels.

    Signs follow scikit-learn's convention: the channel with the largest loading of each component is positive.

    Args:
        values: ``(cell, channel, token)`` float32, finite.
        weights: ``(cell, token)`` bool, the tokens that determine the components.
        k: number of components.

    Returns:
        The coordinates, ``(cell, k, token)`` float32, and the share ``(cell,)`` of the variance that they explain.
    """
    w = weights[:, None].double()
    x = values.double()
    n = w.sum(dim=-1, keepdim=True)
    x = x - (x * w).sum(dim=-1, keepdim=True) / n
    covariance = torch.bmm(x * w, x.transpose(1, 2)) / n
    variance, axes = torch.linalg.eigh(covariance)
    axes = axes[:, :, -k:].flip(-1)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    share = variance[:, -k:].sum(dim=-1) / variance.sum(dim=-1)
    return torch.bmm(axes.transpose(1, 2), x).float(), share
