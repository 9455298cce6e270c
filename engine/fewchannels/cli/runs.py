"""``fewchannels runs``: show runs on disk."""

from typing import Annotated

import typer
from rich.table import Table

from fewchannels.cli import hub, upkeep, verify
from fewchannels.cli.commands import Commands
from fewchannels.cli.console import left_over, print_json, results
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
