"""From a manifest, settings and a place to a job that can run: everything is checked here, before any work."""

import dataclasses
import io
import platform
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from fewchannels import manifest
from fewchannels.capture.config import CaptureConfig, as_dict
from fewchannels.errors import InputError, RunConflictError
from fewchannels.manifest import Sample, read_samples
from fewchannels.models.family import BRANCHES, STREAMS, Family, ModelGeometry
from fewchannels.models.family_file import as_fields
from fewchannels.models.load_options import Loading
from fewchannels.models.sampler import Settings
from fewchannels.models.source import find, geometry, text_encoders, weights_digest
from fewchannels.runs import arrays
from fewchannels.runs.changes import FOLDER as CHANGES
from fewchannels.runs.changes import RUN, Draft
from fewchannels.runs.description import (
    EMBEDDINGS,
    FORMAT_VERSION,
    MANIFEST,
    NAME,
    objects_of,
    read_description,
)
from fewchannels.runs.identity import differences, fingerprint
from fewchannels.runs.layout import (
    Layout,
    choose_controls,
    choose_layers,
    choose_pool_side,
    choose_steps,
    choose_words,
    default_shard_samples,
    is_rounded,
)
from fewchannels.runs.lease import LEASE, check_held
from fewchannels.runs.storage import Sink, Storage, open_storage

_LIBRARIES = ("fewchannels", "torch", "diffusers", "transformers", "zarr", "pyarrow", "numpy")
_FOLDERS = ("ledger/", "cells/", "samples/", "results/", CHANGES, EMBEDDINGS, f"{arrays.NAME}/")
_FILES = (MANIFEST, LEASE)
_MOST_BATCH_SIZE = 16
_ELSEWHERE = ("model", "revision", "offload", "device_map", "transformer_file", "encode_first")


class Work(Protocol):
    """Tasks of one place, as actors and their driver see them: a capture's job, or a sweep's. Plain values only."""

    @property
    def storage(self) -> Storage:
        """Where they write."""

    @property
    def fingerprint(self) -> str:
        """Of what they do."""

    @property
    def n_tasks(self) -> int:
        """How many there are."""

    def rows(self, task: int) -> range:
        """What a task owns, each of which is done or fails by itself."""

    def ids(self, task: int) -> list[str]:
        """The ids of what it owns, of samples or of pairs."""


@dataclass(frozen=True)
class Job:
    """All that a worker must be told. Plain values only: it travels to Ray's actors.

    Attributes:
        run: path or URL of the run.
        config: the capture's settings, all of them settled.
        geometry: the model's.
        layout: the run's shape.
        identity: what decides the data of a sample, see :func:`prepare`.
        fingerprint: of the identity.
        manifest_sha256: of the manifest's content.
        lease: token of the capture that runs it, see :mod:`fewchannels.runs.lease`; None where nothing else can write.
    """

    run: str
    config: CaptureConfig
    geometry: ModelGeometry
    layout: Layout
    identity: dict[str, Any]
    fingerprint: str
    manifest_sha256: str
    lease: str | None = None

    @cached_property
    def storage(self) -> Storage:
        """Where the run is."""
        return open_storage(self.run)

    @property
    def batch_size(self) -> int:
        """Samples generated together."""
        return self.config.batch_size or min(_MOST_BATCH_SIZE, self.layout.shard_samples)

    @property
    def grid(self) -> tuple[int, int]:
        """Image tokens along height and width of a picture of the run's own size."""
        side = self.geometry.default_side
        return self.geometry.grid(self.config.height or side, self.config.width or side)

    @property
    def n_tasks(self) -> int:
        """Tasks of the run."""
        return self.layout.n_tasks

    def rows(self, task: int) -> range:
        """Manifest rows that a task owns."""
        return self.layout.rows(task)

    def ids(self, task: int) -> list[str]:
        """Ids of its samples, from the run's manifest."""
        rows = self.rows(task)
        with self.storage.open(MANIFEST) as file:
            return [sample.sample_id for sample in read_samples(file, rows.start, rows.stop)]

    def leased(self, token: str) -> "Job":
        """The same job as part of the capture that holds a lease."""
        return dataclasses.replace(self, lease=token)

    def settings(self, sample: Sample) -> Settings:
        """A sample's own settings where its manifest row has them, else the run's."""
        config, side = self.config, self.geometry.default_side
        assert config.guidance_scale is not None, "prepare() settles the scales"
        assert config.true_cfg_scale is not None
        return Settings(
            height=sample.height or config.height or side,
            width=sample.width or config.width or side,
            steps=sample.steps or config.num_inference_steps,
            guidance=config.guidance_scale if sample.guidance is None else sample.guidance,
            true_cfg_scale=config.true_cfg_scale,
            reference=None if config.from_images else sample.reference,
            picture=sample.reference if config.from_images else None,
            only_steps=self.layout.steps if config.from_images else (),
        )


