"""From a manifest, settings and a folder to a job that can run: everything is checked here, before any work."""

import json
import platform
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine import manifest, store
from engine.config import CaptureConfig, as_dict, differences, fingerprint
from engine.errors import InputError, RunConflictError, StorageError
from engine.manifest import Sample
from engine.models.families import ModelGeometry
from engine.models.load import find, geometry, weights_digest
from engine.plan import Layout, choose_layers, choose_steps
from engine.runfile import FORMAT_VERSION, NAME, read_description
from engine.sampler import Settings
from engine.tables import replace_durably

_LIBRARIES = ("fewchannels", "torch", "diffusers", "transformers", "zarr", "pyarrow", "numpy")


@dataclass(frozen=True)
class Job:
    """All that a worker must be told. Plain values only: it travels to Ray's actors.

    Attributes:
        run: the run's folder.
        config: the capture's settings.
        geometry: the model's.
        layout: the run's shape.
        identity: what decides the data, see :func:`prepare`.
        fingerprint: of the identity.
    """

    run: Path
    config: CaptureConfig
    geometry: ModelGeometry
    layout: Layout
    identity: dict[str, Any]
    fingerprint: str

    def settings(self, sample: Sample) -> Settings:
        """A sample's own settings where its manifest row has them, else the run's."""
        config, side = self.config, self.geometry.default_side
        return Settings(
            height=sample.height or config.height or side,
            width=sample.width or config.width or side,
            steps=sample.steps or config.num_inference_steps,
            guidance=config.guidance_scale if sample.guidance is None else sample.guidance,
            true_cfg_scale=config.true_cfg_scale,
        )


def prepare(manifest_path: Path, run: Path, config: CaptureConfig) -> Job:
    """Check a capture's inputs against each other and settle its shape. Reads only; writes nothing.

    Raises:
        InputError: the manifest, the model or a setting cannot work.
    """
    manifest.validate(manifest_path)
    source = find(config.model, config.revision)
    shape = geometry(source)
    side = shape.default_side
    kinds = manifest.settings_used(manifest_path)
    if kinds.has_reference:
        raise InputError(f"the manifest names reference pictures; {shape.family} pipelines here take text only.")
    if kinds.has_negative_prompt and config.true_cfg_scale <= 1:
        raise InputError(
            f"the manifest has negative prompts, and true_cfg_scale is {config.true_cfg_scale:g}: they would do "
            "nothing. Give --true-cfg-scale above 1, or drop the column."
        )
    sizes = {(height or config.height or side, width or config.width or side) for height, width in kinds.sizes}
    n_tokens = 0
    for height, width in sizes:
        grid_height, grid_width = shape.grid(height, width)
        n_tokens = max(n_tokens, grid_height * grid_width)
    steps = {n or config.num_inference_steps for n in kinds.steps}
    if config.top_k > shape.n_channels:
        raise InputError(f"top_k is {config.top_k}; {config.model!r} has {shape.n_channels} channels.")
    layout = Layout(
        n_samples=manifest.count(manifest_path),
        steps=choose_steps(config.steps, max(steps), same_for_all=len(steps) == 1),
        blocks=choose_layers(config.layers, shape.blocks),
        n_channels=shape.n_channels,
        n_tokens=n_tokens,
        top_k=config.top_k,
        shard_samples=config.shard_samples,
    )
    settled = as_dict(config) | {
        "layers": [block.layer for block in layout.blocks],
        "steps": list(layout.steps),
        "height": config.height or side,
        "width": config.width or side,
    }
    del settled["model"], settled["revision"]  # the weights decide, wherever they were read from
    identity = {
        "format_version": FORMAT_VERSION,
        "config": settled,
        "weights": weights_digest(source),
        "manifest": manifest.digest(manifest_path),
    }
    return Job(run, config, shape, layout, identity, fingerprint(identity))


def begin(job: Job, manifest_path: Path) -> bool:
    """Create the run on disk, or recognise it as this job's own, to be resumed. Safe to repeat.

    Returns:
        True where the run was there already.

    Raises:
        RunConflictError: the folder holds another run or other files.
        StorageError: the folder cannot be written.
    """
    description = job.run / NAME
    if description.exists():
        check_same(job)
        return True
    try:
        job.run.mkdir(parents=True, exist_ok=True)
        ours = {"manifest.parquet", "manifest.tmp", store.NAME, "run.tmp", "cells", "samples", "ledger"}
        if others := sorted(path.name for path in job.run.iterdir() if path.name not in ours):
            raise RunConflictError(
                f"{str(job.run)!r} holds no run but other files ({', '.join(others[:3])}); choose a new folder."
            )
        for table in ("cells", "samples", "ledger"):
            (job.run / table).mkdir(exist_ok=True)
        shutil.copyfile(manifest_path, job.run / "manifest.tmp")
        replace_durably(job.run / "manifest.tmp", job.run / "manifest.parquet")
        store.create(job.run, job.layout, manifest.sample_ids(manifest_path))
        temporary = job.run / "run.tmp"
        temporary.write_text(json.dumps(_description(job), indent=1) + "\n", encoding="utf-8")
        replace_durably(temporary, description)
    except OSError as error:
        raise StorageError(f"cannot create the run {str(job.run)!r}: {error}") from error
    return False


def check_same(job: Job) -> None:
    """Refuse a folder whose run has another fingerprint.

    Raises:
        RunConflictError: naming every field that differs.
    """
    begun = read_description(job.run)
    if begun["fingerprint"] != job.fingerprint:
        lines = "\n  ".join(differences(job.identity, begun["identity"]))
        raise RunConflictError(
            f"the run in {str(job.run)!r} was begun with something else:\n  {lines}\n"
            "Give it the settings and the manifest it was begun with, or choose another folder."
        )


def _description(job: Job) -> dict[str, Any]:
    layout = job.layout
    return {
        "format_version": FORMAT_VERSION,
        "fingerprint": job.fingerprint,
        "identity": job.identity,
        "config": job.identity["config"] | {"model": job.config.model, "revision": job.config.revision},
        "geometry": {
            "n_samples": layout.n_samples,
            "n_steps": len(layout.steps),
            "n_layers": len(layout.blocks),
            "n_channels": layout.n_channels,
            "n_tokens": layout.n_tokens,
            "blocks": [block.path for block in layout.blocks],
        },
        "n_tasks": layout.n_tasks,
        "shard_samples": layout.shard_samples,
        "model": {"name": job.config.model, "family": job.geometry.family, "weights_sha256": job.identity["weights"]},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
