"""``fewchannels capture``."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fewchannels.capture.config import CaptureConfig
from fewchannels.cli.console import duration, errors, results, say
from fewchannels.cli.options import option, ruled
from fewchannels.cli.progress import RunBar
from fewchannels.cluster.shares import Pool
from fewchannels.settings.units import Size, parse_size, size

if TYPE_CHECKING:
    from fewchannels.capture.estimate import Estimate
    from fewchannels.capture.job import Job
    from fewchannels.cluster.tasks import Outcome


_MAX_BYTES = {
    "rule": Size(),
    "about": "Refuse a run that is expected to take more than this, such as 500MB or 2TB.",
}


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("capture")(capture)


def capture(
    manifest: Annotated[Path, typer.Option(help="Parquet manifest, from fewchannels manifest ingest.")],
    out: Annotated[
        str, typer.Option(help="Folder or URL (s3://, gs://, az://) of the run; an interrupted run resumes.")
    ],
    config: Annotated[Path | None, typer.Option(help="YAML file with any of the settings below.")] = None,
    model: Annotated[str | None, option(CaptureConfig, "model", show_default="demo")] = None,
    revision: Annotated[str | None, option(CaptureConfig, "revision")] = None,
    layers: Annotated[str | None, option(CaptureConfig, "layers", show_default="all")] = None,
    steps: Annotated[str | None, option(CaptureConfig, "steps", show_default="all")] = None,
    top_k: Annotated[int | None, option(CaptureConfig, "top_k", show_default="12")] = None,
    tokens: Annotated[str | None, option(CaptureConfig, "tokens", show_default="all")] = None,
    value_precision: Annotated[str | None, option(CaptureConfig, "value_precision", show_default="float32")] = None,
    controls: Annotated[str | None, option(CaptureConfig, "controls", show_default="none")] = None,
    score: Annotated[str | None, option(CaptureConfig, "score", show_default="mean_abs")] = None,
    streams: Annotated[str | None, option(CaptureConfig, "streams", show_default="image")] = None,
    branches: Annotated[str | None, option(CaptureConfig, "branches", show_default="cond")] = None,
    num_inference_steps: Annotated[int | None, option(CaptureConfig, "num_inference_steps", show_default="20")] = None,
    guidance_scale: Annotated[float | None, option(CaptureConfig, "guidance_scale", show_default="the model's")] = None,
    true_cfg_scale: Annotated[float | None, option(CaptureConfig, "true_cfg_scale", show_default="the model's")] = None,
    height: Annotated[int | None, option(CaptureConfig, "height", show_default="the model's")] = None,
    width: Annotated[int | None, option(CaptureConfig, "width", show_default="the model's")] = None,
    dtype: Annotated[str | None, option(CaptureConfig, "dtype", show_default="float32")] = None,
    from_images: Annotated[
        bool | None,
        typer.Option(
            "--from-images", help="Noise the manifest's reference pictures to each step's level; generate none."
        ),
    ] = None,
    offload: Annotated[str | None, option(CaptureConfig, "offload")] = None,
    quantization: Annotated[str | None, option(CaptureConfig, "quantization")] = None,
    compile_blocks: Annotated[bool | None, typer.Option("--compile", help="Compile each block.")] = None,
    attention: Annotated[str | None, option(CaptureConfig, "attention")] = None,
    device_map: Annotated[str | None, option(CaptureConfig, "device_map")] = None,
    lora: Annotated[str | None, option(CaptureConfig, "lora")] = None,
    transformer_file: Annotated[str | None, option(CaptureConfig, "transformer_file")] = None,
    encode_first: Annotated[
        bool | None,
        typer.Option("--encode-first", help="Encode all prompts first; never load text encoders with the transformer."),
    ] = None,
    family: Annotated[
        Path | None, typer.Option(help="YAML file that describes a transformer class (docs/families.md).")
    ] = None,
    batch_size: Annotated[int | None, option(CaptureConfig, "batch_size", show_default="at most 16")] = None,
    shard_samples: Annotated[
        int | None, option(CaptureConfig, "shard_samples", show_default="up to 512 MiB, at most 16")
    ] = None,
    actors: Annotated[
        int | None, option(Pool, "n_actors", show_default="one per GPU; if none, one per CPU, at most 4")
    ] = None,
    gpus_per_actor: Annotated[float | None, option(Pool, "gpus_per_actor", show_default="1 if there are any")] = None,
    cpus_per_actor: Annotated[
        int | None, option(Pool, "cpus_per_actor", show_default="its share of the node's")
    ] = None,
    address: Annotated[str | None, option(Pool, "address")] = None,
    max_bytes: Annotated[str | None, ruled(_MAX_BYTES)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print tasks, bytes, files and time; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Generate a manifest's samples and record every layer's massive channels at every step.

    Run the same command again to resume. Exit code 5 means that samples are missing or failed.

    Example: fewchannels capture --model demo --manifest manifest.parquet --out RUN --steps 0,9,19
    """
    given: dict[str, Any] = {
        "model": model,
        "revision": revision,
        "layers": layers,
        "steps": steps,
        "top_k": top_k,
        "tokens": tokens,
        "value_precision": value_precision,
        "controls": controls,
        "score": score,
        "streams": streams,
        "branches": branches,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "true_cfg_scale": true_cfg_scale,
        "height": height,
        "width": width,
        "dtype": dtype,
        "from_images": from_images,
        "offload": offload,
        "quantization": quantization,
        "compile": compile_blocks,
        "attention": attention,
        "device_map": device_map,
        "lora": lora,
        "transformer_file": transformer_file,
        "encode_first": encode_first,
        "batch_size": batch_size,
        "shard_samples": shard_samples,
    }
    with errors.status("checking the manifest and the model"):
        from fewchannels.capture.job import prepare
        from fewchannels.capture.memory import check_memory
        from fewchannels.cluster.sizing import choose_pool
        from fewchannels.models.family_file import read_family

        described = read_family(family) if family else None
        job = prepare(manifest, out, CaptureConfig.from_sources(config, given), described)
        pool = choose_pool(actors, gpus_per_actor, address, cpus_per_actor)
        check_memory(job, pool)
    if job.config.dtype == "float16":
        errors.print(
            "float16 ends at 65,504 and clips the values under study; prefer bfloat16 or float32", style="yellow"
        )
    if max_bytes is not None:
        from fewchannels.capture.budget import check_budget

        pixels = job.grid[0] * job.grid[1] * job.geometry.pixels_per_token**2
        check_budget(job.layout, job.grid, pixels, parse_size(max_bytes))
    if dry_run:
        _print_estimate(job, manifest, pool, as_json)
        return
    outcome = run_job(job, manifest, pool)
    if as_json:
        results.print_json(json.dumps(dataclasses.asdict(outcome)))
    else:
        again = f", {outcome.n_again} tasks were handed out again" if outcome.n_again else ""
        say(
            f"{outcome.n_done} of {outcome.n_samples} samples are in {out} "
            f"({outcome.n_resumed} were there before{again}). Next: fewchannels query {out} massive_channels"
        )
    outcome.check_complete()


