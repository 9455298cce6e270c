"""``fewchannels demo``: manifest, capture, two queries and three findings on the bundled model."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fewchannels.cli.answers import print_relation
from fewchannels.cli.console import results, say
from fewchannels.cli.options import option, ruled
from fewchannels.cli.tables import Wide, print_sentences
from fewchannels.cluster.shares import Pool
from fewchannels.settings.ranges import within


def register(app: typer.Typer) -> None:
    """Register the command."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the manifest, the run and the contact sheet.")] = Path(
        "runs/demo"
    ),
    prompts: Annotated[
        int, ruled(within(1, 100_000, "Number of synthetic prompts (captions of colored shapes)."))
    ] = 256,
    actors: Annotated[
        int | None,
        option(Pool, "n_actors", show_default="one per GPU; if none, one per CPU, at most 4; 1 for small work"),
    ] = None,
    wide: Wide = False,
) -> None:
    """Try it: capture the bundled model on synthetic captions of colored shapes, and print the first results.

    Example: fewchannels demo --out runs/demo --prompts 256
    """
    from fewchannels import manifest
    from fewchannels.analyses.figures.contact_sheet import contact_sheet
    from fewchannels.captures.config import CaptureConfig
    from fewchannels.captures.job import prepare
    from fewchannels.cli.capture import run_job
    from fewchannels.cluster.sizing import choose_pool
    from fewchannels.files.durable import check_output
    from fewchannels.runs.run import StoredRun

    table, run_path, sheet = out / "manifest.parquet", out / "run", out / "contact_sheet.png"
    check_output(table)
    out.mkdir(parents=True, exist_ok=True)
    say(f"1. a manifest of {prompts} prompts: {table}")
    manifest.ingest([f"demo:{prompts}"], table)
    say(f"2. a capture of every layer and step: {run_path}")
    job = prepare(table, run_path, CaptureConfig(model="demo"))
    outcome = run_job(job, table, choose_pool(actors, n_forwards=job.n_forwards))
    outcome.check_complete()
    run = StoredRun(run_path)
    say("3. two queries")
    results.print(f"\nTop channels: the largest of {job.geometry.n_channels} at the last step, by layer")
    print_relation(run.query("massive_channels", step="last", top=3), is_wide=wide)
    results.print("\nStability: are the top channels the same from prompt to prompt?")
    print_relation(run.query("channel_stability", step="last"), is_wide=wide)
    shown = contact_sheet(run, sheet)
    place = shlex.quote(str(run_path))
    say(f"4. a contact sheet: {shown}")
    results.print("\nFindings:")
    print_sentences(_findings(run_path))
    results.print(
        f"\nContact sheet: {sheet}\n"
        f"\nNext:\n"
        f"  fewchannels explore {place}\n"
        f"  fewchannels report {place} -o {shlex.quote(str(out / 'report.html'))}",
        soft_wrap=True,
    )


def _findings(run: Path) -> list[str]:
    """The first three findings of a run, one sentence each."""
    from fewchannels.analyses.evidence import open_evidence
    from fewchannels.analyses.findings import of_run

    evidence = open_evidence(str(run))
    with evidence.catalog:
        return [finding.headline for _, finding in of_run(evidence).sentences][:3]
