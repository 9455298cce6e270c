"""What the rows of a named query say, in one to three sentences, and what they say of the whole run."""

from collections.abc import Callable, Sequence
from typing import Any

from fewchannels.analyses import sweep_answers
from fewchannels.analyses.phrases import Row, Rows, also, counted, most, named, ranged, spanned
from fewchannels.analyses.settings import ConcentrationSettings
from fewchannels.settings.units import number

THRESHOLD = ConcentrationSettings().threshold
"""Multiple of the median score from which the channel test calls a channel massive."""
WHOLE = ("channel", "n_cells", "frequency", "mean_ratio", "largest_ratio", "layer", "step", "mean_rank")
"""Columns of :func:`channels_of_run`."""
WHOLE_UNITS = ("index", "cells", "0 to 1", "x median", "x median", "at", "at", "rank")
"""Their units."""


def sentences(name: str, rows: Rows) -> list[str]:
    """Say what the rows of a named query show, the main result first.

    Args:
        name: name of the query.
        rows: all rows of its result.

    Returns:
        One to three sentences; none for a query that has none.
    """
    if name not in _SENTENCES:
        return []
    if not rows:
        return [_EMPTY.get(name, "Nothing found: the result has no rows.")]
    told = _SENTENCES[name](rows)
    lost = _lost(rows, _COUNTS_LOST[name]) if name in _COUNTS_LOST else 0
    return [*told, f"Excluded: {lost:,} cells whose values are not finite."][:3] if lost else told[:3]


def _lost(rows: Rows, places: Sequence[str]) -> int:
    """Count excluded cells: the rows of a place, one for each channel or measure, have most of them in common."""
    counts: dict[tuple[Any, ...], int] = {}
    for row in rows:
        place = tuple(row[name] for name in places)
        counts[place] = max(counts.get(place, 0), row.get("n_nonfinite") or 0)
    return sum(counts.values())


def has_sentences(name: str) -> bool:
    """Return whether a query has sentences of its own."""
    return name in _SENTENCES


def channels_of_run(rows: Rows) -> list[Row]:
    """Summarize the rows of ``massive_channels`` over its layers and steps, one row a channel.

    Means are over the cells (one per layer and step) that list the channel; ``layer`` and ``step`` are the cell of its
    largest ratio. The channels in the most cells come first, then the most frequent, of several the one with the
    largest mean ratio.
    """
    cells: dict[int, list[Row]] = {}
    for row in rows:
        cells.setdefault(row["channel"], []).append(row)
    found = []
    for channel, own in cells.items():
        top = most(own, "mean_ratio")
        about = {"channel": channel, "n_cells": len(own), "largest_ratio": top["mean_ratio"]}
        means = {name: _mean(own, name) for name in ("frequency", "mean_ratio", "mean_rank")}
        found.append(about | means | {"layer": top["layer"], "step": top["step"]})
    return sorted(found, key=lambda row: (*_frequency(row), -(row["mean_ratio"] or 0), row["channel"]))


def _frequency(row: Row) -> tuple[int, float]:
    return -row["n_cells"], -round(row["frequency"], 9)


def _massive(rows: Rows) -> list[str]:
    cells = {(row["layer"], row["step"]) for row in rows}
    found = channels_of_run(rows)
    first = found[0]
    own = [row for row in rows if row["channel"] == first["channel"]]
    top = most(own, "mean_ratio")
    ties = [row["channel"] for row in found if _frequency(row) == _frequency(first)]
    tied = f" (of {named(ties)}, which are as frequent, it stands out most)" if len(ties) > 1 else ""
    many = len(cells) > 1
    where = f"in {_of_cells(first['n_cells'], len(cells))}" if many else f"at layer {top['layer']}, step {top['step']}"
    at = f" at layer {top['layer']}, step {top['step']}, where it stands out most" if many else ""
    told = [
        f"Channel {first['channel']} is a top channel {where}{tied}, of {number(100 * first['frequency'])} % of the "
        f"samples{' there' if many else ''}, and scores {_times(top)} the median channel{at} "
        f"({'selected post hoc, ' if many else ''}n = {spanned(own, 'n_samples')} samples of "
        f"{spanned(own, 'n_prompts')} prompts)."
    ]
    passing: dict[int, int] = {}
    for row in rows:
        if row["mean_ratio"] is not None and row["mean_ratio"] >= THRESHOLD:
            passing[row["channel"]] = passing.get(row["channel"], 0) + 1
    test = f"by the channel test (a mean of at least {THRESHOLD:g} times the median)"
    if not passing:
        top = most(rows, "mean_ratio")
        largest = f"the largest mean is {number(top['mean_ratio'])}, of channel {top['channel']}"
        return [*told, f"No channel is massive {test}: {largest}."]
    each = [
        f"channel {channel}" + (f" in {_of_cells(n, len(cells))}" if many else "") for channel, n in passing.items()
    ]
    return [*told, f"Massive {test}: {also(each)}."]


