"""``fewchannels capture``."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fewchannels.captures.config import CaptureConfig
from fewchannels.cli.console import duration, errors, note, print_json, results, say
from fewchannels.cli.options import OF_THE_MODEL, Actors, As, Fields, Given, ruled
from fewchannels.cli.progress import RunBar
from fewchannels.cli.unused import refuse_unused
from fewchannels.cluster.shares import Pool
from fewchannels.models.generation import Generation
from fewchannels.models.load_options import Loading
from fewchannels.settings.units import Size, parse_size, size

if TYPE_CHECKING:
    from fewchannels.captures.estimate import Estimate
    from fewchannels.captures.job import Job
    from fewchannels.cluster.tasks import Outcome


_MAX_BYTES = {
    "rule": Size(),
    "about": "Refuse a run whose estimated size is larger than this, such as 500MB or 2TB.",
}


SETTINGS = Fields(
    CaptureConfig,
    {
        **OF_THE_MODEL,
        "batch_size": As(shown="at most 16"),
        "shard_samples": As(shown="up to 512 MiB, at most 16"),
    },
    in_file=True,
    panels={Generation: "Images", CaptureConfig: "What is recorded", Loading: "How the model is loaded"},
)


def register(app: typer.Typer) -> None:
    """Register the command."""
    app.command("capture")(capture)


def capture(
    manifest: Annotated[Path, typer.Option(help="Parquet manifest, from fewchannels manifest ingest.")],
    out: Annotated[
        str, typer.Option(help="Folder or URL (s3://, gs://, az://) of the run. If it exists, the capture resumes.")
    ],
    settings: Annotated[Given, SETTINGS],
    actors: Actors,
    config: Annotated[Path | None, typer.Option(help="YAML file with any of the settings below.")] = None,
    family: Annotated[
        Path | None, typer.Option(help="YAML file that describes a transformer class (docs/families.md).")
    ] = None,
    max_bytes: Annotated[str | None, ruled(_MAX_BYTES)] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Generate one batch and print the estimated tasks, size, files and time; write nothing."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Generate a manifest's samples and record channel statistics and the top channels at every layer and step.

    Rerun the same command to resume. Exit code 5 means that samples are missing or failed.

    Example: fewchannels capture --model demo --manifest manifest.parquet --out RUN --steps 0,9,19
    """
    with errors.status("checking the manifest and the model"):
        from fewchannels.captures.job import prepare
        from fewchannels.captures.memory import check_memory
        from fewchannels.cluster.sizing import choose_pool
        from fewchannels.models.family_file import read_family

        described = read_family(family) if family else None
        chosen = CaptureConfig.from_sources(config, settings)
        if chosen.from_images:
            refuse_unused(["--batch-size"], "with --from-images each image is a batch of its own")
        job = prepare(manifest, out, chosen, described)
        pool = choose_pool(**actors, n_forwards=job.n_forwards)
        check_memory(job, pool)
    if job.config.dtype == "float16":
        errors.print(
            "float16 overflows at 65,504, within the range of massive activations; use bfloat16 or float32 instead",
            style="yellow",
        )
    if max_bytes is not None:
        from fewchannels.captures.budget import check_budget

        pixels = job.token_grid[0] * job.token_grid[1] * job.geometry.pixels_per_token**2
        check_budget(job.layout, job.token_grid, pixels, parse_size(max_bytes))
    if dry_run:
        _print_estimate(job, manifest, pool, as_json)
        return
    outcome = run_job(job, manifest, pool)
    if as_json:
        print_json(dataclasses.asdict(outcome))
    else:
        again = f", {outcome.n_again} tasks were retried" if outcome.n_again else ""
        say(
            f"{outcome.n_done} of {outcome.n_samples} samples are in {out} "
            f"({outcome.n_resumed} were already there{again}). "
            f"Next: fewchannels query {shlex.quote(out)} massive_channels"
        )
    if outcome.of_tasks.n_cut:
        notes = outcome.of_tasks
        say(
            f"the text encoder truncated {notes.n_cut:,} prompts: its limit is {notes.limit:,} tokens, and the longest "
            f"prompt has {notes.longest:,}; the column prompt_truncated of the samples table marks them",
            style="yellow",
        )
    outcome.check_complete()


def run_job(job: "Job", manifest: Path, pool: Pool) -> "Outcome":
    """Create, resume or extend the run of a prepared job, and capture it with a progress bar."""
    from fewchannels.captures.run import capture

    layout = job.layout
    is_here = pool.is_here(layout.n_tasks) and not job.config.encode_first
    with RunBar(job.run, "capturing", "samples", layout.n_samples) as bar:

        def on_begun(resumed: bool) -> None:
            bar.begin(
                f"{'resuming' if resumed else 'capturing'} {layout.n_samples} samples in {layout.n_tasks} "
                f"task{'s' * (layout.n_tasks != 1)}: "
                f"{len(layout.blocks)} layers x {len(layout.steps)} steps, about {size(layout.expected_bytes)} of "
                f"arrays, {pool.in_words(is_here=is_here)}"
            )

        def on_encoded(done: int) -> None:
            bar.describe(f"encoding prompts, {done} of {layout.n_samples}")

        return capture(
            job,
            manifest,
            pool,
            on_wait=bar.wait,
            on_begun=on_begun,
            on_progress=bar.show,
            on_encoded=on_encoded,
            on_note=note,
        )


def _print_estimate(job: "Job", manifest: Path, pool: Pool, as_json: bool) -> None:
    from fewchannels.captures.estimate import estimate

    with errors.status("timing one batch"):
        expected: Estimate = estimate(job, manifest, pool.n_actors, pool.cpus_per_actor, pool.device)
    if as_json:
        print_json(dataclasses.asdict(expected))
        return
    table = Table(title=f"Estimated contents of {job.run}", title_justify="left")
    table.add_column("what")
    table.add_column("shape: sample, step, layer")
    table.add_column("bytes", justify="right")
    for array in job.layout.arrays():
        table.add_row(array.name, " x ".join(map(str, array.shape)), f"{expected.array_bytes[array.name]:,}")
    for name, n_bytes in expected.table_bytes.items():
        table.add_row(f"{name} (Parquet)", "", f"{n_bytes:,}")
    table.add_section()
    table.add_row("total", size(expected.total_bytes), f"{expected.total_bytes:,}")
    results.print(table)
    results.print(
        f"{expected.n_samples} samples in {expected.n_tasks} tasks, {expected.n_files} files, about "
        f"{duration(expected.seconds)} with {pool.n_actors} actor{'s' * (pool.n_actors > 1)} "
        f"({expected.seconds_per_sample:.3g} s per sample, measured on {expected.measured_samples}, without loading "
        "the model and starting Ray).",
        soft_wrap=True,
    )
