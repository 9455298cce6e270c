"""Figures of an alignment, each from the query that is shown with it."""

import pandas as pd

from fewchannels.analyses.alignment.findings import Cell
from fewchannels.analyses.document import Figure, span
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.figures.drawings import Lines, Series
from fewchannels.analyses.figures.frames import cell_map, series
from fewchannels.measures import SELECTIONS

_BANDS = "bands: 95 % over prompts"


def figures(evidence: Evidence, cells: list[Cell]) -> list[Figure]:
    """IoU of each selection with the subject, for each number of clusters.

    By layer at the best step, by step at the best layer, the top's by both; and that of the best union of clusters.

    Args:
        evidence: the run.
        cells: result of :func:`fewchannels.analyses.alignment.findings.best_cells`.
    """
    return [figure for n, cell in enumerate(cells) for figure in _of(evidence, cell, less_important=n > 0)]


def _of(evidence: Evidence, best: Cell, *, less_important: bool) -> list[Figure]:
    columns = "layer, step, selection, n_samples, iou, iou_low, iou_high, chance_iou"
    table, of = evidence.table("alignment", "means"), f"n_clusters = {best.n_clusters}"
    about, end = f"IoU of the foreground (K = {best.n_clusters}) with the subject", f"_k{best.n_clusters}"
    drawn = []
    for along, fixed, at in (("layer", "step", best.step), ("step", "layer", best.layer)):
        text = f"select {columns} from {table} where {of} and {fixed} = {at} order by {along}, selection"
        rows = evidence.ask(text)
        if along == "step" and rows["step"].nunique() < 2:
            continue
        title = f"{about}, {fixed} {at}\n{_counted(rows)}, {_BANDS}"
        lines = _selections(rows, along, "iou") | _chance(rows, along, best.selection)
        drawing = Lines(series=lines, title=title, x=along, y="mean IoU, 0 to 1", least=0)
        drawn.append(Figure(f"iou_by_{along}{end}", drawing, [evidence.sql(text)], less_important))
    text = f"select {columns} from {table} where {of} and selection = 'top' order by layer, step"
    rows = evidence.ask(text)
    if rows["step"].nunique() > 1:
        title = f"{about}, top channels, by layer and step\nmean over {_counted(rows)}"
        by_both = cell_map(rows, "iou", title=title, unit="mean IoU")
        drawn.append(Figure(f"iou{end}", by_both, [evidence.sql(text)], less_important))
    text = (
        f"select layer, selection, n_samples, best_iou, best_iou_low, best_iou_high from {table} where {of} and step = "
        f"{best.step} order by layer, selection"
    )
    rows = evidence.ask(text)
    title = f"IoU of the best union of clusters (oracle: uses the ground truth), step {best.step}"
    title += f"\n{_counted(rows)}, {_BANDS}"
    lines = _selections(rows, "layer", "best_iou")
    drawing = Lines(series=lines, title=title, x="layer", y="mean best IoU, 0 to 1", least=0)
    return [*drawn, Figure(f"best_iou_by_layer{end}", drawing, [evidence.sql(text)], less_important=True)]


def _counted(rows: pd.DataFrame) -> str:
    return f"n = {span(rows['n_samples'])} samples"


def _selections(rows: pd.DataFrame, along: str, value: str) -> dict[str, Series]:
    return {
        name: series(rows[rows["selection"] == name], along, value)
        for name in SELECTIONS
        if (rows["selection"] == name).any()
    }


def _chance(rows: pd.DataFrame, along: str, selection: str) -> dict[str, Series]:
    own = rows[rows["selection"] == selection].sort_values(along)
    values = Series(own[along].to_numpy(float), own["chance_iou"].to_numpy(float), reference=True)
    return {f"chance (areas of {selection})": values}