def _history(rows: Rows) -> list[str]:
    channel, seen = rows[0]["channel"], [row for row in rows if row["n"]]
    if not seen:
        return [f"Channel {channel} is in no sample's top k (n = {spanned(rows, 'n_samples')} samples)."]
    top, low = most(seen, "mean_ratio"), most(seen, "mean_ratio", least=True)
    share = sum(row["n"] for row in rows) / max(1, sum(row["n_samples"] for row in rows))
    return [
        f"Channel {channel} is in the top k of {number(100 * share)} % of the samples' cells, over {len(rows):,} "
        "layers "
        f"and steps (n = {spanned(rows, 'n_samples')} samples of {spanned(rows, 'n_prompts')} prompts).",
        f"Where it is, it scores most at layer {top['layer']}, step {top['step']}, {_times(top)} the median channel, "
        f"and least at layer {low['layer']}, step {low['step']}, {_times(low)} (both selected post hoc).",
    ]


def _profile(along: str) -> Callable[[Rows], list[str]]:
    def told(rows: Rows) -> list[str]:
        found = []
        for measure, words in _MEASURES.items():
            own = [row for row in rows if row["measure"] == measure and row["mean"] is not None]
            if own:
                top, low = most(own, "mean"), most(own, "mean", least=True)
                ends = f"largest at {along} {top[along]}, {ranged(top, 'mean', 'mean')}"
                ends += f", and smallest at {along} {low[along]}, {ranged(low, 'mean', 'mean')}" if len(own) > 1 else ""
                found.append(f"{words} is {ends} (n = {spanned(own, 'n_samples')} samples).")
        return found[:2] or ["No value is finite."]

    return told


def _stability(rows: Rows) -> list[str]:
    told = []
    for name, words in (("across", "different prompts"), ("within", "the same prompt with different seeds")):
        own = [row for row in rows if row[name] is not None]
        if own:
            top, low = most(own, name), most(own, name, least=True)
            text = f"{ranged(top, name, name)} at layer {top['layer']}"
            text += f", down to {ranged(low, name, name)} at layer {low['layer']}" if len(own) > 1 else ""
            told.append(
                f"Two samples of {words} share their top {rows[0]['k']} with a mean Jaccard overlap of {text}; by "
                "chance "
                f"{number(rows[0]['chance'])} (n = {spanned(own, 'n_samples')} samples)."
            )
    told.append(
        f"Channels of a layer in the top {rows[0]['k']} of every sample, at every step: {spanned(rows, 'core')}."
    )
    return told


def _core(rows: Rows) -> list[str]:
    layers = sorted({row["layer"] for row in rows})
    most_layers = max(row["n_layers"] for row in rows)
    wide = sorted({row["channel"] for row in rows if row["n_layers"] == most_layers})
    return [
        f"In the core of the most layers, {most_layers:,} of the {len(layers):,} that have one: {named(wide)} (n = "
        f"{spanned(rows, 'n_samples')} samples).",
        f"A layer's core has {spanned(rows, 'n_core')} of its top {rows[0]['k']} channels.",
    ]


def _alignment(rows: Rows) -> list[str]:
    own = [row for row in rows if row["top"] is not None]
    if not own:
        return ["The top channels were not analyzed."]
    best = most(own, "top")
    controls = [
        f"{number(best[name])} for {name}" for name in ("random", "matched", "bottom") if best[name] is not None
    ]
    told = [
        f"Clusters of tokens by the top channels fit the subject best at layer {best['layer']}, step {best['step']}: "
        "mean "
        f"IoU {ranged(best, 'top', 'top')}, by chance {number(best['chance'])}"
        + (f", {also(controls)} channels" if controls else "")
        + f" (n = {best['n_samples']:,} samples of {best['n_prompts']:,} prompts; selected post hoc)."
    ]
    compared = [row for row in own if row["over_random_low"] is not None]
    if compared:
        above = sum(row["over_random_low"] > 0 for row in compared)
        below = sum(row["over_random_high"] < 0 for row in compared)
        told.append(
            f"The interval of top minus random is above 0 in {above:,} and below 0 in {below:,} of {len(compared):,} "
            "rows, "
            "without correction for their number."
        )
    return told


def _concentration(rows: Rows) -> list[str]:
    own = [row for row in rows if row["ratio"] is not None]
    if not own:
        return ["No value is finite."]
    top, low = most(own, "ratio"), most(own, "ratio", least=True)
    massive = [row for row in own if row["massive_channels"] is not None]
    told = [
        f"The largest channel scores {ranged(top, 'ratio', 'ratio')} times the median channel at layer {top['layer']}, "
        f"step {top['step']}, the most, and {ranged(low, 'ratio', 'ratio')} at layer {low['layer']}, step "
        f"{low['step']}, "
        f"the least (n = {spanned(own, 'n_samples')} samples; both selected post hoc).",
    ]
    if massive:
        least, largest = (most(massive, "massive_channels", least=each)["massive_channels"] for each in (True, False))
        told.append(
            f"A sample has {number(least)} to {number(largest)} channels that pass the channel test, on average."
        )
    registers = [row for row in own if row["registers"] is not None]
    if registers:
        top = most(registers, "registers")
        at = f"at most {number(top['registers'])} on average, at layer {top['layer']}" if top["registers"] else "none"
        told.append(f"Tokens with an outlier norm (registers): {at}.")
    return told


