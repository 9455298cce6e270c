"""Save recorded calls as a run, which every command can read."""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewchannels import manifest
from fewchannels.api.calls.recorded_call import MadeBy, RecordedCall
from fewchannels.captures.begin import begin, check_place
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import ELSEWHERE, Job
from fewchannels.captures.worker import Generated, tables_of
from fewchannels.cluster.attempts import recorded as record_of
from fewchannels.cluster.tasks import begun, pending_tasks
from fewchannels.errors import InputError
from fewchannels.measures.kernels import version_on
from fewchannels.models.family import ModelGeometry
from fewchannels.models.in_memory import name_of, pipeline_identity
from fewchannels.runs.arrays import Store
from fewchannels.runs.description import FORMAT_VERSION
from fewchannels.runs.identity import fingerprint
from fewchannels.runs.layout import Layout, default_shard_samples
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.parts import part
from fewchannels.runs.provenance import computed_by
from fewchannels.tables import to_parquet

if TYPE_CHECKING:
    import xarray as xr


def save(
    calls: Sequence[RecordedCall],
    made_by: MadeBy,
    pipeline: Any,
    score: str,
    layout: Layout,
    activations: "xr.Dataset",
    path: str | Path,
) -> None:
    """Write recorded calls as a run.

    Args:
        calls: the calls.
        made_by: pipeline and machine that made the calls.
        pipeline: the pipeline, with the weights that it had during the calls.
        score: the statistic that ranks channels.
        layout: shape of all calls together.
        activations: arrays of all calls together.
        path: folder or URL of the run.

    Raises:
        InputError: a sample has no seed, no prompt or no image, or two samples are identical.
        RunConflictError: the location contains something else.
        StorageError: the run could not be written.
    """
    _check(calls)
    layout = dataclasses.replace(layout, shard_samples=default_shard_samples(layout))
    with tempfile.TemporaryDirectory() as folder:
        source, table = Path(folder, "manifest.jsonl"), Path(folder, "manifest.parquet")
        source.write_text("\n".join(json.dumps(row) for row in _samples(calls)), encoding="utf-8")
        manifest.ingest([source], table)
        config = _config(calls, made_by, pipeline, score, layout)
        decided = {name: value for name, value in config.as_dict().items() if name not in ELSEWHERE} | {
            "layers": [block.layer for block in layout.blocks],
            "steps": list(layout.steps),
            "n_tokens": layout.n_tokens,
        }
        found = pipeline_identity(pipeline)
        unusual = [call.unusual for call in calls]
        if any(unusual):
            content = hashlib.sha256(json.dumps(unusual).encode()).hexdigest()[:16]
            found["files"] |= {"edits and arguments of the calls": content}
        identity = {"format_version": FORMAT_VERSION, "config": decided} | found
        sha256 = manifest.Manifest.read(table).sha256
        job = Job(str(path), config, made_by.geometry, layout, identity, fingerprint(identity), sha256)
        with begun(job, check_place, lambda leased: begin(leased, table)) as (leased, _):
            _write(leased, _generated(calls, made_by.geometry), activations, made_by)


def _check(calls: Sequence[RecordedCall]) -> None:
    """Reject samples that a run cannot identify."""
    for what, remedy, each in (
        ("prompt", "Pass prompts, not embeddings", [text for call in calls for text in call.prompts]),
        (
            "seed",
            "Pass a fresh generator=torch.Generator().manual_seed(N) for each image",
            [seed for call in calls for seed in call.seeds],
        ),
        ("image", "Record calls with output_type='pil'", [image for call in calls for image in call.images]),
    ):
        if places := [i for i, value in enumerate(each) if value is None]:
            raise InputError(
                f"{len(places)} of {len(each)} samples have no {what}, such as sample {places[0]}, so a run cannot "
                f"identify their images. {remedy}."
            )
    ids = [each for call in calls for each in call.ids]
    if len(set(ids)) < len(ids):
        twice = next(i for i, each in enumerate(ids) if each in ids[:i])
        raise InputError(
            f"sample {twice} has the same prompt and seed as sample {ids.index(ids[twice])}, but a run stores each "
            f"only "
            "once. Record them in separate contexts."
        )
    if len({call.settings[2] for call in calls}) > 1:
        raise InputError("the calls have several true CFG scales, but a run has one. Record them in separate contexts.")


