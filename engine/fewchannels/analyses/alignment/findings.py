"""Findings on the alignment of clusters with the subject, against every control; each with its query."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fewchannels.analyses.document import Finding, Table, bracketed, finite, number, ranged, span
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.wording import CHANNELS
from fewchannels.measures import intervals
from fewchannels.measures.intervals import cluster_interval
from fewchannels.measures.means import means

FEWEST = 2 * intervals.FEWEST
"""Minimum number of prompts to select the cell on one half and test it on the other: enough for an interval."""
_MEASURED = ["iou", "best_iou", "chance_iou", "n_channels"]
_RANGES = {"iou": (0.0, 1.0), "best_iou": (0.0, 1.0)}


@dataclass(frozen=True)
class Cell:
    """The cell in which the top channels' foreground fits the subject best.

    Attributes:
        layer: index of the layer.
        step: index of the step.
        n_clusters: number of clusters K.
        selection: ``top``, or the best-fitting selection if top channels were not analyzed.
        is_held_out: whether half of the prompts selected the cell, so that the other half can be tested there; else
            all of them did.
    """

    layer: int
    step: int
    n_clusters: int
    selection: str
    is_held_out: bool


def best_cells(evidence: Evidence) -> list[Cell]:
    """The layer and step with the largest mean IoU for each number of clusters, the fewest first.

    Half of the prompts select it: of all analyzed prompts, sorted by their MD5, the first, the third and so on. If
    there are fewer than :data:`FEWEST`, all of them select it.
    """
    if "alignment" not in evidence.results:
        return []
    known = "if(isfinite(iou), iou, null) is not null"
    ((n,),) = evidence.catalog.sql(
        f"select max(n_prompts) from {evidence.table('alignment', 'means')} where {known}"
    ).fetchall()
    is_held_out = n is not None and n >= FEWEST
    rows = evidence.ask(
        f"with {_halves(evidence)} select layer, step, n_clusters, selection from "
        f"{evidence.table('alignment', 'samples')} join samples using (sample, sample_id) join halves using (prompt) "
        f"where {known}{' and selects' if is_held_out else ''} group by layer, step, n_clusters, selection qualify "
        "row_number() over (partition by n_clusters order by selection != 'top', avg(iou) desc, layer, step) = 1 "
        "order by n_clusters"
    )
    return [
        Cell(int(row["layer"]), int(row["step"]), int(row["n_clusters"]), str(row["selection"]), is_held_out)
        for row in rows.to_dict("records")
    ]


def best_cell(evidence: Evidence) -> Cell | None:
    """The best cell of the top channels with the fewest clusters; None without an alignment of them."""
    best = next(iter(best_cells(evidence)), None)
    return best if best is not None and best.selection == "top" else None


def _halves(evidence: Evidence) -> str:
    """The SQL of ``halves``: every prompt that was analyzed, and whether it selects cells."""
    return (
        "halves as (select prompt, row_number() over (order by md5(prompt), prompt) % 2 = 1 as selects from (select "
        f"distinct prompt from samples where sample in (select sample from {evidence.table('alignment', 'samples')})))"
    )


def _each(evidence: Evidence, best: Cell) -> str:
    """SQL: each sample's means over draws, by selection, of the prompts that did not select the cell."""
    averages = ", ".join(f"avg({name}) as {name}" for name in _MEASURED)
    return (
        f"with {_halves(evidence)} select sample, prompt, selection, {averages} from "
        f"{evidence.table('alignment', 'samples')} join samples using (sample, sample_id) join halves using (prompt) "
        f"where layer = {best.layer} and step = {best.step} and n_clusters = {best.n_clusters} and "
        f"if(isfinite(iou), iou, null) is not null{' and not selects' if best.is_held_out else ''} group by all"
    )


