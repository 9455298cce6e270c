"""Components of the explorer's pages."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from dash import dcc, html
from dash.development.base_component import Component

from fewchannels.errors import InputError

_Place = TypeVar("_Place")
_GRAPH: dict[str, Any] = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["lasso2d", "select2d"]}
_HIDDEN = {"visible": False}
_BLANK = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "xaxis": _HIDDEN,
    "yaxis": _HIDDEN,
}


def graph(height: int, *, name: str | None = None, figure: Any = None) -> dcc.Graph:
    """A placeholder for a figure with a height in pixels, and the full width.

    Args:
        height: height of the figure.
        name: id, if callbacks fill it.
        figure: initial content.
    """
    given = {"id": name} if name else {}
    shown = {"figure": figure} if figure is not None else {"figure": {"layout": _BLANK}}
    return dcc.Graph(config=_GRAPH, style={"height": f"{height}px"}, **given, **shown)


def drawn(figure: Any) -> dcc.Graph:
    """A figure with its own height."""
    return graph(figure.layout.height, figure=figure)


def field(label: str, component: Component, hint: str = "") -> html.Div:
    """A control with its label, which screen readers use as its name."""
    name = component.id if isinstance(component.id, str) else None
    more = [html.Span(hint, className="hint")] if hint else []
    return html.Div([html.Label(label, htmlFor=name), component, *more], className="field", role="group")


def alert(text: object) -> html.Div:
    """An error message; screen readers read it out."""
    return html.Div(str(text), className="alert", role="alert")


def note(text: str) -> html.P:
    """A note that is not an error."""
    return html.P(text, className="note", role="status")


def unfinished(state: Mapping[str, int]) -> list[html.P]:
    """A note if some tasks are unfinished; otherwise nothing.

    Args:
        state: result of :meth:`fewchannels.views.explore.opened.Opened.state`.
    """
    done, whole = state["n_tasks_done"], state["n_tasks"]
    return [note(f"{done:,} of {whole:,} tasks are done; more appear as they finish.")] if done < whole else []


def heading(text: str, *more: Any) -> html.Div:
    """The heading of a page."""
    return html.Div([html.H1(text), *more], className="heading")


def facts(values: Mapping[str, object]) -> html.Dl:
    """Names and values."""
    pairs = [(name, value) for name, value in values.items() if value not in (None, "")]
    return html.Dl(
        [each for name, value in pairs for each in (html.Dt(name), html.Dd(shown(value)))], className="facts"
    )


def shown(value: object) -> str:
    """A value as text: floats with 4 digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def choice(name: str, options: Mapping[str, str] | Sequence[Any], value: Any, **more: Any) -> dcc.Dropdown:
    """A dropdown list of a few options.

    Args:
        name: its id.
        options: labels by value, or values.
        value: selected value.
        more: further arguments of the component.
    """
    pairs = options.items() if isinstance(options, Mapping) else ((each, str(each)) for each in options)
    given = [{"value": each, "label": label} for each, label in pairs]
    return dcc.Dropdown(id=name, options=given, value=value, clearable=False, **more)


def place_at(places: Sequence[_Place], position: int) -> _Place:
    """The number, such as a layer, at a position of a slider.

    Raises:
        InputError: there is no such position.
    """
    if not 0 <= position < len(places):
        raise InputError(f"there is no place {position}; there are {len(places)}, from 0.")
    return places[position]


def places_slider(name: str, places: Sequence[int], value: int) -> dcc.Slider:
    """A slider over numbers, such as those of layers, which need not be consecutive; its value is a position.

    Args:
        name: its id.
        places: the numbers, ascending.
        value: selected position.
    """
    every = max(1, -(-len(places) // 12))
    marks = {i: str(places[i]) for i in range(0, len(places), every)}
    at = places.index(value) if value in places else 0
    return dcc.Slider(
        id=name,
        min=0,
        max=max(1, len(places) - 1),
        step=1,
        value=at,
        marks=marks,
        included=False,
        updatemode="drag",
        allow_direct_input=False,
        disabled=len(places) < 2,
    )
