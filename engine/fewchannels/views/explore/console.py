"""The SQL console: free queries and named queries, with the answer as a table, a plot and a download."""

from collections.abc import Mapping
from secrets import token_hex
from typing import Any, Literal

import dash_ag_grid as dag
import numpy as np
import pandas as pd
from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update
from pydantic import BaseModel

from fewchannels.analyses.figures.drawings import Lines, Series
from fewchannels.analyses.figures.interactive import Theme, interactive
from fewchannels.errors import FewchannelsError, InputError
from fewchannels.runs.sql.answer import Answer
from fewchannels.runs.sql.named_queries import Query, queries
from fewchannels.runs.sql.question import Question
from fewchannels.views.explore.address import address, download_path, run_path, sweep_path
from fewchannels.views.explore.lookup import Places, place_of
from fewchannels.views.explore.opened import Opened
from fewchannels.views.explore.widgets import alert, choice, field, graph, heading, note

_MOST_ROWS = 2_000
_MOST_COUNTED = 100_000
_MOST_LINES = 16
_FREE = "(free SQL)"
_EXAMPLE = {
    "run": "select layer, step, avg(ratio) as mean_ratio, count(*) as n from cells group by all order by all",
    "sweep": "select selection, k, avg(mse) as mse, count(*) as n from edits where role = 'edited' group by all "
    "order by all",
}


class _Place(BaseModel):
    """Query of a console."""

    name: str
    path: str
    page: str


class _Parameter(BaseModel):
    """Parameter of a field."""

    kind: Literal["parameter"]
    name: str


def layout(place: Opened, given: Mapping[str, str]) -> list[Any]:
    """The query in the address, or an example; it runs only when the button is pressed."""
    known = [name for name, query in queries().items() if query.of == place.of]
    name = given.get("query", _FREE)
    if name not in [_FREE, *known]:
        raise InputError(f"query is {name!r} in the URL; it must be one of {', '.join(known)}.")
    path = (run_path if place.of == "run" else sweep_path)(place.name)
    views = ", ".join(place.catalog.views)
    is_given = "sql" in given or name != _FREE
    waiting = [note("This query came with the URL. Press Run to run it.")] if is_given else []
    return [
        dcc.Store(id="console-place", data={"name": place.name, "path": path, "page": token_hex(8)}),
        heading(f"SQL: {place.name}", dcc.Link("Back", href=path)),
        *([note(place.catalog.note)] if place.catalog.note else []),
        html.Section(
            [
                field("Question", choice("console-query", [_FREE, *known], name)),
                html.Div(_parameters(queries().get(name), _texts(given)), id="console-parameters"),
                html.Div(
                    field(
                        "SQL",
                        dcc.Textarea(
                            id="console-sql", value=given.get("sql", _EXAMPLE[place.of]), spellCheck="false", rows=6
                        ),
                        f"Tables: {views}. Queries are read-only and limited to these tables.",
                    ),
                    id="console-free",
                    hidden=name != _FREE,
                ),
                html.Button("Run", id="console-ask", type="button", title="Ctrl+Enter"),
                html.Button("Cancel", id="console-cancel", type="button"),
                html.Div(id="console-cancelled"),
            ],
            className="console",
        ),
        dcc.Loading(html.Div(waiting, id="console-answer"), delay_show=400),
        html.Div(id="console-plot"),
    ]


def question_of(place: Opened, given: Mapping[str, str]) -> Question:
    """Read the query in an address: ``sql``, or ``query`` with its parameters ``p.NAME``.

    Raises:
        InputError: it is not a query, or it does more than read.
    """
    name = given.get("query", _FREE)
    if name == _FREE:
        return place.catalog.ask(given.get("sql") or _EXAMPLE[place.of], limits=place.limits)
    if name not in queries():
        raise InputError(f"there is no query {name!r}. Choose one of {', '.join(queries())}.")
    return place.catalog.ask_query(name, place.limits, **queries()[name].parse(_texts(given)))


