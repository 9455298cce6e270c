"""Figures of a stability analysis, each from the query that is shown with it."""

from collections.abc import Mapping

import pandas as pd

from fewchannels.analyses.document import Figure
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.figures.drawings import Lines, Series
from fewchannels.analyses.figures.frames import cell_map, series
from fewchannels.analyses.stability.findings import PAIRS

_BANDS = "bands: 95 % over prompts"


def figures(evidence: Evidence) -> list[Figure]:
    """Overlap of top sets by layer; how it drifts over steps; layers in turn; definitions."""
    result = evidence.results["stability"]
    k, score, n = max(result["settings"]["ks"]), result["settings"]["score"], int(result["selected"]["n_samples"])
    pairs, agreement = (evidence.table("stability", name) for name in ("pairs", "agreement"))
    step = int(evidence.ask(f"select max(step) as step from {agreement}")["step"].fillna(0).iloc[0])
    counted = f"n = {n:,} samples"
    drawn: list[Figure] = []
    text = (
        f"select layer, kind, n_pairs, n_prompts, jaccard, jaccard_low, jaccard_high, chance from {pairs} where k = "
        f"{k} and step = {step} order by layer, kind"
    )
    if len(rows := evidence.ask(text)):
        lines = {
            name: series(rows[rows["kind"] == kind], "layer", "jaccard")
            for kind, name in PAIRS.items()
            if (rows["kind"] == kind).any()
        }
        title = f"Overlap of the top {k} by {score} of two samples, step {step}\n{counted}, all pairs, {_BANDS}"
        drawn.append(Figure("overlap_by_layer", _lines(lines | _chance(rows), title), [evidence.sql(text)]))
    columns = f"n_samples, jaccard, jaccard_low, jaccard_high, chance from {agreement}"
    text = f"select layer, step, {columns} where k = {k} and kind = 'last_step' order by layer, step"
    if len(rows := evidence.ask(text)):
        title = f"Overlap of each step's top {k} with the last step's, same sample\nmean over {counted}"
        drift = cell_map(rows, "jaccard", title=title, unit="mean Jaccard overlap")
        drawn.append(Figure("drift_over_steps", drift, [evidence.sql(text)]))
    text = f"select layer, other, {columns} where k = {k} and step = {step} and kind = 'layer_before' order by layer"
    if len(rows := evidence.ask(text)):
        lines = {"with the layer before": series(rows, "layer", "jaccard")}
        title = f"Overlap of the top {k} with the layer before, same sample, step {step}\n{counted}, {_BANDS}"
        drawing = _lines(lines | _chance(rows), title)
        drawn.append(Figure("layer_before", drawing, [evidence.sql(text)], less_important=True))
    text = (
        f"select layer, other, {columns} where k = {k} and step = {step} and kind = 'definition' order by layer, other"
    )
    if len(rows := evidence.ask(text)):
        lines = {f"{score} and {other}": series(each, "layer", "jaccard") for other, each in rows.groupby("other")}
        title = f"Overlap of the top {k} by two definitions, same sample, step {step}\n{counted}, {_BANDS}"
        drawing = _lines(lines | _chance(rows), title)
        drawn.append(Figure("definitions", drawing, [evidence.sql(text)], less_important=True))
    return drawn


def _chance(rows: pd.DataFrame) -> dict[str, Series]:
    each = rows.drop_duplicates("layer")
    return {"chance": Series(each["layer"].to_numpy(float), each["chance"].to_numpy(float), reference=True)}


def _lines(lines: Mapping[str, Series], title: str) -> Lines:
    return Lines(series=lines, title=title, x="layer", y="mean Jaccard overlap, 0 to 1", least=0)
