"""Speed of clustering cells and of streaming token statistics: ``python benchmarks/analyses.py``.

``two-means``: cells of 4,096 tokens and 12 channels, each from the same 4 starts, until no token moves. ``subject`` has
a disc in every channel, ``noise`` has no structure. Compared with scikit-learn's loop from the same starts, and its
usual call (``KMeans(2, n_init=4)``), which stops at its tolerance. Inertias are checked to agree.

``streaming``: the analysis ``concentration`` over a store of FLUX.1's shapes, against reading the same arrays.

Rounds are interleaved; ratios are medians of rounds.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import torch
from measurement import Row, Rows, options, ratio, rotated, save, timed
from sklearn.cluster import KMeans

from fewchannels.analyses.concentration.units import Concentration
from fewchannels.analyses.selection import Selected
from fewchannels.cluster.parallel import one_thread
from fewchannels.measures import STATISTICS
from fewchannels.measures.kmeans import k_means
from fewchannels.measures.localization import normalize
from fewchannels.models.family import Block
from fewchannels.runs.arrays import Store, lay_out, read
from fewchannels.runs.layout import Layout
from fewchannels.runs.results import Results
from fewchannels.runs.storage import open_storage

N_CHANNELS, N_STARTS = 12, 4


def cells(n_cells: int, side: int, subject: float) -> torch.Tensor:
    """Normalized maps ``(cell, channel, token)``: a disc of this many standard deviations in noise."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    maps = random.normal(0, 1, (n_cells, N_CHANNELS, side * side))
    for each in maps:
        center, radius = random.uniform(0.3, 0.7, 2), random.uniform(0.15, 0.35)
        disc = ((y - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2).ravel()
        each += subject * random.choice([-1, 1], (N_CHANNELS, 1)) * disc
    tokens = torch.ones(n_cells, side * side, dtype=torch.bool)
    return normalize(torch.from_numpy(maps.astype(np.float32)), tokens)[0]


def two_means(kind: str, subject: float, chosen: argparse.Namespace) -> tuple[Rows, list[Row]]:
    """Seconds per cell of every arm, and ratios to ours."""
    n_cells, n_theirs, side = chosen.cells, chosen.theirs, chosen.side
    x = cells(n_cells, side, subject)
    random = np.random.default_rng(0)
    pairs = [random.choice(side * side, 2, replace=False) for _ in range(n_cells * N_STARTS)]
    starts = torch.tensor(np.array(pairs)).view(n_cells, N_STARTS, 2)
    tokens = [np.ascontiguousarray(each.T.numpy()) for each in x[:n_theirs]]

    def same_starts(i: int) -> float:
        fits = (KMeans(2, init=tokens[i][start], n_init=1, tol=0).fit(tokens[i]) for start in starts[i])
        return min(fit.inertia_ for fit in fits)

    found = k_means(x, starts)
    theirs = np.array([same_starts(i) for i in range(min(4, n_theirs))])
    np.testing.assert_allclose(found.inertia[: len(theirs)], theirs, rtol=1e-5)
    arms: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: k_means(x, starts), n_cells),
        "scikit-learn, same starts": (lambda: [same_starts(i) for i in range(n_theirs)], n_theirs),
        "scikit-learn, n_init=4": (lambda: [KMeans(2, n_init=N_STARTS).fit(each) for each in tokens], n_theirs),
    }
    seconds = rotated(arms, chosen.rounds, lambda arm: timed(arm[0]) / arm[1])
    rows: Rows = {f"{kind}: {name}": {"seconds": taken} for name, taken in seconds.items()}
    ratios = [ratio(rows, name, f"{kind}: ours") for name in rows]
    print(f"\ntwo-means, {kind}, {side * side} tokens x {N_CHANNELS} channels, {N_STARTS} starts")
    for (name, row), each in zip(rows.items(), ratios, strict=True):
        print(f"  {name:34} {1e3 * statistics.median(row['seconds']):8.2f} ms a cell   {each['ratio']:6.1f} x ours")
    return rows, ratios


def streaming(chosen: argparse.Namespace) -> tuple[Rows, list[Row]]:
    """Seconds to read a store's arrays, and to read and measure them."""
    side, n_channels, n_samples = chosen.side, chosen.channels, chosen.samples
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
            "streaming: reading": lambda: [read(storage, names, i, i + 1) for i in range(n_samples)],
            "streaming: reading and measuring": lambda: [
                analysis.unit(selected, results, i, "cpu") for i in range(n_samples)
            ],
        }
        with one_thread():  # like workers
            seconds = rotated(arms, chosen.rounds)
    n_bytes = layout.sample_value_bytes * n_samples
    rows: Rows = {name: {"seconds": taken, "value_bytes": n_bytes} for name, taken in seconds.items()}
    ratios = [ratio(rows, name, "streaming: reading") for name in rows]
    rate = n_bytes / statistics.median(seconds["streaming: reading and measuring"]) / 1e6
    print(f"\nconcentration, {n_bytes / 1e6:.0f} MB: {1 / ratios[1]['ratio']:.2f} of the read rate, {rate:.0f} MB/s")
    return rows, ratios


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("--cells", type=int, default=64)
    found.add_argument("--theirs", type=int, default=8, help="cells that scikit-learn clusters")
    found.add_argument("--side", type=int, default=64, help="of a map, tokens")
    found.add_argument("--channels", type=int, default=3072, help="of the store that is streamed")
    found.add_argument("--samples", type=int, default=4, help="of the store that is streamed")
    found.add_argument("--rounds", type=int, default=5)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; ``--json FILE`` also writes it."""
    chosen = parser().parse_args(argv)
    rows: Rows = {}
    ratios: list[Row] = []
    for found in (two_means("subject", 3.0, chosen), two_means("noise", 0.0, chosen), streaming(chosen)):
        rows |= found[0]
        ratios += found[1]
    save(chosen, ("numpy", "torch", "scikit-learn", "zarr"), rows, ratios)


if __name__ == "__main__":
    main()
