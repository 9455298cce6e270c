"""``fewchannels probe``: disturb channels, and see what happens to the picture."""

from pathlib import Path
from typing import Annotated

import typer

from fewchannels.cli import sweeps
from fewchannels.cli.commands import Commands
from fewchannels.cli.console import errors, say
from fewchannels.cli.options import given, option
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.settings import SweepSettings

app = Commands(no_args_is_help=True)


def register(commands: typer.Typer) -> None:
    """Add the group to the command line."""
    commands.add_typer(app, name="probe", help="Disturb channels, and see what happens to the picture.")


@app.callback()
def _group() -> None:
    """Edit hidden states while pictures are generated. Every effect has controls; interrupted sweeps resume."""


@app.command()
def disruption(
    manifest: sweeps.Manifest,
    out: sweeps.Out,
    protocol: Annotated[
        str | None, typer.Option(help="turri2026 or gan2025: a published protocol, in place of the settings below.")
    ] = None,
    config: sweeps.Config = None,
    action: Annotated[
        str, option(Grid, "actions", about="zero, mean, shuffle, scale:F, guide; comma-separated for more.")
    ] = "zero",
    amount: sweeps.Amounts = "1",
    selection: sweeps.Selections = "top,bottom,random,matched,scaled",
    channels: sweeps.Channels = None,
    channels_from: Annotated[
        str,
        option(
            SweepSettings,
            "channels_run",
            about="Whose scores rank channels: undisturbed, own, or a captured RUN (its means, by layer).",
        ),
    ] = "undisturbed",
    k: sweeps.K = "8",
    trials: sweeps.Trials = 3,
    layers: sweeps.AtLayers = None,
    steps: sweeps.AtSteps = None,
    streams: Annotated[
        list[str] | None,
        option(Grid, "streams", about="image, text or image,text; repeat for more.", show_default="image"),
    ] = None,
    tokens: Annotated[
        str,
        option(
            Grid,
            "tokens",
            about="all, foreground, background (of two clusters), inside, outside (the manifest's mask).",
        ),
    ] = "all",
    score: sweeps.Score = "mean_abs",
    cluster_k: sweeps.ClusterK = 12,
    model: sweeps.Model = None,
    revision: sweeps.Revision = None,
    num_inference_steps: sweeps.Steps = None,
    guidance_scale: sweeps.Guidance = None,
    true_cfg_scale: sweeps.TrueCfg = None,
    height: sweeps.Height = None,
    width: sweeps.Width = None,
    dtype: sweeps.Dtype = None,
    batch_size: sweeps.BatchSize = None,
    metric: sweeps.Metrics = None,
    actors: sweeps.Actors = None,
    gpus_per_actor: sweeps.GpusPerActor = None,
    cpus_per_actor: sweeps.CpusPerActor = None,
    address: sweeps.Address = None,
    dry_run: sweeps.DryRun = False,
    as_json: sweeps.AsJson = False,
) -> None:
    """Zero, flatten, shuffle or scale channels of every sample, and compare with the undisturbed picture.

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
        if protocol is not None:
            if PROTOCOLS[protocol].needs_run and run is None:
                raise InputError(f"protocol {protocol} fixes channels from a capture; give --channels-from RUN.")
            grids = PROTOCOLS[protocol].grids
        else:
            grids = grids_of(config) or (
                Grid(
                    actions=given(Grid, "actions", action),
                    amounts=given(Grid, "amounts", amount),
                    selections=given(Grid, "selections", selection),
                    trials=trials,
                    k=given(Grid, "k", k),
                    scores_from=("run" if run else channels_from,),
                    channels=given(Grid, "channels", channels) if channels else (),
                    layers=tuple(layers or ["all"]),
                    steps=tuple(steps or ["all"]),
                    streams=tuple(streams or ["image"]),
                    tokens=given(Grid, "tokens", tokens),
                ),
            )
        chosen = {
            "model": model,
            "revision": revision,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "true_cfg_scale": true_cfg_scale,
            "height": height,
            "width": width,
            "dtype": dtype,
            "batch_size": batch_size,
        }
        settings = SweepSettings(
            kind="disruption",
            generation=generation(config, chosen),
            grids=grids,
            protocol=protocol,
            score=score,
            cluster_k=cluster_k,
            channels_run=run,
            metrics=tuple(metric or ()),
        )
        prepared = prepare_sweep(Path(manifest), out, settings)
        pool = choose_pool(actors, gpus_per_actor, address, cpus_per_actor)
    if protocol is not None:
        about = PROTOCOLS[protocol]
        say(f"{protocol} ({about.source}): {about.published}. Not published: {about.unpublished}.")
    sweeps.run_sweep(prepared, pool, dry_run=dry_run, as_json=as_json)