def loading(config: CaptureConfig) -> Loading:
    """How the settings load the model.

    Raises:
        InputError: settings that do not work together or need what is not here.
    """
    return Loading(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Loading)})


def prepare(
    manifest_path: Path, run: str | Path, config: CaptureConfig, family: tuple[str, Family] | None = None
) -> Job:
    """Check a capture's inputs against each other and settle its shape. Reads only; writes nothing.

    Args:
        manifest_path: the manifest.
        run: path or URL of the run.
        config: the settings.
        family: of a transformer class, beside those that are known.

    Raises:
        InputError: the manifest, the model or a setting cannot work.
    """
    open_storage(run)
    manifest.validate(manifest_path)
    source = find(config.model, config.revision)
    shape = geometry(source, family)
    files = loading(config).digests()
    if config.encode_first and not text_encoders(source):
        raise InputError(f"encode_first needs text encoders; {config.model!r} has none.")
    config = _settle_guidance(config, shape)
    layout = _layout(manifest_path, config, shape)
    config = dataclasses.replace(
        config,
        height=config.height or shape.default_side,
        width=config.width or shape.default_side,
        shard_samples=layout.shard_samples,
        batch_size=config.batch_size or (1 if config.encode_first else min(_MOST_BATCH_SIZE, layout.shard_samples)),
    )
    settled = as_dict(config) | {
        "layers": [block.layer for block in layout.blocks],
        "steps": list(layout.steps),
        "n_tokens": layout.n_tokens,
    }
    # The weights decide, wherever they were read from and wherever they are.
    for name in _ELSEWHERE:
        settled.pop(name, None)
    identity = {"format_version": FORMAT_VERSION, "config": settled, "weights": weights_digest(source)}
    if files:
        identity["weight_files"] = files
    if family:
        identity["family"] = {family[0]: as_fields(family[1])}
    return Job(str(run), config, shape, layout, identity, fingerprint(identity), manifest.digest(manifest_path))


def _settle_guidance(config: CaptureConfig, shape: ModelGeometry) -> CaptureConfig:
    how = shape.pipeline
    if config.true_cfg_scale is not None and config.true_cfg_scale != 1 and not how.has_true_cfg:
        raise InputError(
            f"true_cfg_scale is {config.true_cfg_scale:g}; {shape.pipeline_class} has one scale only, guidance_scale."
        )
    return dataclasses.replace(
        config,
        guidance_scale=how.default_guidance if config.guidance_scale is None else config.guidance_scale,
        true_cfg_scale=how.default_true_cfg if config.true_cfg_scale is None else config.true_cfg_scale,
    )


def _check_guidance(kinds: manifest.SettingsUsed, config: CaptureConfig, shape: ModelGeometry) -> None:
    assert config.guidance_scale is not None
    assert config.true_cfg_scale is not None
    how, scale = shape.pipeline, "--true-cfg-scale" if shape.pipeline.has_true_cfg else "--guidance-scale"
    least = min([config.guidance_scale, *kinds.guidance])
    guided = shape.is_guided(least, config.true_cfg_scale)
    remedy = (
        f"Give {scale} above {how.unguided:g}"
        if shape.can_be_guided
        else "This model runs without an unconditional branch"
    )
    if kinds.has_negative_prompt and not (guided and how.negative):
        reason = "which would do nothing" if how.negative else f"which {shape.pipeline_class} does not take"
        raise InputError(f"the manifest has negative prompts, {reason}. {remedy}, or drop the column.")
    if "uncond" in config.branches and not guided:
        raise InputError(f"branches is {config.branches!r}, and no unconditional branch would run. {remedy}.")


