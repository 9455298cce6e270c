"""Shared by the benchmarks: options, rounds in rotating order, ratios, and the file that they write.

A file holds ``machine``, ``versions``, ``settings``, ``rows`` (what was measured, by name) and ``ratios``: of one row's
numbers to another's, each with the numbers that it is made of (``of``) and how (``by``):

- ``rounds``: the median of the rounds' ratios, with their minimum and maximum;
- ``median``: ratio of medians;
- ``least``: ratio of minimums.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

Row = dict[str, Any]
Rows = dict[str, Row]
_Work = TypeVar("_Work")
_Found = TypeVar("_Found")
_LOAD = os.getloadavg()[0]  # before anything is measured


def options(about: str) -> argparse.ArgumentParser:
    """A parser that prints all of a benchmark's docstring and knows ``--json``."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="to write, with machine, settings, rows and ratios")
    return parser


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rotated(
    works: Mapping[str, _Work], n_rounds: int, measure: Callable[[_Work], _Found] = timed
) -> dict[str, list[_Found]]:
    """Measure each function once per round; each round starts with another one. Returns all results, by name."""
    found: dict[str, list[_Found]] = {name: [] for name in works}
    names = list(works)
    for i in range(n_rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(measure(works[name]))
    return found


def ratio(rows: Rows, row: str, to: str, *, of: str = "seconds", by: str = "rounds") -> dict[str, Any]:
    """Ratio of one row's numbers to another's, in the format of the file.

    Args:
        rows: the measurements, which include both rows.
        row: name of the numerator.
        to: name of the denominator, the plain way; its ratio to itself is 1.
        of: name of the numbers in both rows; a single number is one round.
        by: ``rounds``, ``median`` or ``least``.
    """
    above, below = (_numbers(rows[name][of]) for name in (row, to))
    about = {"row": row, "to": to, "of": of, "by": by}
    if by == "rounds":
        each = [a / b for a, b in zip(above, below, strict=True)]
        return about | {"ratio": statistics.median(each), "least": min(each), "most": max(each)}
    one = {"median": statistics.median, "least": min}[by]
    return about | {"ratio": one(above) / one(below)}


def _numbers(value: float | Sequence[float]) -> Sequence[float]:
    return value if isinstance(value, Sequence) else [value]


def meet(folder: Path, n: int, within_s: float = 600.0) -> None:
    """Wait until this number of processes have a file in a folder; the newest one shows when all had arrived."""
    until = time.monotonic() + within_s
    (folder / str(os.getpid())).touch()
    while sum(1 for _ in folder.iterdir()) < n:
        assert time.monotonic() < until, "the others do not come"
        time.sleep(0.01)


def newest(folder: Path) -> float:
    """When the last file of a folder was written."""
    return max(path.stat().st_mtime for path in folder.iterdir())


def save(chosen: argparse.Namespace, libraries: Sequence[str], rows: Rows, ratios: Sequence[Row]) -> None:
    """Write the file that ``--json`` asks for; nothing without it.

    Args:
        chosen: the settings.
        libraries: libraries whose versions matter.
        rows: the measurements.
        ratios: ratios of them, from :func:`ratio`.
    """
    if chosen.json is None:
        return
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(chosen).items()}
    del settings["json"]
    machine = {"kind": platform.machine(), "processor": _processor(), "cpus": os.cpu_count(), "load_before": _LOAD}
    versions = {"python": platform.python_version()} | {name: version(name) for name in libraries}
    about = {"machine": machine, "versions": versions, "settings": settings}
    content = json.dumps(about | {"rows": rows, "ratios": list(ratios)}, indent=1)
    chosen.json.write_text(content + "\n", encoding="utf-8")


def _processor() -> str:
    """Name of the processor, if Linux reports it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