def _texts(given: Mapping[str, str]) -> dict[str, str]:
    """Parameters of an address, ``p.NAME``, by name."""
    return {key.removeprefix("p."): value for key, value in given.items() if key.startswith("p.")}


def register(app: Dash, places: Places) -> None:
    """Register the page's callbacks."""

    @app.callback(
        Output("console-parameters", "children"),
        Output("console-free", "hidden"),
        Input("console-query", "value"),
        prevent_initial_call=True,
    )
    def choose(name: str) -> tuple[Any, bool]:
        return _parameters(queries().get(name), {}), name != _FREE

    @app.callback(
        Output("console-answer", "children"),
        Output("console-plot", "children"),
        Output("link", "data", allow_duplicate=True),
        Input("console-ask", "n_clicks"),
        State("console-query", "value"),
        State("console-sql", "value"),
        State({"kind": "parameter", "name": ALL}, "value"),
        State({"kind": "parameter", "name": ALL}, "id"),
        State("console-place", "data"),
        prevent_initial_call="initial_duplicate",
    )
    def ask(
        clicks: int | None,
        name: str,
        text: str | None,
        values: list[str | None],
        ids: list[_Parameter],
        place: _Place,
    ) -> tuple[Any, Any, Any]:
        if not clicks:  # opening a page runs nothing, since any site may link to it
            return no_update, no_update, no_update
        if name == _FREE:
            said: dict[str, str] = {"sql": text or ""}
        else:
            given = {f"p.{each.name}": value for each, value in zip(ids, values, strict=True) if value is not None}
            said = {"query": name} | given
        to = address(f"{place.path}/sql", said)
        try:
            opened = place_of(places, place.name)
            question = question_of(opened, said)
            with opened.under_way.asking(question, place.page):
                answer, n_rows = question.first(_MOST_ROWS, _MOST_COUNTED)
        except FewchannelsError as error:
            return alert(error), None, to
        return *_shown(answer, n_rows, place.name, said), to

    @app.callback(
        Output("console-cancelled", "children"),
        Input("console-cancel", "n_clicks"),
        Input("console-ask", "n_clicks"),
        State("console-place", "data"),
        prevent_initial_call=True,
    )
    def cancel(clicks: int | None, asked: int | None, place: _Place) -> Any:
        if not clicks or ctx.triggered_id != "console-cancel":
            return None
        ended = place_of(places, place.name).under_way.cancel(place.page, "the query was cancelled.")
        return None if ended else note("No query of this page is running.")

    @app.callback(
        Output("console-figure", "figure"),
        Input("console-x", "value"),
        Input("console-y", "value"),
        State("console-table", "rowData"),
        State("theme", "data"),
        prevent_initial_call=True,
    )
    def plot(x: str, y: str, rows: list[dict[str, Any]], theme: Theme | None) -> Any:
        table = pd.DataFrame(rows)
        for name in (x, y):
            if name not in table or not pd.api.types.is_numeric_dtype(table[name]):
                raise InputError(f"{name!r} is not a numeric column of the result.")
        return interactive(plotted_columns(table, x, y), theme or "light")


def _parameters(query: Query | None, values: Mapping[str, str]) -> list[Any]:
    if query is None:
        return []
    found: list[Any] = []
    for each in query.parameters:
        value = values.get(each.name, str(each.default).lower() if each.type is bool else str(each.default))
        given = {"kind": "parameter", "name": each.name}
        options = each.choices or (("true", "false") if each.type is bool else ())
        control = (
            dcc.Dropdown(id=given, options=list(options), value=value, clearable=False)
            if options
            else dcc.Input(id=given, value=value)
        )
        found.append(
            html.Div([html.Label([each.name, control]), html.Span(each.doc, className="hint")], className="field")
        )
    sql = html.Details([html.Summary("Its SQL"), html.Pre(query.sql)])
    return [note(query.purpose), html.Div(found, className="controls"), sql]


