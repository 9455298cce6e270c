"""Findings of a comparison of two runs: which top channels they share, and how much these stand out in each."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from fewchannels.analyses.comparison.figures import KINDS, LABELS, steps_in_words
from fewchannels.analyses.document import Finding, Table, bracketed_row, ends, finite, number, span
from fewchannels.analyses.evidence import Evidence

_SEEDS = {"within_a": "two seeds of one prompt in A", "within_b": "in B"}
_POST_HOC = (
    "the layers named here are selected post hoc, so their means are biased toward extremes; see the table's intervals"
)


def warnings(numbers: Mapping[str, Any]) -> list[str]:
    """Explanations that precede the numbers."""
    texts = []
    if numbers["n_cells_left_out"]:
        texts.append(
            "Cells (one per sample, step and layer) excluded because a value is not finite, or the sample has no such "
            f"step: {numbers['n_cells_left_out']:,}."
        )
    if numbers["n_channels_a"] != numbers["n_channels_b"]:
        texts.append(
            f"Channels are not compared: A has {numbers['n_channels_a']:,} of them and B "
            f"{numbers['n_channels_b']:,}, so they do not correspond."
        )
    return texts


def findings(evidence: Evidence) -> list[Finding]:
    """All findings of a comparison, in reading order."""
    found = [_overlap(evidence), _ranks(evidence), *(_difference(evidence, metric) for metric in LABELS)]
    return [each for each in found if each is not None]


def _overlap(evidence: Evidence) -> Finding | None:
    numbers = evidence.description["numbers"]
    step, k, when = numbers["step_a"], numbers["k"], steps_in_words(numbers)
    text = (
        "select layer_a, layer_b, kind, n, n_prompts, mean, low, high, chance from agreement where measure = "
        f"'jaccard' and step_a = {step} order by layer_a, kind"
    )
    rows = evidence.ask(text)
    if not rows["mean"].notna().any():
        return None
    by: dict[str, Any] = {kind: own.set_index("layer_a") for kind, own in rows.groupby("kind")}
    matched, chance = by["matched"].dropna(subset=["mean"]), float(rows["chance"].iloc[0])
    seeds = [by[kind] for kind in _SEEDS if kind in by]
    most, least = int(matched["mean"].idxmax()), int(matched["mean"].idxmin())

    def against(layer: int) -> str:
        told = {words: by[kind].loc[layer] for kind, words in _SEEDS.items() if kind in by and layer in by[kind].index}
        return "; ".join(
            f"{words} {number(row['mean'])}, n = {int(row['n']):,} pairs{_of_prompts(row)}"
            for words, row in told.items()
        )

    layers = {most: "most ", least: "least "} if most != least else {most: ""}
    told = [
        f"{rank}at layer {_layers(numbers, layer, matched.loc[layer])}: {number(matched.loc[layer, 'mean'])}"
        + (f" ({others})" if (others := against(layer)) else "")
        for layer, rank in layers.items()
    ]
    sentence = (
        f"Overlap of the top {k} channels by {numbers['score']} of the same sample in A and in B (Jaccard, {when}): "
        f"{'; '.join(told)}. The overlap of two random sets of {k} is {number(chance)}; n = "
        f"{span(matched['n'])} samples of {span(matched['n_prompts'].fillna(numbers['n_prompts']))} prompts; "
        f"{_POST_HOC}."
    )
    measured: dict[str, Any] = {"k": k, "chance": chance, "most_layer": most, "least_layer": least}
    measured["layers"] = {
        str(layer): {kind: ends(own.loc[layer]) for kind, own in by.items() if layer in own.index}
        for layer in matched.index
    }
    if seeds:
        known = [layer for layer in matched.index if all(_has_interval(each, layer) for each in (matched, *seeds))]
        below = [layer for layer in known if all(_is_below(matched, each, layer) for each in seeds)]
        above = [layer for layer in known if all(_is_below(each, matched, layer) for each in seeds)]
        measured |= {"below_seeds": [int(each) for each in below], "above_seeds": [int(each) for each in above]}
        measured |= {"n_with_intervals": len(known)}
        sentence += (
            f" In {len(below):,} of the {len(known):,} layers in which all of these have intervals, the interval of "
            f"A and B is below those of two seeds of one prompt; in {len(above):,} it is above them. There is no "
            "correction for the number of layers."
            if known
            else " No layer has intervals of all of these, so A and B cannot be compared with two seeds of one prompt."
        )
    shown = [kind for kind in KINDS if kind in by]
    table = Table(
        f"Mean Jaccard overlap of the top {k}, {when}, 95 % over prompts; by chance {number(chance)}",
        [_layer_head(numbers), *(KINDS[kind] for kind in shown), "n"],
        [
            [
                _layers(numbers, layer, row),
                *(_cell(by[kind], layer) for kind in shown),
                f"{int(row['n']):,}",
            ]
            for layer, row in matched.iterrows()
        ],
    )
    return Finding("overlap", sentence, measured, [evidence.sql(text)], table)


def _ranks(evidence: Evidence) -> Finding | None:
    numbers = evidence.description["numbers"]
    when = steps_in_words(numbers)
    text = (
        "select layer_a, layer_b, n, n_prompts, mean, low, high from agreement where measure = 'spearman' and kind = "
        f"'matched' and step_a = {numbers['step_a']} order by layer_a"
    )
    rows: Any = evidence.ask(text).dropna(subset=["mean"]).set_index("layer_a")
    if rows.empty:
        return None
    most, least = int(rows["mean"].idxmax()), int(rows["mean"].idxmin())
    means = [f"{number(rows.loc[layer, 'mean'])} at layer {layer}" for layer in dict.fromkeys((least, most))]
    told = " and ".join(means)
    sentence = (
        "The Spearman correlation of the scores of all channels between A and B, for the same sample, is "
        f"{'between ' if most != least else ''}{told} ({when}, n = {span(rows['n'])} samples; 0 for "
        f"unrelated rankings, 1 for identical ones; {_POST_HOC})."
    )
    measured = {"most_layer": most, "least_layer": least}
    layers = {"layers": {str(layer): ends(row) for layer, row in rows.iterrows()}}
    table = Table(
        f"Mean Spearman correlation of all channels' scores, A and B, same sample, {when}, 95 % over prompts",
        [_layer_head(numbers), "Spearman", "n"],
        [[_layers(numbers, layer, row), _cell(rows, layer), f"{int(row['n']):,}"] for layer, row in rows.iterrows()],
    )
    return Finding("spearman", sentence, measured | layers, [evidence.sql(text)], table)


def _difference(evidence: Evidence, metric: str) -> Finding | None:
    numbers = evidence.description["numbers"]
    step_a, step_b, when = numbers["step_a"], numbers["step_b"], steps_in_words(numbers)
    text = (
        "with change as (select layer_a, layer_b, n_samples, n_prompts, mean, low, high from differences where metric "
        f"= '{metric}' and step_a = {step_a}), own as (select run, layer, mean from profiles where metric = '{metric}' "
        f"and step = if(run = 'a', {step_a}, {step_b})) select change.*, a.mean as mean_a, b.mean as mean_b from "
        "change join own as a on a.run = 'a' and a.layer = layer_a join own as b on b.run = 'b' and b.layer = layer_b "
        "order by layer_a"
    )
    rows: Any = evidence.ask(text).dropna(subset=["mean"]).set_index("layer_a")
    if rows.empty:
        return None
    name = LABELS[metric][0].format(**numbers)
    most = int(rows["mean"].abs().idxmax())
    row, known = rows.loc[most], rows.dropna(subset=["low", "high"])
    more, less = int((known["low"] > 0).sum()), int((known["high"] < 0).sum())
    sentence = (
        f"{name}: B minus A is furthest from 0 at layer {_layers(numbers, most, row)}, {number(row['mean'])} (A "
        f"{number(row['mean_a'])}, B {number(row['mean_b'])}; {when}, n = {int(row['n_samples']):,} samples; selected "
        f"post hoc, so without an interval; the table has an interval for each layer). Of {len(rows):,} layers, the "
        f"interval is "
        f"above 0 in {more:,} and below 0 in {less:,}; without correction for the number of layers, about "
        f"{number(len(rows) / 20)} are expected by chance."
        if rows["mean"].any()
        else f"{name}: A and B are equal at every layer, {when}, n = {int(row['n_samples']):,} samples."
    )
    measured: dict[str, Any] = {
        "layer": most,
        "mean_a": float(row["mean_a"]),
        "mean_b": float(row["mean_b"]),
        "n_layers": len(rows),
    }
    measured |= ends(row) | {"n_above": more, "n_below": less}
    table = Table(
        f"{name}, {when}, 95 % over prompts",
        [_layer_head(numbers), "A", "B", "B - A", "n"],
        [
            [
                _layers(numbers, layer, each),
                number(each["mean_a"]),
                number(each["mean_b"]),
                bracketed_row(each),
                f"{int(each['n_samples']):,}",
            ]
            for layer, each in rows.iterrows()
        ],
    )
    return Finding(metric, sentence, measured, [evidence.sql(text)], table)


def _has_interval(rows: Any, layer: int) -> bool:
    return layer in rows.index and bool(rows.loc[layer, ["low", "high"]].notna().all())


def _is_below(lower: Any, upper: Any, layer: int) -> bool:
    """Return whether one's interval lies below the other's."""
    return bool(lower.loc[layer, "high"] < upper.loc[layer, "low"])


def _of_prompts(row: Any) -> str:
    """The number of prompts of the pairs, if the comparison has it."""
    return "" if finite(row["n_prompts"]) is None else f" of {int(row['n_prompts']):,} prompts"


def _layer_head(numbers: dict[str, Any]) -> str:
    return "layer" if numbers["layers_by"] == "number" else "layer of A, of B"


def _layers(numbers: dict[str, Any], layer: int, row: pd.Series) -> str:
    return f"{layer}" if numbers["layers_by"] == "number" else f"{layer}, {int(row['layer_b'])}"


def _cell(rows: Any, layer: int) -> str:
    return bracketed_row(rows.loc[layer]) if layer in rows.index else ""
