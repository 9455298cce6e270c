"""Drawings for a browser: Plotly figures with the values under the pointer, in the same style as the still ones."""

import base64
import io
import json
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from fewchannels.analyses.figures.colors import COLORS, DIFFERENCE, MAP, as_rgb, colored
from fewchannels.analyses.figures.drawings import Dots, Drawing, HeatMap, Images, Landscape, Lines, Panels, Series

Theme = Literal["light", "dark"]
_INK: dict[Theme, tuple[str, str, str]] = {
    "light": ("#1b1b1b", "#e3e3e3", "#666666"),
    "dark": ("#eaeaea", "#3b3b3b", "#a5a5a5"),
}
_DASHES = ("solid", "dash", "dashdot", "dot")


def interactive(drawing: Drawing, theme: Theme = "light") -> go.Figure:
    """A drawing as a Plotly figure, on a transparent background.

    Args:
        drawing: content of the figure.
        theme: theme of the page that it will be on.
    """
    match drawing:
        case Lines():
            figure = _lines(drawing, theme)
        case HeatMap():
            figure = _heat_map(drawing, theme)
        case Landscape():
            figure = _landscape(drawing)
        case Images():
            figure = _images(drawing)
        case Panels():
            figure = _panels(drawing, theme)
        case Dots():
            figure = _dots(drawing, theme)
    return dressed(figure, drawing.title, theme)


def dressed(figure: go.Figure, title: str, theme: Theme) -> go.Figure:
    """Give a figure the project's style, and its title."""
    ink, grid, _ = _INK[theme]
    n_lines = title.count("\n") + 1
    figure.update_layout(
        template=None,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": ink},
        title={"text": plain(title), "x": 0, "xref": "paper", "font": {"size": 13}, "y": 1, "yanchor": "top"},
        title_pad={"t": 14},
        margin={"l": 64, "r": 16, "t": 30 + 18 * n_lines, "b": 48},
        hoverlabel={"font": {"family": "system-ui, sans-serif"}},
        legend={"font": {"size": 11}},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": grid, "activecolor": ink},
    )
    line = {"gridcolor": grid, "zerolinecolor": grid, "linecolor": grid, "showline": True, "ticks": "outside"}
    figure.update_xaxes(**line)
    figure.update_yaxes(**line)
    return figure


