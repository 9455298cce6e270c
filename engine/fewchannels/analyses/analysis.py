"""Analyses: the protocol, and running one. Units run on workers, then the end; all is written to ``results/``."""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

from fewchannels.analyses.evidence import Evidence, open_evidence
from fewchannels.analyses.selection import Selected
from fewchannels.analyses.summary import Summary
from fewchannels.cluster.parallel import one_thread, spread
from fewchannels.cluster.shares import Pool
from fewchannels.runs.identity import in_short
from fewchannels.runs.lease import check_held, hold
from fewchannels.runs.results import Results
from fewchannels.tables import Columns, schema, to_parquet


class Analysis(Protocol):
    """An analysis: a frozen dataclass of settings with methods that compute its units and summarize them."""

    @property
    def name(self) -> str:
        """Name of the analysis, such as ``stability``."""

    @property
    def schemas(self) -> Mapping[str, str]:
        """The schema of each of its tables, by table."""

    def identity(self, selected: Selected) -> dict[str, Any]:
        """Settings that determine its numbers in addition to the selection, as plain values."""

    def check(self, selected: Selected) -> None:
        """Reject a run that lacks the necessary data; raises InputError. Reads only."""

    def units(self, selected: Selected) -> list[int]:
        """Units of work that can be computed separately: tasks, or layers."""

    def unit(self, selected: Selected, results: Results, unit: int, device: str) -> dict[str, Columns]:
        """Compute one unit: its tables' columns. A pure function of its arguments, on any worker.

        ``device`` is the device of the worker's share; analyses that are fast on a CPU may ignore it.
        """

    def means(self, selected: Selected, results: Results) -> dict[str, Columns]:
        """Further tables' columns, by table, from the parts of all units."""

    def end(self, selected: Selected, results: Results, evidence: Evidence) -> Summary:
        """Summarize the result. ``evidence`` is the run with the tables of this result, which is not finished yet."""


Progress = Callable[[int, int], None]
_Made = TypeVar("_Made")


def analyze(
    analysis: Analysis,
    selected: Selected,
    label: str,
    pool: Pool,
    *,
    replace: bool = False,
    on_progress: Progress = lambda done, total: None,
) -> Summary:
    """Compute the unfinished units of an analysis, and write its result. Call it again to resume.

    Args:
        analysis: analysis with its settings.
        selected: selected part of the run.
        label: label of the result.
        pool: pool of workers; a single worker runs in this process, without Ray.
        replace: whether to delete an existing result with this label and start over.
        on_progress: called with the units done so far and in all.

    Raises:
        InputError: the run lacks the necessary data.
        RunConflictError: the label has a result with other settings, or another command is writing to it.
    """
    analysis.check(selected)
    results = Results(selected.storage, label)
    settings: dict[str, Any] = {"analysis": analysis.name, "settings": plain(analysis.identity(selected))}
    columns = {table: schema(name).names for table, name in analysis.schemas.items()}
    with hold(results.place) as token:
        done = results.begin(settings | {"selected": selected.identity(), "columns": columns}, replace=replace)
        units = analysis.units(selected)
        if any(unit not in done for unit in units):
            results.reopen()
        started = time.monotonic()
        work_off(partial(_work, analysis, selected, results, token, pool.device), units, done, pool, on_progress)
        about = settings | {
            "settings": in_short(settings["settings"]),
            "seconds": round(time.monotonic() - started, 2),
            "versions": versions() | {"device": pool.device},
        }
        tables = {f"{table}/all.parquet": columns for table, columns in analysis.means(selected, results).items()}
        parquet = {
            name: bytes(to_parquet(analysis.schemas[name.partition("/")[0]], each)) for name, each in tables.items()
        }
        about |= {"selected": selected.identity()}
        end = partial(analysis.end, selected, results)
        return finish(results, selected.run, about, analysis.schemas, parquet, end, token)


@dataclass(frozen=True)
class Foreseen:
    """Estimate of an analysis's duration and size, from its first unit.

    Attributes:
        n_samples: number of samples to analyze.
        n_units: number of units.
        seconds: duration of all units with the pool's workers, without the start of Ray and the final figures.
        table_bytes: size in bytes of the units' tables.
    """

    n_samples: int
    n_units: int
    seconds: float
    table_bytes: int


def foresee(analysis: Analysis, selected: Selected, label: str, pool: Pool) -> Foreseen:
    """Compute the first unit without writing it, and extrapolate its duration and size.

    Raises:
        InputError: the run lacks the necessary data.
    """
    analysis.check(selected)
    units = analysis.units(selected)
    started = time.monotonic()
    device = pool.device if pool.address is None else "cpu"  # a cluster's GPU is not here
    with one_thread():
        tables = analysis.unit(selected, Results(selected.storage, label), units[0], device)
    seconds = (time.monotonic() - started) * len(units) / min(pool.n_actors, len(units))
    n_bytes = sum(len(to_parquet(analysis.schemas[table], columns)) for table, columns in tables.items())
    return Foreseen(len(selected.samples), len(units), seconds, n_bytes * len(units))


def plain(value: Any) -> Any:
    """Convert values to those of JSON: tuples become lists."""
    return json.loads(json.dumps(value))


def versions() -> dict[str, str]:
    """Versions of the libraries that do the arithmetic."""
    return {name: version(name) for name in ("fewchannels", "numpy", "torch", "scipy")}


def _work(analysis: Analysis, selected: Selected, results: Results, token: str, device: str, unit: int) -> None:
    tables = analysis.unit(selected, results, unit, device)
    check_held(results.place, token)
    results.write_unit(unit, tables, analysis.schemas)


def work_off(
    work: Callable[[int], _Made],
    units: Sequence[int],
    done: Collection[int],
    pool: Pool,
    on_progress: Progress,
    take: Callable[[int, _Made], None] = lambda unit, made: None,
) -> None:
    """Compute the unfinished units on workers.

    Args:
        work: function that computes a unit and writes or returns its result.
        units: all units.
        done: units that an earlier call finished.
        pool: pool of workers.
        on_progress: called with the units done so far and in all.
        take: called in this process with each unit and its returned result.
    """
    waiting = [unit for unit in units if unit not in done]
    n_done = len(units) - len(waiting)
    on_progress(n_done, len(units))
    for n, (unit, made) in enumerate(spread(work, waiting, pool), start=n_done + 1):
        take(unit, made)
        on_progress(n, len(units))


def finish(
    results: Results,
    place: str,
    about: dict[str, Any],
    schemas: Mapping[str, str],
    parquet: Mapping[str, bytes],
    end: Callable[[Evidence], Summary],
    token: str,
) -> Summary:
    """Write the combined results of all units: tables, summary and figures, and last the document that lists them.

    Args:
        results: location of the result.
        place: location of the run or the comparison.
        about: content of the document, without the numbers.
        schemas: the schema of each table, by table.
        parquet: tables of all units as Parquet, by file name.
        end: function that summarizes the result, given evidence with these tables.
        token: token of the lease.
    """
    check_held(results.place, token)
    stored = results.put(parquet)
    evidence = open_evidence(place, results.pending(results.content(about, schemas, stored)))
    with evidence.catalog:
        summary = end(evidence)
    check_held(results.place, token)
    files = summary.files | {"summary.md": summary.text.encode()}
    results.end(about | {"numbers": summary.numbers}, schemas, files, stored)
    return summary