def at_best(evidence: Evidence, best: Cell) -> Finding:
    """Compare the fit of the clusters at the best cell with chance and with every control."""
    each_text = _each(evidence, best)
    each = evidence.ask(each_text)
    differences = paired(each) if best.selection == "top" else {}
    each["prompt"], prompts = pd.factorize(each["prompt"])
    found = means([each], ["selection"], ["chance_iou", "n_channels"], ["iou", "best_iou"], len(prompts), _RANGES)
    rows: Any = found.set_index("selection")
    own, twice = rows.loc[best.selection], _twice(evidence, best)
    k = evidence.results["alignment"]["settings"]["k"]
    clustered = f"the top {k} channels" if best.selection == "top" else CHANNELS[best.selection]
    sentence = (
        f"Clustering tokens by {clustered} finds the subject with a mean IoU of {_iou(own)}, compared with "
        f"{number(own['chance_iou'])} by chance (independent masks with the same areas), at layer {best.layer}, step "
        f"{best.step}, n = {int(own['n_samples']):,} samples of {int(own['n_prompts']):,} prompts. {_selected(best)}"
    )
    if best.selection != "top":
        sentence += " The top channels were not analyzed."
    elif best.is_held_out:
        sentence += f" {verdicts(differences)}"
    heads = [
        "channels",
        "how many",
        "n",
        "IoU",
        "top minus these",
        "best sign (oracle)",
        "lowest inertia found twice",
        "chance",
    ]
    table = Table(
        f"Mean IoU with the subject, layer {best.layer}, step {best.step}, 95 % over prompts; best sign (oracle) is "
        "the better of foreground and complement, chosen with the ground truth",
        heads,
        [
            [
                name if name == "top" else CHANNELS[name],
                number(rows.loc[name, "n_channels"]),
                f"{int(rows.loc[name, 'n_samples']):,}",
                bracketed(*(rows.loc[name, f"iou{end}"] for end in ("", "_low", "_high"))),
                bracketed(*differences[name][:3]) if name in differences else "",
                bracketed(*(rows.loc[name, f"best_iou{end}"] for end in ("", "_low", "_high"))),
                f"{twice[name]:.0%}" if name in twice else "",
                number(rows.loc[name, "chance_iou"]),
            ]
            for name in ("top", *CHANNELS)
            if name in rows.index
        ],
    )
    measured: dict[str, Any] = {"layer": best.layer, "step": best.step, "n_clusters": best.n_clusters}
    measured |= {"selected_on": "other half of the prompts" if best.is_held_out else "the same prompts"}
    measured["selections"] = {
        str(name): {"mean": finite(row["iou"]), "low": finite(row["iou_low"]), "high": finite(row["iou_high"])}
        | {"n_samples": int(row["n_samples"]), "n_prompts": int(row["n_prompts"])}
        | {"chance": finite(row["chance_iou"]), "best": finite(row["best_iou"])}
        for name, row in rows.iterrows()
    }
    measured["top_minus"] = {
        name: {"mean": finite(mean), "low": finite(low), "high": finite(high), "n_samples": n}
        for name, (mean, low, high, n) in differences.items()
    }
    by_selection = (
        f"with each as ({each_text}) select selection, count(*) as n_samples, count(distinct prompt) as n_prompts, "
        "avg(iou) as iou, avg(chance_iou) as chance_iou, avg(best_iou) as best_iou from each group by all order by all"
    )
    difference = (
        f"with each as ({each_text}) select other.selection, count(*) as n_samples, avg(top.iou - other.iou) as "
        "difference from each as top join each as other using (sample) where top.selection = 'top' and "
        "other.selection <> 'top' group by all order by all"
    )
    how = [evidence.sql(text) for text in ((by_selection, difference) if differences else (by_selection,))]
    return Finding("alignment", sentence, measured, how, table)


def _selected(best: Cell) -> str:
    """Explain how the cell was selected."""
    if best.is_held_out:
        return (
            "This layer and step have the largest mean IoU in the other half of the prompts, which is held out from "
            "all numbers here."
        )
    return (
        f"This layer and step were selected post hoc as those with the largest mean IoU in the same prompts, so the "
        f"estimate is biased upward. With fewer than {FEWEST} prompts, none can be held out to compare with controls."
    )


def over_cells(evidence: Evidence, best: Cell) -> Finding | None:
    """Count the cells with the top channels above and below each control; None if neither was analyzed."""
    table = evidence.table("alignment", "means")
    has_all = "top_over" in evidence.ask(f"select * from {table} limit 0").columns
    # An older result has only the differences from random channels, in the top channels' rows.
    control, name = ("selection", "top_over") if has_all else ("'random'", "over_random")
    where = f"n_clusters = {best.n_clusters} and selection {'<>' if has_all else '='} 'top'"
    text = (
        f"select {control} as control, count(*) as n_cells, max(n_prompts) as n_prompts, min(n_prompts) as fewest, "
        f"count(*) filter (isfinite({name}_low)) as n_intervals, "
        f"count(*) filter (isfinite({name}_low) and {name}_low > 0) as n_above, "
        f"count(*) filter (isfinite({name}_high) and {name}_high < 0) as n_below from {table} where {where} and "
        f"if(isfinite({name}), {name}, null) is not null group by all order by all"
    )
    rows = evidence.ask(text).set_index("control")
    named = [name for name in CHANNELS if name in rows.index]
    if not named:
        return None
    n_prompts = span([*rows["fewest"], *rows["n_prompts"]])
    n_cells, n_intervals = int(rows["n_cells"].max()), int(rows["n_intervals"].max())
    if n_intervals:
        counted = "; ".join(
            f"above {name} in {rows.loc[name, 'n_above']:,} and below in {rows.loc[name, 'n_below']:,}"
            for name in named
        )
        sentence = (
            f"In {n_cells:,} cells (one per layer and step), the mean IoU of the top channels is {counted}; a cell "
            f"counts if the 95 % interval of the paired difference excludes 0 (n = {n_prompts} prompts). By "
            f"chance alone, about {number(n_intervals / 20)} of {n_intervals:,} would be above or below; "
            "there is no correction for multiple comparisons."
        )
    else:
        sentence = (
            f"None of {n_cells:,} cells has an interval of the difference between the top channels and a control: "
            f"{n_prompts} prompts are too few."
        )
    numbers: dict[str, Any] = {"n_cells": n_cells, "expected_by_chance": n_intervals / 20}
    numbers["controls"] = {
        name: {"n_above": int(rows.loc[name, "n_above"]), "n_below": int(rows.loc[name, "n_below"])} for name in named
    }
    return Finding("alignment_cells", sentence, numbers, [evidence.sql(text)])


