"""Samples of one cell side by side: image, subject, heat and foreground."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewchannels.analyses.alignment.findings import Cell
from fewchannels.analyses.figures.drawings import Drawing, Images
from fewchannels.analyses.selection import Selected
from fewchannels.runs.images import opened
from fewchannels.runs.sql.catalog import Catalog


@dataclass(frozen=True)
class Localized:
    """One sample at one cell.

    Attributes:
        mask: ``(y, x)`` bool, the subject in pixels.
        heat: ``(y, x)`` float32 on the token grid.
        front: ``(y, x)`` bool on the token grid, the foreground.
    """

    mask: np.ndarray
    heat: np.ndarray
    front: np.ndarray


def contact_sheet(
    parts: Iterable[Any], catalog: Catalog, selected: Selected, cell: Cell, show: Callable[[int], Localized]
) -> Drawing:
    """Best, middle and worst samples of a cell.

    Args:
        parts: rows of ``samples``, a ``pyarrow.Table`` each.
        catalog: catalog of the run.
        selected: selected part of the run.
        cell: cell whose samples are shown.
        show: function that returns the protocol's view of one sample at the cell, by its position in the selection.
    """
    ious: list[tuple[float, int]] = []
    at = {"step": cell.step, "layer": cell.layer, "selection": cell.selection, "n_clusters": cell.n_clusters}
    for part in parts:
        rows = part.to_pandas()
        alike = rows[(rows[list(at)] == list(at.values())).all(axis=1) & (rows["trial"] == 0)]
        ious += list(zip(alike["iou"], alike["sample"], strict=True))
    ious = sorted(pair for pair in ious if not np.isnan(pair[0]))
    n = len(ious)
    chosen = [ious[i] for i in sorted({0, 1, n // 2, n // 2 + 1, n - 2, n - 1} & set(range(n)), reverse=True)]
    drawn, labels = [], []
    for iou, sample in chosen:
        i = int(np.searchsorted(selected.samples, sample))
        shown, image = show(i), catalog.image(selected.sample_ids[i])
        assert image is not None
        drawn.append([np.asarray(opened(image)), shown.mask, shown.heat, shown.front])
        labels.append(f"IoU {iou:.2f}\nsample {sample}")
    title = f"{cell.selection} channels, layer {cell.layer}, step {cell.step}: best, middle and worst samples"
    return Images(rows=drawn, labels=labels, columns=("image", "subject", "heat", "foreground"), title=title)
