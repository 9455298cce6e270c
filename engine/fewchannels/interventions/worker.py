"""The sweep's worker, which loads the model once and turns tasks into rows of edited images. Does not need Ray."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from typing import Any, BinaryIO

import torch
from PIL import Image

from fewchannels.cluster.attempts import recorded, tried
from fewchannels.cluster.notes import note_failures
from fewchannels.errors import FamilyMismatchError, without_secrets
from fewchannels.files.images import read_image
from fewchannels.interventions.blends import Latents, guidance, prompts_blended, stepped
from fewchannels.interventions.conditions import MEASURES
from fewchannels.interventions.editor import Editor, Given
from fewchannels.interventions.measure import Measured, Measures, mask_of
from fewchannels.interventions.rows import Batch, Item, Row, batches
from fewchannels.interventions.sweep import PAIRS, RANKS, Sweep
from fewchannels.manifest import Sample, read_samples, samples_at
from fewchannels.measures.coverage import token_coverage
from fewchannels.measures.kernels import version_on
from fewchannels.models.embeddings import Recent, remembering
from fewchannels.models.family import BRANCHES
from fewchannels.models.from_images import noised
from fewchannels.models.generation import Settings
from fewchannels.models.loaded import LoadedModel
from fewchannels.models.taps import predicted, tapped
from fewchannels.runs.changes import Draft, name_of
from fewchannels.runs.description import MANIFEST
from fewchannels.runs.images import png
from fewchannels.runs.lease import Membership
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.parts import part
from fewchannels.runs.provenance import computed_by, named_files
from fewchannels.tables import as_columns, from_parquet, schema, to_parquet


class SweepWorker:
    """Worker for the tasks of one sweep. With two calling threads, one task is written while the next is generated.

    Args:
        sweep: the sweep.
        n_threads: CPU threads for PyTorch.
        opened: function that opens one of the sweep's files by key; None for those in its storage.
        device: device assigned to it; None for what the machine has.
        pipeline: the model, if it is loaded already; None loads it.

    Raises:
        InputError: the model, or that of a metric, cannot be loaded.
        RunConflictError: the call that this worker belongs to has ended.
    """

    def __init__(
        self,
        sweep: Sweep,
        n_threads: int,
        opened: Callable[[str], BinaryIO] | None = None,
        device: str | None = None,
        pipeline: Any = None,
    ) -> None:
        self.sweep, storage = sweep, sweep.storage
        self._opened = opened or storage.open
        self._membership = Membership(storage, sweep.lease) if sweep.lease else None
        self.model = LoadedModel(sweep.generation, sweep.geometry, n_threads, device, pipeline=pipeline)
        self.sampler = self.model.sampler
        self.ledger = Ledger(storage)
        self._embeddings = Recent()
        self._ranks = self._read_ranks()
        self._measures = self.model.run(Measures, sweep.metrics, self.model.device)
        edits = set(schema("edits").names)
        self._settings_of = [
            {name: value for name, value in condition.row(i).items() if name in edits}
            for i, condition in enumerate(sweep.conditions)
        ]

    def __call__(self, task: int) -> Record:
        """Run one task, with a limited number of retries, and write its record. Safe to repeat."""
        return tried(self.ledger, task, self.edit)

    def close(self) -> None:
        """Release the run and the model's thread."""
        self.model.close()
        if self._membership:
            self._membership.end()

    def edit(self, task: int, attempt: int = 1) -> Record:
        """One attempt at a task: generate and measure, write the part, then the record."""
        started = time.monotonic()
        rows = self.sweep.rows(task)
        items = self.items(rows)
        files = named_files(path for item in items for path in (item.image, item.mask))
        made = self.model.run(self.images, items)
        about = {"task": task, "attempt": attempt}
        if self._membership:
            self._membership.check()
        key = part("edits", task)
        columns = as_columns("edits", [row | about for row in made])
        # Objects that a record names stay unchanged until the new record exists.
        draft = Draft(self.sweep.storage, name_of(task), self.ledger.key(task)) if self.ledger.find(task) else None
        objects = {key: (draft or self.sweep.storage).put(key, [to_parquet("edits", columns)])}
        n_failed = len({row["item"] for row in made if row["status"] == "failed"})
        note_failures({row["item"]: row["error"] for row in made if row["status"] == "failed"}.values())
        seconds = time.monotonic() - started
        made_by = computed_by(self.model.n_threads, triton=version_on(self.model.device))
        record = recorded(self.sweep, task, attempt, n_failed, seconds, self.model.name, objects, made_by, files)
        if self._membership:
            self._membership.check()
        self.ledger.write(record, draft)
        return record

    def items(self, rows: range) -> list[Item]:
        """Items of the sweep by their places."""
        if not self.sweep.has_source:
            with self._opened(MANIFEST) as file:
                samples = read_samples(file, rows.start, rows.stop)
            return [Item(i, s.sample_id, s, mask=s.mask) for i, s in zip(rows, samples, strict=True)]
        pairs = self._read(PAIRS).slice(rows.start, len(rows)).to_pylist()
        needed = sorted({pair[name] for pair in pairs for name in ("target_row", "source_row")} - {None})
        with self._opened(MANIFEST) as file:
            found = dict(zip(needed, samples_at(file, needed), strict=True))
        return [self._pair(pair, found) for pair in pairs]

    def _pair(self, pair: dict[str, Any], samples: Mapping[int, Sample]) -> Item:
        target = samples[pair["target_row"]]
        source = target if pair["source_row"] is None else samples[pair["source_row"]]
        source = replace(source, prompt=pair["source_prompt"], seed=pair["source_seed"])
        if pair["source_row"] is None:  # it shares all settings of the target except its content
            source = replace(source, sample_id=pair["pair_id"])
        return Item(pair["pair"], pair["pair_id"], target, source, pair["reference"], pair["mask"])

    def _read(self, key: str) -> Any:
        with self._opened(key) as file:
            return from_parquet(file.read())

    def images(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Generate all images of items under all conditions: rows of ``edits`` without the task's columns."""
        made: list[dict[str, Any]] = []
        shown: set[tuple[int, str]] = set()
        for settings, batch in self._batches(items):
            for row in self._batch(batch, settings):
                if row["role"] == "edited" or row["status"] == "failed" or (row["item"], row["role"]) not in shown:
                    made.append(row)
                shown.add((row["item"], row["role"]))
        return made

    def _batches(self, items: Sequence[Item]) -> Iterator[tuple[Settings, Batch]]:
        def settings(item: Item) -> Settings:
            return self.sweep.generation.settings(item.target)

        for shared, group in groupby(items, settings):
            for batch in batches(list(group), self.sweep.conditions, self.sweep.batch_size):
                yield shared, batch

    def _batch(self, batch: Batch, settings: Settings) -> list[dict[str, Any]]:
        """A batch's rows; if it fails, generate its items one by one, so that only the faulty one fails."""
        started = time.monotonic()
        try:
            generated = self.generate(batch, settings)
        except FamilyMismatchError:  # affects every other batch, too
            raise
        except Exception as error:  # whatever the model raises, including out of memory, fails only this batch
            self.model.let_go()
            if len(batch.items) > 1:
                return [row for item in batch.items for one in self._again(item) for row in self._batch(one, settings)]
            failed = {"status": "failed", "error": without_secrets(f"{type(error).__name__}: {error}")}
            kept = [row for row in (*batch.rows, *batch.blended) if row.role != "disturbed"]
            return [self._row(row, settings, failed) for row in kept]
        seconds = (time.monotonic() - started) / len(batch.rows)
        measured = self._measures.of(generated)
        done: dict[str, Any] = {"status": "done", "seconds": seconds, "batch_rows": len(batch.rows)}
        return [self._row(each.row, settings, done | each.columns | {"image": png(each.image)}) for each in measured]

    def _again(self, item: Item) -> Iterator[Batch]:
        return batches([item], self.sweep.conditions, self.sweep.batch_size)

    def generate(self, batch: Batch, settings: Settings) -> list[Measured]:
        """Generate a batch: every row's image with the size of its edit, followed by blended images."""
        geometry, pipeline = self.sweep.geometry, self.sampler.pipeline
        editor = Editor(batch.rows, self._given(batch, settings), geometry.n_channels)
        latents = Latents(batch.rows, settings.steps)
        streams = {stream for each in self.sweep.conditions for stream in each.streams}
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(remembering(pipeline, self._embeddings))
            stack.enter_context(prompts_blended(pipeline, batch.rows))
            if sources := {
                i: read_image(row.item.image)
                for i, row in enumerate(batch.rows)
                if row.role == "source" and row.item.image is not None
            }:
                stack.enter_context(noised(pipeline, sources, settings.height, settings.width))
            stack.enter_context(stepped(pipeline, latents.edit))
            stack.enter_context(tapped(self.sampler, geometry.blocks, editor.tap, sorted(streams), BRANCHES))
            if (guide := guidance(batch.rows, settings.steps)) is not None:
                stack.enter_context(predicted(self.sampler, guide))
            images = self.sampler.generate([row.sample for row in batch.rows], settings)
        nonfinite = latents.nonfinite_steps()
        made = [
            Measured(row, image, editor.measures(i) | {"nonfinite_steps": nonfinite[i]})
            for i, (row, image) in enumerate(zip(batch.rows, images, strict=True))
            if row.role != "disturbed"
        ]
        for row in batch.blended:
            assert row.condition is not None, "only edited images are blended"
            if row.condition.is_nothing:
                made.append(Measured(row, images[row.undisturbed], dict.fromkeys(MEASURES, 0.0)))
                continue
            assert row.source is not None, "only transports have baselines"
            blend = Image.blend(images[row.undisturbed], images[row.source], row.condition.amount)
            made.append(Measured(row, blend, {}))
        return made

    def _given(self, batch: Batch, settings: Settings) -> Given:
        inside, outside = {}, {}
        if any(each.tokens in ("inside", "outside") for each in self.sweep.conditions):
            grid = self.sweep.geometry.token_grid(settings.height, settings.width)
            for item in batch.items:
                mask = mask_of(item, settings.height, settings.width)
                subject = torch.from_numpy(mask.pixels)
                rest = ~subject if mask.known is None else ~subject & torch.from_numpy(mask.known)
                inside[item.item] = token_coverage(subject, grid) >= 0.5
                outside[item.item] = token_coverage(rest, grid) > 0.5
        return Given(self.sweep.score, self.sweep.cluster_k, self._ranks, inside, outside, settings.steps)

    def _read_ranks(self) -> dict[int, torch.Tensor]:
        if not any(each.scores_from == "run" for each in self.sweep.conditions):
            return {}
        table = self._read(RANKS)
        layers = table.column("layer").to_numpy()
        ranks = torch.from_numpy(table.column("rank").to_numpy().astype("int64"))
        return {int(layer): ranks[torch.from_numpy(layers == layer)] for layer in set(layers.tolist())}

    def _row(self, row: Row, settings: Settings, columns: dict[str, Any]) -> dict[str, Any]:
        item = row.item
        about = {
            "item": item.item,
            "item_id": item.item_id,
            "sample_id": item.target.sample_id,
            "source_id": item.source.sample_id if item.source and item.image is None else None,
            "reference": item.image,
            "role": row.role,
            "prompt": item.target.prompt,
            "source_prompt": item.source.prompt if item.source else None,
            "seed": item.target.seed,
            "width": settings.width,
            "height": settings.height,
        }
        return about | (self._settings_of[row.place] if row.role == "edited" else {}) | columns