def _check_references(
    kinds: manifest.SettingsUsed, n_samples: int, config: CaptureConfig, shape: ModelGeometry
) -> None:
    if config.from_images and not shape.takes_images:
        raise InputError(
            f"--from-images needs flow matching and a VAE of a known kind; {shape.pipeline_class} of {config.model!r} "
            "has another, or needs its reference pictures for itself."
        )
    if config.from_images and kinds.n_references < n_samples:
        raise InputError(
            f"--from-images takes the manifest's reference column; {n_samples - kinds.n_references} of its {n_samples} "
            "rows have none."
        )
    if not config.from_images and kinds.n_references and shape.pipeline.reference is None:
        raise InputError(f"the manifest names reference pictures; {shape.pipeline_class} takes text only.")
    if kinds.n_references < n_samples and shape.pipeline.needs_reference:
        raise InputError(
            f"{shape.pipeline_class} needs a reference picture for every sample; {n_samples - kinds.n_references} of "
            f"the manifest's {n_samples} rows have none in its reference column."
        )
    if missing := sorted(path for path in kinds.references if not Path(path).is_file()):
        raise InputError(f"{len(missing)} reference pictures of the manifest are not here, such as {missing[0]!r}.")


def _layout(manifest_path: Path, config: CaptureConfig, shape: ModelGeometry) -> Layout:
    kinds, n_samples = manifest.settings_used(manifest_path), manifest.count(manifest_path)
    _check_guidance(kinds, config, shape)
    _check_references(kinds, n_samples, config, shape)
    side, pool = shape.default_side, choose_pool_side(config.tokens)
    n_tokens = 0
    for height, width in {(h or config.height or side, w or config.width or side) for h, w in kinds.sizes}:
        grid_height, grid_width = shape.grid(height, width)
        if grid_height % pool or grid_width % pool:
            raise InputError(
                f"tokens is {config.tokens!r}, and a picture of {height} x {width} pixels has {grid_height} x "
                f"{grid_width} tokens: not whole squares of {pool} x {pool}. Choose a side that divides both."
            )
        n_tokens = max(n_tokens, grid_height // pool * (grid_width // pool))
    steps = {n or config.num_inference_steps for n in kinds.steps}
    if config.top_k > shape.n_channels:
        raise InputError(f"top_k is {config.top_k}; {config.model!r} has {shape.n_channels} channels.")
    blocks = choose_layers(config.layers, shape.blocks)
    streams = choose_words("streams", config.streams, STREAMS)
    if "text" in streams and not shape.family.has_text(blocks):
        raise InputError(
            f"streams is {config.streams!r}; the chosen blocks of {shape.transformer} have no text stream: text enters "
            "them from outside. Leave it out."
        )
    controls = choose_controls(config.controls)
    if controls and (not config.top_k or "image" not in streams):
        raise InputError(f"controls is {config.controls!r}, and no token maps are kept beside them. Raise --top-k.")
    if controls and 2 * config.top_k > shape.n_channels:
        raise InputError(
            f"controls is {config.controls!r}, and top_k is {config.top_k} of {shape.n_channels} channels: there are "
            f"not as many others. Lower --top-k, or keep every channel's map with --top-k {shape.n_channels} alone."
        )
    layout = Layout(
        n_samples=n_samples,
        steps=choose_steps(config.steps, max(steps), same_for_all=len(steps) == 1),
        blocks=blocks,
        n_channels=shape.n_channels,
        n_tokens=n_tokens,
        top_k=config.top_k,
        shard_samples=config.shard_samples or 1,
        pool=pool,
        rounded=is_rounded(config.value_precision, config.dtype, config.tokens),
        streams=streams,
        branches=choose_words("branches", config.branches, BRANCHES),
        controls=controls,
    )
    return layout if config.shard_samples else dataclasses.replace(layout, shard_samples=default_shard_samples(layout))


def check_place(job: Job) -> None:
    """Refuse a place that holds other files than a run's. Reads only.

    Raises:
        RunConflictError: naming some of them.
    """
    if job.storage.exists(NAME):
        return
    if others := [key for key in job.storage.list() if not key.startswith(_FOLDERS) and key not in _FILES]:
        raise RunConflictError(
            f"{job.run!r} holds no run but other files ({', '.join(others[:3])}); choose a new place."
        )


def begin(job: Job, manifest_path: Path) -> bool:
    """Create the run, recognise it as this job's own to be resumed, or grow it to a longer manifest. Safe to repeat.

    Only while no other capture runs (:func:`fewchannels.runs.lease.hold`).

    Returns:
        True where the run was there already.

    Raises:
        RunConflictError: there is another run, or the lease is another capture's by now.
        InputError: the manifest is not any more what it was when the job was prepared.
        StorageError: the store refused.
    """
    storage = job.storage
    draft = Draft(storage, RUN, NAME)
    begun = check_same(job, manifest_path) if storage.exists(NAME) else None
    objects = objects_of(begun) if begun else {}
    grows = begun is not None and begun["manifest"]["n_samples"] < job.layout.n_samples
    if begun is None or grows or not all(storage.holds(key, stored) for key, stored in objects.items()):
        created = begun["created"] if begun else datetime.now(UTC).isoformat(timespec="seconds")
        description = _laid_out(draft, job, manifest_path, created, objects if grows else ())
        if job.lease is not None:  # this process may have been stopped for so long that another has captured the run
            check_held(storage, job.lease)
        draft.settle(description)
    return begun is not None


def check_same(job: Job, manifest_path: Path) -> dict[str, Any]:
    """Refuse a run that was begun with other settings, or with samples that are not the manifest's first ones.

    Returns:
        The run's description.

    Raises:
        RunConflictError: naming every field that differs.
    """
    begun = read_description(job.storage)
    remedy = "Give it the settings and the manifest it was begun with, or choose another place."
    if begun["fingerprint"] != job.fingerprint:
        lines = "\n  ".join(differences(job.identity, begun["identity"]))
        raise RunConflictError(f"the run in {job.run!r} was begun with something else:\n  {lines}\n{remedy}")
    n_samples, sha256 = begun["manifest"]["n_samples"], begun["manifest"]["sha256"]
    if n_samples > job.layout.n_samples:
        raise RunConflictError(
            f"the run in {job.run!r} has {n_samples} samples, and this manifest only {job.layout.n_samples}. {remedy}"
        )
    same = job.manifest_sha256 if n_samples == job.layout.n_samples else manifest.digest(manifest_path, n_samples)
    if same != sha256:
        raise RunConflictError(
            f"the run in {job.run!r} was begun with another manifest:\n  manifest: the run's {n_samples} samples are "
            f"not the first {n_samples} of this one's {job.layout.n_samples}\n{remedy} A run grows by samples that "
            "come after its own."
        )
    return begun


def _laid_out(storage: Sink, job: Job, manifest_path: Path, created: str, earlier: Collection[str]) -> dict[str, Any]:
    """Store what a run has once, and describe it."""
    layout, settings, rows = job.layout, as_dict(job.config), manifest_path.read_bytes()
    if manifest.digest(io.BytesIO(rows)) != job.manifest_sha256:
        raise InputError(f"{str(manifest_path)!r} was replaced while the capture began; run it again.")
    objects = {MANIFEST: storage.put(MANIFEST, [rows])}
    objects |= arrays.lay_out(storage, layout, manifest.sample_ids(io.BytesIO(rows)), earlier)
    return {
        "format_version": FORMAT_VERSION,
        "fingerprint": job.fingerprint,
        "identity": job.identity,
        "manifest": {"n_samples": layout.n_samples, "sha256": job.manifest_sha256},
        "config": job.identity["config"] | {name: settings[name] for name in _ELSEWHERE if name in settings},
        "geometry": {
            "n_samples": layout.n_samples,
            "n_steps": len(layout.steps),
            "n_layers": len(layout.blocks),
            "n_channels": layout.n_channels,
            "n_tokens": layout.n_tokens,
            "blocks": [dataclasses.asdict(block) for block in layout.blocks],
        },
        "n_tasks": layout.n_tasks,
        "shard_samples": layout.shard_samples,
        "model": {
            "name": job.config.model,
            "family": job.geometry.transformer,
            "pipeline": job.geometry.pipeline_class,
            "weights_sha256": job.identity["weights"],
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
        "created": created,
        "objects": {key: dataclasses.asdict(each) for key, each in objects.items()},
    }
