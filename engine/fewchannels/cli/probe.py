"""``fewchannels probe``: disturb channels, and see what happens to the image."""

from typing import Annotated

import typer

from fewchannels.cli import sweeps
from fewchannels.cli.commands import Commands
from fewchannels.cli.console import errors, say
from fewchannels.cli.options import Actors, As, Fields, Given, option
from fewchannels.cli.tables import Wide
from fewchannels.cli.unused import refuse_unused
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.settings import SweepSettings

app = Commands(no_args_is_help=True)
GRID = Fields(
    Grid,
    {
        "actions": As("--action", about="zero, mean, shuffle, scale:F, guide; comma-separated for more."),
        "amounts": As("--amount", about="How far values go toward that, 1: all the way; comma-separated."),
        "selections": As("--selection"),
        "layers": As(shown="all"),
        "steps": As(shown="all"),
        "streams": As(shown="image"),
        "tokens": As(about="all, foreground, background (of two clusters), inside, outside (the manifest's mask)."),
    },
    without=("scores_from", "placements"),
    panels={Grid: "What is edited"},
)


def register(commands: typer.Typer) -> None:
    """Add the group to the command line."""
    commands.add_typer(app, name="probe", help="Disturb channels, and see what happens to the image.")


@app.callback()
def _group() -> None:
    """Edit hidden states while images are generated. Every effect has controls; interrupted sweeps resume."""


@app.command()
def disruption(
    manifest: sweeps.Manifest,
    out: sweeps.Out,
    grid: Annotated[Given, GRID],
    measured: sweeps.Measured,
    generated: sweeps.Generated,
    actors: Actors,
    protocol: Annotated[
        str | None, typer.Option(help="turri2026 or gan2025: a published protocol, in place of the settings below.")
    ] = None,
    config: sweeps.Config = None,
    channels_from: Annotated[
        str,
        option(
            SweepSettings,
            "channels_run",
            about="Whose scores rank channels: undisturbed, own, or a captured RUN (its means, by layer).",
        ),
    ] = "undisturbed",
    dry_run: sweeps.DryRun = False,
    as_json: sweeps.AsJson = False,
    wide: Wide = False,
) -> None:
    """Zero, flatten, shuffle or scale channels of every sample, and compare with the undisturbed image.

    Run the same command again to resume. Exit code 5 means that samples are missing or failed.

    Example: fewchannels probe disruption --manifest manifest.parquet --out SWEEP --k 4,8,16
    """
    with errors.status("checking the manifest and the model"):
        from fewchannels.cluster.sizing import choose_pool
        from fewchannels.errors import InputError, unknown
        from fewchannels.interventions.protocols import PROTOCOLS
        from fewchannels.interventions.settings import generation, grids_of
        from fewchannels.interventions.sweep import prepare_sweep

        if protocol is not None and protocol not in PROTOCOLS:
            raise unknown("protocol", protocol, PROTOCOLS)
        run = None if channels_from in ("undisturbed", "own") else channels_from
        in_file = grids_of(config)
        if protocol is not None:
            if PROTOCOLS[protocol].needs_run and run is None:
                raise InputError(f"protocol {protocol} fixes channels from a capture; give --channels-from RUN.")
            if in_file:
                raise InputError(
                    f"protocol is {protocol}, and {str(config)!r} has grids as well. Leave one of them out."
                )
            whose = [] if PROTOCOLS[protocol].needs_run else ["--channels-from"]
            refuse_unused([*GRID.flags(), *whose], f"the protocol {protocol} says what is edited")
            grids = PROTOCOLS[protocol].grids
        elif in_file:
            refuse_unused(GRID.flags(), f"the grids of {config} say what is edited")
            if run is None:
                refuse_unused(["--channels-from"], f"the grids of {config} say whose scores rank channels")
            grids = in_file
        else:
            sweeps.check_grid(grid)
            grids = (Grid(**grid, scores_from=("run" if run else channels_from,)),)
        settings = SweepSettings(
            kind="disruption",
            generation=generation(config, generated),
            grids=grids,
            protocol=protocol,
            channels_run=run,
            **measured,
        )
        prepared = prepare_sweep(manifest, out, settings)
        pool = choose_pool(**actors)
    if protocol is not None:
        about = PROTOCOLS[protocol]
        say(f"{protocol} ({about.source}): {about.published}. Not published: {about.unpublished}.")
    sweeps.run_sweep(prepared, pool, dry_run=dry_run, as_json=as_json, is_wide=wide)
