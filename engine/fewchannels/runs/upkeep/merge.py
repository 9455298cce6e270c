"""Create a run from samples of other runs, without generating any: merge runs, or export a part of one.

Samples keep their values, images and ids; their indices, and so their tasks, are the new run's.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np

from fewchannels import manifest
from fewchannels.errors import InputError, RunConflictError, StorageError
from fewchannels.runs import arrays
from fewchannels.runs.changes import manifest_key
from fewchannels.runs.description import MANIFEST, NAME, objects_of, read_description, write_description
from fewchannels.runs.identity import differences, fingerprint, shared
from fewchannels.runs.layout import Layout
from fewchannels.runs.lease import LEASE
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.parts import TABLES, Parts, part
from fewchannels.runs.place import check_free
from fewchannels.runs.provenance import joined
from fewchannels.runs.storage import Storage
from fewchannels.tables import join, of_samples, renumbered

Progress = Callable[[int, int], None]
Pick = tuple[int, int]
"""A source, by position, and a sample's index in it."""


@dataclass(frozen=True)
class Source:
    """A run to copy from."""

    storage: Storage

    @cached_property
    def description(self) -> dict[str, Any]:
        """Its ``run.json``.

        Raises:
            StorageError: its arrays are behind a link: a new run, which may be shared, contains only data from inside
                the run.
        """
        if self.storage.is_linked(arrays.NAME):
            raise StorageError(
                f"{self.storage.location(arrays.NAME)} is a symbolic link, which can be read but not copied into "
                "another run. Replace it with its target folder."
            )
        return read_description(self.storage)

    @cached_property
    def layout(self) -> Layout:
        """Its layout."""
        return Layout.of(self.description)

    @cached_property
    def records(self) -> dict[int, Record]:
        """Of its finished tasks."""
        return Ledger(self.storage).records(self.description["fingerprint"])

    @cached_property
    def parts(self) -> Parts:
        """Of its tables."""
        return Parts(self.storage, self.records)

    @cached_property
    def sample_ids(self) -> list[str]:
        """Of all its samples."""
        with self.open_manifest() as file:
            return manifest.sample_ids(file)[: self.layout.n_samples]

    def open_manifest(self) -> BinaryIO:
        """Its manifest."""
        return self.storage.open(manifest_key(self.storage, self.description))

    @cached_property
    def done(self) -> list[int]:
        """Samples that are done, ascending."""
        found: list[int] = []
        for task, record in self.records.items():
            if not record.n_failed:
                found += range(record.start, record.stop)
                continue
            rows = self.parts.rows("samples", task)
            statuses = zip(rows.column("sample").to_pylist(), rows.column("status").to_pylist(), strict=True)
            found += [sample for sample, status in statuses if status == "done"]
        return found


def merge(
    storages: Sequence[Storage], out: Storage, on_progress: Progress = lambda done, total: None
) -> dict[str, int]:
    """Join runs of the same settings and weights into a new one. Safe to repeat: an interrupted merge resumes.

    Samples that any of the runs has finished come first, in the runs' order; then those that none has. A sample that
    several have finished is taken from the first. Capturing with the new run's own manifest generates missing samples.

    Returns:
        ``n_samples``, ``n_done``, and ``n_twice``, the number of samples that were finished in more than one run.

    Raises:
        RunConflictError: the runs' settings differ (the message names the fields), or ``out`` holds something else.
        InputError: fewer than two runs, or manifests that do not fit together.
    """
    if len(storages) < 2:
        raise InputError("merging needs at least two runs. Pass two or more.")
    sources = [Source(storage) for storage in storages]
    first = sources[0]
    for other in sources[1:]:
        identities = [each.description["identity"] for each in (first, other)]
        if lines := differences(shared(identities[::-1]), shared(identities)):
            raise RunConflictError(
                f"{first.storage.url!r} and {other.storage.url!r} were captured with different settings, so they "
                "cannot be merged:\n  " + "\n  ".join(lines)
            )
    _check_files(sources)
    done: dict[str, Pick] = {}
    n_twice = 0
    for i, source in enumerate(sources):
        for sample in source.done:
            sample_id = source.sample_ids[sample]
            n_twice += sample_id in done
            done.setdefault(sample_id, (i, sample))
    rest: dict[str, Pick] = {}
    for i, source in enumerate(sources):
        for sample, sample_id in enumerate(source.sample_ids):
            if sample_id not in done:
                rest.setdefault(sample_id, (i, sample))
    _copy(sources, list(done.values()), list(rest.values()), out, on_progress)
    return {"n_samples": len(done) + len(rest), "n_done": len(done), "n_twice": n_twice}


def _check_files(sources: Sequence[Source]) -> None:
    """Refuse runs in which the same path refers to different files."""
    found: dict[str, str] = {}
    for record in (record for source in sources for record in source.records.values()):
        for path, digest in record.files.items():
            if found.setdefault(path, digest) != digest:
                raise RunConflictError(
                    f"{path!r} is not the same file in all runs: its SHA-256 begins with {found[path]} in one task and "
                    f"with {digest} in another. The runs cannot be merged."
                )


