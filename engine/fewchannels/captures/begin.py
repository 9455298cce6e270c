"""Begin a capture's run: check the location, then create the run, resume it, or extend it."""

import dataclasses
import io
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fewchannels import manifest
from fewchannels.captures.job import ELSEWHERE, Job
from fewchannels.errors import InputError, RunConflictError
from fewchannels.runs import arrays, provenance
from fewchannels.runs.changes import FOLDER as CHANGES
from fewchannels.runs.changes import RUN, Draft
from fewchannels.runs.description import EMBEDDINGS, FORMAT_VERSION, MANIFEST, NAME, objects_of, read_description
from fewchannels.runs.lease import LEASE, check_held
from fewchannels.runs.place import begun_otherwise, check_free
from fewchannels.runs.storage import Sink

_LIBRARIES = ("zarr", "pyarrow")
_FOLDERS = ("ledger/", "cells/", "samples/", "results/", CHANGES, EMBEDDINGS, f"{arrays.NAME}/")
_FILES = (MANIFEST, LEASE)


def check_place(job: Job) -> None:
    """Reject a location that contains other files than a run's. Reads only.

    Raises:
        RunConflictError: there are other files; the message names some of them.
    """
    if not job.storage.exists(NAME):
        check_free(job.storage, lambda key: key.startswith(_FOLDERS) or key in _FILES, "run")


def begin(job: Job, manifest_path: Path) -> bool:
    """Create the run, resume it if it belongs to this job, or extend it to a longer manifest. Safe to repeat.

    Only while no other capture runs (:func:`fewchannels.runs.lease.hold`).

    Returns:
        True if the run already existed.

    Raises:
        RunConflictError: there is another run, or another capture has taken the lease.
        InputError: the manifest has changed since the job was prepared.
        StorageError: writing failed.
    """
    storage = job.storage

    @cache
    def rows() -> bytes:
        """The manifest's bytes, which a run that is resumed unchanged does not need."""
        data = manifest_path.read_bytes()
        if manifest.digest(io.BytesIO(data)) != job.manifest_sha256:
            raise InputError(f"{str(manifest_path)!r} was replaced while the capture was starting. Rerun the command.")
        return data

    draft = Draft(storage, RUN, NAME)
    begun = _begun(job, rows) if storage.exists(NAME) else None
    objects = objects_of(begun) if begun else {}
    grows = begun is not None and begun["manifest"]["n_samples"] < job.layout.n_samples
    if begun is None or grows or not all(storage.holds(key, stored) for key, stored in objects.items()):
        created = begun["created"] if begun else datetime.now(UTC).isoformat(timespec="seconds")
        # Versions that created the run; those of each task are in its record.
        now = provenance.versions() | {name: version(name) for name in _LIBRARIES}
        versions = begun["versions"] if begun else now
        description = _lay_out(draft, job, rows(), created, versions, objects if grows else ())
        if job.lease is not None:  # this process may have been suspended while another captured the run
            check_held(storage, job.lease)
        draft.settle(description)
    return begun is not None


def _begun(job: Job, rows: Callable[[], bytes]) -> dict[str, Any]:
    """The description of the existing run, after checking that its settings and first samples are the same."""
    begun = read_description(job.storage)
    remedy = "Use the settings and the manifest it was created with, or choose another --out."
    if begun["fingerprint"] != job.fingerprint:
        conflict = f"the run in {job.run!r} was created with different settings"
        raise begun_otherwise(job.identity, begun["identity"], conflict, remedy)
    n_samples, sha256 = begun["manifest"]["n_samples"], begun["manifest"]["sha256"]
    if n_samples > job.layout.n_samples:
        raise RunConflictError(
            f"the run in {job.run!r} has {n_samples} samples, but this manifest has only {job.layout.n_samples}. "
            f"{remedy}"
        )
    is_whole = n_samples == job.layout.n_samples
    same = job.manifest_sha256 if is_whole else manifest.digest(io.BytesIO(rows()), n_samples)
    if same != sha256:
        raise RunConflictError(
            f"the run in {job.run!r} was created with a different manifest:\n  manifest: the run's {n_samples} samples "
            f"are not the first {n_samples} of this one's {job.layout.n_samples}\n{remedy} A run is extended by "
            "appending samples to its manifest."
        )
    return begun


def _lay_out(
    storage: Sink, job: Job, rows: bytes, created: str, versions: dict[str, str], earlier: Collection[str]
) -> dict[str, Any]:
    """Store the objects that a run has once, and its description."""
    layout, settings = job.layout, job.config.as_dict()
    objects = {MANIFEST: storage.put(MANIFEST, [rows])}
    objects |= arrays.lay_out(storage, layout, manifest.sample_ids(io.BytesIO(rows)), earlier)
    return {
        "format_version": FORMAT_VERSION,
        "fingerprint": job.fingerprint,
        "identity": job.identity,
        "manifest": {"n_samples": layout.n_samples, "sha256": job.manifest_sha256},
        "config": job.identity["config"] | {name: settings[name] for name in ELSEWHERE if name in settings},
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
        "versions": versions,
        "created": created,
        "objects": {key: dataclasses.asdict(each) for key, each in objects.items()},
    }
