"""The localization protocol's arithmetic, against planted masks, scikit-learn and arithmetic by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from fewchannels.measures import KMEANS
from fewchannels.measures.draws import cell_keys, random_channels, uniforms
from fewchannels.measures.kmeans import n_draws
from fewchannels.measures.localization import (
    fit,
    foreground,
    localize,
    matched_channels,
    normalize,
    principal_components,
)


def all_tokens(n_cells: int, n_tokens: int) -> torch.Tensor:
    return torch.ones(n_cells, n_tokens, dtype=torch.bool)


def test_channels_go_from_0_to_1_and_constant_ones_are_0() -> None:
    values = torch.tensor([[[-5.0, 0.0, 5.0, 1e6], [3.0, 3.0, 3.0, -1.0]]])
    own = torch.tensor([[True, True, True, False]])
    scaled, n_constant = normalize(values, own)
    assert scaled[0, 0].tolist() == [0.0, 0.5, 1.0, 1.0], "what has no say is brought to the end"
    assert scaled[0, 1].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert n_constant.tolist() == [1]


def test_padding_that_is_nan_changes_nothing() -> None:
    values = torch.tensor([[[1.0, 2.0, 3.0, torch.nan]]])
    scaled, _ = normalize(values, torch.tensor([[True, True, True, False]]))
    assert scaled[0, 0, :3].tolist() == [0.0, 0.5, 1.0]
    assert scaled.isfinite().all()


def test_clipping_cuts_the_outermost_tokens() -> None:
    values = torch.cat([torch.arange(99.0), torch.tensor([1e6])])[None, None]
    clipped, _ = normalize(values, all_tokens(1, 100), clip=0.02)
    plain, _ = normalize(values, all_tokens(1, 100))
    assert plain[0, 0, 50] < 1e-4
    low, high = np.quantile(values[0, 0].numpy(), [0.02, 0.98])
    np.testing.assert_allclose(clipped[0, 0, 50], (50 - low) / (high - low), rtol=1e-5)
    assert clipped[0, 0, -1] == 1


def test_the_foreground_is_the_cluster_of_larger_mean_heat() -> None:
    labels = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 1, 1]])
    heat = torch.tensor([[1.0, 3.0, 2.0, 2.5, 0.0], [5.0, 1.0, 2.0, 3.0, 90.0]])
    own = torch.tensor([[True] * 5, [True, True, True, True, False]])
    assert foreground(labels, heat, own, 3).tolist() == [1, 0]


@given(st.integers(2, 6), st.integers(0, 10_000))
def test_a_fit_is_what_counting_tokens_gives(n_clusters: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    n_tokens, n_own = 24, int(random.integers(4, 25))
    labels = random.integers(0, n_clusters, n_tokens)
    subject = random.random(n_tokens) < 0.4
    front = int(random.integers(n_clusters))
    own = np.arange(n_tokens) < n_own
    found = fit(
        torch.tensor(labels)[None],
        torch.tensor([front]),
        torch.tensor(subject * own, dtype=torch.float64)[None],
        torch.tensor(own)[None],
        n_clusters,
    )

    def iou(tokens: np.ndarray) -> float:
        union = ((tokens | subject) & own).sum()
        return (tokens & subject & own).sum() / union if union else np.nan

    np.testing.assert_allclose(found.iou.item(), iou(labels == front))
    np.testing.assert_allclose(found.complement.item(), iou(labels != front))
    unions = [set(s) for n in range(1, n_clusters) for s in itertools.combinations(range(n_clusters), n)]
    np.testing.assert_allclose(found.best.item(), np.nanmax([iou(np.isin(labels, list(s))) for s in unions] + [-1]))
    np.testing.assert_allclose(found.area.item(), (labels == front)[own].mean())
    np.testing.assert_allclose(found.ari.item(), adjusted_rand_score(subject[own], labels[own]), atol=1e-12)
    np.testing.assert_allclose(found.nmi.item(), normalized_mutual_info_score(subject[own], labels[own]), atol=1e-9)


def test_tokens_that_a_subject_covers_in_part_count_in_part() -> None:
    coverage = torch.tensor([[1.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
    found = fit(torch.tensor([[1, 1, 0, 0]]), torch.tensor([1]), coverage, all_tokens(1, 4), 2)
    assert found.iou.item() == pytest.approx(1.5 / 2)
    assert found.complement.item() == 0


def test_random_channels_are_different_ones_and_all_equally_likely() -> None:
    drawn = random_channels(cell_keys(1, np.arange(20_000)), 10, 3)
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    counts = np.bincount(drawn.ravel(), minlength=10)
    assert (abs(counts - 6000) < 5 * np.sqrt(6000)).all()
    assert (random_channels(cell_keys(2, np.arange(20)), 10, 3) != drawn[:20]).any()


def test_matched_channels_are_the_next_ones_that_hold_as_much_energy() -> None:
    order = torch.tensor([[2, 0, 1, 3, 4], [4, 3, 2, 1, 0]])
    energy = torch.tensor([[3.0, 2.0, 6.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 100.0]])
    chosen = matched_channels(order, energy, 1)
    assert chosen.tolist() == [
        [True, True, False, True, False],  # 3 + 2 < 6, 3 + 2 + 1 >= 6
        [True, True, True, True, False],  # all the others together hold less
    ]


def test_principal_components_are_scikit_learns() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(2, 8, 50)) * np.arange(1, 9)[None, :, None]
    x, share = principal_components(torch.tensor(values, dtype=torch.float32), all_tokens(2, 50), 3)
    for cell, mine, explained in zip(values, x, share.tolist(), strict=True):
        theirs = PCA(3, svd_solver="full").fit(cell.T)
        expected = theirs.transform(cell.T).T
        signs = np.sign((expected * mine.numpy()).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(mine.numpy() * signs, expected, atol=1e-3)
        assert explained == pytest.approx(theirs.explained_variance_ratio_.sum(), rel=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_planted_channels_find_the_subject_with_its_polarity_and_others_do_not(sign: float) -> None:
    """Two channels of twelve carry a disc; where they are low in it, the foreground is all but the disc."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    disc = ((y - 6) ** 2 + (x - 9) ** 2 < 20).ravel()
    values = random.normal(0, 1, (1, 12, 256))
    values[0, :2] += sign * 40 * disc
    own, coverage = all_tokens(1, 256), torch.tensor(disc, dtype=torch.float64)[None]
    found = {}
    for name, channels in (("planted", slice(0, 2)), ("others", slice(2, 12))):
        seen = localize(torch.tensor(values[:, channels], dtype=torch.float32), own, [np.arange(1)])
        found[name] = fit(seen.clusters.labels, seen.front, coverage, own, 2)
    assert found["planted"].best.item() == 1
    assert found["planted"].iou.item() == (1 if sign > 0 else 0)
    assert found["planted"].complement.item() == (0 if sign > 0 else 1)
    area, subject = found["others"].area.item(), disc.mean()
    chance = area * subject / (area + subject - area * subject)
    assert found["others"].iou.item() == pytest.approx(chance, abs=0.06)


