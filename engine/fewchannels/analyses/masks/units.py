"""The analysis ``masks``: each generated image's subject, computed once and stored for other analyses."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.masks import SOURCES, MaskSource, NoMask, SampleImage, SubjectMask, open_mask_source
from fewchannels.analyses.masks.checkpoints import find, weights_digest
from fewchannels.analyses.masks.mask_file import RULES
from fewchannels.analyses.selection import Selected
from fewchannels.analyses.settings import MaskSettings
from fewchannels.analyses.summary import Summary
from fewchannels.errors import InputError
from fewchannels.files.contents import digests
from fewchannels.manifest import read_samples
from fewchannels.runs.description import MANIFEST
from fewchannels.runs.identity import GROWING, fingerprint
from fewchannels.runs.images import from_png, opened, to_png
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.parts import Parts
from fewchannels.runs.results import Results
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.tables import Columns

_RULES = {
    "black_and_white": "were black and white",
    "labels": "were labels",
    "soft": "were soft and cut at half of white",
    "trimap": "were trimaps",
    "cut_out": "were the opacity of a cut-out",
}
_MOST_NAMED = 20_000  # files whose digests are kept individually


@dataclass(frozen=True)
class SubjectMasks(MaskSettings):
    """The analysis, with its settings."""

    @property
    def name(self) -> str:
        """``masks``."""
        return "masks"

    @property
    def schemas(self) -> Mapping[str, str]:
        """The schema of each table."""
        return {"samples": "subject_masks"}

    def identity(self, selected: Selected) -> dict[str, Any]:
        """Settings of the analysis, and digests of the files of masks: those of a manifest, or of a model."""
        settings = asdict(self)
        if self.source == "manifest":
            return settings | {GROWING: _mask_files(selected)}
        if self.source in SOURCES:
            return settings
        checkpoint = find(self.source, self.revision)
        return settings | {"checkpoint": checkpoint.revision or weights_digest(Path(checkpoint.name))}

    def check(self, selected: Selected) -> None:
        """Refuse a source that cannot be opened, and a manifest that names no masks."""
        self._open()
        if self.source == "manifest":
            with Catalog(selected.run) as catalog:
                if "mask" not in catalog.sql("select * from manifest limit 0").columns:
                    raise InputError(
                        f"masks from 'manifest' need its mask column; the manifest of {selected.run!r} has none. "
                        "Ingest one with it, or choose another source."
                    )

    def units(self, selected: Selected) -> list[int]:
        """Tasks."""
        return selected.tasks

    def unit(self, selected: Selected, results: Results, unit: int, device: str) -> dict[str, Columns]:
        """A task's masks."""
        at = selected.of_task(unit)
        samples = _sample_images(selected, unit, at, with_paths=self.source == "manifest")
        found = self._open(device)(samples)
        return {"samples": _columns(selected, at, found)}

    def means(self, selected: Selected, results: Results) -> dict[str, Columns]:
        """None."""
        return {}

    def end(self, selected: Selected, results: Results, evidence: Evidence) -> Summary:
        """Summarize how many images have a subject, and its size."""
        areas, errors, rules, n_resized, n_unknown = [], [], Counter[str](), 0, 0
        for table in results.parts("samples"):
            areas += [area for area in table.column("area").to_pylist() if area is not None]
            errors += [error for error in table.column("error").to_pylist() if error is not None]
            n_resized += sum(table.column("resized").to_pylist())
            n_unknown += sum(known is not None for known in table.column("known").to_pylist())
            rules.update(rule for rule in table.column("rule").to_pylist() if rule is not None)
        if not areas:
            raise InputError(f"the source {self.source!r} gave no mask for any of {len(errors)} images: {errors[0]}")
        n_empty = sum(area == 0 for area in areas)
        numbers = {
            "source": dict(self._open().description),
            "n_masks": len(areas),
            "n_failed": len(errors),
            "n_empty": n_empty,
            "n_resized": n_resized,
            "n_with_unknown": n_unknown,
            **{f"n_{rule}": rules[rule] for rule in RULES},
            "mean_area": float(np.mean(areas)),
        }
        reasons = f" The first failure: {errors[0].rstrip('.')}." if errors else ""
        if rules:
            counts = ", ".join(f"{rules[rule]:,} {_RULES[rule]}" for rule in RULES)
            unknown = f" {n_unknown:,} have unknown pixels, which are excluded from all numbers." if n_unknown else ""
            reasons = f" Of the files' values, {counts} (docs/images.md).{unknown}{reasons}"
        text = (
            f"# Subject masks\n\n{len(areas):,} masks from `{self.source}`; the subject covers {np.mean(areas):.1%} of "
            f"an image on average (5 to 95 %: {np.quantile(areas, 0.05):.1%} to {np.quantile(areas, 0.95):.1%}). "
            f"{n_empty:,} show no subject, {len(errors):,} failed, {n_resized:,} had another size than their "
            f"image.{reasons}\n"
        )
        return Summary(numbers, text)

    def _open(self, device: str = "cpu") -> MaskSource:
        return open_mask_source(
            self.source,
            device,
            labels=self.labels,
            trust_remote_code=self.trust_remote_code,
            revision=self.revision,
            side=self.side,
        )


