"""Telemetry of actors: counters for Prometheus, and a line of JSON for every event.

Ray serves the metrics at every node's own endpoint, with ``ray_`` before each name; ``docs/cluster/grafana.json`` draws
them. Ray stores the lines, like everything that an actor writes to standard error, in the log files of its workers. If
an actor is killed from outside, up to ten seconds of counts are lost, and its current task has only ``task_started``.
"""

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import psutil
import ray
from ray.util.metrics import Counter, Gauge, Histogram, Metric

from fewchannels.cluster.work import Work
from fewchannels.errors import FewchannelsError
from fewchannels.runs.ledger import Record

_LABELS = ("kind", "run")
_SECONDS = [2.0**k for k in range(-3, 14)]  # an eighth of a second to more than two hours
_MEMORY_S = 5.0  # Ray forgets a gauge that is not set again for two of its reports, of 10 s each
_POOL_S = 1.0
_POOL = {
    "tasks_waiting": "Tasks not assigned to an actor yet (count).",
    "tasks_running": "Tasks assigned to actors (count).",
    "tasks_handed_out_again": "Retries of tasks of this call after their actor was lost (count).",
    "actors_live": "Actors that have loaded the model (count).",
    "actors_starting": "Actors that are pending in the cluster or loading the model (count).",
    "actors_lost": "Actors of this call that died, or whose node died (count).",
}


def labels(work: Work, start: Callable[..., Any]) -> dict[str, str]:
    """Labels of a run: its ``kind``, such as ``capture``, and ``run``, the last part of its URL."""
    return {"kind": start.__name__.removeprefix("start_"), "run": work.storage.name}


class ActorTelemetry:
    """Telemetry of one actor. Two threads may call it, each for its own task. Without Ray, it has no effect.

    Args:
        work: work that the tasks belong to.
        start: makes the worker, from now on.
    """

    def __init__(self, work: Work, start: Callable[..., Any]) -> None:
        self._work, self._labels = work, labels(work, start)
        self._node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else None
        self._log, self._made, self._begun = _logger(), time.monotonic(), dict[int, float]()
        self._tasks_done = self._counter("tasks_done", "Tasks whose record was written (count).")
        self._tasks_failed = self._counter("tasks_failed", "Tasks that ended without a record (count).")
        self._samples_done = self._counter("samples_done", "Samples of finished tasks, without failed ones (count).")
        self._samples_failed = self._counter("samples_failed", "Samples that failed individually (count).")
        self._written = self._counter("written_bytes", "Size of the objects that finished tasks have stored (bytes).")
        self._seconds = Histogram(
            "fewchannels_task_seconds",
            "By stage: task, a finished task until its record is written, consisting of wait (for the model's thread), "
            "model (in that thread) and store (the rest); load, an actor until its model is loaded (seconds).",
            _SECONDS,
            (*_LABELS, "stage"),
        ).set_default_tags(self._labels)

    def started(self, error: Exception | None) -> None:
        """The actor has its worker, or the error that left it without one."""
        seconds = time.monotonic() - self._made
        self._tell("actor_started", seconds=round(seconds, 3), error=error and str(error))
        if error is None:
            self._seconds.observe(seconds, {"stage": "load"})
            if ray.is_initialized():
                threading.Thread(target=self._tell_memory, name="memory gauge", daemon=True).start()

    def task_started(self, task: int) -> None:
        """A task begins."""
        self._begun[task] = time.monotonic()
        self._tell("task_started", task=task, samples=self._ids(task))

    def task_ended(self, outcome: dict[str, Any], record: Record | None, stages: Mapping[str, float]) -> None:
        """A task has its outcome.

        Args:
            outcome: outcome as the driver gets it.
            record: record of the task, if this call wrote it; a task that was finished before is not counted again.
            stages: seconds of its stages ``wait`` and ``model``.
        """
        task, error = outcome["task"], outcome["error"]
        seconds, rows = time.monotonic() - self._begun.pop(task), self._work.rows(task)
        about = {"task": task, "rows": [rows.start, rows.stop], "seconds": round(seconds, 3)}
        if error is not None:
            _add(self._tasks_failed, 1)
            self._tell("task_failed", **about, error=error)
            return
        about["n_bytes"] = outcome["n_bytes"]
        if record is not None:
            _add(self._tasks_done, 1)
            _add(self._samples_done, record.n_done)
            _add(self._samples_failed, record.n_failed)
            _add(self._written, outcome["n_bytes"])
            spent = {"task": seconds, **stages, "store": max(0.0, seconds - sum(stages.values()))}
            for stage, each in spent.items():
                self._seconds.observe(each, {"stage": stage})
            about |= {"attempt": record.attempt, "n_failed": record.n_failed}
            about["stages"] = {stage: round(each, 3) for stage, each in spent.items() if stage != "task"}
        self._tell("task_done", **about)

    def _ids(self, task: int) -> list[str] | None:
        try:
            return self._work.ids(task)
        except (FewchannelsError, OSError, ValueError):  # the task itself will fail with it and report it
            return None

    def _counter(self, name: str, description: str) -> Metric:
        return Counter(f"fewchannels_{name}", description, _LABELS).set_default_tags(self._labels)

    def _tell(self, event: str, **about: Any) -> None:
        level = logging.WARNING if about.get("n_failed") else logging.INFO
        known = {key: value for key, value in {**about, "node": self._node}.items() if value is not None}
        self._log.log(logging.ERROR if "error" in known else level, event, extra={"about": self._labels | known})

    def _tell_memory(self) -> None:
        gpu, resident = (
            Gauge(f"fewchannels_{name}_bytes", description, _LABELS).set_default_tags(self._labels)
            for name, description in (
                ("gpu_memory", "GPU memory that PyTorch holds in an actor (bytes)."),
                ("resident", "Resident memory of an actor's process (bytes)."),
            )
        )
        while True:
            gpu.set(_gpu_bytes())
            resident.set(psutil.Process().memory_info().rss)
            time.sleep(_MEMORY_S)


