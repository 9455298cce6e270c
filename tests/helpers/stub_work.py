"""Work without a model for tests of the pool: a worker sleeps, and writes down which task it did and where."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ray

from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.storage import Storage, open_storage


@dataclass(frozen=True)
class StubWork:
    """Tasks that take so many seconds, on nodes in which a file ``slow-NODE`` lies ten times as many.

    Attributes:
        folder: where the diary lies, and records where there is no other place.
        n_tasks: how many.
        seconds: of each.
        deadly: the task that kills its actor's process; -1 for none.
        n_actors: the second half of the tasks waits until so many actors have begun one.
        place: URL of an object store for records.
    """

    folder: str
    n_tasks: int
    seconds: float = 0.05
    deadly: int = -1
    n_actors: int = 1
    place: str = ""
    fingerprint: str = "0" * 16
    unchecked: tuple[str, ...] = ()

    @cached_property
    def storage(self) -> Storage:
        return open_storage(self.place or self.folder)

    def rows(self, task: int) -> range:
        return range(task, task + 1)

    def ids(self, task: int) -> list[str]:
        return [f"{row:016x}" for row in self.rows(task)]

    def diary(self) -> list[dict[str, Any]]:
        """Every task that was begun or done: what, where and when."""
        lines = [
            json.loads(line) for path in Path(self.folder).glob("*.diary") for line in path.read_text().splitlines()
        ]
        return sorted(lines, key=lambda line: line["time"])


def start_stub(work: StubWork, n_threads: int, device: str | None) -> Callable[[int], Record]:
    """A worker that sleeps."""
    node, pid = ray.get_runtime_context().get_node_id(), os.getpid()
    path, gpus = Path(work.folder, f"{pid}.diary"), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    waits = "unknown" if "torch" in sys.modules else os.environ.get("OMP_WAIT_POLICY", "")  # as PyTorch will find it

    def note(what: str, task: int) -> None:
        with path.open("a") as file:
            line = {
                "what": what,
                "task": task,
                "node": node,
                "pid": pid,
                "time": time.time(),
                "gpus": gpus,
                "device": device,
                "waits": waits,
            }
            file.write(json.dumps(line) + "\n")

    def do(task: int) -> Record:
        note("begun", task)
        if task == work.deadly:
            os.kill(pid, signal.SIGKILL)
        while task >= work.n_tasks // 2 and len({line["pid"] for line in work.diary()}) < work.n_actors:
            time.sleep(0.1)
        time.sleep(work.seconds * (10 if Path(work.folder, f"slow-{node}").exists() else 1))
        key = f"data/{task:05d}.bin"
        objects = {key: work.storage.put(key, [task.to_bytes(8, "little")])}
        record = Record(task, task, task + 1, work.fingerprint, 1, 1, 0, 0.0, "", node, "cpu", objects)
        Ledger(work.storage).write(record)
        note("done", task)
        return record

    return do


def start_where_it_can(work: StubWork, n_threads: int, device: str | None) -> Callable[[int], Record]:
    """A worker that does not outlive its start where a file ``bad-NODE`` lies; elsewhere it waits for 4 such ends."""
    if Path(work.folder, f"bad-{ray.get_runtime_context().get_node_id()}").exists():
        Path(work.folder, f"{os.getpid()}.died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    do = start_stub(work, n_threads, device)

    def patient(task: int) -> Record:
        while len(list(Path(work.folder).glob("*.died"))) < 4:
            time.sleep(0.1)
        return do(task)

    return patient


def start_dead(work: StubWork, n_threads: int, device: str | None) -> Callable[[int], Record]:
    """A worker whose process does not outlive its start."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
