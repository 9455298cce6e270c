"""The project's figures: one look for all of them. Data in, PNG and SVG bytes out."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito 2008: told apart by people with any common colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_LINES = ("-", "--", "-.", ":")
_LOOK: Any = {
    "savefig.dpi": 130,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "",
}


@dataclass(frozen=True)
class Series:
    """One line of a figure.

    Attributes:
        x: ``(point,)``.
        y: ``(point,)``; NaN leaves a gap.
        low: ``(point,)`` lower ends of intervals; None draws none.
        high: likewise.
        reference: whether it is a reference, such as chance, drawn thin and grey.
    """

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    reference: bool = False


def lines(series: Mapping[str, Series], *, title: str, x: str, y: str, least: float | None = None) -> dict[str, bytes]:
    """Lines with their intervals as bands.

    Args:
        series: by name, as the legend has them.
        title: says what, of what, and n; a second line is kept.
        x: label of the axis, with its unit.
        y: likewise.
        least: lower end of the vertical axis; None leaves it open.
    """
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axis = figure.subplots()
    n = 0
    for name, each in series.items():
        if each.reference:
            axis.plot(each.x, each.y, color="#666666", linewidth=0.9, linestyle=":", label=name)
            continue
        colour, style = COLOURS[n % len(COLOURS)], _LINES[n // len(COLOURS) % len(_LINES)]
        axis.plot(each.x, each.y, color=colour, linestyle=style, linewidth=1.5, marker="o", markersize=3, label=name)
        if each.low is not None and each.high is not None:
            axis.fill_between(each.x, each.low, each.high, color=colour, alpha=0.18, linewidth=0)
        n += 1
    axis.set_title(title, fontsize=9, loc="left", parse_math=False)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))  # layers and steps
    if least is not None:
        axis.set_ylim(bottom=least)
    figure.legend(fontsize=7, frameon=False, loc="outside right upper")
    return _saved(figure)


def heat_map(
    values: np.ndarray,
    *,
    title: str,
    rows: Sequence[object],
    columns: Sequence[object],
    row: str,
    column: str,
    value: str,
    is_difference: bool = False,
) -> dict[str, bytes]:
    """A matrix as colours, its numbers beside a scale.

    Args:
        values: ``(row, column)``; NaN is left white, and grey where white is zero.
        title: says what, of what, and n.
        rows: names of the rows, bottom first.
        columns: names of the columns.
        row: label of the vertical axis.
        column: label of the horizontal axis.
        value: label of the scale.
        is_difference: whether zero is the middle of the scale, white, and what is below of another colour than above.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    # Purple and orange are told apart by people with any common colour vision.
    scale: Any = {"cmap": "PuOr_r", "norm": CenteredNorm()} if is_difference else {"cmap": "viridis"}
    axis.set_facecolor("#999999" if is_difference else "#ffffff")
    image = axis.imshow(values, aspect="auto", origin="lower", interpolation="nearest", **scale)
    axis.set_title(title, fontsize=9, loc="left", parse_math=False)
    for ticks, label, names in (
        (axis.set_xticks, axis.set_xlabel, (columns, column)),
        (axis.set_yticks, axis.set_ylabel, (rows, row)),
    ):
        each = max(1, -(-len(names[0]) // 15))
        ticks(range(0, len(names[0]), each), [str(name) for name in names[0][::each]])
        label(names[1])
    figure.colorbar(image, ax=axis, label=value)
    return _saved(figure)


def pictures(
    rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str], columns: Sequence[str], *, title: str
) -> dict[str, bytes]:
    """Rows of small pictures, such as a sample's image, mask and clusters.

    Args:
        rows: pictures ``(y, x)`` or ``(y, x, rgb)``, one inner sequence a row.
        labels: of the rows.
        columns: their headings.
        title: of all.
    """
    figure = Figure(figsize=(1.5 * len(columns) + 1.6, 1.55 * len(rows) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=9, parse_math=False)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, row, label in zip(axes, rows, labels, strict=True):
        for axis, picture in zip(line, row, strict=True):
            axis.imshow(picture, cmap="viridis", interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(label, fontsize=6, rotation=0, ha="right", va="center", parse_math=False)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontsize=7, parse_math=False)
    return _saved(figure)


def _saved(figure: Figure) -> dict[str, bytes]:
    saved = {}
    with matplotlib.rc_context(_LOOK):
        for kind, about in (("png", {}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=about)
            figure.set_layout_engine("none")  # laid out once; many small pictures take seconds
            saved[kind] = buffer.getvalue()
    return saved


def panels(
    drawn: Mapping[str, Mapping[str, Series]],
    names: Sequence[str],
    *,
    title: str,
    x: str,
    y: str,
    ticks: Sequence[str] | None = None,
    log: bool = False,
) -> dict[str, bytes]:
    """Lines with their intervals, side by side on the same axes: one panel for each setting.

    Args:
        drawn: each panel's lines by name, by its heading; a heading may be empty.
        names: every name that a line may have: the same name has the same colour in all figures of these names.
        title: says what, of what, and n; a second line is kept.
        x: label of the axis, with its unit.
        y: likewise.
        ticks: names of the places 0, 1, ... of an axis that is not of numbers.
        log: whether the horizontal axis is logarithmic.
    """
    n_columns = min(3, len(drawn))
    n_rows = -(-len(drawn) // n_columns)
    width = 7.2 if n_columns == 1 else 2.8 * n_columns + 1.4
    figure = Figure(figsize=(width, 3.8 if n_rows == 1 else 2.4 * n_rows + 1.0), layout="constrained")
    figure.suptitle(title, fontsize=9, x=0.01, ha="left", parse_math=False)
    axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    shown = {}
    for axis, (heading, series) in zip(axes.flat, drawn.items(), strict=False):
        axis.set_title("\n".join(textwrap.wrap(heading, 34)), fontsize=8, loc="left", parse_math=False)
        axis.set_xscale("log" if log else "linear")
        for name, each in series.items():
            look: Any = {"color": "#666666", "linestyle": ":", "linewidth": 0.9}
            if not each.reference:
                n = names.index(name)
                look = {"color": COLOURS[n % len(COLOURS)], "linestyle": _LINES[n // len(COLOURS) % len(_LINES)]}
                look |= {"linewidth": 1.5, "marker": "o", "markersize": 3}
            (shown[name],) = axis.plot(each.x, each.y, **look)
            if each.low is not None and each.high is not None:
                axis.fill_between(each.x, each.low, each.high, color=look["color"], alpha=0.18, linewidth=0)
                axis.vlines(each.x, each.low, each.high, color=look["color"], linewidth=0.8)  # a lone point has no band
        places = sorted({float(place) for each in series.values() for place in each.x})
        texts = [f"{place:g}" if ticks is None else ticks[int(place)] for place in places]
        every = -(-len(places) // 10)
        axis.set_xticks(places[::every], texts[::every])
        axis.minorticks_off()
        axis.tick_params(labelsize=7)
    for axis in list(axes.flat)[max(0, len(drawn) - n_columns) : len(drawn)]:
        axis.tick_params(labelbottom=True)  # where no panel is below
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    order = sorted(shown, key=lambda name: names.index(name) if name in names else len(names))
    handles = [shown[name] for name in order]
    figure.legend(handles, order, fontsize=7, frameon=False, handlelength=3, loc="outside right upper")
    return _saved(figure)


def dots(
    drawn: Mapping[str, Series], labels: Sequence[str], *, title: str, levels: Mapping[str, float]
) -> dict[str, bytes]:
    """Means with their intervals one below another, a panel for each measure.

    Args:
        drawn: by measure, which heads its panel; ``x`` are places in ``labels``.
        labels: of the places, the first on top.
        title: says what, of what, and n; a second line is kept.
        levels: a measure's level that its means are read against, drawn thin and grey.
    """
    figure = Figure(figsize=(2.1 * len(drawn) + 1.8, 0.24 * len(labels) + 1.3), layout="constrained")
    figure.suptitle(title, fontsize=9, x=0.01, ha="left", parse_math=False)
    axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    for axis, (name, each) in zip(axes, drawn.items(), strict=True):
        if name in levels:
            axis.axvline(levels[name], color="#666666", linewidth=0.9, linestyle=":")
        if each.low is not None and each.high is not None:
            axis.hlines(each.x, each.low, each.high, color=COLOURS[0], linewidth=1.2)
        axis.plot(each.y, each.x, color=COLOURS[0], linestyle="", marker="o", markersize=4)
        axis.set_title(name, fontsize=8, loc="left", parse_math=False)
        axis.tick_params(labelsize=7)
        axis.grid(axis="y", linewidth=0.3)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.4, -0.6)
    return _saved(figure)
