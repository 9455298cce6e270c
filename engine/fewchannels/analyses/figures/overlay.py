"""A token map over its image, for a browser: values under the pointer, tokens to be clicked."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

from fewchannels.analyses.figures.colors import COLORS, MAP
from fewchannels.analyses.figures.interactive import Theme, data_uri, dressed, plain

HEIGHT = 520  # pixels
_OUTLINE_SIDE = 160  # points along the longer side of an outline of a mask of pixels


@dataclass(frozen=True)
class Overlay:
    """A token map over its image.

    Attributes:
        image: PNG bytes, or a URL from which a browser loads and caches it; None if there is none.
        values: ``(y, x)`` on the token grid; NaN is transparent.
        title: title of the figure.
        unit: label of the scale.
        low: value of the darkest color; None for the minimum.
        high: value of the brightest color; None for the maximum.
        opacity: opacity of the map over the image, 0 to 1.
        outlines: masks ``(y, x)`` bool of any resolution that are drawn as lines, by name.
    """

    image: bytes | str | None
    values: np.ndarray
    title: str
    unit: str
    low: float | None = None
    high: float | None = None
    opacity: float = 0.75
    outlines: dict[str, np.ndarray] = field(default_factory=dict)


def overlay(drawing: Overlay, theme: Theme = "light") -> go.Figure:
    """Convert it to a Plotly figure with one heat map, whose cells ``(x, y)`` are tokens."""
    height, width = drawing.values.shape
    scale: dict[str, Any] = {"zmin": drawing.low, "zmax": drawing.high} if drawing.low is not None else {}
    figure = go.Figure(
        go.Heatmap(
            z=drawing.values,
            colorscale=MAP,
            opacity=drawing.opacity,
            colorbar={"title": {"text": plain(drawing.unit), "side": "right"}, "thickness": 12},
            hovertemplate="row %{y}, column %{x}: %{z:.4g}<extra></extra>",
            hoverongaps=False,
            **scale,
        )
    )
    for n, (name, mask) in enumerate(drawing.outlines.items()):
        figure.add_trace(_outline(name, mask, (height, width), COLORS[1 + n]))
    if drawing.image is not None:
        figure.add_layout_image(
            source=drawing.image if isinstance(drawing.image, str) else data_uri(drawing.image),
            xref="x",
            yref="y",
            x=-0.5,
            y=-0.5,
            sizex=width,
            sizey=height,
            sizing="stretch",
            layer="below",
        )
    dressed(figure, drawing.title, theme)
    hidden = {"showgrid": False, "zeroline": False, "showline": False, "ticks": "", "showticklabels": False}
    figure.update_xaxes(range=[-0.5, width - 0.5], constrain="domain", **hidden)
    figure.update_yaxes(range=[height - 0.5, -0.5], scaleanchor="x", constrain="domain", **hidden)
    figure.update_layout(
        height=HEIGHT,
        margin={"l": 8, "r": 8, "b": 8},
        uirevision=drawing.title,
        showlegend=bool(drawing.outlines),
        legend={"orientation": "h", "y": -0.02},
    )
    return figure


def _outline(name: str, mask: np.ndarray, grid: tuple[int, int], colour: str) -> go.Contour:
    """The border of a mask in coordinates of the token grid."""
    every = max(1, -(-max(mask.shape) // _OUTLINE_SIDE))
    thin = mask[::every, ::every].astype(np.float32)
    places = [
        (np.arange(n) * every + 0.5) * side / whole - 0.5
        for n, whole, side in zip(thin.shape, mask.shape, grid, strict=True)
    ]
    return go.Contour(
        z=np.pad(thin, 1),
        x=np.concatenate([[-0.5], places[1], [grid[1] - 0.5]]),
        y=np.concatenate([[-0.5], places[0], [grid[0] - 0.5]]),
        contours={"start": 0.5, "end": 0.5, "size": 1, "coloring": "none"},
        line={"color": colour, "width": 3},
        showscale=False,
        hoverinfo="skip",
        name=plain(name),
        showlegend=True,
    )