def export(
    storage: Storage, samples: Sequence[int], out: Storage, on_progress: Progress = lambda done, total: None
) -> None:
    """Make a run of some of a run's samples. Safe to repeat: an interrupted export resumes.

    Args:
        storage: storage of the run.
        samples: indices of samples that are done, ascending.
        out: location of the new run.
        on_progress: called with the samples copied so far and in all.

    Raises:
        InputError: no sample is given.
        RunConflictError: ``out`` holds something else.
    """
    if not samples:
        raise InputError("no finished sample meets the --where condition, so nothing was written.")
    _copy([Source(storage)], [(0, sample) for sample in samples], [], out, on_progress)


def _copy(sources: Sequence[Source], done: list[Pick], rest: list[Pick], out: Storage, on_progress: Progress) -> None:
    layout = replace(sources[0].layout, n_samples=len(done) + len(rest))
    identity = shared([source.description["identity"] for source in sources])
    _begin(sources, [*done, *rest], layout, out, identity)
    ledger, target = Ledger(out), arrays.Store(out, layout)
    finished = ledger.records(fingerprint(identity))
    for start in range(0, len(done), layout.shard_samples):
        task = start // layout.shard_samples
        picks = done[start : start + layout.shard_samples]
        if task not in finished:
            record = _copy_task(sources, picks, layout, task, out, target)
            ledger.write(replace(record, fingerprint=fingerprint(identity)))
        on_progress(start + len(picks), len(done))


def _begin(
    sources: Sequence[Source], picks: list[Pick], layout: Layout, out: Storage, identity: Mapping[str, Any]
) -> None:
    files = [source.open_manifest() for source in sources]
    try:
        merged = manifest.select(files, picks)
    finally:
        for file in files:
            file.close()
    sample_ids = [sources[i].sample_ids[sample] for i, sample in picks]
    sha256 = manifest.digest(io.BytesIO(merged))
    there = read_description(out) if out.exists(NAME) else None
    if there is not None:
        if there["fingerprint"] != fingerprint(identity) or there["manifest"]["sha256"] != sha256:
            raise RunConflictError(f"{out.url!r} contains another run. Choose a new --out.")
        if all(out.holds(key, stored) for key, stored in objects_of(there).items()):
            return
    else:
        check_free(out, lambda key: key.startswith(arrays.NAME) or key in (MANIFEST, LEASE))
    objects = {MANIFEST: out.put(MANIFEST, [merged])} | arrays.lay_out(out, layout, sample_ids)
    about = sources[0].description
    write_description(
        out,
        about
        | {
            "identity": identity,
            "fingerprint": fingerprint(identity),
            "manifest": {"n_samples": layout.n_samples, "sha256": sha256},
            "geometry": about["geometry"] | {"n_samples": layout.n_samples},
            "n_tasks": layout.n_tasks,
            "created": there["created"] if there else datetime.now(UTC).isoformat(timespec="seconds"),
            "copied_from": [
                {"run": source.storage.url, "manifest_sha256": source.description["manifest"]["sha256"]}
                for source in sources
            ],
            "objects": {key: asdict(each) for key, each in objects.items()},
        },
    )


def _copy_task(
    sources: Sequence[Source], picks: list[Pick], layout: Layout, task: int, out: Storage, target: arrays.Store
) -> Record:
    start = layout.rows(task).start
    names = [array.name for array in layout.arrays()]
    pieces: list[dict[str, np.ndarray]] = []
    rows: dict[str, list[Any]] = {table: [] for table in TABLES}
    at = start
    origins: list[Record] = []
    for source, first, stop in _stretches(picks, layout.shard_samples):
        origin = sources[source]
        old_task = first // layout.shard_samples
        pieces.append(arrays.read(origin.storage, names, first, stop))
        for table in TABLES:
            old = of_samples(origin.parts.rows(table, old_task), first, stop)
            rows[table].append(renumbered(old, at - first, task))
        origins.append(origin.records[old_task])
        at += stop - first
    objects = target.write(start, {name: np.concatenate([piece[name] for piece in pieces]) for name in names})
    for table in TABLES:
        objects[part(table, task)] = out.put(part(table, task), [join(rows[table])])
    return replace(
        origins[0],
        task=task,
        start=start,
        stop=at,
        n_done=at - start,
        n_failed=0,
        finished=max(record.finished for record in origins),
        objects=objects,
        computed_by=joined([record.computed_by for record in origins]),
        files={path: digest for record in origins for path, digest in record.files.items()},
    )


def _stretches(picks: list[Pick], shard_samples: int) -> Iterator[tuple[int, int, int]]:
    """``(source, first sample, one past the last)`` of neighboring picks that one task of a source holds."""
    first = last = picks[0]
    for pick in [*picks[1:], None]:
        follows = pick == (last[0], last[1] + 1) and (last[1] + 1) % shard_samples
        if not follows:
            yield first[0], first[1], last[1] + 1
            if pick is not None:
                first = pick
        if pick is not None:
            last = pick
