"""K-means of many cells at once, against scikit-learn's and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans, kmeans_plusplus

from fewchannels.measures.draws import cell_keys, uniforms
from fewchannels.measures.kmeans import k_means, n_draws, plus_plus


def blobs(n_cells: int, n_channels: int, n_tokens: int, n_clusters: int, apart: float, seed: int = 0) -> torch.Tensor:
    """Tokens ``(cell, channel, token)`` around planted centers."""
    random = np.random.default_rng(seed)
    centers = random.normal(0, apart, (n_cells, n_channels, n_clusters))
    labels = random.integers(0, n_clusters, (n_cells, 1, n_tokens))
    x = np.take_along_axis(centers, labels, axis=2) + random.normal(0, 1, (n_cells, n_channels, n_tokens))
    return torch.from_numpy(x.astype(np.float32))


def starts_of(n_cells: int, n_tokens: int, n_starts: int, n_clusters: int) -> torch.Tensor:
    random = np.random.default_rng(3)
    drawn = [random.choice(n_tokens, n_clusters, replace=False) for _ in range(n_cells * n_starts)]
    return torch.tensor(np.array(drawn)).view(n_cells, n_starts, n_clusters)


@pytest.mark.parametrize("n_clusters", [2, 3, 6])
def test_separable_tokens_get_the_labels_that_scikit_learn_gives_them(n_clusters: int) -> None:
    x = blobs(5, 12, 300, n_clusters, apart=20)
    found = k_means(x, starts_of(5, 300, 30, n_clusters))
    for cell, labels in zip(x, found.labels, strict=True):
        expected = KMeans(n_clusters, n_init=10, random_state=0).fit_predict(cell.T.numpy())
        pairs = set(zip(labels.tolist(), expected.tolist(), strict=True))
        assert len(pairs) == n_clusters, "one name of theirs for each of ours"


@pytest.mark.parametrize("n_clusters", [2, 4])
@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_the_inertia_is_scikit_learns_from_the_same_starts(n_clusters: int, apart: float) -> None:
    x, n_starts = blobs(6, 12, 400, n_clusters, apart, seed=1), 5
    starts = starts_of(6, 400, n_starts, n_clusters)
    found = k_means(x, starts)
    for cell, start, inertia in zip(x, starts, found.inertia.tolist(), strict=True):
        tokens = cell.T.double().numpy()
        theirs = min(
            KMeans(n_clusters, init=tokens[start[i]], n_init=1, tol=0).fit(tokens).inertia_ for i in range(n_starts)
        )
        assert inertia == pytest.approx(theirs, rel=1e-6)
    assert found.converged.all()


def test_inertia_is_the_summed_squared_distance_to_the_centres_that_are_returned() -> None:
    x = blobs(4, 3, 50, 3, apart=2)
    found = k_means(x, starts_of(4, 50, 3, 3))
    centers = found.centers.gather(1, found.labels[:, :, None].expand(-1, -1, 3))
    distance = (x.transpose(1, 2) - centers).square().sum(dim=(1, 2))
    torch.testing.assert_close(found.inertia, distance, rtol=1e-5, atol=1e-3)


def test_tokens_without_weight_have_no_say_and_get_their_nearest_centre() -> None:
    x = blobs(3, 4, 60, 2, apart=8)
    x[:, :, 40:] = 1e4 * torch.sign(torch.randn(3, 4, 20))
    weights = torch.ones(3, 60)
    weights[:, 40:] = 0
    starts = starts_of(3, 40, 4, 2)
    found, alone = k_means(x, starts, weights), k_means(x[:, :, :40].contiguous(), starts)
    torch.testing.assert_close(found.centers, alone.centers, rtol=1e-5, atol=1e-4)
    assert torch.equal(found.labels[:, :40], alone.labels)
    distance = (x.transpose(1, 2)[:, :, None] - found.centers[:, None]).square().sum(-1)
    assert torch.equal(found.labels, distance.argmin(dim=-1))


def test_a_cell_is_clustered_alike_in_any_company() -> None:
    x, starts = blobs(8, 5, 100, 2, apart=1), starts_of(8, 100, 3, 2)
    together = k_means(x, starts)
    for i in range(8):
        alone = k_means(x[i : i + 1], starts[i : i + 1])
        assert torch.equal(alone.labels[0], together.labels[i])


def test_tokens_that_are_all_equal_are_one_cluster_and_end() -> None:
    found = k_means(torch.full((1, 3, 20), 0.5), starts_of(1, 20, 2, 2))
    assert found.converged.all()
    assert found.labels.unique().numel() == 1
    assert found.inertia.item() == 0


@pytest.mark.parametrize("n_clusters", [2, 3, 6])
def test_the_starts_are_scikit_learns_k_means_plus_plus_draw_for_draw(n_clusters: int) -> None:
    x = blobs(40, 5, 30, n_clusters, apart=1, seed=2)
    seeds = [np.random.RandomState(i).random_sample(n_draws(n_clusters)) for i in range(40)]
    found = plus_plus(x, torch.tensor(np.array(seeds))[:, None], n_clusters)[:, 0]
    for i, (cell, starts) in enumerate(zip(x, found.tolist(), strict=True)):
        _, theirs = kmeans_plusplus(cell.T.double().numpy(), n_clusters, random_state=np.random.RandomState(i))
        assert starts == theirs.tolist()


@pytest.mark.parametrize("n_clusters", [2, 3])
@pytest.mark.parametrize(("n_tokens", "apart"), [(64, 0.0), (64, 1.0), (5000, 0.0)])
def test_one_start_and_its_tolerance_are_scikit_learns_k_means_as_it_comes(
    n_clusters: int, n_tokens: int, apart: float
) -> None:
    x = blobs(12, 12, n_tokens, n_clusters, apart, seed=4)
    seeds = [np.random.RandomState(i).random_sample(n_draws(n_clusters)) for i in range(12)]
    starts = plus_plus(x, torch.tensor(np.array(seeds))[:, None], n_clusters)
    found, exact = k_means(x, starts, tolerance=1e-4), k_means(x, starts)
    for i, cell in enumerate(x):
        theirs = KMeans(n_clusters, random_state=np.random.RandomState(i)).fit(cell.T.double().numpy())
        names = set(zip(found.labels[i].tolist(), theirs.labels_.tolist(), strict=True))
        assert len(names) == n_clusters
        assert found.inertia[i].item() == pytest.approx(theirs.inertia_, rel=1e-5)
    assert found.converged.all()
    assert (found.n_best == 1).all()
    if n_tokens > 1000:  # a token more or less moves the centers of few by more than the tolerance
        assert (found.inertia > exact.inertia * (1 + 1e-6)).any()


def partitions(n_tokens: int) -> np.ndarray:
    """Every division of tokens into two clusters, ``(division, token)`` bool, none of them empty."""
    codes = np.arange(1, 2 ** (n_tokens - 1))
    return (codes[:, None] >> np.arange(n_tokens)) & 1 == 1


def test_exchanging_tokens_finds_the_least_inertia_of_all_divisions() -> None:
    x = blobs(30, 3, 11, 2, apart=0, seed=5)
    keys = cell_keys(1, np.arange(30))
    starts = plus_plus(x, torch.from_numpy(uniforms(keys, 16, n_draws(2))), 2)
    inside = partitions(11).astype(float)
    least = []
    for cell in x.double().numpy():
        total = (cell**2).sum()
        explained = [(m @ cell.T) ** 2 / m.sum(axis=1, keepdims=True) for m in (inside, 1 - inside)]
        least.append(total - (explained[0] + explained[1]).sum(axis=1).max())
    found = k_means(x, starts, exchange=True).inertia.double().numpy()
    plain = k_means(x, starts[:, :1]).inertia.double().numpy()
    assert np.isclose(found, least, rtol=1e-5).mean() > 0.95
    assert (found >= np.array(least) * (1 - 1e-5)).all()
    assert np.isclose(plain, least, rtol=1e-5).mean() < 0.5, "Lloyd's algorithm alone does not"


@pytest.mark.parametrize("n_clusters", [2, 3])
def test_after_exchanging_no_move_of_a_token_lowers_the_inertia(n_clusters: int) -> None:
    x, weights = blobs(6, 4, 25, n_clusters, apart=0.5, seed=6), torch.ones(6, 25)
    weights[:, 20:] = 0
    starts = starts_of(6, 20, 1, n_clusters)
    found, before = k_means(x, starts, weights, exchange=True), k_means(x, starts, weights)
    assert found.converged.all()
    assert (found.inertia <= before.inertia * (1 + 1e-6)).all()
    assert (found.inertia < before.inertia * (1 - 1e-4)).any()

    def inertia(tokens: np.ndarray, labels: np.ndarray) -> float:
        return sum(((own - own.mean(axis=0)) ** 2).sum() for k in set(labels) for own in [tokens[labels == k]])

    for cell, labels, value in zip(x.double().numpy(), found.labels.numpy(), found.inertia.tolist(), strict=True):
        tokens, own = cell.T[:20], labels[:20]
        assert value == pytest.approx(inertia(tokens, own), rel=1e-5)
        for i in range(20):
            for k in range(n_clusters):
                moved = np.where(np.arange(20) == i, k, own)
                if len(set(moved)) == n_clusters:
                    assert inertia(tokens, moved) > value * (1 - 1e-5)


def test_the_starts_that_came_to_the_least_inertia_are_counted() -> None:
    x = blobs(12, 4, 40, 2, apart=0, seed=7)
    starts = starts_of(12, 40, 5, 2)
    alone = torch.stack([k_means(x, starts[:, i : i + 1]).inertia for i in range(5)], dim=1).double()
    expected = (alone <= alone.min(dim=1, keepdim=True).values * (1 + 1e-5)).sum(dim=1)
    assert k_means(x, starts).n_best.tolist() == expected.tolist()
    assert 1 in expected
    assert expected.max() > 1


def test_starts_are_tokens_that_have_a_say() -> None:
    x, weights = blobs(20, 3, 30, 2, apart=1), torch.zeros(20, 30)
    weights[:, 3::4] = 1
    x[:, :, ::4] = 1e6
    for n_clusters in (2, 3, 7):
        drawn = torch.from_numpy(uniforms(cell_keys(2, np.arange(20)), 8, n_draws(n_clusters)))
        starts = plus_plus(x, drawn, n_clusters, weights)
        assert (starts % 4 == 3).all()
        assert all(len(set(start)) == n_clusters for start in starts.flatten(0, 1).tolist())


def test_of_equal_tokens_starts_still_exist() -> None:
    starts = plus_plus(torch.ones(2, 3, 5), torch.full((2, 4, n_draws(3)), 1 - 2.0**-53, dtype=torch.float64), 3)
    assert starts.shape == (2, 4, 3)
    assert ((starts >= 0) & (starts < 5)).all()


def test_uniform_numbers_are_all_equally_likely_and_depend_on_the_cell_alone() -> None:
    keys = cell_keys(5, np.arange(20_000))
    drawn = uniforms(keys, 2, 3)
    assert drawn.shape == (20_000, 2, 3)
    assert ((drawn >= 0) & (drawn < 1)).all()
    counts = np.apply_along_axis(np.bincount, 0, (drawn * 10).astype(int).reshape(-1, 6), minlength=10)
    assert (abs(counts - 2000) < 5 * np.sqrt(2000)).all()
    assert abs(np.corrcoef(drawn.reshape(-1, 6).T) - np.eye(6)).max() < 0.04
    np.testing.assert_array_equal(uniforms(keys[7:8], 1, 3)[0], drawn[7, :1])


@settings(max_examples=30)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_cells_key_depends_on_each_part_and_on_their_order(seed: int, a: int, b: int) -> None:
    keys = {int(cell_keys(seed, a, b)), int(cell_keys(seed, b, a)), int(cell_keys(seed, a, b + 1))}
    assert len(keys) == (3 if a != b else 2) or b == a + 1
    assert int(cell_keys(seed, np.array([a, 7]), b)[0]) == int(cell_keys(seed, a, b))
