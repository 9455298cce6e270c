"""``fewchannels runs verify``: is everything there, and as it was written?"""

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fewchannels.cli.console import errors, progress_bar, results, say
from fewchannels.errors import StorageError
from fewchannels.units import size

if TYPE_CHECKING:
    from fewchannels.runs.storage import Storage
    from fewchannels.runs.upkeep.verify import Report

_SHOWN = 20
TOLERANCE = 1e-3


def verify(
    run: Annotated[str, typer.Argument(help="Folder or URL of the run.")],
    quick: Annotated[bool, typer.Option("--quick", help="Presence and sizes only; no byte is read.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop damaged tasks' records, so that the next capture redoes them.")
    ] = False,
    recompute: Annotated[int, typer.Option(help="Generate at least so many samples again and compare.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Check every record of a run against every object it names. Exit code 4 says that something is damaged.

    Example: fewchannels runs verify RUN --repair
    """
    from fewchannels.runs.storage import open_storage

    storage = open_storage(run)
    report = _verified(storage, quick)
    compared = _recomputed(storage, recompute) if recompute and not report.problems else None
    if as_json:
        results.print_json(json.dumps(dataclasses.asdict(report) | {"tasks": report.tasks, "recomputed": compared}))
    else:
        _print(run, report, quick)
        if compared:
            results.print(
                f"{compared['n_samples']} samples generated again: {compared['n_equal']} equal to the last bit; "
                f"largest difference {compared['largest_difference']:.2g} of an array's largest value; "
                f"{compared['n_other_channels']} cells with other channels",
                soft_wrap=True,
            )
    if report.problems:
        _end_damaged(storage, run, report, repair)
    if compared and compared["largest_difference"] > TOLERANCE:
        raise StorageError(f"samples generated again differ by more than {TOLERANCE:g} from what {run!r} holds.")


def _verified(storage: "Storage", quick: bool) -> "Report":
    from fewchannels.runs.upkeep.verify import verify

    with progress_bar() as bar:
        shown = bar.add_task("verifying", total=None, rate="")
        return verify(
            storage, quick=quick, on_progress=lambda done, total: bar.update(shown, completed=done, total=total)
        )


def _recomputed(storage: "Storage", n_samples: int) -> dict[str, float]:
    with errors.status("loading the model"):
        from fewchannels.capture.recompute import recompute, summary
        from fewchannels.cluster.session import choose_pool
    threads = choose_pool(None, None).cpus_per_actor
    with progress_bar() as bar:
        shown = bar.add_task("generating again", total=None, rate="")
        return summary(
            recompute(
                storage,
                n_samples,
                min(threads, os.cpu_count() or 1),
                lambda done, total: bar.update(shown, completed=done, total=total),
            )
        )


def _print(run: str, report: "Report", quick: bool) -> None:
    if report.problems:
        table = Table(title=f"{run}: damaged", title_justify="left")
        for name in ("object", "task", "problem", "detail"):
            table.add_column(name, overflow="fold")
        for problem in report.problems[:_SHOWN]:
            table.add_row(problem.key, "" if problem.task is None else str(problem.task), problem.kind, problem.detail)
        results.print(table)
        if len(report.problems) > _SHOWN:
            results.print(f"and {len(report.problems) - _SHOWN} more; --json prints all of them")
    checked = "presence and sizes" if quick else "every byte"
    results.print(
        f"{report.n_recorded:,} of {report.n_tasks:,} tasks have a record; {report.n_objects:,} objects, "
        f"{size(report.n_bytes)}: {checked} checked, {len(report.problems):,} damaged",
        markup=False,
        soft_wrap=True,
    )
    if report.unrecorded:
        results.print(
            f"{len(report.unrecorded):,} objects belong to no record: unfinished tasks left them, and the next capture "
            "writes them anew",
            soft_wrap=True,
        )


def _end_damaged(storage: "Storage", run: str, report: "Report", repair: bool) -> None:
    from fewchannels.runs.lease import hold
    from fewchannels.runs.upkeep.verify import check_report
    from fewchannels.runs.upkeep.verify import repair as drop_records

    if not repair:
        check_report(report, run)
    with hold(storage, on_wait=say):
        drop_records(storage, report)
    tasks = ", ".join(map(str, report.tasks[:_SHOWN])) + (", ..." if len(report.tasks) > _SHOWN else "")
    raise StorageError(
        f"{run!r} was damaged; "
        + (f"the tasks {tasks} have no record any more" if tasks else "what the whole run shares is dropped")
        + ". Run the capture's command again to redo them."
    )
