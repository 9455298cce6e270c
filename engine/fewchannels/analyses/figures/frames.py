"""Drawings from frames of means, in the same way for all analyses."""

import pandas as pd

from fewchannels.analyses.figures.drawings import HeatMap, Series


def series(rows: pd.DataFrame, along: str, value: str, scale: float = 1.0) -> Series:
    """A line with its interval.

    Args:
        rows: rows with the columns below and ``VALUE_low`` and ``VALUE_high``.
        along: column of the horizontal axis.
        value: column of the mean.
        scale: scale of the horizontal axis.
    """
    rows = rows.sort_values(along)
    x, y, low, high = (rows[name].to_numpy(float) for name in (along, value, f"{value}_low", f"{value}_high"))
    return Series(scale * x, y, low, high)


def cell_map(
    rows: pd.DataFrame,
    value: str,
    *,
    title: str,
    unit: str,
    row: tuple[str, str] = ("layer", "layer"),
    column: tuple[str, str] = ("step", "step"),
    is_difference: bool = False,
) -> HeatMap:
    """A heat map of layers by steps.

    Args:
        rows: one for each layer and step.
        value: column to show.
        title: title of the figure.
        unit: label of the scale.
        row: column of the vertical axis, and its label.
        column: same as above, for the horizontal one.
        is_difference: whether zero is the middle of the scale.
    """
    table = rows.pivot(index=row[0], columns=column[0], values=value)
    return HeatMap(
        values=table.to_numpy(float),
        title=title,
        rows=list(table.index),
        columns=list(table.columns),
        row=row[1],
        column=column[1],
        value=unit,
        is_difference=is_difference,
    )
