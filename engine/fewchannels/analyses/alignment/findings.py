"""What was found of the alignment of clusters with the subject, against every control; each with its question."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fewchannels.analyses.document import Finding, Table, bracketed, finite, number, ranged
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.wording import CHANNELS
from fewchannels.measures.intervals import cluster_interval


@dataclass(frozen=True)
class Cell:
    """Where the top channels' foreground fits the subject best: chosen by looking.

    Attributes:
        layer: number of the layer.
        step: number of the step.
        n_clusters: the K.
        selection: ``top``; or the selection that fits best, where top channels were not looked at.
    """

    layer: int
    step: int
    n_clusters: int
    selection: str


def best_cells(evidence: Evidence) -> list[Cell]:
    """The layer and step of the largest mean IoU for each number of clusters, the fewest first."""
    if "alignment" not in evidence.results:
        return []
    rows = evidence.ask(
        f"select layer, step, n_clusters, selection from {evidence.table('alignment', 'means')} where "
        "if(isfinite(iou), iou, null) is not null qualify row_number() over (partition by n_clusters order by "
        "selection != 'top', iou desc, layer, step) = 1 order by n_clusters"
    )
    return [
        Cell(int(row["layer"]), int(row["step"]), int(row["n_clusters"]), str(row["selection"]))
        for row in rows.to_dict("records")
    ]


def best_cell(evidence: Evidence) -> Cell | None:
    """The best cell of the top channels with the fewest clusters; None without an alignment of them."""
    best = next(iter(best_cells(evidence)), None)
    return best if best is not None and best.selection == "top" else None


def numbers(evidence: Evidence, best: Cell) -> dict[str, Any]:
    """The best cell and every selection there, in plain values, as ``result.json`` has them."""
    rows = evidence.ask(_of_cell(evidence, best)).set_index("selection")
    n_samples = evidence.ask(f"select max(n_samples) as n from {evidence.table('alignment', 'means')}")["n"].iloc[0]
    ends = [f"{name}{end}" for name in ("iou", "over_random") for end in ("", "_low", "_high")]
    there = {
        str(selection): {name: _rounded(row[name]) for name in (*ends, "chance_iou", "best_iou")}
        for selection, row in rows.iterrows()
    }
    return {"n_samples": int(n_samples), "best_layer": best.layer, "best_step": best.step, "there": there}


def _of_cell(evidence: Evidence, best: Cell) -> str:
    intervals = ", ".join(
        f"{name}{end}" for name in ("iou", "over_random", "best_iou") for end in ("", "_low", "_high")
    )
    return (
        f"select selection, n_channels, n_samples, n_prompts, {intervals}, chance_iou from "
        f"{evidence.table('alignment', 'means')} where {_at(best)} order by selection"
    )


def _at(best: Cell) -> str:
    return f"layer = {best.layer} and step = {best.step} and n_clusters = {best.n_clusters}"


def _rounded(value: Any) -> float | None:
    return None if pd.isna(value) else round(float(value), 4)


def at_best(evidence: Evidence, best: Cell) -> Finding:
    """How well clusters fit the subject at the best cell, against chance and every control."""
    means_text = _of_cell(evidence, best)
    rows = evidence.ask(means_text).set_index("selection")
    each_text = (
        "select sample, prompt, selection, avg(iou) as iou from "
        f"{evidence.table('alignment', 'samples')} join samples using (sample, sample_id) where {_at(best)} and "
        "if(isfinite(iou), iou, null) is not null group by all"
    )
    differences = paired(evidence.ask(each_text))
    difference_text = (
        f"with each as ({each_text}) select other.selection, count(*) as n_samples, avg(top.iou - other.iou) as "
        "difference from each as top join each as other using (sample) where top.selection = 'top' and "
        "other.selection <> 'top' group by all order by all"
    )
    own = rows.loc[best.selection]
    told = _verdicts([name for name in CHANNELS if name in differences], differences)
    k = evidence.results["alignment"]["settings"]["k"]
    clustered = f"the top {k} channels" if best.selection == "top" else CHANNELS[best.selection]
    sentence = (
        f"Clustering tokens by {clustered} finds the subject with a mean IoU of {_iou(own)}, against "
        f"{number(own['chance_iou'])} by chance (independent masks of the same areas), n = "
        f"{int(own['n_samples']):,} samples of {int(own['n_prompts']):,} prompts, at layer {best.layer}, step "
        f"{best.step}: the best cell, chosen by looking, so it is a little high. "
        f"{told if best.selection == 'top' else 'The top channels were not analyzed beside them.'}"
    )
    table = Table(
        f"Mean IoU with the subject, layer {best.layer}, step {best.step}, 95 % over prompts; better signed is the "
        "better of foreground and complement, which looks at the answer",
        ["channels", "how many", "n", "IoU", "chance", "top minus these", "better signed"],
        [
            [
                name if name == "top" else CHANNELS[name],
                number(rows.loc[name, "n_channels"]),
                f"{int(rows.loc[name, 'n_samples']):,}",
                bracketed(*(rows.loc[name, f"iou{end}"] for end in ("", "_low", "_high"))),
                number(rows.loc[name, "chance_iou"]),
                bracketed(*differences[name][:3]) if name in differences else "",
                bracketed(*(rows.loc[name, f"best_iou{end}"] for end in ("", "_low", "_high"))),
            ]
            for name in ("top", *CHANNELS)
            if name in rows.index
        ],
    )
    measured: dict[str, Any] = {"layer": best.layer, "step": best.step, "chosen_by_looking": True}
    measured["selections"] = {
        str(name): {"mean": finite(row["iou"]), "low": finite(row["iou_low"]), "high": finite(row["iou_high"])}
        | {"n_samples": int(row["n_samples"]), "chance": finite(row["chance_iou"]), "best": finite(row["best_iou"])}
        for name, row in rows.iterrows()
    }
    measured["top_minus"] = {
        name: {"mean": finite(mean), "low": finite(low), "high": finite(high), "n_samples": n}
        for name, (mean, low, high, n) in differences.items()
    }
    return Finding("alignment", sentence, measured, [evidence.sql(means_text), evidence.sql(difference_text)], table)


def paired(rows: pd.DataFrame) -> dict[str, tuple[float, float, float, int]]:
    """Top minus every other selection, sample by sample, with an interval over prompts.

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


def _verdicts(names: Sequence[str], differences: dict[str, tuple[float, float, float, int]]) -> str:
    """In plain words, which controls the top channels exceed and which they do not."""
    by: dict[str, list[str]] = {"exceed": [], "fall below": [], "cannot be told from": []}
    for name in names:
        mean, low, high, _ = differences[name]
        verdict = "exceed" if low > 0 else "fall below" if high < 0 else "cannot be told from"
        by[verdict].append(
            f"{CHANNELS[name]} by {ranged(mean, low, high)}"
            if verdict != "cannot be told from"
            else (f"{CHANNELS[name]} (difference {ranged(mean, low, high)})")
        )
    parts = [
        f"they {'do NOT exceed, and ' if verdict == 'fall below' else ''}{verdict} {'; '.join(each)}"
        for verdict, each in by.items()
        if each
    ]
    return f"Sample by sample {'. Sample by sample '.join(parts)}." if parts else "No control was analyzed beside them."


def _iou(row: pd.Series) -> str:
    return ranged(float(row["iou"]), float(row["iou_low"]), float(row["iou_high"]))