def _samples(calls: Sequence[RecordedCall]) -> list[dict[str, Any]]:
    """Rows of a manifest; settings that differ between samples are columns."""
    own = [{"size": call.size, "steps": call.settings[0], "guidance": call.settings[1]} for call in calls]
    varying = [name for name in ("size", "steps", "guidance") if len({each[name] for each in own}) > 1]
    has_negative = any(text for call in calls for text in call.negative_prompts)
    rows = []
    for call, settings in zip(calls, own, strict=True):
        columns = {name: settings[name] for name in varying if name != "size"}
        if "size" in varying:
            columns |= {"height": call.size[0], "width": call.size[1]}
        for prompt, negative, seed in zip(call.prompts, call.negative_prompts, call.seeds, strict=True):
            texts = {"prompt": prompt, "seed": seed} | ({"negative_prompt": negative or ""} if has_negative else {})
            rows.append(texts | columns)
    return rows


def _config(calls: Sequence[RecordedCall], made_by: MadeBy, pipeline: Any, score: str, layout: Layout) -> CaptureConfig:
    """The settings of a capture that records the same data."""
    first = calls[0]
    steps, guidance, true_cfg = first.settings
    return CaptureConfig(
        model=name_of(pipeline),
        num_inference_steps=steps,
        guidance_scale=guidance,
        true_cfg_scale=true_cfg,
        height=first.size[0],
        width=first.size[1],
        batch_size=max(len(call.prompts) for call in calls),
        dtype=made_by.dtype,
        layers=",".join(str(block.layer) for block in layout.blocks),
        steps=",".join(map(str, layout.steps)),
        top_k=layout.top_k,
        score=score,
        streams=",".join(layout.streams),
        branches=",".join(layout.branches),
        shard_samples=layout.shard_samples,
    )


def _write(job: Job, made: Sequence[Generated], activations: "xr.Dataset", made_by: MadeBy) -> None:
    """Write each task that has no record yet: shards, tables, then its record."""
    storage, ledger = job.storage, Ledger(job.storage)
    for task in pending_tasks(job):
        rows = job.layout.rows(task)
        own = made[rows.start : rows.stop]
        data = activations.isel(sample=slice(rows.start, rows.stop))
        objects = Store(storage, job.layout).write(
            rows.start, {plan.name: data[plan.name].values for plan in job.layout.arrays()}
        )
        for table, columns in tables_of(task, rows.start, 1, job.samples(task), own).items():
            key = part(table, task)
            objects[key] = storage.put(key, [to_parquet(table, columns)])
        seconds = sum(each.row["seconds"] for each in own)
        by = computed_by(made_by.n_threads, triton=version_on(made_by.device.partition(" ")[0]))
        ledger.write(record_of(job, task, 1, 0, seconds, made_by.device, objects, by, {}))


def _generated(calls: Sequence[RecordedCall], geometry: ModelGeometry) -> list[Generated]:
    """The data of each sample, besides arrays, in the format of a capture's worker."""
    made = []
    for call in calls:
        n = len(call.prompts)
        for image, cells, (n_tokens, is_cut) in zip(call.images, call.cells, call.prompt_tokens, strict=True):
            row = {
                "status": "done",
                "error": None,
                "width": call.size[1],
                "height": call.size[0],
                "grid_width": call.token_grid[1],
                "grid_height": call.token_grid[0],
                "n_steps": call.n_run,
                "guidance": call.settings[1] if geometry.takes_guidance else None,
                "prompt_tokens": n_tokens,
                "prompt_truncated": is_cut,
                "seconds": call.seconds / n,
                "batch_size": n,
                "peak_memory_bytes": call.peak_memory_bytes,
            }
            made.append(Generated(row, image, cells))
    return made
