"""``fewchannels analyze``: run analyses on a run."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewchannels.analyses.settings import AlignmentSettings, ConcentrationSettings, MaskSettings, StabilitySettings
from fewchannels.cli.commands import Commands
from fewchannels.cli.console import duration, errors, print_json, progress_bar, results, say
from fewchannels.cli.options import As, Fields, Given, option, ruled
from fewchannels.cli.tables import Wide, print_page
from fewchannels.cli.unused import refuse_unused
from fewchannels.cluster.shares import Pool
from fewchannels.settings.ranges import name
from fewchannels.settings.units import size

if TYPE_CHECKING:
    from fewchannels.analyses.analysis import Analysis
    from fewchannels.analyses.selection import Selected
    from fewchannels.analyses.summary import Summary

app = Commands(no_args_is_help=True)

Run = Annotated[str, typer.Argument(help="Folder or URL of the run.")]
Where = Annotated[
    str | None, typer.Option(help="SQL condition on columns of samples and manifest.", show_default="all finished")
]
Layers = Annotated[str, typer.Option(help="Layers: all, dual, single, or indices: 0,5, 2-4, 2:5, last.")]
Steps = Annotated[str, typer.Option(help="Steps: all, last, or indices: 0,9,19, 2-4, 2:5, -1.")]
Stream = Annotated[str, typer.Option(help="Token stream: image or text.")]
Branch = Annotated[str, typer.Option(help="Guidance branch: cond or uncond.")]
Label = Annotated[
    str | None,
    ruled(name("Name of the result and of its tables."), show_default="the analysis' own"),
]
Replace = Annotated[bool, typer.Option("--replace", help="Delete the result of this name and start over.")]
Workers = Annotated[
    int | None,
    option(
        Pool,
        "n_actors",
        about="Ray workers; 1 works without Ray.",
        show_default="one per CPU, at most 4; 1 for small work",
    ),
]
Gpus = Annotated[
    float,
    option(Pool, "gpus_per_actor", "--gpus-per-worker", about="GPUs per worker."),
]
Address = Annotated[
    str | None,
    option(Pool, "address", about="Address of a running Ray cluster. Without it, Ray starts on this machine."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Time one unit of work and print the estimated total time and size; write nothing."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")]
Seed = Annotated[int, option(StabilitySettings, "seed")]


def register(commands: typer.Typer) -> None:
    """Register the command group."""
    commands.add_typer(app, name="analyze", help="Stability, concentration and alignment of a run's channels.")


@app.callback()
def _group() -> None:
    """Analyze a run. Results are kept in RUN/results/; an interrupted analysis resumes where it stopped."""


@app.command()
def masks(
    run: Run,
    settings: Annotated[Given, Fields(MaskSettings, without=("source",))],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="manifest (its mask column), demo (the shapes world), saliency, or a segmentation model's folder "
            "or hub id.",
            show_default="manifest if it has masks, demo for the demo model, else saliency",
        ),
    ] = None,
    where: Where = None,
    label: Label = None,
    replace: Replace = False,
    workers: Workers = None,
    gpus: Annotated[
        float | None,
        option(
            Pool, "gpus_per_actor", "--gpus-per-worker", about="GPUs per worker.", show_default="1 if there are any"
        ),
    ] = None,
    address: Address = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Segment the subject of each generated image once, as the reference for the alignment analysis.

    Example: fewchannels analyze masks RUN --from demo
    """
    from fewchannels.analyses.masks.units import SubjectMasks, usual_source

    selected = _selected(run, where=where)
    _analyze(
        SubjectMasks(source=usual_source(run) if source is None else source, **settings),
        selected,
        label,
        replace,
        workers_of(workers, address, selected.n_scores, gpus),
        dry_run,
        as_json,
        wide,
    )


