"""Speed of comparing all pairs of top-k sets: ``python benchmarks/pairwise_jaccard.py``.

One cell: 10,000 samples (four seeds of each prompt), 12 of 3,072 channels. Kinds of cells:

- ``massive``: 8 channels are massive everywhere, the rest follow the channel, the prompt and the seed;
- ``fewer``: the same with 4, nearly all sets distinct;
- ``uniform``: all sets drawn at random, all distinct, hardly a channel shared;
- ``hardest``: all distinct, drawn from 480 channels, where neither frequent nor rare channels help.

Arms, on one thread, each computing the mean over the same 50 million pairs, and checked to agree:

- ``pair_overlap``: this project's, which also splits within and across prompts, by prompt;
- ``sets``: Python's sets, ``len(a & b)`` over all pairs of 500 samples, with its time extrapolated by pairs;
- ``sparse``: ``x @ x.T`` of SciPy's sparse 0/1 matrix, in blocks of rows;
- ``dense``: the same product with torch in float32 over the channels that occur, the upper triangle only.

Rounds are interleaved and the fastest of each arm counts. Then one thread per core compares cell after cell, to get the
time of a whole run of 1,596 cells (28 steps of 57 layers). ``peak MB`` is NumPy's peak memory.
"""

import argparse
import itertools
import os
import time
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from measurement import Rows, options, ratio, rotated, save
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from fewchannels.measures.overlap import pair_overlap

K, N_CHANNELS, N_SEEDS, N_CELLS = 12, 3072, 4, 1596
N_SETS = 500


def massive(n_samples: int, n_massive: int) -> np.ndarray:
    """Top-12 sets of log scores with effects of the channel, the prompt and the seed."""
    random = np.random.default_rng(0)
    channel = random.normal(0, 0.6, N_CHANNELS)
    channel[random.choice(N_CHANNELS, n_massive, replace=False)] += 4
    sets = np.empty((n_samples, K), np.int64)
    for start in range(0, n_samples, N_SEEDS):
        prompt = channel + random.normal(0, 0.3, N_CHANNELS)
        scores = prompt + random.normal(0, 0.15, (min(N_SEEDS, n_samples - start), N_CHANNELS))
        sets[start : start + N_SEEDS] = np.argpartition(-scores, K, axis=1)[:, :K]
    return sets


def uniform(n_samples: int, n_channels: int) -> np.ndarray:
    """Sets of 12 of this many channels, all equally likely."""
    random = np.random.default_rng(0)
    return np.stack([random.choice(n_channels, K, replace=False) for _ in range(n_samples)])


KINDS: dict[str, Callable[[int], np.ndarray]] = {
    "massive": lambda n: massive(n, 8),
    "fewer": lambda n: massive(n, 4),
    "uniform": lambda n: uniform(n, N_CHANNELS),
    "hardest": lambda n: uniform(n, 480),
}


