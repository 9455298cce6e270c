"""``fewchannels transport``: patch a source's channels into a target's trajectory (activation patching)."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fewchannels.cli import sweeps
from fewchannels.cli.commands import Commands
from fewchannels.cli.console import errors
from fewchannels.cli.options import Actors, As, Fields, Given, option, ruled
from fewchannels.cli.tables import Wide
from fewchannels.cli.unused import refuse_unused
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.settings import TRANSPORT, PairRule, SweepSettings
from fewchannels.settings.ranges import OrWord, parsed, rules

_PAIRS = {"rule": OrWord("all", rules(PairRule)["n"]), "about": "Number of random pairs, or all."}
app = Commands(no_args_is_help=True)

GRID = Fields(
    Grid,
    {
        "amounts": As(
            "--alpha",
            about="Patching strength: 0 keeps the target's values, 1 uses the source's; comma-separated for more.",
        ),
        "selections": As("--selection", default=TRANSPORT["selections"]),
        "scores_from": As(
            about="Trajectory whose top channels are patched: source, target, union, intersection.",
            default=TRANSPORT["scores_from"],
        ),
        "trials": As(default=TRANSPORT["trials"]),
        "layers": As(shown="all"),
        "steps": As(shown="all"),
        "tokens": As(
            about="Patched tokens: all, foreground, background, target_foreground, inside, outside; comma-separated."
        ),
        "placements": As(
            "--placement",
            about="same: tokens keep their positions; aligned: the source's subject is moved onto the target's.",
        ),
    },
    without=("actions", "streams"),
    panels={Grid: "What is patched"},
)
RULE = Fields(PairRule, without=("n",), panels={PairRule: "Pairs"})
Baselines = Annotated[
    str,
    option(
        Grid,
        "actions",
        about="Blends at the same strengths, as comparison: prompt, latents, pixels; comma-separated, or none.",
    ),
]
Pairs = Annotated[str, ruled(_PAIRS, rich_help_panel="Pairs")]


def register(commands: typer.Typer) -> None:
    """Register the command group."""
    commands.add_typer(
        app, name="transport", help="Patch a source's channels into a target's trajectory (activation patching)."
    )


@app.callback()
def _group() -> None:
    """Patch top channels of one trajectory into another (activation patching), with controls in each batch."""


@app.command()
def text(
    manifest: sweeps.Manifest,
    out: sweeps.Out,
    rule: Annotated[Given, RULE],
    grid: Annotated[Given, replace(GRID, without=(*GRID.without, "placements"))],
    measured: sweeps.Measured,
    generated: sweeps.Generated,
    actors: Actors,
    pairs: Pairs = "100",
    pairs_file: Annotated[
        Path | None,
        typer.Option(
            help="CSV or Parquet file with the columns target and source: sample ids or prompts.",
            rich_help_panel="Pairs",
        ),
    ] = None,
    config: sweeps.Config = None,
    baselines: Baselines = "prompt,latents,pixels",
    dry_run: sweeps.DryRun = False,
    as_json: sweeps.AsJson = False,
    wide: Wide = False,
) -> None:
    """Patch channels of one prompt's trajectory into another's, and measure how the image moves toward the source.

    Rerun the same command to resume. Exit code 5 means that pairs are missing or failed.

    Example: fewchannels transport text --manifest manifest.parquet --out SWEEP --pairs 500 --alpha 0.5,1 --k 8,16
    """
    if pairs_file is not None:
        refuse_unused(["--pairs", "--within", "--across", "--seed"], "--pairs-file lists the pairs")
    else:
        rule |= _number(pairs)
    more = measured | {"pairs_file": pairs_file}
    _transport("text", manifest, out, config, grid, baselines, generated, rule, more, actors, dry_run, as_json, wide)


@app.command()
def image(
    manifest: sweeps.Manifest,
    references: Annotated[
        Path,
        typer.Option(help="Manifest whose column reference names the images, and mask (optional) their subject masks."),
    ],
    out: sweeps.Out,
    rule: Annotated[Given, RULE],
    grid: Annotated[Given, GRID],
    measured: sweeps.Measured,
    generated: sweeps.Generated,
    actors: Actors,
    pairs: Pairs = "100",
    config: sweeps.Config = None,
    baselines: Baselines = "latents,pixels",
    dry_run: sweeps.DryRun = False,
    as_json: sweeps.AsJson = False,
    wide: Wide = False,
) -> None:
    """Patch channels of a reference image into a prompt's trajectory, and measure how the image moves toward it.

    The reference image is noised to each step's level. Rerun the same command to resume. Exit code 5 means that pairs
    are missing or failed.

    Example: fewchannels transport image --manifest manifest.parquet --references refs.parquet --out SWEEP --k 8
    """
    more, rule = measured | {"references": references}, rule | _number(pairs)
    _transport(
        "image",
        manifest,
        out,
        config,
        grid,
        baselines,
        generated,
        rule | _number(pairs),
        more,
        actors,
        dry_run,
        as_json,
        wide,
    )


def _number(pairs: str) -> Given:
    """Return the number of random pairs, or None for all."""
    if pairs == "all":
        refuse_unused(["--seed"], "all pairs are used, so none are drawn at random")
        return {}
    return {"n": parsed("n", pairs, rules(PairRule)["n"])}


def _transport(
    kind: str,
    manifest: Path,
    out: str,
    config: Path | None,
    grid: Given,
    baselines: str,
    generated: Given,
    rule: Given,
    more: dict[str, Any],
    actors: Given,
    dry_run: bool,
    as_json: bool,
    is_wide: bool,
) -> None:
    with errors.status("checking the manifest and the model"):
        from fewchannels.cluster.sizing import choose_pool
        from fewchannels.interventions.settings import generation, grids_of, with_baselines
        from fewchannels.interventions.sweep import prepare_sweep

        grids = grids_of(config)
        if grids:
            refuse_unused(GRID.flags(), f"the grids of {config} define what is patched")
        else:
            sweeps.check_grid(grid)
            grids = (Grid(**{"actions": ("transport",), **grid}),)
        if baselines != "none":
            grids = with_baselines(grids, parsed("actions", baselines, rules(Grid)["actions"]))
        settings = SweepSettings(
            kind=kind, generation=generation(config, generated), grids=grids, pairs=PairRule(**rule), **more
        )
        prepared = prepare_sweep(manifest, out, settings)
        pool = choose_pool(**actors, n_forwards=prepared.sweep.n_forwards)
    sweeps.run_sweep(prepared, pool, dry_run=dry_run, as_json=as_json, is_wide=is_wide)