def run_job(job: "Job", manifest: Path, pool: Pool) -> "Outcome":
    """Begin, resume or grow a prepared job's run and capture it with a progress bar."""
    from fewchannels.capture.run import capture

    layout = job.layout
    with RunBar(job.run, "capturing", "samples", layout.n_samples) as bar:

        def on_begun(resumed: bool) -> None:
            bar.begin(
                f"{'resuming' if resumed else 'capturing'} {layout.n_samples} samples in {layout.n_tasks} tasks: "
                f"{len(layout.blocks)} layers x {len(layout.steps)} steps, about {size(layout.expected_bytes)} of "
                f"arrays, {pool.n_actors} actor{'s' * (pool.n_actors > 1)} with {pool.cpus_per_actor} CPU threads"
            )

        def on_encoded(done: int) -> None:
            bar.describe(f"encoding prompts, {done} of {layout.n_samples}")

        return capture(
            job, manifest, pool, on_wait=bar.wait, on_begun=on_begun, on_progress=bar.show, on_encoded=on_encoded
        )


def _print_estimate(job: "Job", manifest: Path, pool: Pool, as_json: bool) -> None:
    from fewchannels.capture.estimate import estimate

    with errors.status("generating one batch to measure its time"):
        expected: Estimate = estimate(job, manifest, pool.n_actors, pool.cpus_per_actor)
    if as_json:
        results.print_json(json.dumps(dataclasses.asdict(expected)))
        return
    table = Table(title=f"What {job.run} would hold", title_justify="left")
    table.add_column("what")
    table.add_column("shape (sample, step, layer, ...)")
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
        f"({expected.seconds_per_sample:.3g} s a sample, measured on {expected.measured_samples}; loading the model "
        "and starting Ray not counted).",
        markup=False,
        soft_wrap=True,
    )