@app.command()
def stability(
    run: Run,
    settings: Annotated[
        Given, Fields(StabilitySettings, {"ks": As("--k"), "score": As(default=None, shown="the run's")})
    ],
    where: Where = None,
    layers: Layers = "all",
    steps: Steps = "all",
    stream: Stream = "image",
    branch: Branch = "cond",
    label: Label = None,
    replace: Replace = False,
    workers: Workers = None,
    address: Address = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Compare the top channels across prompts, seeds, steps, layers and definitions.

    Example: fewchannels analyze stability RUN --k 8
    """
    from fewchannels.analyses.stability.units import Stability

    analysis = Stability(**_completed(settings, run, "ks"))
    selected = _selected(run, where=where, layers=layers, steps=steps, stream=stream, branch=branch, by=analysis.by)
    _analyze(
        analysis, selected, label, replace, workers_of(workers, address, selected.n_scores), dry_run, as_json, wide
    )


@app.command()
def concentration(
    run: Run,
    settings: Annotated[
        Given, Fields(ConcentrationSettings, {"ks": As("--shares"), "score": As(default=None, shown="the run's")})
    ],
    where: Where = None,
    layers: Layers = "all",
    steps: Steps = "all",
    branch: Branch = "cond",
    label: Label = None,
    replace: Replace = False,
    workers: Workers = None,
    gpus: Gpus = 0,
    address: Address = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Measure how much of the energy a few channels hold, and separate outlier channels from outlier tokens.

    Example: fewchannels analyze concentration RUN
    """
    from fewchannels.analyses.concentration.units import Concentration

    selected = _selected(run, where=where, layers=layers, steps=steps, branch=branch)
    pool = workers_of(workers, address, selected.n_scores, gpus)
    _analyze(Concentration(**_completed(settings, run, "ks")), selected, label, replace, pool, dry_run, as_json, wide)


@app.command()
def alignment(
    run: Run,
    settings: Annotated[Given, Fields(AlignmentSettings, {"n_clusters": As("--clusters")})],
    where: Where = None,
    layers: Layers = "all",
    steps: Steps = "all",
    branch: Branch = "cond",
    label: Label = None,
    replace: Replace = False,
    workers: Workers = None,
    gpus: Gpus = 0,
    address: Address = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Cluster tokens by their top channels and compare the clusters with the subject mask, with controls.

    Example: fewchannels analyze alignment RUN --steps last
    """
    from fewchannels.analyses.alignment.units import Alignment

    settings["n_clusters"] = _ascending(settings["n_clusters"])
    if "random" not in settings["selections"]:
        refuse_unused(["--trials"], "none of --selections is random")
    for flag, word in (("--register-threshold", "drop"), ("--clip", "clip")):
        if settings["registers"] != word:
            refuse_unused([flag], f"it applies to --registers {word}, and --registers is {settings['registers']}")
    selected = _selected(run, where=where, layers=layers, steps=steps, branch=branch)
    pool = workers_of(workers, address, selected.n_scores, gpus)
    _analyze(Alignment(**settings), selected, label, replace, pool, dry_run, as_json, wide)


def _ascending(numbers: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(numbers)))


def _completed(settings: Given, run: str, ascending: str) -> Given:
    """Fill in the run's score if none is given, and sort one of the settings in ascending order."""
    settings[ascending] = _ascending(settings[ascending])
    return settings if "score" in settings else settings | {"score": score_of(run)}


def score_of(run: str) -> str:
    """The statistic that a run ranks channels by."""
    from fewchannels.runs.description import read_description
    from fewchannels.runs.storage import open_storage

    return read_description(open_storage(run))["config"]["score"]


def _selected(run: str, **choice: Any) -> "Selected":
    with errors.status(f"opening {run}"):
        from fewchannels.analyses.selection import select

        return select(run, **choice)


def _analyze(
    analysis: "Analysis",
    selected: "Selected",
    label: str | None,
    replace: bool,
    pool: Pool,
    dry_run: bool,
    as_json: bool,
    is_wide: bool,
) -> None:
    from fewchannels.analyses.analysis import analyze
    from fewchannels.runs.results import Results

    label = analysis.name if label is None else label
    if dry_run:
        _print_foreseen(analysis, selected, label, pool, as_json)
        return
    with progress_bar() as bar:
        shown = bar.add_task(analysis.name, total=None, rate="")

        def on_progress(done: int, total: int) -> None:
            bar.update(shown, completed=done, total=total)

        try:
            summary = analyze(
                analysis,
                selected,
                label,
                pool,
                replace=replace,
                on_progress=on_progress,
            )
        except KeyboardInterrupt:
            say("Interrupted. Finished work is kept; rerun the same command to resume.", style="yellow")
            raise typer.Exit(130) from None
    where = selected.storage.location(Results(selected.storage, label).key(""))
    print_summary(summary, where, as_json, is_wide)


def workers_of(n_workers: int | None, address: str | None, n_scores: int, gpus_per_worker: float | None = 0) -> Pool:
    """Choose workers of one CPU thread each."""
    from fewchannels.cluster.sizing import choose_workers

    return choose_workers(n_workers, gpus_per_worker, address, n_scores)


def print_summary(summary: "Summary", where: str, as_json: bool, is_wide: bool) -> None:
    """Print the numbers as JSON, or one to three sentences, the tables, and the folder that has the rest.

    Args:
        summary: summary of an analysis or a comparison.
        where: folder of its files.
        as_json: whether to print the numbers as JSON.
        is_wide: whether to print all columns of the page's tables, even beyond the width of the terminal.
    """
    if as_json:
        print_json(summary.numbers)
        return
    print_page(summary.headlines, summary.text, is_wide)
    say(f"The whole summary (summary.md), tables and figures are in {where}")


def _print_foreseen(analysis: "Analysis", selected: "Selected", label: str, pool: Pool, as_json: bool) -> None:
    from fewchannels.analyses.analysis import foresee

    with errors.status("timing one unit of work"):
        foreseen = foresee(analysis, selected, label, pool)
    if as_json:
        print_json(dataclasses.asdict(foreseen))
        return
    results.print(
        f"{analysis.name} of {foreseen.n_samples:,} samples: {foreseen.n_units:,} units, about "
        f"{duration(foreseen.seconds)} with {pool.n_actors} worker{'s' * (pool.n_actors > 1)}, "
        f"{size(foreseen.table_bytes)} of tables",
        soft_wrap=True,
    )
