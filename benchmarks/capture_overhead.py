"""Overhead of a capture relative to generating the same images: ``python benchmarks/capture_overhead.py``.

In one process with all threads, interleaved round by round, with the same batch:

- ``plain``: the pipeline as diffusers runs it;
- ``taps``: the same with every layer and step recorded in memory;
- ``task``: a worker's whole task, including shards, tables and record.

In as many processes as the capture has actors, each with an actor's threads, both restarted in each round, in
alternating order:

- ``plain processes``: each loads the pipeline as diffusers does and runs its batches, all at the same time;
- ``capture``: as many batches as tasks of a capture's Ray actors, recorded, written and entered in the ledger.

Both are timed from when all processes have loaded the model to the end of the last batch, or the last record, and
reported as seconds per batch of all processes together. Actors have the normal priority here, not Ray's lower one,
which would measure other load of the machine. The plain pipeline's images are checked to equal the capture's. Seconds
depend on the machine; only ratios are meaningful.
"""

import argparse
import inspect
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import measurement
import numpy as np
import torch
from diffusers import DiffusionPipeline
from measurement import Rows, meet, newest, options, ratio, rotated, save
from PIL import Image
from ray import cloudpickle

from fewchannels import manifest
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.recorder import Recorder
from fewchannels.captures.run import start_capture
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.pool import outcomes
from fewchannels.cluster.session import ray_session
from fewchannels.cluster.shares import Pool
from fewchannels.manifest import Sample, read_samples
from fewchannels.models.generation import Settings
from fewchannels.models.load import open_pipeline
from fewchannels.models.loaded import default_device
from fewchannels.models.source import find
from fewchannels.models.taps import tapped
from fewchannels.runs.ledger import Record

GOALS = {"taps": 1.03, "capture": 1.10}


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("--model", default="demo", help="from text to images; demo is the bundled one")
    found.add_argument("--rounds", type=int, default=16, help="in one process")
    found.add_argument("--captures", type=int, default=8, help="rounds of plain processes and a capture")
    found.add_argument("--tasks", type=int, default=10, help="of each actor in each of these, and batches of a process")
    found.add_argument("--batch", type=int, default=16)
    found.add_argument("--steps", type=int, default=20)
    found.add_argument("--threads", type=int, default=os.cpu_count(), help="in all")
    found.add_argument("--actors", type=int, default=2, help="that share the threads, and plain processes")
    return found


def make_job(path: Path, run: Path, chosen: argparse.Namespace) -> Job:
    """A job with one batch per task, created on disk."""
    batch = chosen.batch
    config = CaptureConfig(model=chosen.model, batch_size=batch, shard_samples=batch, num_inference_steps=chosen.steps)
    job = prepare(path, run, config)
    begin(job, path)
    return job


def run_plainly(pipeline: DiffusionPipeline, samples: Sequence[Sample], settings: Settings) -> list[Image.Image]:
    """Run one batch with the pipeline itself, with the settings that it accepts."""
    wanted = {
        "num_inference_steps": settings.steps,
        "height": settings.height,
        "width": settings.width,
        "guidance_scale": settings.guidance,
        "max_sequence_length": pipeline.tokenizer_2.model_max_length if hasattr(pipeline, "tokenizer_2") else None,
    }
    taken = inspect.signature(pipeline.__call__).parameters
    noise = [torch.Generator("cpu").manual_seed(sample.seed) for sample in samples]
    with torch.inference_mode():
        return pipeline(
            prompt=[sample.prompt for sample in samples],
            generator=noise,
            **{name: value for name, value in wanted.items() if name in taken and value is not None},
        ).images


def check_same(images: Sequence[Image.Image], others: Sequence[Image.Image]) -> None:
    """Check that images are equal pixel by pixel."""
    assert all(np.array_equal(a, b) for a, b in zip(images, others, strict=True)), "images are not the same"


