"""Means over samples with intervals over prompts, from rows in several parts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fewchannels.measures.intervals import cluster_interval


def means(
    parts: Iterable[pd.DataFrame],
    cell: Sequence[str],
    plain: Sequence[str],
    with_interval: Sequence[str],
    n_prompts: int,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> pd.DataFrame:
    """Compute means of columns by cell.

    Args:
        parts: rows, one for each sample in each cell, with a column ``prompt`` of numbers below ``n_prompts``; NaN
            counts as missing.
        cell: columns that identify a cell.
        plain: columns to average without an interval.
        with_interval: columns to average with a 95 % interval over prompts.
        n_prompts: number of prompts.
        ranges: smallest and largest possible value of columns; an omitted column has no range.

    Returns:
        One row per cell, ascending: its columns, ``n_samples`` and ``n_prompts`` with a value in the first column of
        ``with_interval``, and the means; for ``with_interval`` also ``NAME_low``, ``NAME_high``, ``NAME_n`` (number of
        values) and ``NAME_n_prompts`` (number of prompts with a value). Without rows, there are no columns.
    """
    names = [*with_interval, *plain]
    totals: pd.DataFrame | None = None
    for rows in parts:
        groups = rows.groupby([*cell, "prompt"], sort=False)[names]
        part = groups.sum().join(groups.count().add_suffix(" n"))
        totals = part if totals is None else totals.add(part, fill_value=0)
    if totals is None:
        return pd.DataFrame()
    by_cell = totals.groupby(level=list(cell), sort=True).sum()
    row = totals.index.get_level_values("prompt").to_numpy(int)
    index: Any = totals.index
    column = by_cell.index.get_indexer(index.droplevel("prompt"))
    first = f"{with_interval[0]} n"
    found = {
        "n_samples": by_cell[first].to_numpy(int),
        "n_prompts": (totals[first] > 0).groupby(level=list(cell), sort=True).sum().to_numpy(int),
    }
    for name in with_interval:
        sums, counts = np.zeros((n_prompts, len(by_cell))), np.zeros((n_prompts, len(by_cell)))
        sums[row, column], counts[row, column] = totals[name], totals[f"{name} n"]
        found[f"{name}_n"] = by_cell[f"{name} n"].to_numpy(int)
        found[f"{name}_n_prompts"] = (counts > 0).sum(axis=0)
        found[name], found[f"{name}_low"], found[f"{name}_high"] = cluster_interval(
            sums, counts, *(ranges or {}).get(name, (-np.inf, np.inf))
        )
    for name in plain:
        with np.errstate(invalid="ignore"):
            found[name] = (by_cell[name] / by_cell[f"{name} n"]).to_numpy()
    return pd.DataFrame(found, index=by_cell.index).reset_index()