def converged(evidence: Evidence, best: Cell) -> Finding | None:
    """Report how reliably K-means found its lowest inertia; None for results without that information."""
    settings = evidence.results["alignment"]["settings"]
    shares = _twice(evidence, best)
    n_starts = settings["starts"]
    if n_starts == 1:
        sentence = (
            "K-means ran from one initialization (--starts 1), so it is unknown whether another would reach a lower "
            "inertia and different clusters."
        )
    elif shares:
        told = ", ".join(f"{number(100 * shares[name])} % ({name})" for name in ("top", *CHANNELS) if name in shares)
        sentence = (
            f"K-means ran from {n_starts:,} initializations (--kmeans {settings['kmeans']}). At least two of them "
            f"reached the lowest inertia in {told} of the clusterings; in the others, more may find better clusters."
        )
    else:
        return None
    return Finding(
        "kmeans", sentence, {"n_starts": n_starts, "found_twice": shares}, [evidence.sql(_twice_text(evidence, best))]
    )


def _twice(evidence: Evidence, best: Cell) -> dict[str, float]:
    """The share of clusterings whose lowest inertia two starts found, by selection; empty if unknown."""
    if "found_twice" not in evidence.ask(f"select * from {evidence.table('alignment', 'means')} limit 0").columns:
        return {}
    rows = evidence.ask(_twice_text(evidence, best))
    return {str(row.selection): float(row.found_twice) for row in rows.itertuples() if pd.notna(row.found_twice)}


def _twice_text(evidence: Evidence, best: Cell) -> str:
    return (
        f"select selection, avg(if(isfinite(found_twice), found_twice, null)) as found_twice from "
        f"{evidence.table('alignment', 'means')} where n_clusters = {best.n_clusters} group by all order by all"
    )


def paired(rows: pd.DataFrame) -> dict[str, tuple[float, float, float, int]]:
    """Subtract every other selection from the top, paired by sample, with an interval over prompts.

    Args:
        rows: ``sample``, ``prompt``, ``selection`` and ``iou``, one row of each sample and selection.

    Returns:
        Mean, its ends, and the samples that have both, by selection.
    """
    wide = rows.pivot(index=["sample", "prompt"], columns="selection", values="iou")
    if "top" not in wide:
        return {}
    prompt, _ = pd.factorize(wide.index.get_level_values("prompt"))
    found = {}
    for name in wide.columns.drop("top"):
        difference = (wide["top"] - wide[name]).to_numpy(float)
        known = np.isfinite(difference)
        sums, counts = np.zeros((2, prompt.max() + 1, 1))
        np.add.at(sums[:, 0], prompt[known], difference[known])
        np.add.at(counts[:, 0], prompt[known], 1)
        mean, low, high = (float(each[0]) for each in cluster_interval(sums, counts, -1, 1))
        found[str(name)] = (mean, low, high, int(known.sum()))
    return found


def verdicts(differences: Mapping[str, tuple[float, float, float, int]]) -> str:
    """Name the controls that the top channels exceed and those that they do not.

    Args:
        differences: result of :func:`paired`.
    """
    by: dict[str, list[str]] = {"exceed": [], "fall below": [], "do not differ significantly from": [], "": []}
    for name in (name for name in CHANNELS if name in differences):
        mean, low, high, _ = differences[name]
        if not (np.isfinite(low) and np.isfinite(high)):
            by[""].append(f"{number(mean)} from {CHANNELS[name]}")
        elif low <= 0 <= high:
            by["do not differ significantly from"].append(f"{CHANNELS[name]} (difference {ranged(mean, low, high)})")
        else:
            verdict = "exceed" if low > 0 else "fall below"
            by[verdict].append(f"{CHANNELS[name]} by {ranged(mean, low, high)}")
    undecided = by.pop("")
    parts = [f"In paired comparison, they {verdict} {'; '.join(each)}." for verdict, each in by.items() if each]
    if undecided:
        parts.append(f"In paired comparison, they differ by {'; '.join(undecided)}: too few prompts for an interval.")
    return " ".join(parts) if parts else "No control was analyzed."


def _iou(row: pd.Series) -> str:
    return ranged(float(row["iou"]), float(row["iou_low"]), float(row["iou_high"]))
