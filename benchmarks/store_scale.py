"""Behavior of a run with many tasks: ``python benchmarks/store_scale.py resume``, and ``memory``.

``resume``: a finished run of 10,000 one-sample tasks of the bundled model is created without sampling: with real code
for its start, then a real record per task, and small files with simulated content for the objects that it names. Then
the command ``fewchannels capture`` resumes it in its own process, which finds nothing to do. The parts of that are
timed one by one, also in their own process, and compared with the time of imports. The goal is less than 5 s in total.

``memory``: a process calls one :class:`fewchannels.captures.worker.CaptureWorker` from as many threads as a Ray actor
does, with one-sample tasks one after another, and reads its resident memory at the end of every tenth, while another
is in progress. The whole pipeline runs, but cheaply: one denoising step, one layer. The peaks after 10, 100, 1,000 ...
samples are reported relative to that after 100.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from measurement import Row, Rows, options, ratio, save

GOAL_S = 5.0
PARTS = """
import json, sys, time
from pathlib import Path
marks = [time.perf_counter()]
from fewchannels import cli
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.begin import begin, check_place
from fewchannels.captures.job import prepare
from fewchannels.runs.lease import hold
from fewchannels.runs.ledger import Ledger
from fewchannels.cluster.sizing import choose_pool
marks.append(time.perf_counter())
path, run = Path(sys.argv[1]), sys.argv[2]
job = prepare(path, run, CaptureConfig(shard_samples=1))
marks.append(time.perf_counter())
choose_pool(None, None)
marks.append(time.perf_counter())
check_place(job)
marks.append(time.perf_counter())
with hold(job.storage) as token:
    job.storage.clean()
    begin(job.leased(token), path)
    marks.append(time.perf_counter())
    records = Ledger(job.storage).records(job.fingerprint)
    marks.append(time.perf_counter())