class PoolTelemetry:
    """Telemetry of the driver: its actors and tasks.

    Args:
        work: work that the tasks belong to.
        start: makes a worker.
    """

    def __init__(self, work: Work, start: Callable[..., Any]) -> None:
        tags = labels(work, start)
        self._gauges = {
            name: Gauge(f"fewchannels_{name}", description, _LABELS).set_default_tags(tags)
            for name, description in _POOL.items()
        }
        self._told = -math.inf

    def tell(self, values: dict[str, int], *, at_once: bool = False) -> None:
        """Set the gauges, at most once a second.

        Args:
            values: values of all of them, by name.
            at_once: even within that second.
        """
        if at_once or time.monotonic() >= self._told + _POOL_S:
            self._told = time.monotonic()
            for name, gauge in self._gauges.items():
                gauge.set(values[name])


class _JsonLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        about = {"time": at, "level": record.levelname, "event": record.getMessage(), **vars(record).get("about", {})}
        return json.dumps(about, default=str)


class _StandardError(logging.Handler):
    """Writes to the current standard error, which tests and notebooks replace."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # a line that cannot be written must not fail a task
            self.handleError(record)


def _logger() -> logging.Logger:
    logger = logging.getLogger("fewchannels")
    if not any(isinstance(each, _StandardError) for each in logger.handlers):
        handler = _StandardError()
        handler.setFormatter(_JsonLine())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # otherwise, a handler of the root logger would write each line again
    return logger


def _add(counter: Metric, value: int) -> None:
    if value:  # Ray's counters reject 0
        counter.inc(value)


def _gpu_bytes() -> int | None:
    """GPU memory that PyTorch uses in this process; None without a GPU. Does not import PyTorch or start CUDA."""
    torch = sys.modules.get("torch")
    return torch.cuda.memory_reserved() if torch and torch.cuda.is_initialized() else None