def test_published_clusters_are_those_of_scikit_learns_k_means_as_it_comes() -> None:
    """Its own random numbers, of a stand-in that gives out those that the protocol draws for the cell."""

    class Draws(np.random.RandomState):
        def __init__(self, numbers: np.ndarray) -> None:
            super().__init__(0)
            self.numbers = iter(numbers)

        def random_sample(self, size: int | None = None) -> np.ndarray | float:
            return next(self.numbers) if size is None else np.array([next(self.numbers) for _ in range(size)])

        def uniform(self, low: float = 0.0, high: float = 1.0, size: int | None = None) -> np.ndarray:
            return self.random_sample(size)

        def choice(self, a: int, *, p: np.ndarray) -> int:
            return int(np.searchsorted(np.cumsum(p), self.random_sample(), side="right"))

    random = np.random.default_rng(3)
    values, ids = torch.tensor(random.normal(size=(20, 12, 64)), dtype=torch.float32), np.arange(20)
    own = all_tokens(20, 64)
    found = localize(values, own, [ids, 5, 7], n_starts=1, kmeans="sklearn")
    scaled, _ = normalize(values, own)
    drawn = uniforms(cell_keys(2, ids, 5, 7), 1, n_draws(2))
    for i, cell in enumerate(scaled.numpy()):
        theirs = KMeans(2, random_state=Draws(drawn[i, 0])).fit(cell.T.astype(np.float64))
        assert len(set(zip(theirs.labels_, found.clusters.labels[i].tolist(), strict=True))) == 2


def test_by_default_nearly_every_cell_of_noise_finds_its_least_inertia_twice_and_published_ones_do_not() -> None:
    random = np.random.default_rng(4)
    values = torch.tensor(random.normal(size=(100, 12, 64)), dtype=torch.float32)
    own, ids = all_tokens(100, 64), np.arange(100)
    usual = localize(values, own, [ids]).clusters
    many = localize(values, own, [ids], n_starts=100).clusters
    single = localize(values, own, [ids], n_starts=1, kmeans="sklearn").clusters
    assert (usual.n_best >= 2).double().mean() > 0.75
    assert (usual.inertia <= many.inertia * (1 + 1e-5)).double().mean() > 0.9
    assert (single.inertia <= many.inertia * (1 + 1e-5)).double().mean() < 0.2
    assert set(KMEANS) == {"exchange", "sklearn"}
