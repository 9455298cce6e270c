"""Figures of a comparison, drawn from its tables: how far channels stand out in both runs, and how much they share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fewchannels.analyses.drawn import cell_map, series
from fewchannels.analyses.figures.drawings import Drawing, HeatMap, Lines, Series

LABELS = {
    "ratio": ("Largest score over the median score, {score}", "times the median"),
    "energy_share": ("Share of the squared values in the top {k} channels by {score}", "share of squared values"),
    "gini": ("Gini coefficient of the 32 largest scores, {score}", "Gini coefficient"),
    "token_norm_ratio": ("Largest token norm over the median", "times the median"),
}
"""What each metric of ``comparison_differences`` is called, and its unit."""
_KINDS = {
    "matched": "A and B, same sample",
    "within_a": "A, same prompt, other seed",
    "within_b": "B, same prompt, other seed",
    "across_a": "A, other prompt",
    "across_b": "B, other prompt",
}


def figures(
    numbers: Mapping[str, Any], titles: Mapping[str, str], tables: Mapping[str, pd.DataFrame]
) -> dict[str, Drawing]:
    """Every figure of a comparison, by name.

    Args:
        numbers: as ``comparison.json`` has them: n, k, score, the last step of both, how layers and steps were matched.
        titles: of run ``a`` and of run ``b``.
        tables: ``agreement``, ``differences`` and ``profiles``, whole.
    """
    profiles = tables["profiles"]
    drawn: dict[str, Drawing] = {}
    by_number = numbers["layers_by"] == "number"
    label = "layer" if by_number else "relative depth in %: 0 is the first layer, 100 the last"
    for metric, (text, unit) in LABELS.items():
        title = text.format(**numbers)
        own = profiles[profiles["metric"] == metric]
        last = {side: own[(own["run"] == side) & (own["step"] == numbers[f"step_{side}"])] for side in titles}
        drawn[metric] = Lines(
            series={titles[side]: _line(rows, "layer" if by_number else "depth") for side, rows in last.items()},
            title=f"{title}\n{_about(numbers)}",
            x=label,
            y=unit,
            least=0,
        )
        rows = tables["differences"][tables["differences"]["metric"] == metric]
        drawn[f"difference_{metric}"] = _map(rows, f"{title}: B - A", unit, numbers, is_difference=True)
    if len(tables["agreement"]):
        drawn |= _overlap(numbers, tables["agreement"])
    return drawn


def _overlap(numbers: Mapping[str, Any], agreement: pd.DataFrame) -> dict[str, Drawing]:
    title = "Overlap of the top {k} channels by {score}".format(**numbers)
    jaccard = agreement[agreement["measure"] == "jaccard"]
    here = jaccard[jaccard["step_a"] == numbers["step_a"]]
    kinds = {kind: _line(here[here["kind"] == kind], "layer_a") for kind in _KINDS if kind in set(here["kind"])}
    x, chance = np.sort(here["layer_a"].unique()), here["chance"].iloc[0]
    unit = "mean Jaccard overlap"
    return {
        "overlap": Lines(
            series={_KINDS[kind]: each for kind, each in kinds.items()}
            | {"chance": Series(x, np.full(len(x), chance), reference=True)},
            title=f"{title}\n{_about(numbers)}",
            x="layer" if numbers["layers_by"] == "number" else "layer of A",
            y=unit,
            least=0,
        ),
        "overlap_map": _map(jaccard[jaccard["kind"] == "matched"], f"{title}, same sample", unit, numbers),
    }


def steps_in_words(numbers: Mapping[str, Any]) -> str:
    """The last step that both runs have, as people read it."""
    a, b = numbers["step_a"], numbers["step_b"]
    return f"step {a}" if a == b else f"step {a} of A and {b} of B"


def _about(numbers: Mapping[str, Any]) -> str:
    return f"{steps_in_words(numbers)}, n = {numbers['n_samples']:,} samples of both, bands: 95 % over prompts"


def _line(rows: pd.DataFrame, x: str) -> Series:
    named = rows.rename(columns={"low": "mean_low", "high": "mean_high"})
    return series(named, x, "mean", scale=100 if x == "depth" else 1)


def _map(
    rows: pd.DataFrame, title: str, unit: str, numbers: Mapping[str, Any], *, is_difference: bool = False
) -> HeatMap:
    return cell_map(
        rows,
        "mean",
        title=f"{title}\nn = {numbers['n_samples']:,} samples of both",
        unit=unit,
        row=("layer_a", "layer" if numbers["layers_by"] == "number" else "layer of A"),
        column=("step_a", "step" if numbers["steps_by"] == "number" else "step of A"),
        is_difference=is_difference,
    )
