"""``fewchannels transport``: move a source's channels into a target's trajectory."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fewchannels.cli import sweeps
from fewchannels.cli.commands import Commands
from fewchannels.cli.console import errors
from fewchannels.cli.options import given, option, ruled
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.settings import PairRule, SweepSettings
from fewchannels.settings.ranges import OrWord, rules

_PAIRS = {"rule": OrWord("all", rules(PairRule)["n"]), "about": "How many pairs are drawn."}
app = Commands(no_args_is_help=True)

Alpha = Annotated[
    str, option(Grid, "amounts", about="Strengths: 0 is the target, 1 the source's values; comma-separated.")
]
ScoresFrom = Annotated[
    str, option(Grid, "scores_from", about="Whose top channels: source, target, union, intersection.")
]
Baselines = Annotated[
    str,
    option(
        Grid,
        "actions",
        about="prompt, latents, pixels: blends at the same strengths; none for none, comma-separated.",
    ),
]
Pairs = Annotated[str, ruled(_PAIRS)]
Within = Annotated[list[str] | None, option(PairRule, "within")]
Across = Annotated[list[str] | None, option(PairRule, "across")]
Noise = Annotated[str, option(PairRule, "noise")]
Seed = Annotated[int, option(PairRule, "seed")]


def register(commands: typer.Typer) -> None:
    """Add the group to the command line."""
    commands.add_typer(app, name="transport", help="Move a source's channels into a target's trajectory.")


@app.callback()
def _group() -> None:
    """Transport massive channels between trajectories, with controls and baselines in the same batches."""


@app.command()
def text(
    manifest: sweeps.Manifest,
    out: sweeps.Out,
    pairs: Pairs = "100",
    pairs_file: Annotated[
        Path | None, typer.Option(help="CSV or Parquet with target and source: sample ids or prompts.")
    ] = None,
    within: Within = None,
    across: Across = None,
    noise: Noise = "shared",
    seed: Seed = 0,
    config: sweeps.Config = None,
    alpha: Alpha = "1",
    selection: sweeps.Selections = "top,bottom,random,matched,scaled,all",
    channels: sweeps.Channels = None,
    scores_from: ScoresFrom = "source",
    k: sweeps.K = "8",
    trials: sweeps.Trials = 1,
    layers: sweeps.AtLayers = None,
    steps: sweeps.AtSteps = None,
    tokens: Annotated[
        str,
        option(
            Grid,
            "tokens",
            about="all, foreground, background, target_foreground, inside, outside; comma-separated.",
        ),
    ] = "all",
    baselines: Baselines = "prompt,latents,pixels",
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
    """Move channels from one prompt's trajectory into another's: does the picture take on the source's meaning?

    Run the same command again to resume. Exit code 5 means that pairs are missing or failed.

    Example: fewchannels transport text --manifest manifest.parquet --out SWEEP --pairs 500 --alpha 0.5,1 --k 8,16
    """
    grid = _grid(alpha, selection, channels, scores_from, k, trials, layers, steps, tokens, "same")
    generated = {
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
    rule = {"n": pairs, "within": within, "across": across, "noise": noise, "seed": seed}
    more = {"pairs_file": pairs_file, "score": score, "cluster_k": cluster_k, "metrics": tuple(metric or ())}
    pool = (actors, gpus_per_actor, address, cpus_per_actor)
    _transport("text", manifest, out, config, grid, baselines, generated, rule, more, pool, dry_run, as_json)


@app.command()
def image(
    manifest: sweeps.Manifest,
    references: Annotated[
        Path,
        typer.Option(help="Manifest whose reference column names pictures, mask their subjects' masks, if any."),
    ],
    out: sweeps.Out,
    pairs: Pairs = "100",
    within: Within = None,
    across: Across = None,
    noise: Noise = "shared",
    seed: Seed = 0,
    config: sweeps.Config = None,
    alpha: Alpha = "1",
    selection: sweeps.Selections = "top,bottom,random,matched,scaled,all",
    channels: sweeps.Channels = None,
    scores_from: ScoresFrom = "source",
    k: sweeps.K = "8",
    trials: sweeps.Trials = 1,
    layers: sweeps.AtLayers = None,
    steps: sweeps.AtSteps = None,
    tokens: Annotated[
        str,
        option(
            Grid,
            "tokens",
            about="all, foreground, background, target_foreground, inside (reference mask), outside.",
        ),
    ] = "all",
    placement: Annotated[
        str,
        option(
            Grid,
            "placements",
            about="same: tokens keep their places; aligned: the source's subject onto the target's.",
        ),
    ] = "same",
    baselines: Baselines = "latents,pixels",
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
    """Move channels from a reference picture into a prompt's trajectory: does its subject come along?

    The picture is noised to each step's level. Run the same command again to resume. Exit code 5 means that pairs are
    missing or failed.

    Example: fewchannels transport image --manifest manifest.parquet --references refs.parquet --out SWEEP --k 8
    """
    grid = _grid(alpha, selection, channels, scores_from, k, trials, layers, steps, tokens, placement)
    generated = {
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
    rule = {"n": pairs, "within": within, "across": across, "noise": noise, "seed": seed}
    more = {"references": references, "score": score, "cluster_k": cluster_k, "metrics": tuple(metric or ())}
    pool = (actors, gpus_per_actor, address, cpus_per_actor)
    _transport("image", manifest, out, config, grid, baselines, generated, rule, more, pool, dry_run, as_json)


def _grid(
    alpha: str,
    selection: str,
    channels: str | None,
    scores_from: str,
    k: str,
    trials: int,
    layers: list[str] | None,
    steps: list[str] | None,
    tokens: str,
    placement: str,
) -> Grid:
    return Grid(
        actions=("transport",),
        amounts=given(Grid, "amounts", alpha),
        selections=given(Grid, "selections", selection),
        trials=trials,
        k=given(Grid, "k", k),
        scores_from=given(Grid, "scores_from", scores_from),
        channels=given(Grid, "channels", channels) if channels else (),
        layers=tuple(layers or ["all"]),
        steps=tuple(steps or ["all"]),
        tokens=given(Grid, "tokens", tokens),
        placements=given(Grid, "placements", placement),
    )


def _transport(
    kind: str,
    manifest: Path,
    out: str,
    config: Path | None,
    grid: Grid,
    baselines: str,
    generated: dict[str, Any],
    rule: dict[str, Any],
    more: dict[str, Any],
    pool: tuple[int | None, float | None, str | None, int | None],
    dry_run: bool,
    as_json: bool,
) -> None:
    with errors.status("checking the manifest and the model"):
        import dataclasses

        from fewchannels.cluster.sizing import choose_pool
        from fewchannels.interventions.settings import generation, grids_of
        from fewchannels.interventions.sweep import prepare_sweep

        chosen = PairRule(
            n=None if rule["n"] == "all" else given(PairRule, "n", rule["n"]),
            within=tuple(rule["within"] or ()),
            across=tuple(rule["across"] or ()),
            noise=rule["noise"],
            seed=rule["seed"],
        )
        grids = grids_of(config) or (grid,)
        if baselines != "none":
            # At the strengths of the first grid, and wherever the transport is.
            blends = dataclasses.replace(
                grids[0],
                actions=given(Grid, "actions", baselines),
                selections=("all",),
                layers=("all",),
                steps=("last",),
            )
            grids = (*grids, dataclasses.replace(blends, tokens=("all",), placements=("same",)))
        settings = SweepSettings(kind=kind, generation=generation(config, generated), grids=grids, pairs=chosen, **more)
        prepared = prepare_sweep(manifest, out, settings)
        workers = choose_pool(*pool)
    sweeps.run_sweep(prepared, workers, dry_run=dry_run, as_json=as_json)
