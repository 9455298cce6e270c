"""A sweep: its model, items and edits. It is checked before any work; on disk, it is a folder like a run's.

SWEEP/
  sweep.json              settings, fingerprint, model, versions; written last when a sweep is created
  manifest.parquet        the frozen manifest
  conditions.parquet      the conditions
  pairs.parquet           targets and sources, for transports
  channel_ranks.parquet   if channels are ranked by a capture
  edits/*.parquet         one row per image, one part per task
  ledger/*.json           one record per finished task, written last
  results/effects/        means, contrasts and figures
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fewchannels.analyses.selection import select
from fewchannels.errors import InputError
from fewchannels.interventions.conditions import BASELINES, Condition, expand
from fewchannels.interventions.metrics.specifications import metric_digests, pinned
from fewchannels.interventions.pairs import pairs_from_file, pairs_of_samples, pairs_with_images
from fewchannels.interventions.rows import check_batch_size
from fewchannels.interventions.settings import SweepSettings
from fewchannels.manifest import Manifest, columns, read_samples
from fewchannels.models.family import Family, ModelGeometry
from fewchannels.models.generation import OF_THE_PLACE, Generation, check_guidance, sizes
from fewchannels.models.model import Model, from_files
from fewchannels.runs.description import MANIFEST, SWEEP, SWEEP_FORMAT_VERSION, begun_identity
from fewchannels.runs.identity import differences, fingerprint, known_to
from fewchannels.runs.storage import Storage, open_storage
from fewchannels.tables import Columns, from_parquet, to_parquet

CONDITIONS, PAIRS, RANKS = "conditions.parquet", "pairs.parquet", "channel_ranks.parquet"
UNBLENDABLE = {
    "DiTPipeline": "it takes class labels, not prompts",
    "HiDreamImagePipeline": "its encoders' layers come before the prompts in one tensor",
    "ZImagePipeline": "it does not pad prompts, so two have different numbers of tokens",
}
"""Pipelines whose prompts are no baseline, with why.

