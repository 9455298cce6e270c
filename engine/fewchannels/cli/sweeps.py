"""Shared by ``fewchannels probe`` and ``transport``: options, running a sweep, and measuring its effects."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewchannels.cli.console import duration, errors, note, print_json, progress_bar, results, say
from fewchannels.cli.options import OF_THE_MODEL, As, Fields, Given, option
from fewchannels.cli.progress import RunBar
from fewchannels.cli.tables import Column, print_page, print_table
from fewchannels.cli.unused import refuse_unused
from fewchannels.cluster.shares import Pool
from fewchannels.interventions.settings import SweepSettings, unused
from fewchannels.models.generation import Generation
from fewchannels.models.load_options import Loading
from fewchannels.settings.units import size

if TYPE_CHECKING:
    from fewchannels.analyses.summary import Summary
    from fewchannels.interventions.estimate import Cost
    from fewchannels.interventions.sweep import Prepared
    from fewchannels.runs.storage import Storage

Manifest = Annotated[Path, typer.Option(help="Parquet manifest, from fewchannels manifest ingest.")]
Out = Annotated[str, typer.Option(help="Folder or URL of the sweep. If it exists, the sweep resumes.")]
Config = Annotated[
    Path | None, typer.Option(help="YAML file with generation settings and grids, a list of settings to combine.")
]
Generated = Annotated[
    Given,
    Fields(
        Generation,
        {
            **OF_THE_MODEL,
            "batch_size": As(about="Images per batch, including unedited, source and blended ones.", shown="16"),
        },
        in_file=True,
        panels={Generation: "Images", Loading: "How the model is loaded"},
    ),
]
Measured = Annotated[Given, Fields(SweepSettings, {"metrics": As("--metric")}, only=("score", "cluster_k", "metrics"))]
Metrics = Annotated[list[str] | None, option(SweepSettings, "metrics", "--metric")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Generate one batch and print the estimated images, batches, size and time; write nothing."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")]

_FLAGS = {"amounts": ["--amount"], "scores_from": ["--scores-from", "--channels-from"]}


def check_grid(grid: Given) -> None:
    """Reject options of a grid that none of its selections and actions uses.

    Args:
        grid: fields of the grid, not validated yet.

    Raises:
        InputError: an unused option was given; the message names the first.
    """
    for name, why in unused(grid):
        refuse_unused(_FLAGS.get(name, [f"--{name.replace('_', '-')}"]), why)


def run_sweep(prepared: "Prepared", pool: Pool, *, dry_run: bool, as_json: bool, is_wide: bool) -> None:
    """Run the remaining tasks of a prepared sweep, measure its effects, and print them."""
    from fewchannels.interventions import run

    sweep = prepared.sweep
    run.check_memory(sweep, pool)
    if dry_run:
        _print_cost(prepared, pool, as_json, is_wide)
        return
    n, items = len(sweep.conditions), "pairs" if sweep.has_source else "samples"
    with RunBar(sweep.place, "editing", "images", sweep.n_items, n) as bar, ExitStack() as measuring:

        def on_begun(resumed: bool) -> None:
            bar.begin(
                f"{'resuming' if resumed else 'editing'} {sweep.n_items} {items} under {n} condition{'s' * (n > 1)}: "
                f"{sweep.n_edits} edited images in {sweep.n_tasks} tasks, "
                f"{pool.in_words(is_here=pool.is_here(sweep.n_tasks))}"
            )

        def on_ended() -> Callable[[int, int], None]:
            bar.stop()
            return measuring.enter_context(_measuring())

        outcome, summary = run.run_sweep(
            prepared, pool, on_wait=bar.wait, on_begun=on_begun, on_progress=bar.show, on_note=note, on_ended=on_ended
        )
    if as_json:
        content = dataclasses.asdict(outcome) | {"effects": summary.numbers if summary else None}
        print_json(content)
    else:
        if summary:
            print_page(summary.headlines, summary.text, is_wide)
        say(
            f"{outcome.n_done} of {outcome.n_samples} items are in {sweep.place}; the whole summary and figures are in "
            "results/effects/."
        )
    outcome.check_complete()


@contextmanager
def _measuring() -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar of the effects; yield a callback of units done and units in total."""
    with progress_bar() as bar:
        shown = bar.add_task("computing effects and figures", total=None, rate="")
        yield lambda done, total: bar.update(shown, completed=done, total=total)


def effects(storage: "Storage", metrics: Sequence[str]) -> "Summary":
    """Compute a sweep's effects over its finished items, with a progress bar."""
    from fewchannels.interventions.effects.measure import end_sweep

    with _measuring() as on_progress:
        return end_sweep(storage, metrics, on_progress)


def _print_cost(prepared: "Prepared", pool: Pool, as_json: bool, is_wide: bool) -> None:
    from fewchannels.interventions.estimate import cost

    with errors.status("timing one batch"):
        expected: Cost = cost(prepared, pool.n_actors, pool.cpus_per_actor, pool.device)
    if as_json:
        print_json(dataclasses.asdict(expected))
        return
    sweep = prepared.sweep
    kinds: dict[tuple[str, ...], int] = {}
    for i, condition in enumerate(sweep.conditions):
        row = condition.row(i)
        key = tuple(str(row[each]) for each in ("action", "selection", "k", "layers_name", "steps_name", "tokens"))
        kinds[key] = kinds.get(key, 0) + 1
    results.print(f"Estimated contents of {sweep.place}", soft_wrap=True)
    heads = ("action", "selection", "k", "layers", "steps", "tokens")
    columns = [Column(head, cells, wraps=True) for head, cells in zip(heads, zip(*kinds, strict=True), strict=True)]
    print_table([*columns, Column("conditions", [str(n) for n in kinds.values()], is_right=True)], is_wide)
    results.print(
        f"{expected.n_items} items x {expected.n_conditions} conditions = {expected.n_edits} edited images, "
        f"{expected.n_rows} rows in {expected.n_batches} batches ({expected.rows_per_edit:.2f} rows per edit), about "
        f"{size(expected.total_bytes)} and {duration(expected.seconds)} with {pool.n_actors} "
        f"actor{'s' * (pool.n_actors > 1)} ({expected.seconds_per_row:.3g} s per row, measured on "
        f"{expected.measured_rows}, without loading the model, starting Ray and drawing figures).",
        soft_wrap=True,
    )