def _shown(answer: Answer, n_rows: int, name: str, said: Mapping[str, str]) -> tuple[Any, Any]:
    """The first rows of an answer as a table, and the controls for plotting them."""
    table = _readable(answer)
    numbers = [column for column in table.columns if pd.api.types.is_numeric_dtype(table[column])]
    units = {column.name: f"{column.unit}: {column.doc}" for column in answer.query.columns} if answer.query else {}
    grid = dag.AgGrid(
        id="console-table",
        rowData=table.astype(object).where(table.notna(), None).to_dict("records"),
        columnDefs=[
            {
                "field": column,
                "headerName": column,
                "headerTooltip": units.get(column, column),
                "type": "rightAligned" if column in numbers else None,
                "valueFormatter": {"function": "d3.format('.6~g')(params.value)"}
                if pd.api.types.is_float_dtype(table[column])
                else None,
            }
            for column in table.columns
        ],
        defaultColDef={"resizable": True, "sortable": True, "filter": True},
        dashGridOptions={"suppressFieldDotNotation": True, "enableCellTextSelection": True, "tooltipShowDelay": 300},
        columnSize="autoSize",
        className="ag-theme-alpine",
    )
    n = min(n_rows, _MOST_COUNTED)
    counted = f"{'more than ' * (n_rows > n)}{n:,} row{'s' * (n != 1)}"
    counted += f"; the first {len(answer):,} are shown" if n_rows > len(answer) else ""
    links = [
        html.A(f"as {label}", href=download_path(name, kind, said))
        for kind, label in (("csv", "CSV"), ("parquet", "Parquet"))
    ]
    plotted: Any = None
    if len(numbers) > 1 and n > 1:
        x, y = numbers[0], next((name for name in numbers[1:] if pd.api.types.is_float_dtype(table[name])), numbers[1])
        plotted = html.Section(
            [
                html.Div(
                    [
                        field("Across", choice("console-x", numbers, x)),
                        field("Up", choice("console-y", numbers, y)),
                    ],
                    className="controls",
                ),
                graph(400, name="console-figure", figure=interactive(plotted_columns(table, x, y))),
            ]
        )
    return [html.P([counted, ". Download all rows ", links[0], " or ", links[1], "."], role="status"), grid], plotted


def plotted_columns(table: pd.DataFrame, x: str, y: str) -> Lines:
    """Plot two columns against each other: means of equal x, one line for each value of text columns with few values.

    Args:
        table: an answer's rows.
        x: column of the horizontal axis.
        y: column of the vertical axis.
    """
    words = _few_words(table)
    said = pd.Series(", ".join("-" if pd.isna(value) else str(value) for value in row) for row in table[words].values)
    groups = table.groupby(said.to_numpy(object)) if words else [(y, table)]
    series = {}
    for name, rows in groups:
        means = rows.groupby(x)[y].mean()
        series[str(name)] = Series(means.index.to_numpy(float), means.to_numpy(float))
    n = len(table)
    about = f" by {', '.join(words)}" if words else ""
    return Lines(series=series, title=f"{y} against {x}{about}: means of {n:,} rows shown", x=x, y=y)


def _few_words(table: pd.DataFrame) -> list[str]:
    """Text columns that together have few values, so that each value can have a line."""
    chosen: list[str] = []
    for name in table.columns:
        values = table[name].dropna()
        if not len(values) or not all(isinstance(value, str) for value in values):
            continue
        if table[name].nunique(dropna=False) > 1 and len(table[[*chosen, name]].drop_duplicates()) <= _MOST_LINES:
            chosen.append(name)
    return chosen


def _readable(answer: Answer) -> pd.DataFrame:
    """Convert a value for the grid: images to their size, lists to text."""
    table = answer.df()
    for name in table.columns:
        if table[name].dtype == object:
            table[name] = [_plain(value) for value in table[name]]
        elif str(table[name].dtype).startswith(("datetime", "timedelta")):
            table[name] = table[name].astype(str)
    return table


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        return f"<{len(value):,} bytes>"
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.ndarray | list):
        return " ".join(str(_plain(each)) for each in value)
    return str(value)
