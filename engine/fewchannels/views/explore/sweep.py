"""A sweep's page: one item's images on a grid of settings, measures of an edit, dose-response curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from dash import ALL, Dash, Input, Output, State, dcc, html

from fewchannels.analyses.figures.interactive import Theme, interactive
from fewchannels.errors import FewchannelsError, InputError, unknown
from fewchannels.interventions.effects.contrasts import SETTINGS, metrics
from fewchannels.interventions.effects.figures import named_places
from fewchannels.interventions.effects.measure import draw_dose
from fewchannels.views.explore.address import address, edit_path, number, sweep_path
from fewchannels.views.explore.findings import folded
from fewchannels.views.explore.lookup import Places, sweep_of
from fewchannels.views.explore.opened import OpenedSweep
from fewchannels.views.explore.widgets import alert, choice, drawn, facts, field, heading, note, shown, unfinished

_GRID = (
    "selection",
    "k",
    "amount",
    "layers_name",
    "steps_name",
    "tokens",
    "scores_from",
    "action",
    "trial",
    "placement",
)
_ALL = "all"
_MOST = 40  # rows or columns of a grid
_NONE = "none"


def layout(sweep: OpenedSweep, given: Mapping[str, str]) -> list[Any]:
    """Controls, and the item and the axes in the address."""
    state = sweep.state()
    head = heading(sweep.name, dcc.Link("SQL", href=sweep_path(sweep.name, "sql")))
    if not state["n_tasks_done"]:
        return [head, note("No task of this sweep is finished yet. Its images appear here as tasks finish.")]
    names = varying(sweep)
    measured = _measured(sweep)
    item = number(given, "item", 0)
    row = given.get("row", "selection")
    axes = [name for name in names if name != row]
    column = given.get("column", max(axes, key=lambda name: len(names[name])) if axes else _NONE)
    metric = given.get("metric", "mse" if "mse" in measured else measured[0])
    options = [*dict.fromkeys([*names, "selection"])]
    for name, value, known in (
        ("row", row, options),
        ("column", column, [*options, _NONE]),
        ("metric", metric, measured),
    ):
        if value not in known:
            raise InputError(f"{name} is {value!r} in the URL; it must be one of {', '.join(known)}.")
    return [
        dcc.Store(id="sweep-name", data=sweep.name),
        head,
        *unfinished(state),
        *folded(sweep),
        html.Section(
            [
                field(
                    f"Item, 0 to {state['n_items'] - 1:,}",
                    dcc.Input(id="sweep-item", type="number", min=0, max=state["n_items"] - 1, value=item),
                ),
                field("Rows", choice("sweep-row", options, row)),
                field("Columns", choice("sweep-column", [*options, _NONE], column)),
                field("Number below", choice("sweep-metric", measured, metric)),
                *(_only(name, values, given.get(f"only.{name}", _ALL)) for name, values in names.items()),
            ],
            className="controls",
            **{"aria-label": "View settings"},
        ),
        html.Div(id="sweep-grid"),
        html.H2("Dose-response"),
        html.Div(id="sweep-dose"),
    ]


def _only(name: str, values: list[Any], chosen: str) -> html.Div:
    """A control that selects one of a setting's values, or all."""
    given = {"kind": "only", "name": name}
    options = [_ALL, *map(str, values)]
    control = dcc.Dropdown(id=given, options=options, value=chosen if chosen in options else _ALL, clearable=False)
    return html.Div([html.Label([f"Only {name}", control])], className="field")


def varying(sweep: OpenedSweep) -> dict[str, list[Any]]:
    """Settings of which the sweep has more than one value, with these values, ascending."""
    asked = ", ".join(f"list_sort(list(distinct {name})) as {name}" for name in _GRID)
    answer = sweep.catalog.sql(f"select {asked} from edits where role = 'edited'")
    found = dict(zip(answer.columns, answer.fetchall()[0], strict=True))
    return {name: in_order(values) for name, values in found.items() if values and len(values) > 1}


def _measured(sweep: OpenedSweep) -> list[str]:
    named = metrics()
    asked = ", ".join(f"count({name}) as {name}" for name in named)
    answer = sweep.catalog.sql(f"select {asked} from edits where role = 'edited'")
    counts = dict(zip(answer.columns, answer.fetchall()[0], strict=True))
    return [name for name in named if counts[name]] or ["n_channels"]


