"""A run's gallery: images, filtered and ordered."""

from collections.abc import Mapping
from typing import Any

from dash import Dash, Input, Output, State, ctx, dcc, html, no_update

from fewchannels.errors import FewchannelsError
from fewchannels.runs.sql.ranking import CHANNEL
from fewchannels.views.explore.address import address, image_path, run_path
from fewchannels.views.explore.findings import folded
from fewchannels.views.explore.lookup import Places, run_of
from fewchannels.views.explore.opened import OpenedRun
from fewchannels.views.explore.search import PER_PAGE, Search, find, measure_of, measures
from fewchannels.views.explore.widgets import alert, choice, field, heading, note, shown, unfinished

_ORDERS = {"least": "ascending", "largest": "descending"}


def layout(run: OpenedRun, given: Mapping[str, str]) -> list[Any]:
    """Controls, and the page of images in the address.

    An SQL condition that no user has entered before runs only after a click, since any site may link to the page.
    """
    known = measures(run)
    search = Search.of(given, run)
    controls = [
        field("Prompt contains", dcc.Input(id="find-text", value=search.text, debounce=0.4, type="search")),
        field(
            "SQL condition",
            dcc.Input(id="find-where", value=search.where, debounce=True, placeholder="seed = 0 and seconds < 2"),
            "on columns of samples and manifest; a name in both refers to the manifest, samples.NAME to the run",
        ),
        field("Order by", choice("find-by", known, search.by if search.by in known else next(iter(known)))),
        field("Order", choice("find-order", _ORDERS, "least" if search.is_ascending else "largest")),
        field("Layer", choice("find-layer", run.layers, search.layer)),
        field("Step", choice("find-step", run.steps, search.step)),
        field(
            "Channel",
            dcc.Input(id="find-channel", type="number", value=search.channel, min=0, max=run.layout.n_channels - 1),
        ),
    ]
    is_waiting = bool(search.where) and search.where not in run.asked
    waiting = note("The SQL condition came with the URL. Press Apply to find the matching samples.")
    return [
        dcc.Store(id="find-run", data=run.name),
        dcc.Store(id="find-page", data=search.page),
        heading(run.name, dcc.Link("SQL", href=run_path(run.name, "sql"))),
        *unfinished(run.state()),
        *folded(run),
        html.Form(controls, className="controls", **{"aria-label": "Filter"}),
        html.Button("Apply", id="find-apply", type="button", hidden=not is_waiting),
        html.Div([waiting] if is_waiting else _shown(run, search), id="find-results"),
        html.Nav(
            [
                html.Button("Previous", id="find-previous", type="button"),
                html.Button("Next", id="find-next", type="button"),
            ],
            className="pager",
            **{"aria-label": "Pages of samples"},
        ),
    ]


def register(app: Dash, places: Places) -> None:
    """Register the page's callbacks."""

    @app.callback(
        Output("find-results", "children"),
        Output("find-page", "data"),
        Output("find-apply", "hidden"),
        Output("link", "data", allow_duplicate=True),
        Input("find-text", "value"),
        Input("find-where", "value"),
        Input("find-by", "value"),
        Input("find-order", "value"),
        Input("find-layer", "value"),
        Input("find-step", "value"),
        Input("find-channel", "value"),
        Input("find-previous", "n_clicks"),
        Input("find-next", "n_clicks"),
        Input("find-apply", "n_clicks"),
        State("find-page", "data"),
        State("find-run", "data"),
        prevent_initial_call=True,
    )
    def find_again(
        text: str | None,
        where: str | None,
        by: str,
        order: str,
        layer: int,
        step: int,
        channel: int | None,
        previous: int | None,
        following: int | None,
        applied: int | None,
        page: int,
        name: str,
    ) -> tuple[Any, ...]:
        if len(ctx.triggered) != 1:  # the page was just opened: a user changes one control at a time
            return no_update, no_update, no_update, no_update
        run = run_of(places, name)
        turned = {"find-previous": max(1, page - 1), "find-next": page + 1, "find-apply": page}
        page = turned.get(ctx.triggered_id, 1)
        search = Search(
            text or "", where or "", by, order == "least", layer, step, channel or 0, page, measure_of(run, by)
        )
        run.asked.add(search.where)
        return _shown(run, search), page, True, address(run_path(name), search.as_query())


def _shown(run: OpenedRun, search: Search) -> list[Any]:
    try:
        found = find(run, search)
    except FewchannelsError as error:
        return [alert(error)]
    if not found.rows:
        return [note("No finished sample matches." if search.page == 1 else "There are no more samples.")]
    first = (search.page - 1) * PER_PAGE + 1
    counted = f"{first:,} to {first + len(found.rows) - 1:,} of {found.n:,} samples"
    return [note(counted), html.Ul([_card(run, search, row) for row in found.rows], className="cards")]


def _card(run: OpenedRun, search: Search, row: dict[str, Any]) -> html.Li:
    view: dict[str, object] = {"layer": search.layer, "step": search.step} if search.needs_cell else {}
    if search.measure == CHANNEL:
        view["channel"] = search.channel
    to = address(run_path(run.name, "sample", row["sample_id"]), view)
    value = [] if row["value"] is None or search.by == "prompt" else [html.B(shown(row["value"]))]
    image = (
        html.Img(src=image_path(run.name, row["sample"], 192), alt="")
        if row["status"] == "done"
        else html.Span("failed", className="no-image")
    )
    return html.Li(dcc.Link([image, html.Span(row["prompt"], className="prompt"), *value], href=to), className="card")
