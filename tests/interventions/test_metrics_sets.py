"""Distances between sets of embeddings against a second library and arithmetic by hand."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from fewchannels.errors import InputError
from fewchannels.interventions.metrics.sets import cmmd, frechet_distance, kernel_distance


def two_sets() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.normal(size=(200, 6)), random.normal(0.5, 1.5, size=(150, 6))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_the_frechet_distance_is_that_of_torchmetrics() -> None:
    one, other = two_sets()
    frechet = FrechetInceptionDistance(feature=torch.nn.Identity(), input_img_size=(6,)).set_dtype(torch.float64)
    frechet.orig_dtype = torch.float64
    # Its update wants images; its states are sums of features, which is all that its formula uses.
    for name, each in (("real", one), ("fake", other)):
        setattr(frechet, f"{name}_features_sum", torch.from_numpy(each.sum(axis=0)))
        setattr(frechet, f"{name}_features_cov_sum", torch.from_numpy(each.T @ each))
        setattr(frechet, f"{name}_features_num_samples", torch.tensor(len(each)))
    assert frechet_distance(one, other) == pytest.approx(float(frechet.compute()), rel=1e-6)


def test_the_frechet_distance_of_one_feature_is_that_of_means_and_deviations() -> None:
    one, other = (each[:, :1] for each in two_sets())
    expected = (one.mean() - other.mean()) ** 2 + (one.std(ddof=1) - other.std(ddof=1)) ** 2
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:Metric `Kernel", "ignore:The ``compute`` method")
def test_the_kernel_distance_is_that_of_torchmetrics() -> None:
    one, other = two_sets()
    kernel = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=1, subset_size=150)
    kernel.real_features, kernel.fake_features = [torch.from_numpy(one[:150])], [torch.from_numpy(other)]
    assert kernel_distance(one[:150], other) == pytest.approx(float(kernel.compute()[0]), rel=1e-6)


def test_the_kernel_distance_of_sets_of_one_kind_is_zero_on_average() -> None:
    random = np.random.default_rng(5)
    found = [kernel_distance(*random.normal(size=(2, 8, 3))) for _ in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(len(found))


def test_cmmd_is_a_mean_over_pairs() -> None:
    random = np.random.default_rng(2)
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in random.normal(size=(2, 7, 4)))

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([math.exp(-sum((a - b) ** 2) / 200) for a in x for b in y]))

    expected = 1000 * (mean(one, one) + mean(other, other) - 2 * mean(one, other))
    assert cmmd(one * 3, other) == pytest.approx(expected, rel=1e-9)
    assert cmmd(one, one) == pytest.approx(0, abs=1e-9)


def test_cmmd_takes_memory_for_pairs_and_not_for_their_features() -> None:
    one, other = np.random.default_rng(3).normal(size=(2, 300, 256))
    tracemalloc.start()
    cmmd(one, other)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 20 * 300 * 300 * 8


@pytest.mark.parametrize(
    ("distance", "one", "other", "why"),
    [
        (frechet_distance, np.zeros((6, 6)), np.zeros((9, 6)), "6 features needs more images than features; there ar"),
        (kernel_distance, np.zeros((1, 6)), np.zeros((9, 6)), "sets of 1 and 9 images; each must have at least 2"),
        (cmmd, np.ones((3, 6)), np.ones((0, 6)), "sets of 3 and 0 images; each must have at least 1"),
        (cmmd, np.ones((3, 6)), np.ones((3, 5)), r"shapes \(3, 6\) and \(3, 5\)"),
        (kernel_distance, np.ones((3, 6)), np.full((3, 6), np.nan), "embeddings that are not finite"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(distance, one: np.ndarray, other: np.ndarray, why: str) -> None:
    with pytest.raises(InputError, match=why):
        distance(one, other)