def register(app: Dash, places: Places) -> None:
    """Register the page's callbacks."""

    @app.callback(
        Output("sweep-grid", "children"),
        Output("link", "data", allow_duplicate=True),
        Input("sweep-item", "value"),
        Input("sweep-row", "value"),
        Input("sweep-column", "value"),
        Input("sweep-metric", "value"),
        Input({"kind": "only", "name": ALL}, "value"),
        State({"kind": "only", "name": ALL}, "id"),
        State("sweep-name", "data"),
        prevent_initial_call="initial_duplicate",
    )
    def look(
        item: int | None, row: str, column: str, metric: str, values: list[str], ids: list[dict[str, str]], name: str
    ) -> tuple[Any, str]:
        only = {each["name"]: value for each, value in zip(ids, values, strict=True) if value != _ALL}
        said: dict[str, object] = {"item": item or 0, "row": row, "column": column, "metric": metric}
        said |= {f"only.{setting}": value for setting, value in only.items()}
        to = address(sweep_path(name), said)
        try:
            return grid(sweep_of(places, name), item or 0, row, column, metric, only), to
        except FewchannelsError as error:
            return alert(error), to

    @app.callback(
        Output("sweep-dose", "children"),
        Input("sweep-metric", "value"),
        State("theme", "data"),
        State("sweep-name", "data"),
    )
    def respond(metric: str, theme: Theme | None, name: str) -> Any:
        try:
            drawing = draw_dose(sweep_of(places, name).storage, metric)
        except FewchannelsError as error:
            return alert(error)
        return drawn(interactive(drawing, theme or "light"))


def grid(sweep: OpenedSweep, item: int, row: str, column: str, metric: str, only: Mapping[str, str]) -> list[Any]:
    """One item's edited images as a table; images with the same row and column are side by side.

    Args:
        sweep: sweep to show.
        item: index of the item.
        row: the setting whose values are rows.
        column: setting along the columns; ``none`` for one column.
        metric: metric of the numbers below images.
        only: values of settings, as text, that images must have.

    Raises:
        InputError: no finished task has the item, or there is no such setting or metric.
    """
    for setting in (row, *only, *([] if column == _NONE else [column])):
        if setting not in _GRID:
            raise unknown("setting", setting, _GRID)
    if metric not in metrics():
        raise unknown("metric", metric, metrics())
    found = sweep.item(item)
    table = pd.DataFrame({name: values for name, values in found.items() if name != "image"})
    about = table.iloc[0]
    compared = table[table["role"] != "edited"].drop_duplicates("role")
    edited = table[table["role"] == "edited"]
    for name, text in only.items():
        edited = edited[[str(value) == text for value in edited[name]]]
    rows = list(edited[row].drop_duplicates())[:_MOST]
    columns = [None] if column == _NONE else in_order(edited[column].dropna().unique().tolist())[:_MOST]
    heads = [
        html.Th(row, scope="col"),
        *(html.Th("" if c is None else _setting(column, c), scope="col") for c in columns),
    ]
    body = []
    for value in rows:
        here = edited[edited[row] == value]
        cells = [here if c is None else here[here[column] == c] for c in columns]
        body.append(
            html.Tr(
                [
                    html.Th(_setting(row, value), scope="row"),
                    *(html.Td([_image(sweep, item, i, each, metric) for i, each in cell.iterrows()]) for cell in cells),
                ]
            )
        )
    texts = {
        "prompt": about["prompt"],
        "source": about["source_prompt"],
        "item": about["item_id"],
        "seed": about["seed"],
    }
    return [
        facts({name: value for name, value in texts.items() if not pd.isna(value)}),
        html.Div([_image(sweep, item, i, each, metric) for i, each in compared.iterrows()], className="compared"),
        html.Div(html.Table([html.Thead(html.Tr(heads)), html.Tbody(body)]), className="grid"),
    ]


def in_order(values: Sequence[Any]) -> list[Any]:
    """Values of a setting in ascending order; layers and steps such as ``0-2`` and ``10-12`` in the model's order."""
    numbers = sorted(value for value in values if isinstance(value, int | float))
    return [*numbers, *named_places([str(value) for value in values if not isinstance(value, int | float)])]


def _setting(name: str, value: object) -> str:
    return shown(value) if name in ("selection", "action") else f"{name} {shown(value)}"


def _image(sweep: OpenedSweep, item: int, row: Any, about: pd.Series, metric: str) -> html.Figure:
    is_edited = about["role"] == "edited"
    what = [f"{name} {shown(about[name])}" for name in SETTINGS if is_edited and not pd.isna(about[name])]
    title = ", ".join(what) or about["role"]
    if about["status"] != "done":
        return html.Figure([html.Span("failed", className="no-image", title=str(about["error"]))], title=title)
    value = about.get(metric)
    text = about["role"] if not is_edited else ("-" if pd.isna(value) else shown(float(value)))
    source = edit_path(sweep.name, item, row, 192)
    return html.Figure([html.Img(src=source, alt=title), html.Figcaption(text)], title=title, className="edit")
