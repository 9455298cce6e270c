"""Cost of an edited image relative to a plain generation: ``python benchmarks/sweep_cost.py``.

Demo model, one pair of prompts, transport of the top channels at every block's output in every step. Rounds alternate:

- ``plain``: the pipeline alone, with as many rows as the sweep's batch;
- ``sweep``: target, source and the edits in one batch, as ``fewchannels transport`` runs them, without metrics;
- ``replay``: the source alone first, every block's image stream written to disk at every step; then the target's rows
  in one batch, each step and block read back and copied into all of them.

Reported are seconds per image: per row of the plain batch, and per edit of the others, which thus include target and
source.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measurement import Rows, options, ratio, rotated, save, timed
from torch import Tensor

from fewchannels import manifest
from fewchannels.captures.config import CaptureConfig
from fewchannels.interventions.begin import begin_sweep
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.pairs import PairRule
from fewchannels.interventions.rows import batches
from fewchannels.interventions.sweep import SweepSettings, prepare_sweep
from fewchannels.interventions.worker import SweepWorker
from fewchannels.measures.scores import statistics as channel_statistics
from fewchannels.models.taps import Site, tapped


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--rows", type=int, default=32, help="of a batch")
    found.add_argument("--steps", type=int, default=20)
    found.add_argument("--k", type=int, default=12, help="channels that are transported")
    found.add_argument("--threads", type=int, default=1)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table; ``--json FILE`` also writes it."""
    chosen = parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), chosen)
    ratios = [ratio(rows, way, "plain") for way in rows]
    print(f"{chosen.rows - 2} edits in {chosen.rows} rows, {chosen.steps} steps, medians of {chosen.rounds} rounds")
    print(f"{'':8} {'s/image':>9} {'ratio':>6}  range of rounds")
    for (way, row), each in zip(rows.items(), ratios, strict=True):
        span = f"{each['least']:.3f} to {each['most']:.3f}"
        print(f"{way:8} {statistics.median(row['seconds']):9.4f} {each['ratio']:6.3f}  {span}")
    save(chosen, ("torch", "diffusers"), rows, ratios)


def measure(folder: Path, chosen: argparse.Namespace) -> Rows:
    """Seconds per image of each method."""
    manifest.ingest(["demo:4"], folder / "manifest.parquet", seeds=[0])
    n_edits = chosen.rows - 2
    grid = Grid(
        ("transport",),
        tuple((i + 1) / n_edits for i in range(n_edits)),
        ("top",),
        k=(chosen.k,),
        scores_from=("source",),
    )
    config = CaptureConfig(num_inference_steps=chosen.steps, batch_size=chosen.rows)
    prepared = prepare_sweep(
        folder / "manifest.parquet", folder / "sweep", SweepSettings("text", config, (grid,), pairs=PairRule(n=1))
    )
    begin_sweep(prepared)
    worker = SweepWorker(prepared.sweep, chosen.threads)
    item = worker.items(range(1))[0]
    (batch,) = batches([item], prepared.sweep.conditions, chosen.rows)
    settings, blocks = prepared.sweep.generation.settings(item.target), prepared.sweep.geometry.blocks
    source = item.source
    assert source is not None, "a transport has one"

    def plain() -> None:
        worker.sampler.generate([row.sample for row in batch.rows], settings)

    def sweep() -> None:
        worker.generate(batch, settings)

    def name(site: Site) -> Path:
        return folder / f"{site.block.layer}.{site.forward.step}.pt"

    def record(site: Site, x: Tensor) -> None:
        torch.save(x.clone(), name(site))

    def copy(site: Site, x: Tensor) -> Tensor:
        moved = torch.load(name(site))
        top = channel_statistics(moved)[0, 0].topk(chosen.k).indices
        edited = x.clone()
        edited[..., top] = moved[..., top]
        return edited

    def replay() -> None:
        with tapped(worker.sampler, blocks, record):
            worker.sampler.generate([source], settings)
        with tapped(worker.sampler, blocks, copy):
            worker.sampler.generate([item.target] * n_edits, settings)

    ways: dict[str, Callable[[], None]] = {"plain": plain, "sweep": sweep, "replay": replay}
    for work in ways.values():
        worker.model.run(work)
    seconds = rotated(ways, chosen.rounds, lambda work: timed(lambda: worker.model.run(work)))
    n_pictures = {"plain": chosen.rows, "sweep": n_edits, "replay": n_edits}
    return {way: {"seconds": [each / n_pictures[way] for each in taken]} for way, taken in seconds.items()}


if __name__ == "__main__":
    main()