def _mask_files(selected: Selected) -> dict[str, str]:
    """SHA-256, 16 hex digits, of existing masks that the manifest names, by path; if there are many, by group."""
    first, last = int(selected.samples[0]), int(selected.samples[-1])
    chosen = set(selected.samples.tolist())
    with selected.storage.open(MANIFEST) as file:
        samples = read_samples(file, first, last + 1)
    paths = [sample.mask for i, sample in enumerate(samples, start=first) if i in chosen and sample.mask]
    found = {path: digest[:16] for path, digest in digests(paths).items() if digest}
    if len(found) <= _MOST_NAMED:
        return found
    groups: dict[str, dict[str, str]] = {}
    for path, digest in found.items():
        groups.setdefault(f"masks, group {fingerprint({'path': path})[:2]}", {})[path] = digest
    return {name: fingerprint(group) for name, group in groups.items()}


def usual_source(run: str) -> str:
    """The best source of masks that a run has: its manifest, the demo world's judge, else saliency."""
    with Catalog(run) as catalog:
        columns = catalog.sql("select * from manifest limit 0").columns
        if "mask" in columns and catalog.sql("select count(mask) from manifest").fetchone() != (0,):
            return "manifest"
        return "demo" if catalog.sql("select model from run").fetchone() == ("demo",) else "saliency"


def _sample_images(selected: Selected, task: int, at: np.ndarray, *, with_paths: bool) -> list[SampleImage]:
    storage = selected.storage
    parts = Parts(storage, Ledger(storage).records(selected.fingerprint))
    rows = parts.rows("samples", task)
    images = dict(zip(rows.column("sample").to_pylist(), rows.column("image").to_pylist(), strict=True))
    paths: dict[int, str | None] = {}
    if with_paths:
        first, last = int(selected.samples[at[0]]), int(selected.samples[at[-1]])
        with storage.open(MANIFEST) as file:
            paths = {first + i: sample.mask for i, sample in enumerate(read_samples(file, first, last + 1))}
    samples = []
    for sample in selected.samples[at].tolist():
        samples.append(SampleImage(opened(images[sample]), paths.get(sample)))
    return samples


def _columns(selected: Selected, at: np.ndarray, found: Sequence[SubjectMask | NoMask]) -> Columns:
    masks = [each if isinstance(each, SubjectMask) else None for each in found]
    return {
        "sample_id": [selected.sample_ids[i] for i in at],
        "sample": selected.samples[at],
        "mask": [None if mask is None else to_png(mask.pixels) for mask in masks],
        "known": [None if mask is None or mask.known is None else to_png(mask.known) for mask in masks],
        "area": [None if mask is None else _area(mask) for mask in masks],
        "score": [None if mask is None else mask.score for mask in masks],
        "rule": [None if mask is None else mask.rule for mask in masks],
        "resized": [mask is not None and mask.resized_from is not None for mask in masks],
        "error": [each.reason if isinstance(each, NoMask) else None for each in found],
    }


def _area(mask: SubjectMask) -> float:
    """Share of the known pixels that belong to the subject; 0 if no pixel is known."""
    return float(mask.pixels.mean() if mask.known is None else mask.pixels.sum() / max(1, mask.known.sum()))


def read_known(results: Results, unit: int) -> dict[int, np.ndarray]:
    """Known pixels of a task's masks, ``(y, x)`` bool by sample; only for masks with unknown pixels.

    Args:
        results: results of the analysis, finished.
        unit: the task.
    """
    table = results.part("samples", unit)
    if "known" not in table.column_names:  # of an older version
        return {}
    samples, known = table.column("sample").to_pylist(), table.column("known").to_pylist()
    return {sample: from_png(each) for sample, each in zip(samples, known, strict=True) if each is not None}


def read_masks(results: Results, unit: int) -> dict[int, np.ndarray]:
    """A task's masks ``(y, x)`` bool by sample, without failed ones.

    Args:
        results: results of the analysis, finished.
        unit: the task.
    """
    table = results.part("samples", unit)
    samples, masks = table.column("sample").to_pylist(), table.column("mask").to_pylist()
    return {sample: from_png(mask) for sample, mask in zip(samples, masks, strict=True) if mask is not None}
