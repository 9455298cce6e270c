"""K-means of many cells at once, against scikit-learn's and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from fewchannels.measures.draws import cell_keys, different_tokens
from fewchannels.measures.kmeans import k_means


def blobs(n_cells: int, n_channels: int, n_tokens: int, n_clusters: int, apart: float, seed: int = 0) -> torch.Tensor:
    """Tokens ``(cell, channel, token)`` around planted centers."""
    random = np.random.default_rng(seed)
    centers = random.normal(0, apart, (n_cells, n_channels, n_clusters))
    labels = random.integers(0, n_clusters, (n_cells, 1, n_tokens))
    x = np.take_along_axis(centers, labels, axis=2) + random.normal(0, 1, (n_cells, n_channels, n_tokens))
    return torch.from_numpy(x.astype(np.float32))


def starts_of(n_cells: int, n_tokens: int, n_starts: int, n_clusters: int) -> torch.Tensor:
    keys = cell_keys(3, np.arange(n_cells))
    return torch.from_numpy(different_tokens(keys, np.full(n_cells, n_tokens), n_starts, n_clusters))


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


@given(st.integers(2, 40), st.integers(2, 6), st.integers(1, 5), st.integers(0, 2**63))
def test_starts_are_different_tokens_that_exist(n_tokens: int, n_clusters: int, n_starts: int, seed: int) -> None:
    n_clusters = min(n_clusters, n_tokens)
    drawn = different_tokens(cell_keys(seed, np.arange(4)), np.full(4, n_tokens), n_starts, n_clusters)
    assert drawn.shape == (4, n_starts, n_clusters)
    assert ((drawn >= 0) & (drawn < n_tokens)).all()
    assert all(len(set(start)) == n_clusters for start in drawn.reshape(-1, n_clusters).tolist())


def test_every_set_of_starting_tokens_is_equally_likely() -> None:
    drawn = different_tokens(cell_keys(5, np.arange(60_000)), np.full(60_000, 4), 1, 2)[:, 0]
    pairs, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(pairs) == 12
    assert (abs(counts - 5000) < 5 * np.sqrt(5000)).all()


@settings(max_examples=30)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_cells_key_depends_on_each_part_and_on_their_order(seed: int, a: int, b: int) -> None:
    keys = {int(cell_keys(seed, a, b)), int(cell_keys(seed, b, a)), int(cell_keys(seed, a, b + 1))}
    assert len(keys) == (3 if a != b else 2) or b == a + 1
    assert int(cell_keys(seed, np.array([a, 7]), b)[0]) == int(cell_keys(seed, a, b))
