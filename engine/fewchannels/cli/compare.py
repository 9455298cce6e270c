"""``fewchannels compare``: two runs of the same samples, side by side."""

from typing import Annotated

import typer

from fewchannels.analyses.settings import Criteria
from fewchannels.cli.analyze import (
    Address,
    AsJson,
    Branch,
    Steps,
    Stream,
    Where,
    Workers,
    print_summary,
    score_of,
    workers_of,
)
from fewchannels.cli.console import errors, progress_bar, say
from fewchannels.cli.options import option
from fewchannels.cli.tables import Wide


def register(app: typer.Typer) -> None:
    """Register the command."""
    app.command("compare")(compare)


def compare(
    run_a: Annotated[str, typer.Argument(help="Folder or URL of a run.")],
    run_b: Annotated[str, typer.Argument(help="Folder or URL of the other run; differences are B - A.")],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="Folder or URL for the comparison.", show_default="compare-RUN_A-RUN_B, here"),
    ] = None,
    k: Annotated[int, option(Criteria, "k")] = 12,
    score: Annotated[str | None, option(Criteria, "score", show_default="run A's")] = None,
    match: Annotated[
        str,
        typer.Option(
            help="Match layers by index or by relative depth. auto: by depth if both models are whole and differ in it."
        ),
    ] = "auto",
    where: Where = None,
    layers: Annotated[
        str, typer.Option(help="Layers of each run: all, dual, single, or indices: 0,5, 2-4, 2:5, last.")
    ] = "all",
    steps: Steps = "all",
    stream: Stream = "image",
    branch: Branch = "cond",
    replace: Annotated[bool, typer.Option("--replace", help="Delete an existing comparison in that folder.")] = False,
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Compare the top channels of two models, checkpoints or settings, sample by sample.

    Example: fewchannels compare RUN_A RUN_B --k 8 --out COMPARISON
    """
    with errors.status(f"opening {run_a} and {run_b}"):
        from fewchannels.analyses.comparison.compare import compare
        from fewchannels.analyses.comparison.pairing import side_by_side
        from fewchannels.runs.storage import open_storage

        criteria = Criteria(score_of(run_a) if score is None else score, k)
        choice = {"where": where, "layers": layers, "steps": steps, "stream": stream, "branch": branch}
        pairing = side_by_side(run_a, run_b, match=match, **choice)
    target = open_storage(out or f"compare-{open_storage(run_a).name}-{open_storage(run_b).name}")
    with progress_bar() as bar:
        shown = bar.add_task("comparing layers", total=None, rate="")
        try:
            summary = compare(
                pairing,
                criteria,
                target,
                workers_of(workers, address, sum(side.selected.n_scores for side in (pairing.a, pairing.b))),
                replace=replace,
                on_progress=lambda done, total: bar.update(shown, completed=done, total=total),
            )
        except KeyboardInterrupt:
            say("Interrupted. Rerun the same command to resume with the remaining layers.", style="yellow")
            raise typer.Exit(130) from None
    print_summary(summary, target.url, as_json, wide)