def plain(text: str) -> str:
    """Escape text in which Plotly would interpret HTML tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "<br>")


def _colour(n: int, theme: Theme) -> str:
    colour = COLORS[n % len(COLORS)]
    return "#f5f5f5" if colour == "#000000" and theme == "dark" else colour


def _traces(name: str, series: Series, n: int, theme: Theme, **more: Any) -> list[go.Scatter]:
    """A line, and its interval below it."""
    shown = plain(name)
    if series.reference:
        line = {"color": _INK[theme][2], "width": 1, "dash": "dot"}
        return [go.Scatter(x=series.x, y=series.y, mode="lines", line=line, name=shown, legendgroup=name, **more)]
    colour = _colour(n, theme)
    style = {"color": colour, "width": 2, "dash": _DASHES[n // len(COLORS) % len(_DASHES)]}
    about = "%{x}: %{y:.4g}"
    extra: dict[str, Any] = {}
    traces = []
    if series.low is not None and series.high is not None:
        whole = np.isfinite(series.low) & np.isfinite(series.high)
        about += "%{customdata}"
        extra = {
            "customdata": [
                f" ({low:.4g} to {high:.4g})" if known else " (no interval)"
                for low, high, known in zip(series.low, series.high, whole, strict=True)
            ]
        }
        x = np.concatenate([series.x[whole], series.x[whole][::-1]])
        y = np.concatenate([series.low[whole], series.high[whole][::-1]])
        band = {"fill": "toself", "fillcolor": as_rgb(colour, 0.18), "line": {"width": 0}, "hoverinfo": "skip"}
        if whole.sum() > 1:
            quiet = more | {"showlegend": False}
            traces.append(go.Scatter(x=x, y=y, mode="lines", name=shown, legendgroup=name, **band, **quiet))
    return [
        *traces,
        go.Scatter(
            x=series.x,
            y=series.y,
            mode="lines+markers",
            line=style,
            marker={"size": 6},
            name=shown,
            legendgroup=name,
            hovertemplate=f"{shown}<br>{about}<extra></extra>",
            **extra,
            **more,
        ),
    ]


def _lines(drawing: Lines, theme: Theme) -> go.Figure:
    figure, n = go.Figure(), 0
    for name, each in drawing.series.items():
        figure.add_traces(_traces(name, each, n, theme))
        n += not each.reference
    figure.update_layout(height=380, hovermode="closest")
    figure.update_xaxes(title=plain(drawing.x))
    figure.update_yaxes(title=plain(drawing.y))
    if drawing.least is not None:
        figure.update_yaxes(rangemode="tozero" if drawing.least == 0 else "normal")
    return figure


def _heat_map(drawing: HeatMap, theme: Theme) -> go.Figure:
    scale: dict[str, Any] = {"colorscale": MAP}
    if drawing.is_difference:
        reach = float(np.nanmax(np.abs(drawing.values))) if np.isfinite(drawing.values).any() else 1.0
        scale = {"colorscale": DIFFERENCE, "zmin": -reach, "zmax": reach}
    elif drawing.ends is not None:
        scale |= {"zmin": drawing.ends[0], "zmax": drawing.ends[1]}
    names = [str(name) for name in drawing.columns], [str(name) for name in drawing.rows]
    figure = go.Figure(
        go.Heatmap(
            z=drawing.values,
            x=list(range(len(names[0]))),
            y=list(range(len(names[1]))),
            customdata=np.array([[[c, r] for c in names[0]] for r in names[1]], dtype=object),
            colorbar={"title": {"text": plain(drawing.value), "side": "right"}},
            hovertemplate=f"{plain(drawing.row)} %{{customdata[1]}}, {plain(drawing.column)} %{{customdata[0]}}: "
            "%{z:.4g}<extra></extra>",
            **scale,
        )
    )
    figure.update_layout(height=400)
    for update, each, label in (
        (figure.update_xaxes, names[0], drawing.column),
        (figure.update_yaxes, names[1], drawing.row),
    ):
        every = max(1, -(-len(each) // 15))
        places = list(range(0, len(each), every))
        update(title=plain(label), tickvals=places, ticktext=[each[i] for i in places], showgrid=False)
    return figure


def _landscape(drawing: Landscape) -> go.Figure:
    figure = go.Figure(
        go.Surface(
            z=drawing.values,
            x=list(drawing.columns),
            y=list(drawing.rows),
            colorscale=MAP,
            colorbar={"title": {"text": plain(drawing.value), "side": "right"}},
            hovertemplate=f"{plain(drawing.row)} %{{y}}, {plain(drawing.column)} %{{x}}: %{{z:.4g}}<extra></extra>",
        )
    )
    figure.update_layout(
        height=560,
        scene={
            "xaxis": {"title": plain(drawing.column)},
            "yaxis": {"title": plain(drawing.row)},
            "zaxis": {"title": plain(drawing.value)},
            "aspectmode": "manual",
            "aspectratio": {"x": 2, "y": 1, "z": 0.7},
            "camera": {"eye": {"x": 1.4, "y": -1.9, "z": 0.9}},
        },
    )
    return figure


def _images(drawing: Images) -> go.Figure:
    n_rows, n_columns = len(drawing.rows), len(drawing.columns)
    figure = make_subplots(
        n_rows,
        n_columns,
        column_titles=[plain(name) for name in drawing.columns],
        row_titles=[plain(name) for name in drawing.labels],
        horizontal_spacing=0.004,
        vertical_spacing=0.006,
    )
    for i, row in enumerate(drawing.rows, start=1):
        for j, image in enumerate(row, start=1):
            figure.add_trace(go.Image(source=_image_uri(image), hoverinfo="skip"), row=i, col=j)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_annotations(font_size=11)
    figure.update_layout(height=40 + 128 * n_rows)
    return figure


def _image_uri(image: np.ndarray) -> str:
    data = io.BytesIO()
    Image.fromarray(image if image.ndim == 3 else colored(image)).save(data, "PNG")
    return data_uri(data.getvalue())


def _panels(drawing: Panels, theme: Theme) -> go.Figure:
    n_columns = min(3, len(drawing.drawn))
    n_rows = -(-len(drawing.drawn) // n_columns)
    figure = make_subplots(
        n_rows,
        n_columns,
        shared_xaxes="all",
        shared_yaxes="all",
        subplot_titles=[plain(heading) for heading in drawing.drawn],
        x_title=plain(drawing.x),
        y_title=plain(drawing.y),
        vertical_spacing=0.12 / n_rows,
        horizontal_spacing=0.03,
    )
    names, seen = list(drawing.names), set[str]()
    for place, series in enumerate(drawing.drawn.values()):
        at = {"row": place // n_columns + 1, "col": place % n_columns + 1}
        for name, each in series.items():
            n = 0 if each.reference else names.index(name)
            for trace in _traces(name, each, n, theme, showlegend=name not in seen):
                figure.add_trace(trace, **at)
            seen.add(name)
    if drawing.log:
        named = sorted({float(x) for series in drawing.drawn.values() for each in series.values() for x in each.x})
        figure.update_xaxes(type="log", tickvals=named, ticktext=[f"{x:g}" for x in named])
    if drawing.ticks is not None:
        places = list(range(len(drawing.ticks)))
        figure.update_xaxes(tickvals=places, ticktext=[plain(tick) for tick in drawing.ticks])
    figure.update_annotations(font_size=12)
    figure.update_layout(height=380 if n_rows == 1 else 90 + 240 * n_rows)
    return figure


def _dots(drawing: Dots, theme: Theme) -> go.Figure:
    figure = make_subplots(
        1, len(drawing.drawn), shared_yaxes=True, subplot_titles=[plain(name) for name in drawing.drawn]
    )
    colour = _colour(0, theme)
    for place, (name, each) in enumerate(drawing.drawn.items(), start=1):
        bars: dict[str, Any] = {}
        if each.low is not None and each.high is not None:
            ends = {"array": each.high - each.y, "arrayminus": each.y - each.low, "thickness": 1.2, "width": 0}
            bars = {"error_x": {"type": "data", "symmetric": False, **ends}}
        figure.add_trace(
            go.Scatter(
                x=each.y,
                y=each.x,
                mode="markers",
                marker={"color": colour, "size": 7},
                showlegend=False,
                customdata=[[plain(drawing.labels[int(at)])] for at in each.x],
                hovertemplate="%{customdata[0]}: %{x:.4g}<extra></extra>",
                **bars,
            ),
            row=1,
            col=place,
        )
        if name in drawing.levels:
            figure.add_vline(
                drawing.levels[name], line={"color": _INK[theme][2], "width": 1, "dash": "dot"}, row=1, col=place
            )
    places = list(range(len(drawing.labels)))
    figure.update_yaxes(range=[len(places) - 0.4, -0.6], tickvals=places)
    figure.update_yaxes(ticktext=[plain(label) for label in drawing.labels], automargin=True, row=1, col=1)
    figure.update_annotations(font_size=12)
    figure.update_layout(height=110 + 26 * len(places))
    return figure


def data_uri(image: bytes, kind: str = "png") -> str:
    """An image file as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def as_json(what: Any) -> str:
    """A figure, or plain values, as JSON for a page's script, in which no text can end the script or open a comment."""
    text = what.to_json() if isinstance(what, go.Figure) else json.dumps(what)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def dark_colors() -> dict[str, str]:
    """Colors of a dark figure, for the colors of a light one that differ."""
    lines = {colour: _colour(n, "dark") for n, colour in enumerate(COLORS)}
    return dict(zip(_INK["light"], _INK["dark"], strict=True)) | {a: b for a, b in lines.items() if a != b}


def plotly_script() -> str:
    """Plotly's JavaScript, which draws a figure in a page without a network."""
    return str(get_plotlyjs())
