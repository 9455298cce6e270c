"""Repair, which removes records so that their command redoes the work; it never removes the objects that they name.

Manifests, arrays, tables, images, masks and the user's own files are kept, damaged or not: recreated objects replace
them, and objects that cannot be recreated are still available for manual repair.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from fewchannels.errors import StorageError
from fewchannels.runs.description import MANIFEST
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.parts import FOLDER as COMPACTIONS
from fewchannels.runs.results import BEGUN, FOLDER
from fewchannels.runs.storage import Storage
from fewchannels.runs.upkeep.checked_results import records_of
from fewchannels.runs.upkeep.problems import Report

_SHOWN = 10


@dataclass(frozen=True)
class Repair:
    """Plan of a repair.

    Attributes:
        removed: keys of records, in the order in which they are removed; any prefix of this list may be removed alone.
        steps: next steps for the user, one sentence each.
    """

    removed: tuple[str, ...]
    steps: tuple[str, ...]


def plan(report: Report, place: str) -> Repair:
    """Plan the repair of a damaged run or sweep: records to remove, and commands that recreate them. Removes nothing.

    Args:
        report: result of :func:`fewchannels.runs.upkeep.verify.verify`.
        place: location of the run or the sweep, as given to its commands.
    """
    keys = {problem.key for problem in report.problems}
    records = [Ledger.key(task) for task in report.tasks]
    compactions = sorted(key for key in keys if re.fullmatch(rf"{COMPACTIONS}\d+-\d+\.json", key))
    results = [key for label in report.analyses for key in records_of(report.problems, label)]
    return Repair((*records, *compactions, *results), tuple(_steps(report, keys, shlex.quote(place))))


def repair(storage: Storage, planned: Repair) -> None:
    """Remove the planned records. Only while nothing else writes; safe to repeat, and to resume after an error.

    Raises:
        StorageError: writing failed.
    """
    storage.delete(planned.removed)


def check_report(report: Report, place: str) -> None:
    """Raise if something is damaged.

    Raises:
        StorageError: saying how much, and the remedy.
    """
    if not report.problems:
        return
    planned = plan(report, place)
    keys = {problem.key for problem in report.problems}
    of_tasks = f", of the tasks {_listed(report.tasks)}" if report.tasks else ""
    first = ""
    if planned.removed:
        first = (
            f"fewchannels runs verify {shlex.quote(place)} --repair removes the records of what is damaged "
            "(with --dry-run, it only lists them), so that it can be recreated. Then: "
        )
    raise StorageError(
        f"{place!r} has {len(keys)} damaged object{'s' * (len(keys) != 1)}{of_tasks}. {first}{' '.join(planned.steps)}"
    )


def _steps(report: Report, keys: set[str], place: str) -> Iterator[str]:
    shared = {p.key for p in report.problems if p.task is None and not p.key.startswith((FOLDER, "ledger/"))}
    again = f"the {report.made_by} command"
    rest = [key for key in shared if not key.endswith(MANIFEST)]
    if len(rest) < len(shared):
        yield (
            f"{MANIFEST} is damaged but not removed, as it cannot be recreated from the rest. Restore it from a copy, "
            f"or rerun {again} with the original manifest, which rewrites it."
        )
    if report.tasks or rest:
        done = f"the tasks {_listed(report.tasks)}" if report.tasks else "the shared files"
        yield f"Rerun {again} with the same settings; it recreates {done}."
    for label, analysis in report.analyses.items():
        begun = f"{FOLDER}{label}/{BEGUN}" in keys
        yield _of_result(label, analysis, place, replace=begun)


def _of_result(label: str, analysis: str, place: str, *, replace: bool) -> str:
    if label == "effects":
        return f"Run fewchannels plot {place}, which recreates the result {label!r}."
    named = f" --label {label}" if label != analysis else ""
    command = f"fewchannels analyze {analysis or 'ANALYSIS'} {place}{named}{' --replace' * replace}"
    files = " Masks from files are read again, so first check that the files exist." * (analysis == "masks")
    return f"Run {command} with its original settings, which recreates the result {label!r}.{files}"


def _listed(tasks: list[int]) -> str:
    return ", ".join(map(str, tasks[:_SHOWN])) + (", ..." if len(tasks) > _SHOWN else "")
