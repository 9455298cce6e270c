"""The table ``means`` of a concentration analysis, from its cells part by part."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fewchannels.measures.means import means

RANKS = (1, 2, 4, 8, 16, 32)
"""Ranks whose score over the median has a mean."""
_CELL = ["step", "layer"]
_OPEN = float("inf")
_METRICS = {
    "ratio": (1.0, _OPEN),
    "gini": (0.0, 1.0),
    "effective_channels": (1.0, _OPEN),
    "n_massive_channels": (0.0, _OPEN),
    "largest": (0.0, _OPEN),
    "is_massive": (0.0, 1.0),
    "n_registers": (0.0, _OPEN),
    "register_share": (0.0, 1.0),
    "register_norm_ratio": (0.0, _OPEN),
    "registers_on_border": (0.0, 1.0),
    "border_share": (0.0, 1.0),
    "n_token_outliers": (0.0, _OPEN),
    "elevation": (1.0, _OPEN),
    "elevation_excised": (1.0, _OPEN),
    "selectivity": (-_OPEN, _OPEN),
    "bimodality": (0.0, _OPEN),
    "bimodality_log": (0.0, _OPEN),
}
"""Columns with a mean, and the range of their values."""
_IN_CHANNELS = ("effective_channels", "n_massive_channels", "n_token_outliers")


def columns(
    parts: Iterable[Any], prompt_of: Mapping[int, int], n_prompts: int, ks: Sequence[int], n_channels: int
) -> dict[str, np.ndarray]:
    """Means over samples with intervals over prompts: columns of ``schemas/concentration_means.yaml``.

    Args:
        parts: rows of ``cells``, a ``pyarrow.Table`` each.
        prompt_of: the number of each sample's prompt.
        n_prompts: number of prompts.
        ks: numbers of top channels whose share is in the cells.
        n_channels: number of channels of the run.
    """
    shares = [f"energy_share_{k}" for k in ks]
    ranks = [f"ratio_rank_{rank}" for rank in RANKS if rank <= n_channels]
    metrics = [*_METRICS, *shares, *ranks, "held_by_registers"]
    ranges = _METRICS | dict.fromkeys([*shares, "held_by_registers"], (0.0, 1.0)) | dict.fromkeys(ranks, (0.0, _OPEN))
    ranges |= {name: (ranges[name][0], float(n_channels)) for name in _IN_CHANNELS}
    found = means(_samples(parts, prompt_of, ks, ranks), _CELL, [], metrics, n_prompts, ranges)
    by_metric = pd.concat(
        found[_CELL].assign(
            metric=metric,
            n_samples=found[f"{metric}_n"],
            n_prompts=found[f"{metric}_n_prompts"],
            mean=found[metric],
            low=found[f"{metric}_low"],
            high=found[f"{metric}_high"],
        )
        for metric in metrics
    )
    return {name: by_metric[name].to_numpy() for name in by_metric.columns}


def _samples(
    parts: Iterable[Any], prompt_of: Mapping[int, int], ks: Sequence[int], ranks: Sequence[str]
) -> Iterator[pd.DataFrame]:
    for part in parts:
        rows = part.to_pandas()
        shares, by_rank, held = (
            np.stack(rows[name].to_list()) for name in ("energy_shares", "ratio_by_rank", "held_by_registers")
        )
        wide = rows[[*_CELL, *_METRICS]].copy()
        for i, k in enumerate(ks):
            wide[f"energy_share_{k}"] = shares[:, i]
        for name in ranks:
            wide[name] = by_rank[:, int(name.rpartition("_")[2]) - 1]
        wide["held_by_registers"] = np.where(
            np.isnan(held).all(axis=1), np.nan, np.nansum(held, axis=1) / held.shape[1]
        )
        wide["prompt"] = rows["sample"].map(prompt_of)
        yield wide.replace([np.inf, -np.inf], np.nan)
