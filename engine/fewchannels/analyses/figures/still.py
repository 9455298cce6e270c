"""Drawings as PNG and SVG, for pages and papers, in one style."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import MaxNLocator

from fewchannels.analyses.figures.colors import COLORS, DIFFERENCE, MAP
from fewchannels.analyses.figures.drawings import Dots, Drawing, HeatMap, Images, Landscape, Lines, Panels

_PER_INCH = 13  # characters in a line of a title, at its size
_LINES = ("-", "--", "-.", ":")
_LOOK: Any = {
    "savefig.dpi": 130,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "",
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
}


class Figure(MatplotlibFigure):
    """A Matplotlib figure that a notebook shows, with or without Matplotlib's inline display."""

    def _repr_png_(self) -> bytes:
        return _saved(self, ["png"])["png"]


def still(drawing: Drawing, kinds: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """A drawing's files by their kind.

    Args:
        drawing: drawing to draw.
        kinds: kinds of files, ``png`` and ``svg``; both take the same time.
    """
    return _saved(drawn(drawing), kinds)


def drawn(drawing: Drawing) -> Figure:
    """Convert a drawing to a Matplotlib figure, which opens no window."""
    match drawing:
        case Lines():
            return _lines(drawing)
        case HeatMap():
            return _heat_map(drawing)
        case Landscape():
            return _landscape(drawing)
        case Images():
            return _images(drawing)
        case Panels():
            return _panels(drawing)
        case Dots():
            return _dots(drawing)


def as_files(named: Mapping[str, Drawing]) -> dict[str, bytes]:
    """Drawings, by name, as PNG and SVG under the names of their files."""
    return {f"figures/{name}.{kind}": data for name, drawing in named.items() for kind, data in still(drawing).items()}


def _lines(drawing: Lines) -> Figure:
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axis = figure.subplots()
    n = 0
    for name, each in drawing.series.items():
        if each.reference:
            axis.plot(each.x, each.y, color="#666666", linewidth=0.9, linestyle=":", label=name)
            continue
        colour, style = COLORS[n % len(COLORS)], _LINES[n // len(COLORS) % len(_LINES)]
        axis.plot(each.x, each.y, color=colour, linestyle=style, linewidth=1.5, marker="o", markersize=3, label=name)
        if each.low is not None and each.high is not None:
            axis.fill_between(each.x, each.low, each.high, color=colour, alpha=0.18, linewidth=0)
        n += 1
    axis.set_title(drawing.title, fontsize=9, loc="left", parse_math=False)
    axis.set_xlabel(drawing.x)
    axis.set_ylabel(drawing.y)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))  # layers and steps
    if drawing.least is not None:
        axis.set_ylim(bottom=drawing.least)
    figure.legend(fontsize=7, frameon=False, loc="outside right upper")
    return figure


