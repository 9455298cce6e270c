"""Figures of a comparison, each from the query that is shown with it."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from fewchannels.analyses.document import Figure
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.figures.drawings import Drawing, HeatMap, Lines, Series
from fewchannels.analyses.figures.frames import cell_map, series

LABELS = {
    "ratio": ("Largest score over the median score, {score}", "times the median"),
    "energy_share": ("Share of the squared values in the top {k} channels by {score}", "share of squared values"),
    "gini": ("Gini coefficient of the 32 largest scores, {score}", "Gini coefficient"),
    "token_norm_ratio": ("Largest token norm over the median", "times the median"),
}
"""Name and unit of each metric of ``comparison_differences``."""
_LESS_IMPORTANT = ("gini", "token_norm_ratio")
KINDS = {
    "matched": "A and B, same sample",
    "within_a": "A, same prompt, different seed",
    "within_b": "B, same prompt, different seed",
    "across_a": "A, different prompts",
    "across_b": "B, different prompts",
}
"""Names of the kinds of pairs of samples."""


def title(name: str, run: str) -> str:
    """Label of one of two runs in figures, such as ``A: my-run``."""
    return f"{name.upper()}: {PurePosixPath(run).name or run}"


def figures(evidence: Evidence) -> list[Figure]:
    """Every figure of a comparison; first those about what both runs share."""
    numbers = evidence.description["numbers"]
    titles = {side: title(side, run) for side, run in evidence.description["runs"].items()}
    drawn = _overlap(evidence, numbers) if numbers["n_channels_a"] == numbers["n_channels_b"] else []
    by_number = numbers["layers_by"] == "number"
    label = "layer" if by_number else "relative depth in %: 0 is the first layer, 100 the last"
    for metric, (text, unit) in LABELS.items():
        name, folded = text.format(**numbers), metric in _LESS_IMPORTANT
        asked = (
            f"select run, layer, depth, n_samples, mean, low, high from profiles where metric = '{metric}' and step = "
            f"if(run = 'a', {numbers['step_a']}, {numbers['step_b']}) order by run, layer"
        )
        rows = evidence.ask(asked)
        lines = {titles[side]: _line(rows[rows["run"] == side], "layer" if by_number else "depth") for side in titles}
        drawing: Drawing = Lines(series=lines, title=f"{name}\n{_about(numbers)}", x=label, y=unit, least=0)
        drawn.append(Figure(metric, drawing, [evidence.sql(asked)], folded))
        asked = (
            f"select layer_a, step_a, n_samples, mean, low, high from differences where metric = '{metric}' order by "
            "layer_a, step_a"
        )
        drawing = _map(evidence.ask(asked), f"{name}: B - A", unit, numbers, is_difference=True)
        drawn.append(Figure(f"difference_{metric}", drawing, [evidence.sql(asked)], folded))
    return drawn


def _overlap(evidence: Evidence, numbers: Mapping[str, Any]) -> list[Figure]:
    name, unit = "Overlap of the top {k} channels by {score}".format(**numbers), "mean Jaccard overlap"
    asked = (
        "select layer_a, kind, n, mean, low, high, chance from agreement where measure = 'jaccard' and step_a = "
        f"{numbers['step_a']} order by kind, layer_a"
    )
    rows = evidence.ask(asked)
    found = set(rows["kind"])
    lines = {words: _line(rows[rows["kind"] == kind], "layer_a") for kind, words in KINDS.items() if kind in found}
    x = np.sort(rows["layer_a"].unique())
    by_layer = Lines(
        series=lines | {"chance": Series(x, np.full(len(x), rows["chance"].iloc[0]), reference=True)},
        title=f"{name}\n{_about(numbers)}",
        x="layer" if numbers["layers_by"] == "number" else "layer of A",
        y=unit,
        least=0,
    )
    of_all = (
        "select layer_a, step_a, n, mean, low, high from agreement where measure = 'jaccard' and kind = 'matched' "
        "order by layer_a, step_a"
    )
    matched = _map(evidence.ask(of_all), f"{name}, same sample", unit, numbers)
    return [
        Figure("overlap", by_layer, [evidence.sql(asked)]),
        Figure("overlap_map", matched, [evidence.sql(of_all)]),
    ]


def steps_in_words(numbers: Mapping[str, Any]) -> str:
    """The last step that both runs have, as text."""
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
