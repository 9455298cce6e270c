"""Content of figures, independent of the drawing library: one description for PNG, SVG and interactive figures.

:mod:`fewchannels.analyses.figures.still` draws a drawing as PNG and SVG,
:mod:`fewchannels.analyses.figures.interactive` for a browser.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Series:
    """One line of a figure.

    Attributes:
        x: ``(point,)``.
        y: ``(point,)``; NaN leaves a gap.
        low: ``(point,)`` lower ends of intervals; None draws none.
        high: upper end of the interval; like ``low`` without one.
        reference: whether it is a reference, such as chance, drawn thin and gray.
    """

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    reference: bool = False


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Lines with their intervals as bands.

    Attributes:
        series: series by name, as the legend has them.
        title: title with the quantity, the data and n; may have two lines.
        x: label of the axis, with its unit.
        y: label of the vertical axis, with its unit.
        least: lower end of the vertical axis; None leaves it open.
    """

    series: Mapping[str, Series]
    title: str
    x: str
    y: str
    least: float | None = None


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A matrix as colors, with a color scale.

    Attributes:
        values: ``(row, column)``; NaN is white, or gray if white stands for zero.
        title: title with the quantity, the data and n.
        rows: names of the rows, bottom first.
        columns: names of the columns.
        row: label of the vertical axis.
        column: label of the horizontal axis.
        value: label of the scale.
        is_difference: whether zero is the middle of the scale, in white, with different colors below and above.
        ends: ends of the scale, if several maps share one; None takes those of the values.
    """

    values: np.ndarray
    title: str
    rows: Sequence[object]
    columns: Sequence[object]
    row: str
    column: str
    value: str
    is_difference: bool = False
    ends: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """Magnitudes as a surface in three dimensions, as Sun et al. 2024 (arXiv 2402.17762) draw massive activations.

    Attributes:
        values: ``(row, column)``, heights.
        title: title with the quantity, the data and n.
        rows: places of the rows, ascending numbers.
        columns: places of the columns, ascending numbers.
        row: label of one horizontal axis.
        column: label of the other.
        value: label of the vertical axis.
    """

    values: np.ndarray
    title: str
    rows: Sequence[float]
    columns: Sequence[float]
    row: str
    column: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Images:
    """Rows of small images, such as a sample's image, mask and clusters.

    Attributes:
        rows: images ``(y, x)`` or ``(y, x, rgb)``, one inner sequence per row.
        labels: labels of the rows.
        columns: headings of the columns.
        title: title of the whole figure.
    """

    rows: Sequence[Sequence[np.ndarray]]
    labels: Sequence[str]
    columns: Sequence[str]
    title: str


@dataclass(frozen=True, kw_only=True)
class Panels:
    """Lines with their intervals, side by side on the same axes: one panel for each setting.

    Attributes:
        drawn: each panel's lines by name, by its heading; a heading may be empty.
        names: every name that a line may have: the same name has the same color in all figures of these names.
        title: title with the quantity, the data and n; may have two lines.
        x: label of the axis, with its unit.
        y: label of the vertical axis, with its unit.
        ticks: names of the positions 0, 1, ... of a categorical axis.
        log: whether the horizontal axis is logarithmic.
    """

    drawn: Mapping[str, Mapping[str, Series]]
    names: Sequence[str]
    title: str
    x: str
    y: str
    ticks: Sequence[str] | None = None
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Dots:
    """Means with their intervals one below another, a panel for each measure.

    Attributes:
        drawn: lines by measure, which is the heading of its panel; ``x`` are positions in ``labels``.
        labels: labels of the positions, the first on top.
        title: title with the quantity, the data and n; may have two lines.
        levels: reference level of a measure's means, drawn thin and gray.
    """

    drawn: Mapping[str, Series]
    labels: Sequence[str]
    title: str
    levels: Mapping[str, float] = field(default_factory=dict)


Drawing = Lines | HeatMap | Landscape | Images | Panels | Dots
