"""The analysis ``concentration``: criteria of massive activations, and outlier channels versus outlier tokens."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewchannels.analyses import ratio
from fewchannels.analyses.concentration import means
from fewchannels.analyses.concentration.findings import about, by_layer, figures, registers
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.selection import Selected
from fewchannels.analyses.settings import ConcentrationSettings
from fewchannels.analyses.summary import Summary, page
from fewchannels.errors import InputError
from fewchannels.measures import STATISTICS
from fewchannels.measures.massive import (
    effective_channels,
    energy_shares,
    n_massive_channels,
    ratio_by_rank,
    scalar_test,
)
from fewchannels.measures.registers import (
    bimodality,
    elevation,
    excised_norms,
    own_tokens,
    register_share,
    register_summary,
    registers_by_mad,
    registers_by_ratio,
    selectivity,
    token_outliers,
)
from fewchannels.measures.scores import gini, top_k
from fewchannels.runs.results import Results
from fewchannels.tables import Columns

_RANKS = 32
_ROUNDED = 2**-8
_READ_BYTES = 2**26  # at once: a call to the store takes longer than reading one layer
_CACHED_BYTES = 2**20  # of cells that stay in a CPU's cache while they are measured, which is twice as fast


@dataclass(frozen=True)
class Concentration(ConcentrationSettings):
    """The analysis, with its settings."""

    @property
    def name(self) -> str:
        """``concentration``."""
        return "concentration"

    @property
    def schemas(self) -> Mapping[str, str]:
        """The schema of each table."""
        return {"cells": "concentration_cells", "means": "concentration_means"}

    def identity(self, selected: Selected) -> dict[str, Any]:
        """Settings of the analysis."""
        return asdict(self)

    def check(self, selected: Selected) -> None:
        """Refuse a run without maps, or another stream."""
        layout = selected.layout
        if not layout.has_maps or selected.stream != "image":
            raise InputError(
                f"{selected.run!r} has no token maps of this stream; concentration needs them to separate outlier "
                "channels from outlier tokens. Capture with --top-k of at least 1 and the image stream."
            )
        if layout.pool > 1:
            raise InputError(
                f"{selected.run!r} has means over {layout.pool} x {layout.pool} tokens, which hide outlier tokens. "
                "Capture with --tokens all."
            )
        if most := max(self.k if self.k > layout.top_k else 0, max(self.ks) if max(self.ks) > layout.n_channels else 0):
            raise InputError(
                f"k is {most}, but {selected.run!r} has the maps of only {layout.top_k} of {layout.n_channels} "
                "channels."
            )

    def units(self, selected: Selected) -> list[int]:
        """Tasks."""
        return selected.tasks

    def unit(self, selected: Selected, results: Results, unit: int, device: str) -> dict[str, Columns]:
        """A task's rows."""
        at = selected.of_task(unit)
        layout = selected.layout
        layer_bytes = (
            layout.sample_value_bytes * len(selected.steps) * len(at) // (len(layout.steps) * len(layout.blocks))
        )
        n = max(1, _READ_BYTES // max(1, layer_bytes))
        parts = [
            self._layers(selected, at, selected.layers[i : i + n], device) for i in range(0, len(selected.layers), n)
        ]
        return {"cells": {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}}

    def _layers(
        self, selected: Selected, at: np.ndarray, layers: tuple[int, ...], device: str
    ) -> dict[str, np.ndarray]:
        names = [*STATISTICS, "massive_value", "massive_channel", "token_norm"]
        arrays = {name: torch.from_numpy(a).flatten(0, 2) for name, a in selected.read(names, at, layers).items()}
        n_steps, n_layers = len(selected.steps), len(layers)
        sample = np.repeat(np.arange(len(at)), n_steps * n_layers)
        arrays["grid"] = torch.from_numpy(selected.grids[at][sample])
        cell_bytes = sum(array[0].nbytes for array in arrays.values())
        n = max(1, (_CACHED_BYTES if device == "cpu" else _READ_BYTES) // cell_bytes)
        blocks = [
            self._measure(
                {name: array[i : i + n].to(device) for name, array in arrays.items()}, selected.layout.rounded
            )
            for i in range(0, len(sample), n)
        ]
        found = {name: torch.cat([block[name] for block in blocks]).cpu() for name in blocks[0]}
        registers = np.empty(len(sample), dtype=object)
        registers[:] = [each.nonzero()[:, 0].tolist() for each in found.pop("registers")]
        return {
            "sample_id": np.array([selected.sample_ids[i] for i in at], dtype=object)[sample],
            "sample": selected.samples[at][sample],
            "step": np.tile(np.repeat(selected.step_numbers, n_layers), len(at)),
            "layer": np.tile([selected.layout.blocks[layer].layer for layer in layers], len(at) * n_steps),
            "registers": registers,
        } | {name: values.numpy() for name, values in found.items()}

    def _measure(self, arrays: Mapping[str, Tensor], rounded: bool) -> dict[str, Tensor]:
        """Compute all columns of cells from their arrays ``(cell, ...)``, on the device of the arrays."""
        scores, norm, values, grid = (arrays[name] for name in (self.score, "token_norm", "massive_value", "grid"))
        own = own_tokens(grid, norm.shape[-1])
        order = top_k(scores, max(*self.ks, min(_RANKS, scores.shape[-1])))
        # The maps are those of the run's own score, and of its k channels.
        massive = values[:, : self.k]
        rule = registers_by_ratio if self.registers == "ratio" else registers_by_mad
        registers = rule(norm, own, self.register_threshold)
        summary = register_summary(norm, registers, own, grid)
        held = register_share(massive, registers, own)
        tested = scalar_test(
            arrays["mean_abs"],
            arrays["rms"],
            arrays["max_abs"],
            values,
            arrays["massive_channel"],
            own,
            self.absolute,
            self.relative,
        )
        excised = excised_norms(norm, massive, _ROUNDED if rounded else 0.0)
        n_ranks = min(_RANKS, scores.shape[-1])
        by_rank = ratio_by_rank(scores, n_ranks)
        return {
            "registers": registers,
            "ratio": by_rank[:, 0],
            "ratio_by_rank": by_rank,
            "gini": gini(scores.topk(n_ranks).values),
            "energy_shares": energy_shares(arrays["rms"], order, self.ks),
            "effective_channels": effective_channels(arrays["rms"]),
            "n_massive_channels": n_massive_channels(scores, self.threshold).float(),
            "largest": tested.largest,
            "median_low": tested.median_bounds[:, 0].float(),
            "median_high": tested.median_bounds[:, 1].float(),
            "is_massive": tested.passes,
            "n_massive_scalars_low": tested.n_scalars[:, 0].float(),
            "n_massive_scalars_high": tested.n_scalars[:, 1].float(),
            "n_registers": summary.n,
            "register_share": summary.share,
            "register_norm_ratio": summary.mean_ratio,
            "registers_on_border": summary.border,
            "border_share": summary.border_by_chance,
            "held_by_registers": held,
            "n_token_outliers": token_outliers(held, summary.share).sum(dim=-1).float(),
            "elevation": elevation(norm, own),
            "elevation_excised": elevation(excised.norm, own),
            "n_below_zero": (excised.below_zero & own).sum(dim=-1),
            "selectivity": selectivity(norm, excised.norm, registers, own),
            "bimodality": bimodality(norm, own),
            "bimodality_log": bimodality(norm.log(), own),
        }

    def means(self, selected: Selected, results: Results) -> dict[str, Columns]:
        """Means over samples, with intervals over prompts."""
        prompt_of = dict(zip(selected.samples.tolist(), selected.prompts.tolist(), strict=True))
        n_prompts, n_channels = int(selected.prompts.max()) + 1, selected.layout.n_channels
        return {"means": means.columns(results.parts("cells"), prompt_of, n_prompts, self.ks, n_channels)}

    def end(self, selected: Selected, results: Results, evidence: Evidence) -> Summary:
        """Sentences, layers, figures."""
        n_samples, n_prompts = len(selected.samples), int(selected.prompts.max()) + 1
        found, layers, drawn = ratio.extreme(evidence, self.name), by_layer(evidence), figures(evidence)
        sentences = []
        if found is not None:
            sentences = [ratio.ratio(evidence, found), ratio.energy(evidence, found), registers(evidence, found)]
            drawn += ratio.figures(evidence, found)
        findings = [*(each for each in sentences if each is not None), layers]
        text = page(
            "Concentration",
            f"{n_samples:,} samples of {n_prompts:,} prompts. Brackets hold 95 % intervals over prompts. "
            f"{ratio.ABOUT_LAYER}",
            findings,
            notes=about(evidence),
            names=[figure.name for figure in drawn],
        )
        numbers = {"n_samples": n_samples, "n_prompts": n_prompts, **layers.numbers}
        return Summary(numbers, text, findings, drawn)
