"""Prepare a job from a manifest, settings and a location; everything is checked here, before any work."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cachetools import LRUCache

from fewchannels.captures.config import CaptureConfig
from fewchannels.errors import InputError
from fewchannels.manifest import Manifest, Sample, SettingsUsed, read_samples
from fewchannels.models.family import BRANCHES, STREAMS, Family, ModelGeometry
from fewchannels.models.generation import (
    OF_THE_PLACE,
    Settings,
    check_guidance,
    guidance_remedy,
    is_guided,
    sizes,
)
from fewchannels.models.model import Model, from_files
from fewchannels.runs.choices import (
    choose_controls,
    choose_layers,
    choose_pool_side,
    choose_steps,
    choose_words,
)
from fewchannels.runs.description import FORMAT_VERSION, MANIFEST, NAME, begun_identity
from fewchannels.runs.identity import fingerprint, known_to
from fewchannels.runs.layout import Layout, default_shard_samples, is_rounded
from fewchannels.runs.storage import Storage, open_storage

ELSEWHERE = (*OF_THE_PLACE, "encode_first")
"""Settings that do not affect the data: the weights do, regardless of their source and location."""
_MOST_BATCH_SIZE = 16
_RECENT_TASKS = 4


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs. Has only plain values, since it is sent to Ray actors.

    Attributes:
        run: path or URL of the run.
        config: settings of the capture, fully resolved.
        geometry: geometry of the model.
        layout: the run's shape.
        identity: everything that determines a sample's data, see :func:`prepare`.
        fingerprint: fingerprint of the identity.
        manifest_sha256: SHA-256 of the manifest's content.
        lease: token of the capture that runs it, see :mod:`fewchannels.runs.lease`; None if nothing else can write.
        unchecked: fields of the identity that the existing run lacks, since an earlier version created it.
    """

    run: str
    config: CaptureConfig
    geometry: ModelGeometry
    layout: Layout
    identity: dict[str, Any]
    fingerprint: str
    manifest_sha256: str
    lease: str | None = None
    unchecked: tuple[str, ...] = ()

    @cached_property
    def storage(self) -> Storage:
        """Storage of the run."""
        return open_storage(self.run)

    @property
    def batch_size(self) -> int:
        """Number of samples per batch."""
        return self.config.batch_size or min(_MOST_BATCH_SIZE, self.layout.shard_samples)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image of the run's own size, pixels."""
        side = self.geometry.default_side
        return self.config.height or side, self.config.width or side

    @property
    def token_grid(self) -> tuple[int, int]:
        """Image tokens along height and width of an image of that size."""
        return self.geometry.token_grid(*self.size)

    @property
    def n_tasks(self) -> int:
        """Tasks of the run."""
        return self.layout.n_tasks

    @property
    def n_forwards(self) -> int:
        """Number of forward passes for one image each, if every sample has the run's number of steps."""
        return self.layout.n_samples * self.config.num_inference_steps

    def rows(self, task: int) -> range:
        """Manifest rows that a task owns."""
        return self.layout.rows(task)

    def samples(self, task: int) -> list[Sample]:
        """A task's samples, from the run's manifest, which is cached for reading task after task."""
        if (found := self._recent.get(task)) is None:
            rows = self.rows(task)
            with self.storage.open(MANIFEST) as file:
                found = self._recent[task] = read_samples(file, rows.start, rows.stop)
        return found

    @cached_property
    def _recent(self) -> LRUCache[int, list[Sample]]:
        return LRUCache(_RECENT_TASKS)

    def ids(self, task: int) -> list[str]:
        """Ids of a task's samples."""
        return [sample.sample_id for sample in self.samples(task)]

    def leased(self, token: str) -> "Job":
        """The job with the lease of the capture that runs it."""
        return dataclasses.replace(self, lease=token)

    def settings(self, sample: Sample) -> Settings:
        """A sample's settings: those of its manifest row, else those of the run."""
        settings = self.config.settings(sample)
        if not self.config.from_images:
            return settings
        return dataclasses.replace(settings, reference=None, image=sample.reference, only_steps=self.layout.steps)


def prepare(
    manifest_path: str | Path,
    run: str | Path,
    config: CaptureConfig,
    family: tuple[str, Family] | None = None,
    model: Model | None = None,
) -> Job:
    """Check that a capture's inputs fit together, and determine its shape. Reads only.

    Args:
        manifest_path: the manifest.
        run: path or URL of the run.
        config: the settings.
        family: family of a transformer class, in addition to the known families.
        model: the model, if it is loaded already; None for the one that the settings name.

    Raises:
        InputError: the manifest, the model or a setting is not valid.
    """
    storage = open_storage(run)
    manifest = Manifest.read(manifest_path)
    model = model or from_files(config, family)
    shape = model.geometry
    if config.encode_first and not model.text_encoders:
        raise InputError(f"encode_first needs text encoders; {config.model!r} has none.")
    config = config.settled(shape)
    layout = _layout(manifest, config, shape)
    config = dataclasses.replace(
        config,
        shard_samples=layout.shard_samples,
        batch_size=config.batch_size or (1 if config.encode_first else min(_MOST_BATCH_SIZE, layout.shard_samples)),
    )
    decided = {name: value for name, value in config.as_dict().items() if name not in ELSEWHERE} | {
        "layers": [block.layer for block in layout.blocks],
        "steps": list(layout.steps),
        "n_tokens": layout.n_tokens,
    }
    identity = {"format_version": FORMAT_VERSION, "config": decided, **model.identity()}
    identity, unchecked = known_to(identity, begun_identity(storage, NAME))
    whole = fingerprint(identity)
    return Job(str(run), config, shape, layout, identity, whole, manifest.sha256, unchecked=tuple(unchecked))


