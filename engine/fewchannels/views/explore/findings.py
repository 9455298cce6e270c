"""Findings of a run or a sweep, same as in the report: sentences and tables, each with its query."""

from collections.abc import Iterable, Sequence
from typing import Any

from dash import Dash, Input, Output, State, dcc, html, no_update

from fewchannels.analyses.document import Finding, How, Table
from fewchannels.analyses.evidence import evidence_of
from fewchannels.analyses.findings import SUBJECTS, of_run
from fewchannels.errors import FewchannelsError
from fewchannels.interventions.effects.sweep_findings import find
from fewchannels.views.explore.address import address, run_path, sweep_path
from fewchannels.views.explore.lookup import Places, place_of
from fewchannels.views.explore.opened import Opened
from fewchannels.views.explore.widgets import alert, note

_COLUMNS = "* exclude (image)"


def folded(place: Opened) -> list[Any]:
    """Collapsed findings: they are computed when a user expands them, so that the page does not wait for them."""
    return [
        dcc.Store(id="found-place", data=place.name),
        html.Details(
            [
                html.Summary("Findings", id="found-summary"),
                dcc.Loading(html.Div(id="found"), delay_show=400),
            ],
            className="found",
        ),
    ]


def register(app: Dash, places: Places) -> None:
    """Register the callback."""

    @app.callback(
        Output("found", "children"),
        Input("found-summary", "n_clicks"),
        State("found-place", "data"),
        prevent_initial_call=True,
    )
    def unfold(clicks: int | None, name: str) -> Any:
        if not clicks or clicks % 2 == 0:  # it is collapsed again
            return no_update
        try:
            return found(place_of(places, name))
        except FewchannelsError as error:
            return alert(error)


def found(place: Opened) -> list[Any]:
    """Findings, in reading order.

    Raises:
        FewchannelsError: the run or the sweep cannot be read.
    """
    return _of_run(place) if place.of == "run" else _of_sweep(place)


def _of_run(place: Opened) -> list[Any]:
    said = of_run(evidence_of(place.path, place.catalog, place.storage))
    if not said.sentences:
        return [note("None yet: no finished sample has a usable value.")]
    shown: list[Any] = [note(said.about)]
    for analysis, subject in SUBJECTS.items():
        own, layers = said.of(analysis), said.layers.get(analysis)
        if own or layers:
            shown += [html.H2(subject), _list(place, own)]
        if layers:
            shown.append(html.Details([html.Summary("Layer by layer"), note(layers.about), _list(place, layers.each)]))
    return shown


def _of_sweep(place: Opened) -> list[Any]:
    evidence = evidence_of(place.path, place.catalog, place.storage)
    edits = evidence.ask(f"select {_COLUMNS} from edits")
    said = find(evidence, edits) if (edits["role"] == "edited").any() else None
    if said is None or not said.sentences:
        return [note("None yet: no finished item has a measured edited image.")]
    return [note(said.about), _list(place, said.sentences)]


def _list(place: Opened, findings: Iterable[Finding]) -> html.Ul:
    return html.Ul([html.Li(_finding(place, each)) for each in findings], className="findings")


def _finding(place: Opened, finding: Finding) -> list[Any]:
    shown: list[Any] = [html.P(finding.text)]
    if finding.table is not None:
        shown.append(_table(finding.table))
    if finding.how:
        shown.append(
            html.Details([html.Summary("How to reproduce these numbers"), *_again(place, finding.how)], className="how")
        )
    return shown


def _table(table: Table) -> html.Div:
    heads = html.Thead(html.Tr([html.Th(head, scope="col") for head in table.heads]))
    rows = [html.Tr([html.Th(row[0], scope="row"), *map(html.Td, row[1:])]) for row in table.rows]
    return html.Div(html.Table([html.Caption(table.caption), heads, html.Tbody(rows)]), className="grid numbers")


def _again(place: Opened, how: Sequence[How]) -> list[Any]:
    """The commands in order; a query on existing tables is a link to the console, which runs it on a click."""
    shown: list[Any] = []
    path = (run_path if place.of == "run" else sweep_path)(place.name, "sql")
    is_there = True
    for each in how:
        shown.append(html.Pre(each.text))
        is_there = is_there and bool(each.asks)  # a command that is not a query writes tables for the queries after it
        if is_there:
            shown.append(html.P(dcc.Link("Open as a query", href=address(path, dict(each.asks)))))
    return shown
