"""Scaling of the scheduler, the store's protocol and the ledger: ``python benchmarks/scale.py actors``, and ``tasks``.

``actors``: a capture's real driver, actors and ledger with 1, 2, 4, ... actors, and a stub in place of the model that
sleeps for each task, one at a time per actor, like a model. Tasks per second relative to sleeping alone, and the
driver's CPU and memory. With ``--store``, each task also stores arrays of FLUX.1's shapes.

``tasks``: 1,000, 10,000 and 100,000 tasks that only write a record: the driver's CPU per 1,000 tasks, its peak resident
memory, and the seconds to read the finished run's ledger, relative to the fewest tasks.
"""

import argparse
import json
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import measurement
import numpy as np
import psutil
from measurement import Row, Rows, meet, newest, options, ratio, save, timed
from ray import cloudpickle

from fewchannels.cluster.session import ray_session
from fewchannels.cluster.shares import Pool
from fewchannels.cluster.tasks import Progress, run_tasks
from fewchannels.models.family import Block
from fewchannels.runs.arrays import Store, lay_out
from fewchannels.runs.layout import Layout
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.storage import Storage, Stored, open_storage

READY = ".ready"


@dataclass(frozen=True)
class Stub:
    """Tasks of a run without a model.

    Attributes:
        folder: folder of the run.
        n_tasks: number of tasks, of one sample each.
        seconds: time that a task sleeps, in seconds.
        layout: layout of the arrays that a task stores; None for no arrays.
        n_actors: number of actors that start together.
    """

    folder: str
    n_tasks: int
    n_actors: int
    seconds: float = 0.0
    layout: Layout | None = None
    fingerprint: str = field(default="0" * 16)

    @property
    def storage(self) -> Storage:
        return open_storage(self.folder)

    def rows(self, task: int) -> range:
        return range(task, task + 1)

    def ids(self, task: int) -> list[str]:
        return [f"{task:016x}"]


def start_stub(stub: Stub, n_threads: int, device: str | None) -> Callable[[int], Record]:
    """A worker that sleeps, stores and records."""
    ledger, store = Ledger(stub.storage), Store(stub.storage, stub.layout) if stub.layout else None
    arrays = made_up(stub.layout) if stub.layout else {}
    meet(Path(stub.folder, READY), stub.n_actors)
    model = threading.Lock()

    def do(task: int) -> Record:
        started = time.monotonic()
        with model:
            time.sleep(stub.seconds)
        objects: dict[str, Stored] = store.write(task, arrays) if store else {}
        seconds = time.monotonic() - started
        record = Record(task, task, task + 1, stub.fingerprint, 1, 1, 0, seconds, "", platform.node(), "stub", objects)
        ledger.write(record)
        return record

    return do


def made_up(layout: Layout) -> dict[str, np.ndarray]:
    """One sample's arrays: random mantissas, as real values have."""
    draw = np.random.default_rng(0)
    return {
        array.name: draw.standard_normal((1, *array.shape[1:]), np.float32).astype(array.dtype)
        for array in layout.arrays()
    }


def flux_layout(n_samples: int) -> Layout:
    """FLUX.1's layout for one step: 57 blocks of 3,072 channels, 4,096 tokens, top 12; 15 MB per sample."""
    blocks = tuple(
        Block(i, f"transformer_blocks.{i}" if i < 19 else f"single_transformer_blocks.{i - 19}", "dual" * (i < 19))
        for i in range(57)
    )
    return Layout(n_samples, (27,), blocks, 3072, 4096, 12, 1)


def measured(stub: Stub) -> dict[str, float]:
    """One run: its rate after all actors have started, and the driver's CPU and memory."""
    driver, ready = psutil.Process(), Path(stub.folder, READY)
    ready.mkdir()
    cloudpickle.register_pickle_by_value(measurement)  # actors cannot import it
    cpu, most = sum(driver.cpu_times()[:2]), 0

    def look(progress: Progress) -> None:
        nonlocal most
        most = max(most, driver.memory_info().rss)

    started = time.time()
    outcome = run_tasks(stub, start_stub, Pool(stub.n_actors, 0, 1), look)
    ended = time.time()
    assert outcome.n_done == stub.n_tasks, outcome
    cpu = sum(driver.cpu_times()[:2]) - cpu
    return {
        "n_actors": stub.n_actors,
        "n_tasks": stub.n_tasks,
        "seconds": ended - started,
        "tasks_per_second": stub.n_tasks / (ended - newest(ready)),
        "driver_cpu_s_per_1000_tasks": 1000 * cpu / stub.n_tasks,
        "driver_resident_mb": most / 1e6,
    }


def of_actors(chosen: argparse.Namespace) -> tuple[Rows, list[Row]]:
    """Runs with 1, 2, 4, ... actors, with the same number of tasks per actor."""
    rows: Rows = {}
    ratios = []
    n_actors = 1
    while n_actors <= chosen.most:
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            n_tasks = n_actors * chosen.per_actor
            layout = flux_layout(n_tasks) if chosen.store else None
            stub = Stub(folder, n_tasks, n_actors, chosen.seconds, layout)
            if layout:
                lay_out(stub.storage, layout, [f"{i:016x}" for i in range(n_tasks)])
            name, ideal = f"{n_actors} actors", f"{n_actors} actors, ideal"
            rows |= {name: measured(stub), ideal: {"tasks_per_second": n_actors / chosen.seconds}}
        ratios += [ratio(rows, each, ideal, of="tasks_per_second") for each in (name, ideal)]
        print(json.dumps(rows[name] | {"of_ideal": round(ratios[-2]["ratio"], 3)}), flush=True)
        n_actors *= 2
    return rows, ratios


def of_tasks(chosen: argparse.Namespace) -> tuple[Rows, list[Row]]:
    """Runs of this many tasks that only write a record, on two actors, and the time to read their ledger."""
    rows: Rows = {}
    for n_tasks in chosen.tasks:
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            stub = Stub(folder, n_tasks, 2)
            row = measured(stub)
            records = {}
            row["ledger_read_s"] = timed(lambda: records.update(Ledger(stub.storage).records(stub.fingerprint)))  # noqa: B023
            assert len(records) == n_tasks
        rows[f"{n_tasks} tasks"] = row
        print(json.dumps(row), flush=True)
    fewest = f"{min(chosen.tasks)} tasks"
    grown = ("driver_cpu_s_per_1000_tasks", "driver_resident_mb")
    return rows, [ratio(rows, name, fewest, of=number) for number in grown for name in rows]


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("what", choices=("actors", "tasks"))
    found.add_argument("--most", type=int, default=32, help="actors")
    found.add_argument("--seconds", type=float, default=4.0, help="that a task sleeps")
    found.add_argument("--per-actor", type=int, default=12, help="tasks of each actor")
    found.add_argument("--store", action="store_true", help="each task stores FLUX.1's arrays of one step")
    found.add_argument("--tasks", type=int, nargs="+", default=[1000, 10_000, 100_000])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; ``--json FILE`` also writes it."""
    chosen = parser().parse_args(argv)
    n_actors = chosen.most if chosen.what == "actors" else 2
    with ray_session(Pool(n_actors, 0, 1)):  # more CPUs than exist: a stub needs none
        found = of_actors(chosen) if chosen.what == "actors" else of_tasks(chosen)
    save(chosen, ("fewchannels", "ray"), *found)


if __name__ == "__main__":
    main()