def ours(channels: np.ndarray) -> float:
    """Mean Jaccard by :func:`pair_overlap`."""
    got = pair_overlap(channels, np.arange(len(channels)) // N_SEEDS)
    total = got.within.jaccard.sum() + got.across.jaccard.sum() / 2
    return float(total / (got.within.total_pairs + got.across.total_pairs))


def python_sets(channels: np.ndarray) -> float:
    """Mean Jaccard by Python's sets."""
    sets = [set(row) for row in channels.tolist()]
    total = 0.0
    for a, b in itertools.combinations(sets, 2):
        shared = len(a & b)
        total += shared / (2 * K - shared)
    return total / (len(sets) * (len(sets) - 1) / 2)


def sparse(channels: np.ndarray) -> float:
    """Mean Jaccard by a sparse product."""
    n = len(channels)
    x = csr_array((np.ones(channels.size, np.int8), channels.ravel(), np.arange(0, channels.size + 1, K)))
    transposed = x.T.tocsr()
    total = 0.0
    for start in range(0, n, 500):
        shared = (x[start : start + 500] @ transposed).data
        total += (shared / (2 * K - shared.astype(np.float64))).sum()
    return (total - n) / (n * (n - 1))


def dense(channels: np.ndarray) -> float:
    """Mean Jaccard by dense products."""
    n = len(channels)
    occurring, places = np.unique(channels, return_inverse=True)
    x = torch.zeros(n, len(occurring)).scatter_(1, torch.from_numpy(places.reshape(n, K)), 1)
    total = 0.0
    for i in range(0, n, 500):
        for j in range(i, n, 1000):
            shared = (x[i : i + 500] @ x[j : j + 1000].T).double()
            pairs = shared.div_(2 * K - shared)
            total += float(pairs.triu_(i - j + 1).sum())
    return total / (n * (n - 1) / 2)


ARMS = {"pair_overlap": ours, "sets": python_sets, "sparse": sparse, "dense": dense}


def measure(channels: np.ndarray, n_rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm on all samples, by round; the arms' means must agree."""
    n = len(channels)
    fewer = channels[:N_SETS]
    means = {}

    def took(arm: str) -> float:
        started = time.perf_counter()
        means[arm] = ARMS[arm](fewer if arm == "sets" else channels)
        return time.perf_counter() - started

    seconds = rotated({arm: arm for arm in ARMS}, n_rounds, took)
    more = n * (n - 1) / (len(fewer) * (len(fewer) - 1))
    seconds["sets"] = [each * more for each in seconds["sets"]]
    np.testing.assert_allclose([means["sparse"], means["dense"]], means["pair_overlap"], rtol=1e-9)
    np.testing.assert_allclose(ours(fewer), means["sets"], rtol=1e-9)
    return seconds


def cell_seconds(channels: np.ndarray, n_threads: int, n_cells: int, n_rounds: int) -> float:
    """Seconds per cell if threads compare cell after cell, fastest of the rounds."""
    fastest = float("inf")
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in range(n_rounds):
            started = time.perf_counter()
            list(pool.map(ours, [channels] * n_cells))
            fastest = min(fastest, (time.perf_counter() - started) / n_cells)
    return fastest


def peak_mb(channels: np.ndarray) -> float:
    """Peak memory in MB while one cell is compared."""
    tracemalloc.start()
    ours(channels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("--samples", type=int, default=10_000)
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--threads", type=int, default=os.cpu_count(), help="that compare cells one after the other")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table; ``--json FILE`` also writes it."""
    chosen = parser().parse_args(argv)
    torch.set_num_threads(1)
    rows: Rows = {}
    ratios = []
    print(f"{chosen.samples} samples, {K} of {N_CHANNELS} channels, fastest of {chosen.rounds} on one thread; ratios")
    print(
        f"{'':8} {'ms':>7} {'sets':>8} {'sparse':>8} {'dense':>8} {'peak MB':>8}"
        f" {f'ms a cell, {chosen.threads} threads':>22} {f'{N_CELLS} cells, s':>14}"
    )
    with threadpool_limits(1):
        for kind, make in KINDS.items():
            channels = make(chosen.samples)
            seconds = measure(channels, chosen.rounds)
            rows |= {f"{kind}: {arm}": {"seconds": taken} for arm, taken in seconds.items()}
            each = cell_seconds(channels, chosen.threads, 4 * chosen.threads, chosen.rounds)
            ours = rows[f"{kind}: pair_overlap"]
            ours |= {"cell_s": each, "run_s": N_CELLS * each, "peak_mb": peak_mb(channels)}
            found = [ratio(rows, f"{kind}: {arm}", f"{kind}: pair_overlap", by="least") for arm in ARMS]
            ratios += found
            times = " ".join(f"{each['ratio']:8.1f}" for each in found[1:])
            print(
                f"{kind:8} {1e3 * min(ours['seconds']):7.1f} {times} {ours['peak_mb']:8.0f}"
                f" {1e3 * each:22.1f} {ours['run_s']:14.0f}"
            )
    save(chosen, ("numpy", "scipy", "torch"), rows, ratios)


if __name__ == "__main__":
    main()
