"""``fewchannels capture``."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fewchannels.cli.console import duration, errors, results, say
from fewchannels.cli.progress import RunBar
from fewchannels.units import parse_size, size

if TYPE_CHECKING:
    from fewchannels.capture.estimate import Estimate
    from fewchannels.capture.job import Job
    from fewchannels.capture.run import Outcome
    from fewchannels.cluster.session import Pool


def capture(
    manifest: Annotated[Path, typer.Option(help="Parquet manifest, from fewchannels manifest ingest.")],
    out: Annotated[
        str, typer.Option(help="Folder or URL (s3://, gs://, az://) of the run; an interrupted run goes on.")
    ],
    config: Annotated[Path | None, typer.Option(help="YAML file with any of the settings below.")] = None,
    model: Annotated[str | None, typer.Option(help="demo, a folder, or a hub id.", show_default="demo")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    layers: Annotated[str | None, typer.Option(help="all, dual, single, or indices: 0,5.", show_default="all")] = None,
    steps: Annotated[str | None, typer.Option(help="all, last, or indices: 0,9,19.", show_default="all")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Channels whose token maps are kept; 0: statistics only.", show_default="12")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="all, or pool:N: means over N x N tokens.", show_default="all")
    ] = None,
    value_precision: Annotated[
        str | None,
        typer.Option(help="float32, or bfloat16: token maps rounded, under half the bytes.", show_default="float32"),
    ] = None,
    controls: Annotated[
        str | None,
        typer.Option(help="Also keep the maps of as many others: bottom, random:N.", show_default="none"),
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="mean_abs, abs_mean, max_abs or rms: ranks channels.", show_default="mean_abs")
    ] = None,
    streams: Annotated[
        str | None, typer.Option(help="image, text or image,text: whose tokens.", show_default="image")
    ] = None,
    branches: Annotated[
        str | None, typer.Option(help="cond, uncond or cond,uncond: guidance branches.", show_default="cond")
    ] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default="20")] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="Distilled guidance; classifier-free where there is no other.", show_default="the model's"),
    ] = None,
    true_cfg_scale: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance beside a distilled one; 1 is off.", show_default="the model's"),
    ] = None,
    height: Annotated[int | None, typer.Option(help="Picture height, pixels.", show_default="the model's")] = None,
    width: Annotated[int | None, typer.Option(help="Picture width, pixels.", show_default="the model's")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.", show_default="float32")] = None,
    from_images: Annotated[
        bool | None,
        typer.Option(
            "--from-images", help="Noise the manifest's reference pictures to each step's level; generate none."
        ),
    ] = None,
    offload: Annotated[
        str | None, typer.Option(help="model, sequential or group: what is on the GPU only while it runs.")
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help="bitsandbytes-8bit, -4bit, torchao-int8, -int4, -float8: the transformer's.")
    ] = None,
    compile_blocks: Annotated[bool | None, typer.Option("--compile", help="Compile each block.")] = None,
    attention: Annotated[
        str | None, typer.Option(help="diffusers' attention backend, such as native or flash.")
    ] = None,
    device_map: Annotated[str | None, typer.Option(help="balanced: one model over several GPUs.")] = None,
    lora: Annotated[str | None, typer.Option(help="Adapters: FILE@STRENGTH, comma-separated.")] = None,
    transformer_file: Annotated[
        str | None, typer.Option(help="Single file (safetensors, GGUF) whose weights replace the transformer's.")
    ] = None,
    encode_first: Annotated[
        bool | None,
        typer.Option("--encode-first", help="Encode all prompts first; text encoders and transformer never meet."),
    ] = None,
    family: Annotated[
        Path | None, typer.Option(help="YAML file that describes a transformer class (docs/families.md).")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples generated together.", show_default="at most 16")
    ] = None,
    shard_samples: Annotated[
        int | None, typer.Option(help="Samples in a task and a shard.", show_default="up to 512 MiB, at most 16")
    ] = None,
    actors: Annotated[
        int | None, typer.Option(help="Ray actors.", show_default="one per GPU; without, one per CPU, at most 4")
    ] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option(help="GPUs of each actor.", show_default="1 if there are")
    ] = None,
    cpus_per_actor: Annotated[
        int | None, typer.Option(help="CPU threads of each actor.", show_default="its share of the node's")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster, auto on one of its nodes; without it Ray starts here.")
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(help="Refuse a run that is expected to take more, such as 500MB or 2TB.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print tasks, bytes, files and time; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Generate a manifest's samples and record every layer's massive channels at every step.

    Run the same command again to resume. Exit code 5 says that samples are missing or failed.

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
        from fewchannels.capture.config import CaptureConfig
        from fewchannels.capture.job import prepare
        from fewchannels.cluster.session import choose_pool
        from fewchannels.models.family_file import read_family

        described = read_family(family) if family else None
        job = prepare(manifest, out, CaptureConfig.from_sources(config, given), described)
        pool = choose_pool(actors, gpus_per_actor, address, cpus_per_actor)
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


def run_job(job: "Job", manifest: Path, pool: "Pool") -> "Outcome":
    """Begin, resume or grow a prepared job's run and capture it with a progress bar."""
    from fewchannels.capture.job import begin, check_place
    from fewchannels.runs.lease import hold

    with errors.status(f"looking at {job.run}"):  # a store out of reach is asked for minutes
        check_place(job)
    with hold(job.storage, on_wait=say) as token:
        leased = job.leased(token)
        resumed = begin(leased, manifest)
        layout = job.layout
        say(
            f"{'resuming' if resumed else 'capturing'} {layout.n_samples} samples in {layout.n_tasks} tasks: "
            f"{len(layout.blocks)} layers x {len(layout.steps)} steps, about {size(layout.expected_bytes)} of arrays, "
            f"{pool.n_actors} actor{'s' * (pool.n_actors > 1)} with {pool.cpus_per_actor} CPU threads"
        )
        return _capture(leased, pool)


def _capture(job: "Job", pool: "Pool") -> "Outcome":
    from fewchannels.capture.run import capture as run_capture

    n_samples = job.layout.n_samples
    with RunBar("capturing", "samples", n_samples) as bar:

        def on_encoded(done: int) -> None:
            bar.describe(f"encoding prompts, {done} of {n_samples}")

        try:
            return run_capture(job, pool, bar.show, on_encoded)
        except KeyboardInterrupt:
            say("stopped; what is finished is kept: run the same command again to go on", style="yellow")
            raise typer.Exit(130) from None


def _print_estimate(job: "Job", manifest: Path, pool: "Pool", as_json: bool) -> None:
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
