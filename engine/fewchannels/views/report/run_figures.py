"""Figures of a run's tables, each from the very question that is shown below it."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from fewchannels.analyses.document import Figure
from fewchannels.analyses.drawn import cell_map, series
from fewchannels.analyses.figures.drawings import Lines, Series
from fewchannels.analyses.source import Source
from fewchannels.measures.statistics import SELECTIONS
from fewchannels.views.report.findings import Cell, Extreme

_BANDS = "bands: 95 % over prompts"
_PAIRS = {"within": "same prompt, other seed", "across": "other prompt", "category": "other prompt, same category"}
_RANKS = (1, 2, 4, 8, 16, 32)


def ratios(source: Source, found: Extreme) -> list[Figure]:
    """The ratio by layer with its interval, and by layer and step."""
    score = source.description["config"]["score"]
    n = int(found.layers["n_samples"].max())
    about = f"Largest score over the median score ({score})"
    rows = found.layers.rename(columns={"low": "mean_low", "high": "mean_high"})
    ends = np.array([rows["layer"].min(), rows["layer"].max()])
    by_layer = Lines(
        series={
            "largest channel": series(rows, "layer", "mean"),
            "median channel (1 by definition)": Series(ends, np.ones(2), reference=True),
        },
        title=f"{about}, step {found.step}\nn = {n:,} samples, bands: 95 % over {found.over}",
        x="layer",
        y="ratio, times the median",
        least=0,
    )
    drawn = [Figure("ratio_by_layer", by_layer, [found.how])]
    text = (
        f"select layer, step, count(*) as n_samples, avg(ratio) as mean from cells where {source.of_track} "
        "group by all order by all"
    )
    cells = source.ask(text)
    if cells["step"].nunique() > 1:
        n = int(cells["n_samples"].max())
        title = f"{about}, by layer and step\nmean over n = {n:,} samples"
        drawn.append(Figure("ratio", cell_map(cells, "mean", title=title, unit="times the median"), [source.sql(text)]))
    return drawn


def stability(source: Source) -> list[Figure]:
    """Overlap of top sets by layer; how it drifts over steps; layers in turn; definitions."""
    settings = source.results["stability"]["settings"]
    k, score, pairs = max(settings["ks"]), settings["score"], source.table("stability", "pairs")
    agreement = source.table("stability", "agreement")
    step = int(source.ask(f"select max(step) as step from {pairs}")["step"].fillna(0).iloc[0])
    n = int(source.results["stability"]["selected"]["n_samples"])
    drawn: list[Figure] = []
    text = (
        f"select layer, kind, n_pairs, n_prompts, jaccard, jaccard_low, jaccard_high, chance from {pairs} where k = "
        f"{k} and step = {step} order by layer, kind"
    )
    rows = source.ask(text)
    if len(rows):
        lines = {
            name: series(rows[rows["kind"] == kind], "layer", "jaccard")
            for kind, name in _PAIRS.items()
            if (rows["kind"] == kind).any()
        }
        chance = rows.drop_duplicates("layer")
        lines["chance"] = Series(chance["layer"].to_numpy(float), chance["chance"].to_numpy(float), reference=True)
        title = f"Overlap of the top {k} by {score} of two samples, step {step}\nn = {n:,} samples, all pairs, {_BANDS}"
        drawn.append(Figure("overlap", _jaccard(lines, title), [source.sql(text)]))
    text = (
        f"select layer, step, n_samples, jaccard, jaccard_low, jaccard_high, chance from {agreement} where k = {k} and "
        "kind = 'last_step' order by layer, step"
    )
    if len(rows := source.ask(text)):
        title = f"Overlap of each step's top {k} with the last step's, same sample\nmean over n = {n:,} samples"
        drawing = cell_map(rows, "jaccard", title=title, unit="mean Jaccard overlap")
        drawn.append(Figure("drift", drawing, [source.sql(text)]))
    text = (
        f"select layer, other, n_samples, jaccard, jaccard_low, jaccard_high, chance from {agreement}"
        f" where k = {k} and step = {step} and kind = 'layer_before' order by layer"
    )
    if len(rows := source.ask(text)):
        lines = {"with the layer before": series(rows, "layer", "jaccard"), "chance": _chance(rows, "layer")}
        title = f"Overlap of the top {k} with the layer before, same sample, step {step}\nn = {n:,} samples, {_BANDS}"
        drawn.append(Figure("layer_before", _jaccard(lines, title), [source.sql(text)], less_important=True))
    text = (
        f"select layer, other, n_samples, jaccard, jaccard_low, jaccard_high, chance from {agreement} where k = {k} "
        f"and step = {step} and kind = 'definition' order by layer, other"
    )
    if len(rows := source.ask(text)):
        title = f"Overlap of the top {k} by {score} and by another score, same sample, step {step}"
        drawing = cell_map(
            rows,
            "jaccard",
            title=f"{title}\nmean over n = {n:,} samples",
            unit="mean Jaccard overlap",
            column=("other", "other score"),
        )
        drawn.append(Figure("definitions", drawing, [source.sql(text)], less_important=True))
    return drawn


def concentration(source: Source) -> list[Figure]:
    """Energy in the top channels, scores by rank, and tokens of outlying norm."""
    result = source.results["concentration"]
    settings, table = result["settings"], source.table("concentration", "means")
    step = int(source.ask(f"select max(step) as step from {table}")["step"].fillna(0).iloc[0])
    n, score = int(result["selected"]["n_samples"]), settings["score"]
    about = f"step {step}, n = {n:,} samples, {_BANDS}"
    groups = {
        "energy": (
            {f"energy_share_{k}": f"top {k}" for k in settings["ks"]},
            f"Share of the squared values in the top channels by {score}",
            "share of squared values, 0 to 1",
        ),
        "ranks": (
            {f"ratio_rank_{rank}": f"rank {rank}" for rank in _RANKS},
            f"Score of a rank over the median score ({score})",
            "times the median",
        ),
        "token_norms": (
            {"elevation": "as it is", "elevation_excised": f"without the top {settings['k']} channels"},
            "Largest token norm over the median",
            "times the median",
        ),
    }
    drawn = []
    for name, (metrics, title, unit) in groups.items():
        listed = ", ".join(f"'{metric}'" for metric in metrics)
        text = (
            f"select layer, metric, n_samples, mean, low, high from {table} where step = {step} and metric in "
            f"({listed}) order by layer, metric"
        )
        rows = source.ask(text).rename(columns={"low": "mean_low", "high": "mean_high"})
        lines = {
            label: series(rows[rows["metric"] == metric], "layer", "mean")
            for metric, label in metrics.items()
            if (rows["metric"] == metric).any()
        }
        if lines:
            drawing = Lines(series=lines, title=f"{title}\n{about}", x="layer", y=unit, least=0)
            drawn.append(Figure(name, drawing, [source.sql(text)], less_important=name == "token_norms"))
    return drawn


def alignment(source: Source, best: Cell) -> list[Figure]:
    """IoU of each selection with the subject: by layer at the best step, by step at the best layer; the top's map."""
    table = source.table("alignment", "means")
    columns = f"layer, step, selection, n_samples, iou, iou_low, iou_high, chance_iou from {table}"
    of = f"n_clusters = {best.n_clusters}"
    n = int(source.results["alignment"]["selected"]["n_samples"])
    about = f"IoU of the foreground (K = {best.n_clusters}) with the subject"
    drawn = []
    for along, fixed, at in (("layer", "step", best.step), ("step", "layer", best.layer)):
        text = f"select {columns} where {of} and {fixed} = {at} order by {along}, selection"
        rows = source.ask(text)
        if along == "step" and rows["step"].nunique() < 2:
            continue
        title = f"{about}, {fixed} {at}\nn = {n:,} samples, {_BANDS}"
        lines = _selections(rows, along)
        drawing = Lines(series=lines, title=title, x=along, y="mean IoU, 0 to 1", least=0)
        drawn.append(Figure(f"iou_by_{along}", drawing, [source.sql(text)]))
    text = f"select {columns} where {of} and selection = 'top' order by layer, step"
    rows = source.ask(text)
    if rows["step"].nunique() > 1:
        title = f"{about}, top channels, by layer and step\nmean over n = {n:,} samples"
        drawn.append(Figure("iou", cell_map(rows, "iou", title=title, unit="mean IoU"), [source.sql(text)]))
    return drawn


def _selections(rows: pd.DataFrame, along: str) -> Mapping[str, Series]:
    lines = {
        name: series(rows[rows["selection"] == name], along, "iou")
        for name in SELECTIONS
        if (rows["selection"] == name).any()
    }
    top = rows[rows["selection"] == "top"].sort_values(along)
    chance = Series(top[along].to_numpy(float), top["chance_iou"].to_numpy(float), reference=True)
    return lines | {"chance (areas of top)": chance}


def _chance(rows: pd.DataFrame, along: str) -> Series:
    return Series(rows[along].to_numpy(float), rows["chance"].to_numpy(float), reference=True)


def _jaccard(lines: Mapping[str, Series], title: str) -> Lines:
    return Lines(series=lines, title=title, x="layer", y="mean Jaccard overlap, 0 to 1", least=0)