``tests/families/test_edits_families.py`` holds the others to theirs.
"""
_BATCH_ROWS = 16
_TASK_EDITS = 64
_MOST_TASK_ITEMS = 16


@dataclass(frozen=True)
class Sweep:
    """A sweep that can run. Has only plain values, since it is sent to Ray actors.

    Attributes:
        place: path or URL of the sweep.
        generation: settings of generation, fully resolved.
        geometry: geometry of the model.
        kind: one of :data:`fewchannels.interventions.settings.KINDS`.
        conditions: the conditions.
        n_items: number of samples or pairs.
        shard_items: number of items per task.
        score: the statistic that ranks channels.
        cluster_k: top channels by which tokens are clustered.
        metrics: learned metrics.
        identity: everything that determines its images and numbers.
        fingerprint: fingerprint of the identity.
        lease: token of the call that runs it, see :mod:`fewchannels.runs.lease`; None if nothing else can write.
        unchecked: fields of the identity that the existing sweep lacks, since an earlier version created it.
    """

    place: str
    generation: Generation
    geometry: ModelGeometry
    kind: str
    conditions: tuple[Condition, ...]
    n_items: int
    shard_items: int
    score: str
    cluster_k: int
    metrics: tuple[str, ...]
    identity: Mapping[str, Any]
    fingerprint: str
    lease: str | None = None
    unchecked: tuple[str, ...] = ()

    @cached_property
    def storage(self) -> Storage:
        """Storage of the sweep."""
        return open_storage(self.place)

    @property
    def batch_size(self) -> int:
        """Rows of a batch, including those for comparison."""
        assert self.generation.batch_size is not None, "prepare_sweep() settles it"
        return self.generation.batch_size

    @property
    def has_source(self) -> bool:
        """Return whether items have a source."""
        return self.kind != "disruption"

    @property
    def n_edits(self) -> int:
        """Edited images."""
        return self.n_items * len(self.conditions)

    @property
    def n_forwards(self) -> int:
        """Number of forward passes for one image each, if every sample has the sweep's number of steps."""
        return self.n_edits * self.generation.num_inference_steps

    @property
    def n_tasks(self) -> int:
        """Tasks of the sweep."""
        return -(-self.n_items // self.shard_items)

    def rows(self, task: int) -> range:
        """Items that a task owns."""
        return range(task * self.shard_items, min((task + 1) * self.shard_items, self.n_items))

    def ids(self, task: int) -> list[str]:
        """Ids of its items: of samples, or of pairs."""
        rows, is_pair = self.rows(task), self.has_source
        with self.storage.open(PAIRS if is_pair else MANIFEST) as file:
            if is_pair:
                return from_parquet(file.read()).slice(rows.start, len(rows)).column("pair_id").to_pylist()
            return [sample.sample_id for sample in read_samples(file, rows.start, rows.stop)]

    def leased(self, token: str) -> "Sweep":
        """The same sweep under a lease."""
        return dataclasses.replace(self, lease=token)


@dataclass(frozen=True)
class Prepared:
    """A checked sweep, and the files that it starts with.

    Attributes:
        sweep: sweep that can run.
        manifest: manifest of its samples.
        tables: Parquet files, by key.
        about: content of ``sweep.json`` in addition to the identity.
    """

    sweep: Sweep
    manifest: Manifest
    tables: Mapping[str, bytes]
    about: Mapping[str, Any]


def prepare_sweep(
    manifest_path: str | Path,
    place: str | Path,
    settings: SweepSettings,
    family: tuple[str, Family] | None = None,
    model: Model | None = None,
) -> Prepared:
    """Check a sweep's inputs against each other. Reads only; writes nothing.

    Args:
        manifest_path: the manifest.
        place: path or URL of the sweep.
        settings: the settings.
        family: family of a transformer class, in addition to the known families.
        model: the model, if it is loaded already; None for the one that the settings name.

    Raises:
        InputError: the manifest, the model, a pair or a setting cannot work.
    """
    storage = open_storage(place)
    manifest = Manifest.read(manifest_path)
    model = model or from_files(settings.generation, family)
    how = model.geometry
    generation = dataclasses.replace(
        settings.generation.settled(how), batch_size=settings.generation.batch_size or _BATCH_ROWS
    )
    fewest, most = _check_samples(generation, how, manifest)
    conditions = expand(settings.grids, how.blocks, most, how.n_channels, fewest)
    has_source = settings.kind != "disruption"
    check_batch_size(conditions, generation.batch_size or _BATCH_ROWS, has_source=has_source)
    tables: dict[str, Columns] = {CONDITIONS: _as_columns(conditions)}
    pairs = _pairs(manifest, settings)
    if pairs is not None:
        tables[PAIRS] = pairs
    _check(settings, conditions, generation, how, manifest, pairs)
    if any(each.scores_from == "run" for each in conditions):
        tables[RANKS] = _ranks(settings, conditions, how.n_channels)
    parquet = {
        key: _as_begun(storage, key, bytes(to_parquet(key.removesuffix(".parquet"), columns)))
        for key, columns in tables.items()
    }
    n_items = manifest.n_samples if pairs is None else len(pairs["pair"])
    shard_items = max(1, min(_MOST_TASK_ITEMS, _TASK_EDITS // max(1, len(conditions))))
    decided = {name: value for name, value in generation.as_dict().items() if name not in OF_THE_PLACE}
    identity = {
        "format_version": SWEEP_FORMAT_VERSION,
        "kind": settings.kind,
        "generation": decided,
        "manifest": manifest.sha256,
        "score": settings.score,
        "cluster_k": settings.cluster_k,
        "metrics": list(settings.metrics),
        "shard_items": shard_items,
        "n_items": n_items,
        **model.identity(),
        **{key.removesuffix(".parquet"): hashlib.sha256(data).hexdigest()[:16] for key, data in parquet.items()},
    }
    metrics = pinned(settings.metrics)
    if metrics:
        identity["metric_files"] = metric_digests(metrics)
    identity, unchecked = known_to(identity, begun_identity(storage, SWEEP))
    sweep = Sweep(
        place=str(place),
        generation=generation,
        geometry=how,
        kind=settings.kind,
        conditions=tuple(conditions),
        n_items=n_items,
        shard_items=shard_items,
        score=settings.score,
        cluster_k=settings.cluster_k,
        metrics=metrics,
        identity=identity,
        fingerprint=fingerprint(identity),
        unchecked=tuple(unchecked),
    )
    about = {
        "protocol": settings.protocol,
        "grids": [dataclasses.asdict(grid) for grid in settings.grids],
        "channels_run": settings.channels_run,
        "pairs": dataclasses.asdict(settings.pairs),
        "model": {"name": generation.model, "family": how.transformer, "pipeline": how.pipeline_class},
        "n_tasks": sweep.n_tasks,
        "n_conditions": len(conditions),
        "n_edits": sweep.n_edits,
        "batch_size": sweep.batch_size,
    }
    return Prepared(sweep, manifest, parquet, about)


def _as_begun(storage: Storage, key: str, data: bytes) -> bytes:
    """A table's bytes: those of the existing sweep, if they have the same rows.

    Other versions of this package and of pyarrow write other metadata, which must not matter.
    """
    try:
        stored = storage.get(key) if storage.exists(SWEEP) else data
        return stored if from_parquet(stored).equals(from_parquet(data)) else data
    except (FileNotFoundError, ValueError):
        return data


def _check_samples(generation: Generation, how: ModelGeometry, manifest: Manifest) -> tuple[int, int]:
    """Reject samples that no sweep can generate; returns the minimum and maximum number of steps that run."""
    check_guidance(generation, how, manifest.used)
    if how.pipeline.needs_reference or manifest.used.n_references:
        raise InputError(
            "a sweep edits images made from text; this manifest or model has reference images for the pipeline "
            "itself. Remove the manifest's reference column, or use another model."
        )
    for size in sizes(generation, manifest.used):
        how.token_grid(*size)
    steps = [how.n_run(n or generation.num_inference_steps) for n in manifest.used.steps]
    return min(steps), max(steps)


def _as_columns(conditions: list[Condition]) -> Columns:
    rows = [condition.row(i) for i, condition in enumerate(conditions)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _pairs(manifest: Manifest, settings: SweepSettings) -> Columns | None:
    if settings.kind == "disruption":
        return None
    if settings.kind == "image":
        if settings.references is None:
            raise InputError("a transport from images needs --references: a manifest with a reference column.")
        return pairs_with_images(manifest, settings.references, settings.pairs)
    if settings.pairs_file is not None:
        return pairs_from_file(manifest, settings.pairs_file, settings.pairs.noise)
    return pairs_of_samples(manifest, settings.pairs)


def _check(
    settings: SweepSettings,
    conditions: list[Condition],
    generation: Generation,
    how: ModelGeometry,
    manifest: Manifest,
    pairs: Columns | None,
) -> None:
    of_source = [each for each in conditions if each.action in ("transport", *BASELINES)]
    if (settings.kind != "disruption") != (len(of_source) == len(conditions)) or (
        settings.kind == "disruption" and of_source
    ):
        wanted = "zero, mean, shuffle, scale:F or guide" if settings.kind == "disruption" else "transport and baselines"
        raise InputError(f"the actions of a sweep of kind {settings.kind!r} must be {wanted}.")
    if how.pipeline_class in UNBLENDABLE and any(each.action == "prompt" for each in conditions):
        raise InputError(
            f"prompts of {how.pipeline_class} cannot be blended: {UNBLENDABLE[how.pipeline_class]}. Omit prompt "
            "from --baselines."
        )
    if settings.kind == "image":
        if not how.takes_images:
            raise InputError(
                f"a transport from images needs flow matching and a VAE of a supported kind; {how.pipeline_class} "
                "lacks one of them."
            )
        if any(each.action == "prompt" and not 0 <= each.amount <= 1 for each in conditions):
            raise InputError("amounts of prompt blends must be between 0 and 1.")
    if any("text" in each.streams for each in conditions) and not how.family.has_text(how.blocks):
        raise InputError(f"streams includes text, but the blocks of {how.transformer} have no text stream. Omit it.")
    if any(each.tokens in ("inside", "outside") for each in conditions):
        masks = columns(manifest.open(), ["mask"])["mask"] if pairs is None else list(pairs["mask"])
        if missing := [i for i, mask in enumerate(masks) if mask is None]:
            raise InputError(
                f"tokens is inside or outside, and {len(missing)} of {len(masks)} items have no mask; the first is "
                f"number {missing[0]}. Fill the mask column of the "
                f"{'references' if settings.kind == 'image' else 'manifest'}, or use --tokens foreground."
            )
    _check_used(settings, conditions)
    if pairs is not None and settings.kind == "text":
        _check_sizes(generation, manifest, pairs)


def _check_used(settings: SweepSettings, conditions: list[Condition]) -> None:
    """Refuse settings that no condition uses."""
    clustered = any(
        each.tokens in ("foreground", "background", "target_foreground") or each.placement == "aligned"
        for each in conditions
    )
    ranked = clustered or any(each.selection in ("top", "bottom", "matched", "scaled") for each in conditions)
    for name, is_used, why in (
        ("channels_run", any(each.scores_from == "run" for each in conditions), "no condition ranks channels by a run"),
        ("cluster_k", clustered, "no condition selects tokens by clusters"),
        ("score", ranked, "no condition ranks channels"),
    ):
        value = getattr(settings, name)
        if not is_used and value != getattr(SweepSettings, name):
            raise InputError(f"{name} is {value!r}, but would have no effect: {why}. Omit it.")


def _check_sizes(generation: Generation, manifest: Manifest, pairs: Columns) -> None:
    """Refuse pairs whose trajectories do not correspond step by step and token by token."""
    samples = read_samples(manifest.open(), 0, manifest.n_samples)
    settings = [generation.settings(sample) for sample in samples]
    for pair, target, source in zip(pairs["pair"], pairs["target_row"], pairs["source_row"], strict=True):
        ours, theirs = dataclasses.asdict(settings[target]), dataclasses.asdict(settings[source])
        if lines := differences(theirs, ours):
            raise InputError(
                f"pair {pair}: target {samples[target].sample_id} and source {samples[source].sample_id} differ in "
                f"settings that one batch must share: {'; '.join(lines)}. A transport needs the same tokens, steps "
                f"and guidance "
                "on both sides."
            )


def _ranks(settings: SweepSettings, conditions: list[Condition], n_channels: int) -> Columns:
    if settings.channels_run is None:
        raise InputError("scores_from is run, but no run is given. Pass --channels-from RUN.")
    selected = select(settings.channels_run)
    layers = [block.layer for block in selected.blocks]
    needed = sorted({layer for each in conditions if each.scores_from == "run" for layer in each.layers})
    if missing := [layer for layer in needed if layer not in layers]:
        raise InputError(
            f"{settings.channels_run!r} has no scores of layer {missing[0]} (it has {', '.join(map(str, layers))}). "
            "Capture those layers, or choose others."
        )
    if selected.layout.n_channels != n_channels:
        raise InputError(
            f"{settings.channels_run!r} was captured from a model with {selected.layout.n_channels} channels; this "
            f"one has "
            f"{n_channels}."
        )
    sums = np.zeros((len(layers), n_channels))
    for task in selected.tasks:
        at = selected.of_task(task)
        sums += selected.read([settings.score], at)[settings.score].mean(axis=1, dtype=np.float64).sum(axis=0)
    scores = sums / len(selected.samples)
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    return {
        "layer": np.repeat(layers, n_channels),
        "channel": np.tile(np.arange(n_channels), len(layers)),
        "score": scores.ravel(),
        "rank": ranks.ravel(),
    }