def in_one_process(job: Job, path: Path, chosen: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each round of the plain pipeline, the taps alone and a whole task."""
    worker = CaptureWorker(job, chosen.threads)
    samples = read_samples(path, 0, chosen.batch)
    settings, pipeline = job.settings(samples[0]), worker.sampler.pipeline

    def tapped_generation() -> list[Image.Image]:
        recorder = Recorder(job.layout, job.config.score, [sample.sample_id for sample in samples])
        with tapped(worker.sampler, job.layout.blocks, recorder.tap(slice(0, len(samples)))):
            return worker.sampler.generate(samples, settings)

    tasks = iter(range(job.layout.n_tasks))  # each task once: rerunning one takes longer
    # All in the model's own thread: a second thread with its own pool would slow both down.
    works: dict[str, Callable[[], object]] = {
        "plain": lambda: worker.model.run(run_plainly, pipeline, samples, settings),
        "taps": lambda: worker.model.run(tapped_generation),
        "task": lambda: worker(next(tasks)),
    }
    check_same(works["plain"](), works["taps"]())
    works["task"]()
    return rotated(works, chosen.rounds)


def plain_process(
    model: str, batches: list[list[Sample]], settings: Settings, n_threads: int, place: Path, n_processes: int
) -> None:
    """Load the pipeline, wait for the others, run the batches."""
    torch.set_num_threads(n_threads)
    torch.set_flush_denormal(True)
    pipeline = open_pipeline(find(model, None), default_device())
    meet(place / "ready", n_processes)
    for samples in batches:
        run_plainly(pipeline, samples, settings)
    (place / "ended" / str(os.getpid())).touch()


def plain_processes(job: Job, path: Path, place: Path, chosen: argparse.Namespace) -> float:
    """Seconds per batch of as many plain processes as there are actors, running at the same time."""
    spawning = multiprocessing.get_context("spawn")
    for name in ("ready", "ended"):
        (place / name).mkdir(parents=True)
    n_each, size = chosen.tasks, chosen.batch
    batches = [read_samples(path, i * size, (i + 1) * size) for i in range(n_each * chosen.actors)]
    settings, n_threads = job.settings(batches[0][0]), chosen.threads // chosen.actors
    processes = [
        spawning.Process(
            target=plain_process,
            args=(job.config.model, batches[i :: chosen.actors], settings, n_threads, place, chosen.actors),
        )
        for i in range(chosen.actors)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0, "a plain process has failed"
    return (newest(place / "ended") - newest(place / "ready")) / len(batches)


def capture(job: Job, chosen: argparse.Namespace) -> float:
    """Seconds per batch of a whole capture on Ray actors that start at the same time."""
    gpus = min(1.0, torch.cuda.device_count() / chosen.actors)
    pool = Pool(chosen.actors, gpus, chosen.threads // chosen.actors)
    ready = Path(f"{job.run}.ready")
    ready.mkdir()
    cloudpickle.register_pickle_by_value(measurement)  # actors cannot import it

    def start_together(job: Job, n_threads: int, device: str | None) -> Callable[[int], Record]:
        worker = start_capture(job, n_threads, device)
        meet(ready, pool.n_actors)
        return worker

    with ray_session(pool):
        for outcome in outcomes(job, start_together, list(range(job.layout.n_tasks)), pool):
            if outcome["error"]:
                raise SystemExit(outcome["error"])
    return (newest(Path(job.run, "ledger")) - newest(ready)) / job.layout.n_tasks


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table; ``--json FILE`` also writes it."""
    chosen = parser().parse_args(argv)
    if chosen.threads < chosen.actors:
        parser().error(f"{chosen.actors} actors cannot share {chosen.threads} threads.")
    os.environ.setdefault("RAY_worker_niceness", "0")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path, more = folder / "manifest.parquet", folder / "alone.parquet"
        manifest.ingest([f"demo:{chosen.tasks * chosen.actors * chosen.batch}"], path)
        manifest.ingest([f"demo:{(1 + chosen.rounds) * chosen.batch}"], more)
        job = make_job(more, folder / "alone", chosen)
        measured = in_one_process(job, more, chosen)
        places = (folder / str(i) for i in count())
        pairs: dict[str, Callable[[], float]] = {
            "plain processes": lambda: plain_processes(job, path, next(places), chosen),
            "capture": lambda: capture(make_job(path, next(places), chosen), chosen),
        }
        measured |= rotated(pairs, chosen.captures, lambda work: work())
    rows: Rows = {name: {"seconds": seconds} for name, seconds in measured.items()}
    plain = {name: "plain processes" if name in pairs else "plain" for name in rows}
    ratios = [ratio(rows, name, plain[name]) for name in rows]
    print(f"batch {chosen.batch}, {chosen.steps} steps, {chosen.threads} threads, {chosen.actors} actors, medians")
    print(f"{'':16} {'s/batch':>8} {'fastest':>8} {'ratio':>6}  range of rounds  goal")
    for (name, row), each in zip(rows.items(), ratios, strict=True):
        span = f"{each['least']:.3f} to {each['most']:.3f}"
        print(
            f"{name:16} {np.median(row['seconds']):8.3f} {min(row['seconds']):8.3f} {each['ratio']:6.3f}"
            f"  {span:16} {GOALS.get(name, '')}"
        )
    save(chosen, ("torch", "diffusers", "transformers", "ray"), rows, ratios)


if __name__ == "__main__":
    main()