def _heat_map(drawing: HeatMap) -> Figure:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    scale: Any = {"cmap": DIFFERENCE, "norm": CenteredNorm()} if drawing.is_difference else {"cmap": MAP}
    if drawing.ends is not None:
        scale |= {"vmin": drawing.ends[0], "vmax": drawing.ends[1]}
    axis.set_facecolor("#999999" if drawing.is_difference else "#ffffff")
    image = axis.imshow(drawing.values, aspect="auto", origin="lower", interpolation="nearest", **scale)
    axis.set_title(drawing.title, fontsize=9, loc="left", parse_math=False)
    for ticks, label, names in (
        (axis.set_xticks, axis.set_xlabel, (drawing.columns, drawing.column)),
        (axis.set_yticks, axis.set_ylabel, (drawing.rows, drawing.row)),
    ):
        each = max(1, -(-len(names[0]) // 15))
        ticks(range(0, len(names[0]), each), [str(name) for name in names[0][::each]])
        label(names[1])
    figure.colorbar(image, ax=axis, label=drawing.value)
    return figure


def _landscape(drawing: Landscape) -> Figure:
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axis: Any = figure.add_subplot(projection="3d")
    columns, rows = np.meshgrid(drawing.columns, drawing.rows)
    axis.plot_surface(columns, rows, drawing.values, cmap=MAP, rcount=200, ccount=400, linewidth=0)
    axis.set_title(drawing.title, fontsize=9, loc="left", parse_math=False)
    axis.set_xlabel(drawing.column)
    axis.set_ylabel(drawing.row)
    axis.set_zlabel(drawing.value)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _images(drawing: Images) -> Figure:
    width = 1.5 * len(drawing.columns) + 1.6
    wrapped = [part for line in drawing.title.splitlines() for part in textwrap.wrap(line, int(width * _PER_INCH))]
    height = 1.55 * len(drawing.rows) + 0.5 + 0.15 * len(wrapped)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle("\n".join(wrapped), fontsize=9, parse_math=False)
    axes = figure.subplots(len(drawing.rows), len(drawing.columns), squeeze=False)
    for line, row, label in zip(axes, drawing.rows, drawing.labels, strict=True):
        for axis, image in zip(line, row, strict=True):
            axis.imshow(image, cmap=MAP, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(label, fontsize=6, rotation=0, ha="right", va="center", parse_math=False)
    for axis, name in zip(axes[0], drawing.columns, strict=True):
        axis.set_title(name, fontsize=7, parse_math=False)
    return figure


def _panels(drawing: Panels) -> Figure:
    n_columns = min(3, len(drawing.drawn))
    n_rows = -(-len(drawing.drawn) // n_columns)
    width = 7.2 if n_columns == 1 else 2.8 * n_columns + 1.4
    figure = Figure(figsize=(width, 3.8 if n_rows == 1 else 2.4 * n_rows + 1.0), layout="constrained")
    figure.suptitle(drawing.title, fontsize=9, x=0.01, ha="left", parse_math=False)
    axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(drawing.drawn) :]:
        axis.set_axis_off()
    shown = {}
    for axis, (heading, series) in zip(axes.flat, drawing.drawn.items(), strict=False):
        axis.set_title("\n".join(textwrap.wrap(heading, 34)), fontsize=8, loc="left", parse_math=False)
        axis.set_xscale("log" if drawing.log else "linear")
        for name, each in series.items():
            look: Any = {"color": "#666666", "linestyle": ":", "linewidth": 0.9}
            if not each.reference:
                n = drawing.names.index(name)
                look = {"color": COLORS[n % len(COLORS)], "linestyle": _LINES[n // len(COLORS) % len(_LINES)]}
                look |= {"linewidth": 1.5, "marker": "o", "markersize": 3}
            (shown[name],) = axis.plot(each.x, each.y, **look)
            if each.low is not None and each.high is not None:
                axis.fill_between(each.x, each.low, each.high, color=look["color"], alpha=0.18, linewidth=0)
                axis.vlines(each.x, each.low, each.high, color=look["color"], linewidth=0.8)  # one point has no band
        places = sorted({float(place) for each in series.values() for place in each.x})
        texts = [f"{place:g}" if drawing.ticks is None else drawing.ticks[int(place)] for place in places]
        every = -(-len(places) // 10)
        axis.set_xticks(places[::every], texts[::every])
        axis.minorticks_off()
        axis.tick_params(labelsize=7)
    for axis in list(axes.flat)[max(0, len(drawing.drawn) - n_columns) : len(drawing.drawn)]:
        axis.tick_params(labelbottom=True)  # where no panel is below
    figure.supxlabel(drawing.x, fontsize=9)
    figure.supylabel(drawing.y, fontsize=9)
    names = list(drawing.names)
    order = sorted(shown, key=lambda name: names.index(name) if name in names else len(names))
    handles = [shown[name] for name in order]
    figure.legend(handles, order, fontsize=7, frameon=False, handlelength=3, loc="outside right upper")
    return figure


def _dots(drawing: Dots) -> Figure:
    figure = Figure(figsize=(2.1 * len(drawing.drawn) + 1.8, 0.24 * len(drawing.labels) + 1.3), layout="constrained")
    figure.suptitle(drawing.title, fontsize=9, x=0.01, ha="left", parse_math=False)
    axes = figure.subplots(1, len(drawing.drawn), sharey=True, squeeze=False)[0]
    for axis, (name, each) in zip(axes, drawing.drawn.items(), strict=True):
        if name in drawing.levels:
            axis.axvline(drawing.levels[name], color="#666666", linewidth=0.9, linestyle=":")
        if each.low is not None and each.high is not None:
            axis.hlines(each.x, each.low, each.high, color=COLORS[0], linewidth=1.2)
        axis.plot(each.y, each.x, color=COLORS[0], linestyle="", marker="o", markersize=4)
        axis.set_title(name, fontsize=8, loc="left", parse_math=False)
        axis.tick_params(labelsize=7)
        axis.grid(axis="y", linewidth=0.3)
    axes[0].set_yticks(range(len(drawing.labels)), drawing.labels)
    axes[0].set_ylim(len(drawing.labels) - 0.4, -0.6)
    return figure


def _saved(figure: Figure, kinds: Sequence[str]) -> dict[str, bytes]:
    saved = {}
    with matplotlib.rc_context(_LOOK):
        for kind in kinds:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {})
            figure.set_layout_engine(None)  # laid out once: measuring it again would draw it again
            saved[kind] = buffer.getvalue()
    return saved
