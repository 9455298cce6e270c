"""The table ``means`` of an alignment, from its samples part by part."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fewchannels.measures.means import means
from fewchannels.tables import schema

CELL = ["step", "layer", "selection", "n_clusters"]
_INTERVALS = ("iou", "over_chance", "over_random", "top_over", "complement_iou", "best_iou", "ari", "nmi")
_PLAIN = ("chance_iou", "area", "mask_area", "n_channels", "energy_share", "n_left_out", "found_twice")
_DIFFERENCES = ("over_chance", "over_random", "top_over", "ari")
_RANGES = dict.fromkeys(_INTERVALS, (0.0, 1.0)) | dict.fromkeys(_DIFFERENCES, (-1.0, 1.0))
_SUM_BYTES = 128 * 2**20
_MEASURED = ["iou", "complement_iou", "best_iou", "ari", "nmi", *_PLAIN]


def columns(
    parts: Callable[[], Iterable[Any]],
    prompt_of: Mapping[int, int],
    n_prompts: int,
    layers: Sequence[int],
    cells_per_layer: int,
    n_starts: int,
) -> dict[str, np.ndarray]:
    """Means over samples with intervals over prompts: columns of ``schemas/alignment_means.yaml``.

    Args:
        parts: function that yields the rows of ``samples``, a ``pyarrow.Table`` each; it is called several times.
        prompt_of: the number of each sample's prompt.
        n_prompts: number of prompts.
        layers: numbers of all layers.
        cells_per_layer: steps, selections and numbers of clusters, multiplied.
        n_starts: number of starts of K-means; one alone cannot be found twice.
    """
    n_bytes = 8 * (len(_INTERVALS) * 2 + len(_PLAIN) + 1) * cells_per_layer * n_prompts
    at_once = max(1, _SUM_BYTES // n_bytes)
    passes = [layers[i : i + at_once] for i in range(0, len(layers), at_once)]
    found = pd.concat(
        means(_samples(parts(), prompt_of, some, n_starts), CELL, _PLAIN, _INTERVALS, n_prompts, _RANGES)
        for some in passes
    ).sort_values(CELL, ignore_index=True)
    return {name: found[name].to_numpy() for name in schema("alignment_means").names}


def _samples(
    parts: Iterable[Any], prompt_of: Mapping[int, int], layers: Sequence[int], n_starts: int
) -> Iterator[pd.DataFrame]:
    """Rows of some layers, a unit at a time: a sample's trials are one row."""
    for part in parts:
        rows = part.to_pandas()
        rows = rows[rows["layer"].isin(layers)]
        if rows.empty:
            continue
        rows["found_twice"] = np.where(n_starts > 1, rows["n_best_starts"] > 1, np.nan)
        each = rows.groupby([*CELL, "sample"], sort=False)[_MEASURED].mean()
        each["over_chance"] = each["iou"] - each["chance_iou"]
        of = {name: _beside(each["iou"], name) for name in ("random", "top")}
        each["over_random"] = each["iou"] - of["random"]
        each["top_over"] = of["top"] - each["iou"]
        each = each.reset_index()
        each.loc[each["selection"] == "top", "top_over"] = np.nan
        each["prompt"] = each["sample"].map(prompt_of)
        yield each


def _beside(iou: pd.Series, selection: str) -> np.ndarray:
    """The IoU of a selection at each row's sample and cell; NaN if there is none."""
    own = iou[iou.index.get_level_values("selection") == selection].droplevel("selection")
    index: Any = iou.index
    return own.reindex(index.droplevel("selection")).to_numpy()
