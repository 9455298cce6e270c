"""The analysis ``alignment``: clusters of tokens by their massive channels, compared with the subject and controls."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewchannels.analyses.alignment import means
from fewchannels.analyses.alignment.contact_sheet import Localized, contact_sheet
from fewchannels.analyses.alignment.figures import figures
from fewchannels.analyses.alignment.findings import at_best, best_cells, converged, over_cells
from fewchannels.analyses.document import Figure
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.masks.units import read_known, read_masks
from fewchannels.analyses.selection import Selected
from fewchannels.analyses.settings import AlignmentSettings
from fewchannels.analyses.summary import Summary, page
from fewchannels.errors import InputError
from fewchannels.measures import SELECTIONS
from fewchannels.measures.coverage import chance_iou, token_coverage
from fewchannels.measures.draws import cell_keys, random_channels
from fewchannels.measures.localization import (
    Localization,
    fit,
    localize,
    matched_channels,
    principal_components,
)
from fewchannels.measures.registers import own_tokens, registers_by_ratio
from fewchannels.measures.scores import energy_share
from fewchannels.runs.identity import fingerprint
from fewchannels.runs.results import Results
from fewchannels.tables import Columns, as_columns

_CELLS_AT_ONCE = 64


@dataclass(frozen=True)
class Alignment(AlignmentSettings):
    """The analysis, with its settings."""

    @property
    def name(self) -> str:
        """``alignment``."""
        return "alignment"

    @property
    def schemas(self) -> Mapping[str, str]:
        """The schema of each table."""
        return {"samples": "alignment_samples", "means": "alignment_means"}

    def identity(self, selected: Selected) -> dict[str, Any]:
        """Settings of the analysis and of the masks, and the identity of the masks."""
        masks = Results(selected.storage, self.masks).read()
        parts = fingerprint({key: each["crc32c"] for key, each in masks["objects"].items() if "/samples/" in key})
        return asdict(self) | {"masks": masks["settings"] | {"selected": masks["selected"]["samples"], "parts": parts}}

    def check(self, selected: Selected) -> None:
        """Refuse a run without the maps, or without masks."""
        layout = selected.layout
        if selected.stream != "image":
            raise InputError(
                f"stream is {selected.stream!r}; alignment needs image tokens, which have a grid. Use --stream image."
            )
        if not layout.has_maps or layout.top_k < self.k:
            raise InputError(
                f"k is {self.k}, but {selected.run!r} has the maps of only {layout.top_k} channels. Choose a smaller "
                "--k, or capture with a larger --top-k."
            )
        missing = [word for word in self.selections if not self._is_kept(word, selected)]
        if missing:
            raise InputError(
                f"the maps of {', '.join(missing)} channels are not in {selected.run!r}. Capture with --controls "
                f"bottom,random:{self.trials} for those two, or for all of them with --top-k {layout.n_channels} "
                "(fewer --layers and --steps save space); or leave them out with --selections."
            )
        Results(selected.storage, self.masks).read()

    def _is_kept(self, word: str, selected: Selected) -> bool:
        layout = selected.layout
        kept = {"top"} | ({"bottom"} & set(layout.controls))
        if f"random_{self.trials - 1}" in layout.controls:
            kept.add("random")
        return layout.top_k == layout.n_channels or word in kept

    def units(self, selected: Selected) -> list[int]:
        """Tasks."""
        return selected.tasks

    def unit(self, selected: Selected, results: Results, unit: int, device: str) -> dict[str, Columns]:
        """A task's rows."""
        results_of_masks = Results(selected.storage, self.masks)
        masks, known = read_masks(results_of_masks, unit), read_known(results_of_masks, unit)
        at = np.array([i for i in selected.of_task(unit) if int(selected.samples[i]) in masks], dtype=np.int64)
        parts: list[dict[str, np.ndarray]] = []
        steps_at_once = max(1, _CELLS_AT_ONCE // max(1, len(at)))
        for layer in selected.layers if len(at) else ():
            for first in range(0, len(selected.steps), steps_at_once):
                parts += self._rows(
                    _Cells(selected, at, layer, slice(first, first + steps_at_once), masks, known), device
                )
        names = parts[0] if parts else ()
        columns: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in names}
        return {"samples": columns or as_columns("alignment_samples", [])}

    def _rows(self, cells: "_Cells", device: str) -> Iterator[dict[str, np.ndarray]]:
        weights = self._weights(cells)
        n_left_out = (cells.own & ~weights).sum(dim=-1)
        mask_area = (cells.coverage * cells.own).sum(dim=-1) / (cells.known * cells.own).sum(dim=-1)
        n = len(weights)
        for word in self.selections:
            for trial in range(self.trials if word == "random" else 1):
                chosen = self._chosen(cells, word, trial, weights)
                for n_clusters in self.n_clusters:
                    found = self._localized(chosen, weights, n_clusters, device)
                    fitted = fit(found.clusters.labels, found.front, cells.coverage, cells.own, n_clusters, cells.known)
                    # Channels that were not selected are 0 in the values, and constant.
                    n_constant = found.n_constant - (chosen.values.shape[1] - chosen.n)
                    yield {
                        "sample_id": cells.sample_ids,
                        "sample": cells.samples,
                        "step": cells.steps,
                        "layer": np.full(n, cells.layer),
                        "selection": np.full(n, word, dtype=object),
                        "trial": np.full(n, trial),
                        "n_clusters": np.full(n, n_clusters),
                        "n_channels": chosen.n.numpy(),
                        "energy_share": chosen.energy.numpy(),
                        "iou": fitted.iou.numpy(),
                        "complement_iou": fitted.complement.numpy(),
                        "best_iou": fitted.best.numpy(),
                        "chance_iou": chance_iou(fitted.area, mask_area).numpy(),
                        "area": fitted.area.numpy(),
                        "mask_area": mask_area.numpy(),
                        "ari": fitted.ari.numpy(),
                        "nmi": fitted.nmi.numpy(),
                        "n_left_out": n_left_out.numpy(),
                        "n_constant": n_constant.numpy(),
                        "converged": found.clusters.converged.numpy(),
                        "n_best_starts": found.clusters.n_best.numpy(),
                    }

    def _weights(self, cells: "_Cells") -> Tensor:
        """Mark the tokens that take part in clustering, ``(cell, token)`` bool."""
        if self.registers != "drop":
            return cells.own
        return cells.own & ~registers_by_ratio(cells.norm, cells.own, self.register_threshold)

    def _localized(self, chosen: "_Chosen", weights: Tensor, n_clusters: int, device: str = "cpu") -> Localization:
        """Apply the protocol to every cell, with a selection's channels."""
        return localize(
            chosen.values,
            weights,
            [chosen.keys],
            n_clusters,
            self.starts,
            kmeans=self.kmeans,
            clip=self.clip if self.registers == "clip" else 0.0,
            # If scaled, the last component would have the same weight as the first.
            clustered=chosen.values if chosen.are_components else None,
            device=device,
        )

    def _chosen(self, cells: "_Cells", word: str, trial: int, weights: Tensor) -> "_Chosen":
        k, n_cells = self.k, len(cells.order)
        keys = cell_keys(self.seed, cells.ids, cells.layer, cells.steps, SELECTIONS.index(word), trial)
        energy = cells.rms.double().square()
        if word == "pca":
            x, share = principal_components(cells.values, weights, k)
            n = torch.full((n_cells,), k)
        elif word == "matched":
            channels = matched_channels(cells.order, energy, k)
            x = cells.values * channels.gather(1, cells.order)[:, :, None]
            n, share = channels.sum(dim=-1), (energy * channels).sum(dim=-1) / energy.sum(dim=-1)
        else:
            x, channels = cells.maps(word, trial, k, keys)
            n, share = torch.full((n_cells,), x.shape[1]), energy_share(cells.rms, channels)
        return _Chosen(keys, x, word == "pca", n, share)

    def means(self, selected: Selected, results: Results) -> dict[str, Columns]:
        """Means over samples, with intervals over prompts."""
        prompt_of = dict(zip(selected.samples.tolist(), selected.prompts.tolist(), strict=True))
        layers, n_prompts = [block.layer for block in selected.blocks], int(selected.prompts.max()) + 1
        n_cells = len(selected.steps) * len(self.selections) * len(self.n_clusters)
        rows = means.columns(lambda: results.parts("samples"), prompt_of, n_prompts, layers, n_cells, self.starts)
        return {"means": rows}

    def end(self, selected: Selected, results: Results, evidence: Evidence) -> Summary:
        """Sentences, figures, samples side by side."""
        if not (cells := best_cells(evidence)):
            return Summary({"n_samples": 0}, "# Alignment of clusters with the subject\n\nNo sample has an IoU.\n")
        best, drawn = cells[0], figures(evidence, cells)

        def show(at: int) -> Localized:
            return self.show(selected, at, best.layer, best.step, best.selection)

        sheet = contact_sheet(results.parts("samples"), evidence.catalog, selected, best, show)
        made = [at_best(evidence, best), over_cells(evidence, best), converged(evidence, best)]
        findings = [each for each in made if each is not None]
        text = page(
            "Alignment of clusters with the subject",
            f"{len(selected.samples):,} samples of {int(selected.prompts.max()) + 1:,} prompts, k = {self.k}, masks of "
            f"`{self.masks}`, registers: {self.registers}. Brackets hold 95 % intervals over prompts; random "
            f"channels are first averaged over {self.trials} draws per sample.",
            findings,
            names=[*(figure.name for figure in drawn), "contact_sheet"],
        )
        counted = evidence.ask(f"select max(n_samples) as n from {evidence.table('alignment', 'means')}")["n"]
        numbers = {"n_samples": int(counted.iloc[0])} | {each.name: dict(each.numbers) for each in findings}
        return Summary(numbers, text, findings, [*drawn, Figure("contact_sheet", sheet, [])])

    def show(self, selected: Selected, at: int, layer: int, step: int, selection: str) -> Localized:
        """Return the protocol's view of one sample at one cell, with the fewest clusters.

        Args:
            selected: selected part of the run.
            at: the sample's position among the selected ones.
            layer: number of the layer.
            step: number of the step.
            selection: one of :data:`SELECTIONS`.
        """
        position = next(i for i in selected.layers if selected.layout.blocks[i].layer == layer)
        first = selected.step_numbers.index(step)
        sample = int(selected.samples[at])
        masks = read_masks(Results(selected.storage, self.masks), sample // selected.layout.shard_samples)
        cells = _Cells(selected, np.array([at]), position, slice(first, first + 1), masks, {})
        weights = self._weights(cells)
        chosen = self._chosen(cells, selection, 0, weights)
        found = self._localized(chosen, weights, min(self.n_clusters))
        height, width = selected.grids[at].tolist()
        heat, front = (each[0, : height * width].view(height, width).numpy() for each in (found.heat, found.foreground))
        return Localized(masks[sample], heat, front)


@dataclass(frozen=True)
class _Chosen:
    """A selection's channels in every cell: their values, number, and magnitude."""

    keys: np.ndarray
    values: Tensor
    are_components: bool
    n: Tensor
    energy: Tensor


class _Cells:
    """The samples of one task at one layer and some steps: one cell each, with a sample's steps next to each other."""

    def __init__(
        self,
        selected: Selected,
        at: np.ndarray,
        layer: int,
        steps: slice,
        masks: Mapping[int, np.ndarray],
        known: Mapping[int, np.ndarray],
    ) -> None:
        numbers = np.array(selected.step_numbers[steps])
        part = replace(selected, steps=selected.steps[steps])
        names = ["massive_value", "massive_channel", "token_norm", "rms"]
        controls = ["control_value", "control_channel"] if selected.layout.controls else []
        arrays = {n: torch.from_numpy(a).flatten(0, 2) for n, a in part.read([*names, *controls], at, [layer]).items()}
        values, order, self.norm, self.rms = (arrays[name] for name in names)
        self._controls = {
            name: (arrays["control_value"][:, i], arrays["control_channel"][:, i].long())
            for i, name in enumerate(selected.layout.controls)
        }
        self.layer = selected.layout.blocks[layer].layer
        self.steps = np.tile(numbers, len(at))
        sample = np.repeat(np.arange(len(at)), len(numbers))
        self.samples = selected.samples[at][sample]
        self.sample_ids = np.array([selected.sample_ids[i] for i in at], dtype=object)[sample]
        self.ids = np.array([int(sample_id, 16) for sample_id in self.sample_ids], dtype=np.uint64)
        n_tokens = values.shape[-1]
        self.own = own_tokens(torch.from_numpy(selected.grids[at][sample]), n_tokens)
        self.values, self.order = values.masked_fill(~self.own[:, None], 0.0), order.long()
        coverage, share = (each(len(at), n_tokens, dtype=torch.float64) for each in (torch.zeros, torch.ones))
        for row, of_known, i in zip(coverage, share, at.tolist(), strict=True):
            (height, width), number = selected.grids[i].tolist(), int(selected.samples[i])
            covered = token_coverage(torch.from_numpy(masks[number]), (height, width))
            row[: len(covered)] = covered
            if number in known:
                of_known[: len(covered)] = token_coverage(torch.from_numpy(known[number]), (height, width))
        self.coverage, self.known = (each[torch.from_numpy(sample)] for each in (coverage, share))

    def maps(self, word: str, trial: int, k: int, keys: np.ndarray) -> tuple[Tensor, Tensor]:
        """Maps ``(cell, k, token)`` of a selection, and its channels ``(cell, k)``."""
        kept = self._controls.get(f"random_{trial}" if word == "random" else word)
        if kept is not None:
            values, channels = kept
            values, channels = (
                (values[:, -k:], channels[:, -k:]) if word == "bottom" else (values[:, :k], channels[:, :k])
            )
            return values.masked_fill(~self.own[:, None], 0.0), channels
        n_all, n_cells = self.order.shape[1], len(self.order)
        if word == "random":
            ranks = torch.from_numpy(random_channels(keys, n_all, k))
        else:
            first, last = {"top": (0, k), "bottom": (n_all - k, n_all), "all": (0, n_all)}[word]
            ranks = torch.arange(first, last).expand(n_cells, -1)
        x = self.values.gather(1, ranks[:, :, None].expand(-1, -1, self.values.shape[2]))
        return x, self.order.gather(1, ranks)
