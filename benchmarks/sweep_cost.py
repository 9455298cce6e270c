"""What an edited picture costs, against a plain generation of the same batch, and against recording and replaying.

Demo model, one pair of prompts, transport of the top channels behind every block in every step. Rounds interleaved:

- plain: the pipeline alone, as many rows as the sweep's batch;
- sweep: target, source and the edits in one batch, as ``fewchannels transport`` runs them, metrics left out;
- replay: the source alone first, every block's image stream written to disk at every step; then the target's rows in
  one batch, each step and block read back and copied into all of them.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fewchannels import manifest
from fewchannels.capture.config import CaptureConfig
from fewchannels.interventions.begin import begin_sweep
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.pairs import PairRule
from fewchannels.interventions.rows import batches
from fewchannels.interventions.sweep import SweepSettings, prepare_sweep
from fewchannels.interventions.worker import SweepWorker
from fewchannels.measures.scores import statistics as channel_statistics
from fewchannels.models.taps import Site, tapped


def main() -> None:
    """Measure and print; ``--json FILE`` also writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=32, help="of a batch")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--k", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ratios = measure(Path(folder), chosen)
    print(json.dumps(ratios, indent=1))
    if chosen.json:
        chosen.json.write_text(json.dumps(ratios, indent=1) + "\n")


def measure(folder: Path, chosen: argparse.Namespace) -> dict[str, object]:
    """Seconds of each way, and their ratios to a plain row."""
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
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for work in ways.values():
        worker.model.run(work)
    for i in range(chosen.rounds):
        for way, work in list(ways.items())[i % 3 :] + list(ways.items())[: i % 3]:
            started = time.perf_counter()
            worker.model.run(work)
            seconds[way].append(time.perf_counter() - started)
    rows = {"sweep": n_edits, "replay": n_edits}
    ratios = {
        way: [t / n * chosen.rows / p for t, p in zip(seconds[way], seconds["plain"], strict=True)]
        for way, n in rows.items()
    }
    return {
        "rows": chosen.rows,
        "edits": n_edits,
        "plain_seconds_per_row": statistics.median(seconds["plain"]) / chosen.rows,
        **{
            f"{way}_per_edit_over_plain_row": {
                "median": round(statistics.median(each), 3),
                "least": round(min(each), 3),
                "most": round(max(each), 3),
            }
            for way, each in ratios.items()
        },
    }


if __name__ == "__main__":
    main()
