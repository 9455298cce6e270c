"""``fewchannels runs verify``: check that every object of a run is present and unchanged."""

import dataclasses
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from fewchannels import machine
from fewchannels.cli.console import errors, left_over, print_json, progress_bar, results, say
from fewchannels.cli.options import ruled
from fewchannels.cli.tables import Column, Wide, print_table
from fewchannels.errors import InputError, StorageError
from fewchannels.settings.ranges import within
from fewchannels.settings.units import size

if TYPE_CHECKING:
    from fewchannels.runs.storage import Storage
    from fewchannels.runs.upkeep.problems import Report
    from fewchannels.runs.upkeep.repair import Repair

_SHOWN = 20
_RECOMPUTED = within(0, 1_000_000, "Regenerate at least this many samples and compare them.")
TOLERANCE = 1e-3


def verify(
    run: Annotated[str, typer.Argument(help="Folder or URL of the run.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Check only presence and sizes, without reading contents.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Remove the records of damaged tasks and results, so that rerunning their command recreates them.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --repair: only list the records that it would remove.")
    ] = False,
    recompute: Annotated[int, ruled(_RECOMPUTED)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    wide: Wide = False,
) -> None:
    """Check every object of a run against its record. Exit code 4 means that something is damaged.

    --repair removes only records: never data, a manifest, or a file that does not belong to the run.

    Example: fewchannels runs verify RUN --repair
    """
    from fewchannels.runs.lease import hold
    from fewchannels.runs.storage import open_storage
    from fewchannels.runs.upkeep.repair import plan
    from fewchannels.runs.upkeep.repair import repair as remove_records
    from fewchannels.runs.upkeep.verify import check_exists

    if dry_run and not repair:
        raise InputError("--dry-run needs --repair. Pass both, or neither.")
    storage = open_storage(run)
    check_exists(storage)
    # Check again under the lease: remove only what is damaged while nobody else writes.
    with hold(storage, on_wait=say) if repair and not dry_run else nullcontext():
        report = _verified(storage, quick)
        planned = plan(report, run) if repair and report.problems else None
        compared = _recomputed(storage, recompute) if recompute and not report.problems else None
        if as_json:
            content = dataclasses.asdict(report) | {"tasks": report.tasks, "recomputed": compared}
            content["repair"] = planned and dataclasses.asdict(planned)
            print_json(content)
        else:
            _print(run, report, quick, compared, wide)
            if planned:
                _print_removed(planned, dry_run)
        if planned and not dry_run:
            remove_records(storage, planned)
    _end(run, report, planned, dry_run)
    if compared and compared["largest_difference"] > TOLERANCE:
        raise StorageError(f"regenerated samples differ by more than {TOLERANCE:g} from those in {run!r}.")


def _verified(storage: "Storage", quick: bool) -> "Report":
    from fewchannels.runs.upkeep.verify import verify

    with progress_bar() as bar:
        shown = bar.add_task("verifying", total=None, rate="")
        return verify(
            storage, quick=quick, on_progress=lambda done, total: bar.update(shown, completed=done, total=total)
        )


def _recomputed(storage: "Storage", n_samples: int) -> dict[str, float]:
    with errors.status("loading the model"):
        from fewchannels.captures.recompute import recompute, summary
        from fewchannels.cluster.sizing import choose_pool
    threads = choose_pool(None, None).cpus_per_actor
    with progress_bar() as bar:
        shown = bar.add_task("regenerating samples", total=None, rate="")
        return summary(
            recompute(
                storage,
                n_samples,
                min(threads, machine.processors()),
                lambda done, total: bar.update(shown, completed=done, total=total),
            )
        )


def _print(run: str, report: "Report", quick: bool, compared: dict[str, float] | None, is_wide: bool) -> None:
    if report.problems:
        there = report.problems[:_SHOWN]
        results.print(f"{run}: damaged", soft_wrap=True)
        print_table(
            [
                Column("object", [problem.key for problem in there], folds=True),
                Column("task", ["" if problem.task is None else str(problem.task) for problem in there]),
                Column("problem", [problem.kind for problem in there], wraps=True),
                Column("detail", [problem.detail for problem in there], folds=True),
            ],
            is_wide,
        )
        if len(report.problems) > _SHOWN:
            results.print(f"and {len(report.problems) - _SHOWN} more; --json prints all of them")
    checked = "presence and sizes" if quick else "every byte"
    results.print(
        f"{report.n_recorded:,} of {report.n_tasks:,} tasks have a record; {report.n_objects:,} objects, "
        f"{size(report.n_bytes)}: {checked} checked, {len(report.problems):,} damaged",
        soft_wrap=True,
    )
    if report.unrecorded:
        results.print(
            f"{len(report.unrecorded):,} objects have no record: unfinished tasks left them, and the next capture "
            "overwrites them",
            soft_wrap=True,
        )
    if report.left_over:
        results.print(left_over(report.left_over), soft_wrap=True)
    if compared:
        results.print(
            f"{compared['n_samples']} samples regenerated: {compared['n_equal']} bit-identical; "
            f"largest difference {compared['largest_difference']:.2g} of an array's largest value; "
            f"{compared['n_other_channels']} cells with different channels",
            soft_wrap=True,
        )


def _print_removed(planned: "Repair", dry_run: bool) -> None:
    if not planned.removed:
        results.print("nothing to remove: none of the damage is in a record", soft_wrap=True)
        return
    results.print(f"records {'to remove' if dry_run else 'removed'}:")
    for key in planned.removed:
        results.print(f"  {key}", soft_wrap=True)


def _end(run: str, report: "Report", planned: "Repair | None", dry_run: bool) -> None:
    from fewchannels.runs.upkeep.repair import check_report

    if planned is None or dry_run:
        check_report(report, run)
        return
    n = len(planned.removed)
    done = f"{n} record{'s' * (n != 1)} {'is' if n == 1 else 'are'} removed" if n else "nothing was removed"
    raise StorageError(f"{run!r} was damaged; {done}. {' '.join(planned.steps)}")
