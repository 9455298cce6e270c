"""What capture costs on top of generating the same pictures: ``python benchmarks/capture_overhead.py``.

Interleaved in one process, round by round, at the same batch and with the same threads:

- ``plain``: the pipeline as diffusers runs it;
- ``taps``: the same with every layer and step recorded in memory;
- ``task``: a worker's whole task, shards, tables and record included.

Then ``capture``: the same tasks through Ray actors that share the threads, timed from record to record, against plain
batches timed before and after it. Ratios of medians are what counts; seconds belong to the machine.
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

import torch

from fewchannels import manifest
from fewchannels.capture.begin import begin
from fewchannels.capture.config import CaptureConfig
from fewchannels.capture.job import Job, prepare
from fewchannels.capture.recorder import Recorder
from fewchannels.capture.run import start_capture
from fewchannels.capture.worker import CaptureWorker
from fewchannels.cluster.pool import outcomes
from fewchannels.cluster.session import ray_session
from fewchannels.cluster.shares import Pool
from fewchannels.manifest import read_samples
from fewchannels.models.taps import tapped


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def make_job(folder: Path, model: str, n_tasks: int, batch: int, steps: int) -> tuple[Job, Path]:
    """A job of whole-batch tasks on demo prompts, begun on disk."""
    path = folder / "manifest.parquet"
    manifest.ingest([f"demo:{n_tasks * batch}"], path)
    config = CaptureConfig(model=model, batch_size=batch, shard_samples=batch, num_inference_steps=steps)
    job = prepare(path, folder / "run", config)
    begin(job, path)
    return job, path


def main() -> None:
    """Measure and print a table; ``--json FILE`` also writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        job, path = make_job(Path(temporary), arguments.model, 2 * arguments.rounds, arguments.batch, arguments.steps)
        worker = CaptureWorker(job, arguments.threads)
        samples = read_samples(path, 0, arguments.batch)
        settings = job.settings(samples[0])

        # All in the worker's own thread: a second one with a pool of its own would slow both down.
        def plain() -> None:
            worker.generator.submit(worker.sampler.generate, samples, settings).result()

        def taps() -> None:
            worker.generator.submit(tapped_generation).result()

        def tapped_generation() -> None:
            recorder = Recorder(job.layout, job.config.score, [sample.sample_id for sample in samples])
            with tapped(worker.sampler, job.layout.blocks, recorder.tap(slice(0, len(samples)))):
                worker.sampler.generate(samples, settings)

        measured: dict[str, list[float]] = {"plain": [], "taps": [], "task": []}
        works: list[tuple[str, Callable[[], object]]] = [("plain", plain), ("taps", taps), ("task", lambda: worker(0))]
        for _, work in works:
            work()
        for i in range(arguments.rounds):
            for name, work in works[i % 3 :] + works[: i % 3]:
                measured[name].append(timed(work))

        around = [timed(plain) for _ in range(5)]
        pool = Pool(
            n_actors=arguments.actors,
            gpus_per_actor=float(torch.cuda.is_available()),
            cpus_per_actor=arguments.threads // arguments.actors,
        )
        with ray_session(pool):
            for outcome in outcomes(job, start_capture, list(range(job.layout.n_tasks)), pool):
                if outcome["error"]:
                    raise SystemExit(outcome["error"])
        ended = sorted(path.stat().st_mtime_ns / 1e9 for path in (Path(job.run) / "ledger").glob("*.json"))
        around += [timed(plain) for _ in range(5)]
        # Every actor's first task also waits for the model to load: the time counts from the last of those.
        steady = ended[arguments.actors - 1 :]
        measured["capture"] = [(steady[-1] - steady[0]) / (len(steady) - 1)]

    base = {name: statistics.median(measured["plain"]) for name in ("plain", "taps", "task")}
    base["capture"] = statistics.median(around)
    goals = {"taps": 1.03, "capture": 1.10}
    rows = {}
    print(
        f"batch {arguments.batch}, {arguments.steps} steps, {arguments.threads} threads, medians of {arguments.rounds}"
    )
    print(f"{'':8} {'s/batch':>8} {'fastest':>8} {'ratio':>7} {'fastest':>8}  goal")
    for name, seconds in measured.items():
        fastest_plain = min(around if name == "capture" else measured["plain"])
        rows[name] = {
            "median_s": statistics.median(seconds),
            "fastest_s": min(seconds),
            "ratio": statistics.median(seconds) / base[name],
            "ratio_of_fastest": min(seconds) / fastest_plain,
        }
        median, fastest, ratio, ratio_of_fastest = rows[name].values()
        print(f"{name:8} {median:8.3f} {fastest:8.3f} {ratio:7.3f} {ratio_of_fastest:8.3f}  {goals.get(name, '')}")
    if arguments.json:
        machine = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "torch": torch.__version__}
        settings_used = {key: str(value) for key, value in vars(arguments).items() if key != "json"}
        arguments.json.write_text(json.dumps({"settings": settings_used} | machine | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
