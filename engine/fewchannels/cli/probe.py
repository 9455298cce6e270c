"""``fewchannels probe``: ablate channels and measure the effect on the image."""

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
        "actions": As(
            "--action", about="Ablation: zero, mean, shuffle (resample), scale:F or guide; comma-separated for more."
        ),
        "amounts": As("--amount", about="Edit strength, 0 (none) to 1 (full replacement); comma-separated for more."),
        "selections": As("--selection"),
        "layers": As(shown="all"),
        "steps": As(shown="all"),
        "streams": As(shown="image"),
        "tokens": As(
            about="Edited tokens: all, foreground, background (of two clusters), inside, outside (the manifest's mask)."
        ),
    },
    without=("scores_from", "placements"),
    panels={Grid: "What is edited"},
)


def register(commands: typer.Typer) -> None:
    """Register the command group."""
    commands.add_typer(app, name="probe", help="Ablate channels and measure the effect on the image.")


@app.callback()
def _group() -> None:
    """Ablate channels of the hidden states during generation. Every effect has controls; interrupted sweeps resume."""


@app.command()
def disruption(
    manifest: sweeps.Manifest,
    out: sweeps.Out,
    grid: Annotated[Given, GRID],
    measured: sweeps.Measured,
    generated: sweeps.Generated,
    actors: Actors,
    protocol: Annotated[
        str | None, typer.Option(help="Published protocol, turri2026 or gan2025, instead of the settings below.")
    ] = None,
    config: sweeps.Config = None,
    channels_from: Annotated[
        str,
        option(
            SweepSettings,
            "channels_run",
            about="Scores that rank channels: undisturbed (the unedited row), own, or a RUN (its means, by layer).",
        ),
    ] = "undisturbed",
    dry_run: sweeps.DryRun = False,
    as_json: sweeps.AsJson = False,
    wide: Wide = False,
) -> None:
    """Ablate channels of every sample (zero, mean or resample ablation, or scaling); compare with the unedited image.

    Rerun the same command to resume. Exit code 5 means that samples are missing or failed.

    Example: fewchannels probe disruption --manifest manifest.parquet --out SWEEP --k 4,8,16
    """
    with errors.status("checking the manifest and the model"):
        from fewchannels.cluster.sizing import choose_pool
        from fewchannels.errors import InputError
        from fewchannels.interventions.protocols import protocol_of
        from fewchannels.interventions.settings import generation, grids_of
        from fewchannels.interventions.sweep import prepare_sweep

        run = None if channels_from in ("undisturbed", "own") else channels_from
        in_file = grids_of(config)
        if protocol is not None:
            about = protocol_of(protocol, run)
            if in_file:
                raise InputError(
                    f"--protocol {protocol} and the grids of {str(config)!r} both define the edits. Pass only one of "
                    f"them."
                )
            whose = [] if about.needs_run else ["--channels-from"]
            refuse_unused([*GRID.flags(), *whose], f"the protocol {protocol} defines the edits")
            grids = about.grids
        elif in_file:
            refuse_unused(GRID.flags(), f"the grids of {config} define the edits")
            if run is None:
                refuse_unused(["--channels-from"], f"the grids of {config} choose the scores that rank channels")
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
        pool = choose_pool(**actors, n_forwards=prepared.sweep.n_forwards)
    if protocol is not None:
        say(f"{protocol} ({about.source}): {about.published}. Not published: {about.unpublished}.")
    sweeps.run_sweep(prepared, pool, dry_run=dry_run, as_json=as_json, is_wide=wide)