def _check_branches(config: CaptureConfig, shape: ModelGeometry, used: SettingsUsed) -> None:
    if "uncond" in config.branches and not is_guided(config, shape, used):
        raise InputError(
            f"branches is {config.branches!r}, but no unconditional branch would run. {guidance_remedy(shape)}."
        )


def _check_references(config: CaptureConfig, shape: ModelGeometry, manifest: Manifest) -> None:
    used, n_samples = manifest.used, manifest.n_samples
    if config.from_images and not shape.takes_images:
        raise InputError(
            f"--from-images needs flow matching and a VAE of a supported kind; {shape.pipeline_class} of "
            f"{config.model!r} has neither, or uses reference images itself."
        )
    if config.from_images and used.n_references < n_samples:
        raise InputError(
            f"--from-images needs the manifest's reference column; it is empty in {n_samples - used.n_references} of "
            f"{n_samples} rows."
        )
    if not config.from_images and used.n_references and shape.pipeline.reference is None:
        raise InputError(
            f"the manifest has reference images, but {shape.pipeline_class} uses only text. Drop its reference column."
        )
    if used.n_references < n_samples and shape.pipeline.needs_reference:
        raise InputError(
            f"{shape.pipeline_class} needs a reference image for every sample; {n_samples - used.n_references} of "
            f"the manifest's {n_samples} rows have none in its reference column."
        )
    if missing := sorted(path for path in used.references if not Path(path).is_file()):
        raise InputError(
            f"{len(missing)} reference images of the manifest do not exist, such as {missing[0]!r}. Correct the paths."
        )


def _n_tokens(config: CaptureConfig, shape: ModelGeometry, used: SettingsUsed) -> int:
    """Number of tokens of the largest image, after pooling."""
    pool, n_tokens = choose_pool_side(config.tokens), 0
    for height, width in sizes(config, used):
        grid_height, grid_width = shape.token_grid(height, width)
        if grid_height % pool or grid_width % pool:
            raise InputError(
                f"tokens is {config.tokens!r}, but an image of {height} x {width} pixels has {grid_height} x "
                f"{grid_width} tokens, which {pool} does not divide. Choose a number that divides both."
            )
        n_tokens = max(n_tokens, grid_height // pool * (grid_width // pool))
    return n_tokens


def _layout(manifest: Manifest, config: CaptureConfig, shape: ModelGeometry) -> Layout:
    check_guidance(config, shape, manifest.used)
    _check_branches(config, shape, manifest.used)
    _check_references(config, shape, manifest)
    n_tokens = _n_tokens(config, shape, manifest.used)
    steps = {shape.n_run(n or config.num_inference_steps) for n in manifest.used.steps}
    if config.top_k > shape.n_channels:
        raise InputError(
            f"top_k is {config.top_k}, but {config.model!r} has only {shape.n_channels} channels. Lower --top-k."
        )
    blocks = choose_layers(config.layers, shape.blocks)
    streams = choose_words("streams", config.streams, STREAMS)
    if "text" in streams and not shape.family.has_text(blocks):
        raise InputError(
            f"streams is {config.streams!r}; the selected blocks of {shape.transformer} have no text stream: they read "
            "text by cross-attention. Use image."
        )
    controls = choose_controls(config.controls)
    if controls and (not config.top_k or "image" not in streams):
        raise InputError(f"controls is {config.controls!r}, but no token maps are recorded (top_k 0). Raise --top-k.")
    for name in ("tokens", "value_precision") if not config.top_k or "image" not in streams else ():
        if getattr(config, name) != getattr(CaptureConfig, name):
            raise InputError(
                f"{name} is {getattr(config, name)!r}, but no token maps are recorded (top_k 0). Omit it, or raise "
                "--top-k."
            )
    if controls and 2 * config.top_k > shape.n_channels:
        raise InputError(
            f"controls is {config.controls!r}, but top_k is {config.top_k} of {shape.n_channels} channels, so fewer "
            f"than k others remain. Lower --top-k, or record every channel's map with --top-k {shape.n_channels} alone."
        )
    layout = Layout(
        n_samples=manifest.n_samples,
        steps=choose_steps(config.steps, max(steps), same_for_all=len(steps) == 1),
        blocks=blocks,
        n_channels=shape.n_channels,
        n_tokens=n_tokens,
        top_k=config.top_k,
        shard_samples=config.shard_samples or 1,
        pool=choose_pool_side(config.tokens),
        rounded=is_rounded(config.value_precision, config.dtype, config.tokens),
        streams=streams,
        branches=choose_words("branches", config.branches, BRANCHES),
        controls=controls,
    )
    return layout if config.shard_samples else dataclasses.replace(layout, shard_samples=default_shard_samples(layout))