def _misaligned(rows: Rows) -> list[str]:
    low = most([row for row in rows if row["iou"] is not None] or rows, "iou", least=True)
    iou = "none" if low["iou"] is None else number(low["iou"])
    return [
        f"{counted(len({row['sample'] for row in rows}), 'sample')} listed, whose clusters miss the subject; the "
        "lowest IoU "
        f"is {iou} (by chance {_or_none(low['chance_iou'])}): sample {low['sample']}, layer {low['layer']}, step "
        f"{low['step']}."
    ]


def _registers(rows: Rows) -> list[str]:
    top = most(rows, "registers")
    if not top["registers"]:
        return [f"None of the {counted(len(rows), 'sample')} listed has a token with an outlier norm (register)."]
    return [
        f"Sample {top['sample']} has the most tokens with an outlier norm (registers): {number(top['registers'])} at "
        "layer "
        f"{top['layer']}, step {top['step']}.",
        f"Its registers hold at least half of the energy of {_or_none(top['token_outliers'])} of its top channels.",
    ]


def _outliers(rows: Rows) -> list[str]:
    top = max(rows, key=lambda row: abs(row["z"] or 0))
    return [
        f"{counted(len({row['sample'] for row in rows}), 'sample')} listed; the furthest from the others is sample "
        f"{top['sample']}: {top['measure']} {number(top['value'])}, median {number(top['median'])}, at layer "
        f"{top['layer']}, step {top['step']} (robust z {number(top['z'])}, n = {top['n_samples']:,} samples)."
    ]


def _masks(rows: Rows) -> list[str]:
    outcomes: dict[str, int] = {}
    for row in rows:
        outcomes[row["outcome"]] = outcomes.get(row["outcome"], 0) + 1
    told = [f"Listed: {also([f'{n:,} {outcome}' for outcome, n in outcomes.items()])}."]
    areas = [row for row in rows if row["area"] is not None]
    if areas:
        low, top = most(areas, "area", least=True), most(areas, "area")
        told.append(f"Their subjects cover {number(low['area'])} to {number(top['area'])} of the image.")
    return told


def _failures(rows: Rows) -> list[str]:
    failed = [row for row in rows if row["error"] is not None]
    broken = [row for row in rows if row["n_nonfinite"]]
    told = []
    if failed:
        told.append(
            f"{counted(len(failed), 'sample')} failed, such as sample {failed[0]['sample']}: {failed[0]['error']}"
        )
    if broken:
        first = broken[0]
        told.append(
            f"{counted(len(broken), 'sample')} had hidden states that are not finite, such as sample {first['sample']} "
            f"from layer {first['first_layer']}, step {first['first_step']}."
        )
    return told


def _mean(rows: Rows, name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return sum(values) / len(values) if values else None


def _times(row: Row) -> str:
    return f"{ranged(row, 'mean_ratio', 'ratio')} times"


def _of_cells(n: int, total: int) -> str:
    return f"all {total:,} cells (one per layer and step)" if n == total else f"{n:,} of {total:,} cells"


def _or_none(value: float | None) -> str:
    return "none" if value is None else number(value)


_MEASURES = {
    "ratio": "The largest score over the median channel's",
    "energy_share": "The top channels' share of the squared values",
    "gini": "The Gini coefficient of the 32 largest scores",
    "token_norm_ratio": "The largest token norm over the median",
}
_SENTENCES: dict[str, Callable[[Rows], list[str]]] = {
    "massive_channels": _massive,
    "channel_history": _history,
    "layer_profile": _profile("layer"),
    "step_profile": _profile("step"),
    "channel_stability": _stability,
    "stability_core": _core,
    "alignment_by_layer": _alignment,
    "concentration_by_layer": _concentration,
    "misaligned_samples": _misaligned,
    "register_samples": _registers,
    "sample_outliers": _outliers,
    "subject_masks": _masks,
    "failures": _failures,
} | sweep_answers.SENTENCES
_EMPTY = {
    "massive_channels": "No channel is in the top k as often as min_frequency asks; lower it to list more.",
    "failures": "No sample failed, and all hidden states are finite.",
    "misaligned_samples": "No sample is misaligned.",
    "sample_outliers": "No sample is an outlier.",
    "subject_masks": "No sample has this outcome.",
    "stability_core": "No channel is in the top k of as many samples as min_frequency asks.",
} | sweep_answers.EMPTY
_COUNTS_LOST = {
    "massive_channels": ("layer", "step"),
    "channel_history": ("layer", "step"),
    "layer_profile": ("layer",),
    "step_profile": ("step",),
    "channel_stability": ("layer",),
}
"""Columns over whose values the counts of excluded cells add up, by query."""
