"""``fewchannels runs``: show runs on disk."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from fewchannels.cli import hub, upkeep, verify
from fewchannels.cli.commands import Commands
from fewchannels.cli.console import left_over, note, print_json, results
from fewchannels.cli.tables import Column, Wide, print_table
from fewchannels.settings.indices import in_short
from fewchannels.settings.units import size

app = Commands(no_args_is_help=True)
app.command("verify")(verify.verify)
app.command("merge")(upkeep.merge)
app.command("compact")(upkeep.compact)
app.command("export")(upkeep.export)
app.command("push")(hub.push)
app.command("pull")(hub.pull)


def register(commands: typer.Typer) -> None:
    """Register the command group."""
    commands.add_typer(app, name="runs", help="Show, check and maintain runs.")


@app.callback()
def _group() -> None:
    """Show, check and maintain runs."""


@app.command("list")
def list_runs(
    folder: Annotated[str, typer.Argument(help="Folder or URL that contains runs, at any depth.")] = ".",
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    wide: Wide = False,
) -> None:
    """List the runs, sweeps and comparisons in a folder: model, samples, progress and results.

    Example: fewchannels runs list runs
    """
    from fewchannels.runs.listing import listed

    found = listed(folder)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    unread = [each for each in found if each.error]
    read = [each for each in found if not each.error]
    columns = {
        "place": [each.place for each in read],
        "kind": [each.kind for each in read],
        "model": [each.model for each in read],
        "samples": ["" if each.n_samples is None else f"{each.n_samples:,}" for each in read],
        "tasks done": ["" if each.n_tasks is None else f"{each.n_tasks_done:,} of {each.n_tasks:,}" for each in read],
        "results": [", ".join(each.results) for each in read],
        "begun": [each.created[:16].replace("T", " ") for each in read],
    }
    if read:
        print_table(
            [
                Column(
                    head, cells, is_right=head == "samples", folds=head in ("place", "model"), wraps=head == "results"
                )
                for head, cells in columns.items()
            ],
            wide,
        )
    kinds = {kind: sum(each.kind == kind for each in read) for kind in ("run", "sweep", "comparison")}
    counted = ", ".join(f"{n:,} {kind}{'s' * (n != 1)}" for kind, n in kinds.items() if n)
    results.print(counted or f"no run, sweep or comparison in {folder}", soft_wrap=True)
    for each in unread:
        note(f"{each.place} cannot be read: {each.error}")


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Folder or URL of the run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show a run or a sweep: model, settings, progress, and size on disk.

    Example: fewchannels runs show RUN
    """
    from fewchannels.runs.description import SWEEP
    from fewchannels.runs.run import StoredRun
    from fewchannels.runs.storage import open_storage

    if open_storage(run).exists(SWEEP):
        _show_sweep(run, as_json)
        return
    about = StoredRun(run).summary()
    if as_json:
        print_json(about)
        return
    table = Table(title=run, title_justify="left", show_header=False)
    table.add_column("what", style="bold")
    table.add_column("value", overflow="fold")
    table.add_row("done", f"{about['n_done']:,} of {about['n_samples']:,} samples, {about['n_failed']:,} failed")
    table.add_row("tasks", f"{about['n_tasks_done']:,} of {about['n_tasks']:,}")
    table.add_row("model", f"{about['model']['name']} ({about['model']['family']})")
    table.add_row("weights", about["model"]["weights_sha256"])
    for name, value in about["config"].items():
        if name not in ("model", "revision") and value is not None:
            table.add_row(name, _indices(value) if isinstance(value, list) else str(value))
    table.add_row("kept", " x ".join(f"{about['geometry'][f'n_{d}']} {d}" for d in ("layers", "channels", "tokens")))
    table.add_row("on disk", f"{size(about['bytes'])} in {about['files']:,} files")
    if about["left_over"]:
        table.add_row("left over", left_over(about["left_over"]))
    if about["seconds_per_sample"] is not None:
        table.add_row("generation", f"{about['seconds_per_sample']:.3g} s a sample (mean)")
    if about["n_truncated"]:
        table.add_row("prompts truncated", f"{about['n_truncated']:,}: longer than the text encoder's limit")
    table.add_row("fingerprint", about["fingerprint"])
    table.add_row("begun", about["created"])
    table.add_row("created with", ", ".join(f"{name} {value}" for name, value in about["versions"].items()))
    for computed, n in about["computed_by"].items():
        table.add_row("computed by", f"{n:,} task{'s' * (n > 1)}: {computed}")
    results.print(table)


def _show_sweep(place: str, as_json: bool) -> None:
    from fewchannels.interventions.begin import summary
    from fewchannels.runs.storage import open_storage

    about = summary(open_storage(place))
    if as_json:
        print_json(about)
        return
    table = Table(title=place, title_justify="left", show_header=False)
    table.add_column("what", style="bold")
    table.add_column("value", overflow="fold")
    table.add_row("done", f"{about['n_done']:,} of {about['n_items']:,} items, {about['n_failed']:,} failed")
    table.add_row("tasks", f"{about['n_tasks_done']:,} of {about['n_tasks']:,}")
    table.add_row("kind", about["kind"] + (f", protocol {about['protocol']}" if about["protocol"] else ""))
    table.add_row("edits", f"{about['n_edits']:,}: {about['n_conditions']:,} conditions per item")
    table.add_row("model", f"{about['model']['name']} ({about['model']['family']})")
    for name, value in about["generation"].items():
        if value is not None:
            table.add_row(name, str(value))
    table.add_row("on disk", f"{size(about['bytes'])} in {about['files']:,} files")
    if about["left_over"]:
        table.add_row("left over", left_over(about["left_over"]))
    table.add_row("fingerprint", about["fingerprint"])
    table.add_row("begun", about["created"])
    table.add_row("created with", ", ".join(f"{name} {value}" for name, value in about["versions"].items()))
    for computed, n in about["computed_by"].items():
        table.add_row("computed by", f"{n:,} task{'s' * (n > 1)}: {computed}")
    results.print(table)


def _indices(values: list[int]) -> str:
    """Format ascending indices with ranges abbreviated: ``0-19, 25``."""
    return in_short(values).replace(",", ", ")