assert len(records) == job.layout.n_tasks
names = ("imports", "prepare", "choose_pool", "check_place", "hold and begin", "records, once")
print(json.dumps(dict(zip(names, [b - a for a, b in zip(marks, marks[1:])]))))
"""


def make_finished_run(folder: Path, n_tasks: int) -> tuple[Path, Path]:
    """Create a finished run of one-sample tasks with simulated data; return the paths of its manifest and itself."""
    from fewchannels import manifest
    from fewchannels.captures.begin import begin
    from fewchannels.captures.config import CaptureConfig
    from fewchannels.captures.job import prepare
    from fewchannels.runs.arrays import NAME
    from fewchannels.runs.ledger import Ledger, Record
    from fewchannels.runs.parts import TABLES, part
    from fewchannels.runs.storage import Stored

    path, run = folder / "manifest.parquet", folder / "run"
    manifest.ingest([f"demo:{n_tasks}"], path)
    job = prepare(path, run, CaptureConfig(shard_samples=1))
    begin(job, path)
    content = b"made up\n"
    made_up = Stored.of([content])
    # Plain writes: what makes a put durable would take minutes here, and nothing of it is measured.
    for name in (*(f"{NAME}/{array.name}" for array in job.layout.arrays()), *TABLES, "ledger"):
        (run / name).mkdir(exist_ok=True)
    for task in range(job.layout.n_tasks):
        keys = [f"{NAME}/{array.key(task)}" for array in job.layout.arrays()] + [part(name, task) for name in TABLES]
        for key in keys:
            (run / key).write_bytes(content)
        record = Record(
            task=task,
            start=task,
            stop=task + 1,
            fingerprint=job.fingerprint,
            attempt=1,
            n_done=1,
            n_failed=0,
            seconds=1.0,
            finished="2026-01-01T00:00:00+00:00",
            host="made-up",
            device="cpu",
            objects=dict.fromkeys(keys, made_up),
        )
        (run / Ledger.key(task)).write_bytes(record.to_bytes())
    os.sync()
    return path, run


def resume(n_tasks: int, rounds: int) -> tuple[Rows, list[Row]]:
    """Seconds that the command takes to detect that a run is finished, in total and by part."""
    with tempfile.TemporaryDirectory() as temporary:
        path, run = make_finished_run(Path(temporary), n_tasks)
        n_files = sum(1 for each in run.rglob("*") if each.is_file())
        command = [sys.executable, "-c", "from fewchannels.cli import main; main()", "capture", "--json"]
        command += ["--manifest", str(path), "--out", str(run), "--shard-samples", "1"]
        whole: list[float] = []
        parts: dict[str, list[float]] = {}
        for _ in range(rounds):
            started = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            whole.append(time.perf_counter() - started)
            outcome = json.loads(done.stdout)
            assert outcome["n_resumed"] == outcome["n_done"] == outcome["n_samples"], done.stdout
            timed = subprocess.run(
                [sys.executable, "-c", PARTS, str(path), str(run)], check=True, capture_output=True, text=True
            )
            for name, seconds in json.loads(timed.stdout).items():
                parts.setdefault(name, []).append(seconds)
    rows: Rows = {"fewchannels capture": {"seconds": whole, "tasks": n_tasks, "files": n_files}}
    rows |= {name: {"seconds": each} for name, each in parts.items()}
    print(f"resume of {n_tasks} finished tasks, {n_files} files, median of {rounds} rounds")
    for name, row in rows.items():
        seconds = row["seconds"]
        print(f"{name:20} {statistics.median(seconds):6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})")
    print(f"goal of all {GOAL_S:g} s")
    return rows, [ratio(rows, name, "imports") for name in rows]


def measure_memory(n_samples: int) -> None:
    """Call a worker as a Ray actor does, in this process; prints its resident memory as a JSON line."""
    from fewchannels import manifest
    from fewchannels.captures.begin import begin
    from fewchannels.captures.config import CaptureConfig
    from fewchannels.captures.job import prepare
    from fewchannels.captures.worker import CaptureWorker
    from fewchannels.cluster.outcome import TASKS_AT_ONCE

    process = psutil.Process()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "manifest.parquet")
        manifest.ingest([f"demo:{n_samples}"], path)
        config = CaptureConfig(shard_samples=1, num_inference_steps=1, steps="last", layers="0")
        job = prepare(path, Path(temporary, "run"), config)
        begin(job, path)
        worker = CaptureWorker(job, os.cpu_count() or 1)
        resident: dict[int, int] = {0: process.memory_info().rss}
        started = time.monotonic()

        def run(task: int) -> None:
            worker(task)
            if (task + 1) % 10 == 0:
                resident[task + 1] = process.memory_info().rss

        with ThreadPoolExecutor(TASKS_AT_ONCE) as threads:
            list(threads.map(run, range(n_samples)))
    print(json.dumps({"seconds": time.monotonic() - started, "resident": resident}))


def memory(n_samples: int) -> tuple[Rows, list[Row]]:
    """Peaks of resident memory after 10, 100, 1,000 ... samples of one worker."""
    command = [sys.executable, __file__, "memory", "--samples", str(n_samples), "--worker"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    resident = {int(done): n_bytes for done, n_bytes in found["resident"].items()}
    shown = [done for done in (0, 10, 100, 1_000, 10_000, 100_000) if done in resident]
    rows: Rows = {}
    print(f"memory of one worker, {n_samples} one-sample tasks in {found['seconds']:.0f} s")
    for at in shown:
        peak = max(n for done, n in resident.items() if done <= at)
        rows[f"after {at} samples"] = {"peak_bytes": peak, "bytes_then": resident[at]}
        print(f"{at:8} samples {peak / 1e6:7.0f} MB at the peak, {resident[at] / 1e6:.0f} MB then")
    names = list(rows)
    to = "after 100 samples" if n_samples > 100 else names[-1]
    ratios = [ratio(rows, name, to, of="peak_bytes") for name in names]
    print(f"peak {names[-1]} / {to}: {ratios[-1]['ratio']:.3f}")
    return rows, ratios


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("what", choices=["resume", "memory"])
    found.add_argument("--tasks", type=int, default=10_000, help="of the resumed run")
    found.add_argument("--rounds", type=int, default=3, help="of the resumed run")
    found.add_argument("--samples", type=int, default=10_000, help="of the worker whose memory is measured")
    found.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; ``--json FILE`` also writes it."""
    chosen = parser().parse_args(argv)
    if chosen.worker:
        measure_memory(chosen.samples)
        return
    found = resume(chosen.tasks, chosen.rounds) if chosen.what == "resume" else memory(chosen.samples)
    save(chosen, ("fewchannels", "torch", "pyarrow"), *found)


if __name__ == "__main__":
    main()
