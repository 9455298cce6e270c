"""How fast cells are clustered, and token statistics are streamed: ``python benchmarks/analyses.py --json FILE``.

``two-means``: cells of 4,096 tokens and 12 channels, each from the same 4 starts, until no token moves. ``subject`` has
a disc in every channel, ``noise`` has nothing to find. Beside ours scikit-learn's loop from the same starts, and as
people call it (``KMeans(2, n_init=4)``), which stops at its tolerance. Inertias are checked to agree.

``streaming``: the analysis ``concentration`` over a store of FLUX.1's shapes, against reading the same arrays.

Rounds are interleaved; ratios are medians of rounds.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans

from fewchannels.analyses.concentration.units import Concentration
from fewchannels.analyses.selection import Selected
from fewchannels.cluster.parallel import one_thread
from fewchannels.measures import STATISTICS
from fewchannels.measures.draws import cell_keys, different_tokens
from fewchannels.measures.kmeans import k_means
from fewchannels.measures.localization import normalize
from fewchannels.models.family import Block
from fewchannels.runs.arrays import Store, lay_out, read
from fewchannels.runs.layout import Layout
from fewchannels.runs.results import Results
from fewchannels.runs.storage import open_storage

N_CHANNELS, N_STARTS = 12, 4


def cells(n_cells: int, side: int, subject: float) -> torch.Tensor:
    """Normalised maps ``(cell, channel, token)``: a disc of so many standard deviations in noise."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    maps = random.normal(0, 1, (n_cells, N_CHANNELS, side * side))
    for each in maps:
        centre, radius = random.uniform(0.3, 0.7, 2), random.uniform(0.15, 0.35)
        disc = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2).ravel()
        each += subject * random.choice([-1, 1], (N_CHANNELS, 1)) * disc
    tokens = torch.ones(n_cells, side * side, dtype=torch.bool)
    return normalize(torch.from_numpy(maps.astype(np.float32)), tokens)[0]


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def two_means(kind: str, subject: float, n_cells: int, n_theirs: int, side: int, rounds: int) -> dict[str, object]:
    """Milliseconds a cell of every arm, and ratios to ours."""
    x = cells(n_cells, side, subject)
    starts = different_tokens(cell_keys(0, np.arange(n_cells)), np.full(n_cells, side * side), N_STARTS, 2)
    tokens = [np.ascontiguousarray(each.T.numpy()) for each in x[:n_theirs]]

    def same_starts(i: int) -> float:
        fits = (KMeans(2, init=tokens[i][start], n_init=1, tol=0).fit(tokens[i]) for start in starts[i])
        return min(fit.inertia_ for fit in fits)

    found = k_means(x, torch.from_numpy(starts))
    theirs = np.array([same_starts(i) for i in range(min(4, n_theirs))])
    np.testing.assert_allclose(found.inertia[: len(theirs)], theirs, rtol=1e-5)
    arms: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: k_means(x, torch.from_numpy(starts)), n_cells),
        "scikit-learn, same starts": (lambda: [same_starts(i) for i in range(n_theirs)], n_theirs),
        "scikit-learn, n_init=4": (lambda: [KMeans(2, n_init=N_STARTS).fit(each) for each in tokens], n_theirs),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, (work, n) in arms.items():
            seconds[name].append(timed(work) / n)
    rows = {}
    for name, taken in seconds.items():
        ratios = [each / ours for each, ours in zip(taken, seconds["ours"], strict=True)]
        rows[name] = {"ms": 1e3 * statistics.median(taken), "ratio": statistics.median(ratios), "ratios": ratios}
    print(f"\ntwo-means, {kind}, {side * side} tokens x {N_CHANNELS} channels, {N_STARTS} starts")
    for name, row in rows.items():
        print(f"  {name:28} {row['ms']:8.2f} ms a cell   {row['ratio']:6.1f} x ours")
    return rows


def streaming(side: int, n_channels: int, n_samples: int, rounds: int) -> dict[str, float]:
    """Seconds to read a store's arrays, and to read and measure them."""
    blocks = tuple(Block(i, f"b.{i}", "dual") for i in range(4))
    layout = Layout(n_samples, (0, 1), blocks, n_channels, side * side, N_CHANNELS, 1)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(folder)
        lay_out(storage, layout, [f"{i:016x}" for i in range(n_samples)])
        store = Store(storage, layout)
        for i in range(n_samples):
            arrays = {}
            for array in layout.arrays():
                shape = (1, *array.shape[1:])
                values = np.abs(random.normal(0, 1, shape)).astype(array.dtype)
                arrays[array.name] = (
                    values
                    if array.dtype == "float32"
                    else np.broadcast_to(np.arange(N_CHANNELS, dtype=np.int32), shape)
                )
            rest = n_channels * np.ones_like(arrays["token_norm"])
            arrays["token_norm"] = np.sqrt(np.square(arrays["massive_value"]).sum(axis=-2) + rest)
            store.write(i, arrays)
        selected = Selected(
            run=folder,
            layout=layout,
            stream="image",
            branch="cond",
            layers=tuple(range(4)),
            steps=(0, 1),
            samples=np.arange(n_samples),
            sample_ids=tuple(f"{i:016x}" for i in range(n_samples)),
            prompts=np.arange(n_samples),
            grids=np.full((n_samples, 2), side),
            fingerprint="",
        )
        names = [*STATISTICS, "massive_value", "massive_channel", "token_norm"]
        analysis, results = Concentration(), Results(storage, "concentration")
        arms = {
            "reading": lambda: [read(storage, names, i, i + 1) for i in range(n_samples)],
            "reading and measuring": lambda: [analysis.unit(selected, results, i, "cpu") for i in range(n_samples)],
        }
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        with one_thread():  # as workers do
            for _ in range(rounds):
                for name, work in arms.items():
                    seconds[name].append(timed(work))
    share = [a / b for a, b in zip(seconds["reading"], seconds["reading and measuring"], strict=True)]
    n_bytes = layout.sample_value_bytes * n_samples
    rate = n_bytes / statistics.median(seconds["reading and measuring"]) / 1e6
    print(f"\nconcentration, {n_bytes / 1e6:.0f} MB: {statistics.median(share):.2f} of the read rate, {rate:.0f} MB/s")
    return {"share_of_read_rate": statistics.median(share), "MB/s": rate, "shares": share}


def main() -> None:
    """Measure and print; ``--json FILE`` also writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=64)
    parser.add_argument("--theirs", type=int, default=8, help="cells that scikit-learn clusters")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--channels", type=int, default=3072)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows: dict[str, object] = {
        kind: two_means(kind, subject, chosen.cells, chosen.theirs, chosen.side, chosen.rounds)
        for kind, subject in (("subject", 3.0), ("noise", 0.0))
    }
    rows["streaming"] = streaming(chosen.side, chosen.channels, 4, chosen.rounds)
    if chosen.json:
        machine = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "torch": torch.__version__}
        chosen.json.write_text(json.dumps(machine | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
