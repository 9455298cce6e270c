"""How the scheduler, the store's protocol and the ledger grow, with a stub in the model's place.

``python benchmarks/scale.py actors``: a capture's real driver, actors and ledger on 1, 2, 4, ... actors; the stub
sleeps for each task, one at a time in an actor as a model would be. Tasks per second against what sleeping alone would
give, and the driver's CPU and memory. With ``--store`` each task then stores arrays of FLUX.1's shapes.

``python benchmarks/scale.py tasks``: 1,000, 10,000 and 100,000 tasks of nothing but a record: the driver's CPU per
1,000 tasks, its largest resident memory, and the seconds that the finished run's ledger takes to be read.
"""

import argparse
import json
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from fewchannels.cluster.session import ray_session
from fewchannels.cluster.shares import Pool
from fewchannels.cluster.tasks import Progress, run_tasks
from fewchannels.models.family import Block
from fewchannels.runs.arrays import Store, lay_out
from fewchannels.runs.layout import Layout
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.storage import Storage, Stored, open_storage


@dataclass(frozen=True)
class Stub:
    """Tasks of a run without a model.

    Attributes:
        folder: of the run.
        n_tasks: how many, of one sample each.
        seconds: that a task sleeps.
        layout: of the arrays that a task stores; None for none.
    """

    folder: str
    n_tasks: int
    seconds: float = 0.0
    layout: Layout | None = None
    fingerprint: str = field(default="0" * 16)

    @property
    def storage(self) -> Storage:
        return open_storage(self.folder)

    def rows(self, task: int) -> range:
        return range(task, task + 1)


def start_stub(stub: Stub, n_threads: int) -> Callable[[int], Record]:
    """A worker that sleeps, stores and records."""
    ledger, store = Ledger(stub.storage), Store(stub.storage, stub.layout) if stub.layout else None
    arrays = made_up(stub.layout) if stub.layout else {}
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
    """FLUX.1's: 57 blocks of 3,072 channels, 4,096 tokens, top 12; of one step, 15 MB a sample."""
    blocks = tuple(
        Block(i, f"transformer_blocks.{i}" if i < 19 else f"single_transformer_blocks.{i - 19}", "dual" * (i < 19))
        for i in range(57)
    )
    return Layout(n_samples, (27,), blocks, 3072, 4096, 12, 1)


def measured(stub: Stub, n_actors: int) -> dict[str, float]:
    """One run on so many actors: its rate once all are there, and what the driver took."""
    driver = psutil.Process()
    begun: list[tuple[float, int]] = []  # when all actors were there, and what was done by then
    cpu, most = sum(driver.cpu_times()[:2]), 0

    def look(progress: Progress) -> None:
        nonlocal most
        most = max(most, driver.memory_info().rss)
        if not begun and progress.n_actors == n_actors:
            begun.append((time.monotonic(), progress.n_done))

    started = time.monotonic()
    outcome = run_tasks(stub, start_stub, Pool(n_actors, 0, 0, None), look)
    ended = time.monotonic()
    assert outcome.n_done == stub.n_tasks, outcome
    steady_from, done_before = begun[0]
    cpu = sum(driver.cpu_times()[:2]) - cpu
    return {
        "n_actors": n_actors,
        "n_tasks": stub.n_tasks,
        "seconds": round(ended - started, 1),
        "tasks_per_second": round((stub.n_tasks - done_before) / (ended - steady_from), 2),
        "driver_cpu_s_per_1000_tasks": round(1000 * cpu / stub.n_tasks, 2),
        "driver_resident_mb": round(most / 1e6),
    }


def of_actors(most: int, seconds: float, per_actor: int, *, stores: bool) -> list[dict[str, float]]:
    """Runs on 1, 2, 4, ... actors, each with as many tasks an actor."""
    rows = []
    n_actors = 1
    while n_actors <= most:
        folder = tempfile.mkdtemp(prefix="scale-")
        n_tasks = n_actors * per_actor
        layout = flux_layout(n_tasks) if stores else None
        stub = Stub(folder, n_tasks, seconds, layout)
        if layout:
            lay_out(stub.storage, layout, [f"{i:016x}" for i in range(n_tasks)])
        row = measured(stub, n_actors)
        row["of_ideal"] = round(row["tasks_per_second"] * seconds / n_actors, 3)
        rows.append(row)
        print(json.dumps(row), flush=True)
        shutil.rmtree(folder)
        n_actors *= 2
    return rows


def of_tasks(numbers: list[int]) -> list[dict[str, float]]:
    """Runs of so many tasks of nothing but a record, on two actors; and the time to read what they left."""
    rows = []
    for n_tasks in numbers:
        folder = tempfile.mkdtemp(prefix="scale-")
        stub = Stub(folder, n_tasks)
        row = measured(stub, 2)
        started = time.monotonic()
        assert len(Ledger(stub.storage).records(stub.fingerprint)) == n_tasks
        row["ledger_read_s"] = round(time.monotonic() - started, 2)
        rows.append(row)
        print(json.dumps(row), flush=True)
        shutil.rmtree(folder)
    return rows


def main() -> None:
    """Measure and print; ``--json FILE`` also writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("actors", "tasks"))
    parser.add_argument("--most", type=int, default=32, help="actors")
    parser.add_argument("--seconds", type=float, default=4.0, help="that a task sleeps")
    parser.add_argument("--per-actor", type=int, default=12, help="tasks of each actor")
    parser.add_argument("--store", action="store_true", help="each task stores FLUX.1's arrays of one step")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with ray_session(Pool(1, 0, 2, None)):
        rows = (
            of_actors(chosen.most, chosen.seconds, chosen.per_actor, stores=chosen.store)
            if chosen.what == "actors"
            else of_tasks(chosen.tasks)
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
