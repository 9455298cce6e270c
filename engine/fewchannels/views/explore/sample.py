"""One sample's page: its image under any channel's map, by layer and step; its channels, its tokens."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update
from PIL import Image
from pydantic import BaseModel, Field, FiniteFloat

from fewchannels.analyses.figures.colors import colored
from fewchannels.analyses.figures.drawings import HeatMap, Lines, Series
from fewchannels.analyses.figures.interactive import Theme, data_uri, interactive
from fewchannels.analyses.figures.overlay import HEIGHT as OVERLAY_HEIGHT
from fewchannels.analyses.figures.overlay import overlay
from fewchannels.errors import FewchannelsError
from fewchannels.runs.sql.ranking import CHANNEL
from fewchannels.views.explore.address import SHOWN, View, address, image_path, page_path, run_path
from fewchannels.views.explore.cells import see, usual_view
from fewchannels.views.explore.lookup import Places, run_of
from fewchannels.views.explore.opened import Cell, OpenedRun
from fewchannels.views.explore.widgets import (
    alert,
    choice,
    drawn,
    facts,
    field,
    graph,
    heading,
    note,
    place_at,
    places_slider,
)

_THUMBNAILS = 12
_THUMBNAIL_SIDE = 64
_FACTS = ("seed", "status", "seconds", "n_steps", "guidance", "prompt_tokens", "prompt_truncated", "attempt", "task")


class _Which(BaseModel):
    """The sample of a page."""

    run: str
    id: str


class _Shown(BaseModel):
    """State of the page's figure."""

    channel: int
    layer: int
    step: int
    branch: str
    show: str


class _Point(BaseModel):
    x: FiniteFloat
    y: FiniteFloat


class _Click(BaseModel):
    """A click on a figure, in Plotly's format."""

    points: list[_Point] = Field(min_length=1)


def layout(run: OpenedRun, sample_id: str, given: Mapping[str, str]) -> list[Any]:
    """Controls, and the view in the address."""
    about = run.sample(sample_id)
    before, after = run.beside(about["sample"])
    view = View.of(given, usual_view(run))
    run.check_kept(view.step, view.layer, view.branch)
    path = run_path(run.name, "sample")
    ways = [
        dcc.Link(word, href=address(f"{path}/{to}", view.as_query(usual_view(run))))
        for word, to in (("Previous", before), ("Next", after))
        if to is not None
    ]
    head = heading(about["prompt"] or "(empty prompt)", dcc.Link(f"All of {run.name}", href=run_path(run.name)), *ways)
    extra = {name: value for name, value in about.items() if name in _FACTS}
    compare = dcc.Link("Compare with another", href=address(page_path("compare"), {"a": f"{run.name}:{sample_id}"}))
    details = html.Details([html.Summary(f"sample {about['sample']}, {sample_id}"), facts(extra), compare])
    if about["status"] != "done":
        return [head, alert(f"This sample failed: {about['error']}"), details]
    if not run.layout.has_maps:
        image = html.Img(src=image_path(run.name, about["sample"]), alt=about["prompt"], className="image")
        return [head, note("This run has no token maps; capture with --top-k to record them."), image, details]
    return [
        dcc.Store(id="sample-which", data={"run": run.name, "id": sample_id}),
        dcc.Store(id="sample-shown"),
        head,
        html.Div(
            [
                html.Section(_controls(run, about, view), className="controls side", **{"aria-label": "View settings"}),
                html.Section(
                    [
                        html.Div(id="sample-error"),
                        graph(OVERLAY_HEIGHT, name="sample-figure"),
                        html.P(id="sample-text", role="status"),
                        graph(400, name="sample-course"),
                        html.P(id="sample-elsewhere", className="links"),
                    ],
                    className="main-figure",
                ),
                html.Section(
                    [
                        html.H2("Largest channels here"),
                        html.Div(id="sample-thumbnails", className="thumbnails"),
                        html.H2("One token"),
                        html.Div(note("Click a token on the image to see its channels."), id="sample-token"),
                    ],
                    className="aside",
                ),
            ],
            className="sample",
        ),
        details,
    ]


def _controls(run: OpenedRun, about: dict[str, Any], view: View) -> list[Any]:
    has_mask = "masks" in run.catalog.results
    controls = [
        field("Layer", places_slider("sample-layer", run.layers, view.layer)),
        field("Step", places_slider("sample-step", run.steps, view.step)),
        field("Show", choice("sample-show", SHOWN, view.show)),
        field(
            "Channel",
            dcc.Input(
                id="sample-channel",
                type="number",
                min=0,
                max=run.layout.n_channels - 1,
                value=view.channel,
                placeholder="by rank",
                debounce=0.3,
            ),
            "empty: the channel of this rank",
        ),
        field(
            "Rank",
            dcc.Input(id="sample-rank", type="number", min=1, max=run.layout.top_k, value=view.rank, debounce=0.3),
        ),
        field(
            "Top-k for heat and clusters", dcc.Input(id="sample-k", type="number", min=1, value=view.k, debounce=0.3)
        ),
        field(
            "Opacity of the map, %",
            dcc.Slider(id="sample-opacity", min=0, max=100, value=view.opacity, step=5, marks=None, updatemode="drag"),
        ),
        dcc.Checklist(
            id="sample-outline",
            options=[{"label": "outline of the subject", "value": "mask", "disabled": not has_mask}],
            value=["mask"] if view.outline else [],
        ),
    ]
    branches = field("Branch", choice("sample-branch", run.branches, view.branch))
    controls.append(html.Div(branches, hidden=len(run.branches) == 1))
    controls.append(html.Img(src=image_path(run.name, about["sample"]), alt="the image alone", className="image"))
    return controls


def register(app: Dash, places: Places) -> None:
    """Register the page's callbacks."""

    @app.callback(
        Output("sample-figure", "figure"),
        Output("sample-text", "children"),
        Output("sample-error", "children"),
        Output("sample-shown", "data"),
        Output("link", "data", allow_duplicate=True),
        Input("sample-layer", "value"),
        Input("sample-step", "value"),
        Input("sample-show", "value"),
        Input("sample-channel", "value"),
        Input("sample-rank", "value"),
        Input("sample-k", "value"),
        Input("sample-opacity", "value"),
        Input("sample-outline", "value"),
        Input("sample-branch", "value"),
        State("theme", "data"),
        State("sample-which", "data"),
        prevent_initial_call="initial_duplicate",
    )
    def look(
        layer: int,
        step: int,
        show: str,
        channel: int | None,
        rank: int | None,
        k: int | None,
        opacity: int,
        outline: list[str],
        branch: str,
        theme: Theme | None,
        which: _Which,
    ) -> tuple[Any, ...]:
        try:
            run = run_of(places, which.run)
            about = run.sample(which.id)
            place = place_at(run.steps, step), place_at(run.layers, layer)
            view = View(*place, branch, show, channel, rank or 1, k or 1, opacity, outline=bool(outline))
            seen = see(run, about, view)
        except FewchannelsError as error:
            return no_update, "", alert(error), no_update, no_update
        figure = overlay(seen.drawing, theme or "light")
        to = address(run_path(run.name, "sample", which.id), view.as_query(usual_view(run)))
        shown = {"channel": seen.channel, "layer": view.layer, "step": view.step, "branch": branch, "show": show}
        return figure, seen.text, None, shown, to

    # After the figure, which must respond first to a slider.
    @app.callback(
        Output("sample-thumbnails", "children"),
        Input("sample-shown", "data"),
        State("sample-which", "data"),
        prevent_initial_call=True,
    )
    def list_channels(shown: _Shown, which: _Which) -> Any:
        try:
            run = run_of(places, which.run)
            cell = run.cell(run.sample(which.id), shown.step, shown.layer, shown.branch)
        except FewchannelsError as error:
            return alert(error)
        chosen = shown.channel if shown.show == "channel" else None
        return [_thumbnail(cell, i, chosen) for i in range(min(_THUMBNAILS, len(cell.channels)))]

    @app.callback(
        Output("sample-channel", "value"),
        Output("sample-show", "value"),
        Input({"kind": "thumbnail", "channel": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )
    def choose(clicks: list[int | None]) -> tuple[Any, Any]:
        if not any(clicks) or not isinstance(ctx.triggered_id, dict):
            return no_update, no_update
        return ctx.triggered_id["channel"], "channel"

    @app.callback(
        Output("sample-token", "children"),
        Input("sample-figure", "clickData"),
        Input("sample-layer", "value"),
        Input("sample-step", "value"),
        State("sample-branch", "value"),
        State("theme", "data"),
        State("sample-which", "data"),
        prevent_initial_call=True,
    )
    def look_at_token(
        click: _Click | None, layer: int, step: int, branch: str, theme: Theme | None, which: _Which
    ) -> Any:
        if not click:
            return no_update
        try:
            run = run_of(places, which.run)
            cell = run.cell(run.sample(which.id), place_at(run.steps, step), place_at(run.layers, layer), branch)
        except FewchannelsError as error:
            return alert(error)
        x, y = round(click.points[0].x), round(click.points[0].y)
        where = f"step {run.steps[step]}, layer {run.layers[layer]}"
        return _token(cell, x, y, where, theme or "light")

    @app.callback(
        Output("sample-course", "figure"),
        Output("sample-elsewhere", "children"),
        Input("sample-shown", "data"),
        State("theme", "data"),
        State("sample-which", "data"),
        prevent_initial_call=True,
    )
    def follow(shown: _Shown, theme: Theme | None, which: _Which) -> tuple[Any, Any]:
        try:
            run = run_of(places, which.run)
            drawing = course(run, run.sample(which.id), shown.channel, shown.branch)
        except FewchannelsError as error:
            return no_update, alert(error)
        most: dict[str, object] = {"by": CHANNEL, "order": "largest", "channel": shown.channel}
        most |= {"layer": shown.layer, "step": shown.step}
        link = dcc.Link(
            f"Samples where channel {shown.channel} is largest at this layer and step",
            href=address(run_path(run.name), most),
        )
        return interactive(drawing, theme or "light"), link


def course(run: OpenedRun, about: dict[str, Any], channel: int, branch: str) -> HeatMap | Lines:
    """A channel's score over layers and steps; only by layer if one step was recorded."""
    values = run.course(about["sample"], channel, branch)
    title = f"Channel {channel}: {run.score}\nof this sample, at every recorded layer and step"
    if len(run.steps) == 1:
        series = Series(np.array(run.layers, float), values[0])
        return Lines(series={f"step {run.steps[0]}": series}, title=title, x="layer", y=run.score, least=0)
    return HeatMap(
        values=values.T, title=title, rows=run.layers, columns=run.steps, row="layer", column="step", value=run.score
    )


def _thumbnail(cell: Cell, i: int, chosen: int | None) -> html.Button:
    channel, median = int(cell.channels[i]), cell.median
    score = float(cell.scores[channel])
    text = f"{score / median:.3g} × median" if median > 0 else f"{score:.3g}"
    image = Image.fromarray(colored(cell.maps[i]))
    width, height = image.size
    side = _THUMBNAIL_SIDE / max(width, height)
    data = io.BytesIO()
    image.resize((max(1, round(width * side)), max(1, round(height * side))), Image.Resampling.NEAREST).save(
        data, "PNG"
    )
    return html.Button(
        [html.Img(src=data_uri(data.getvalue()), alt=""), html.Span(f"{channel}"), html.Small(text)],
        id={"kind": "thumbnail", "channel": channel},
        type="button",
        title=f"Show channel {channel}",
        **{"aria-pressed": "true" if channel == chosen else "false"},
    )


def _token(cell: Cell, x: int, y: int, where: str, theme: Theme) -> Any:
    height, width = cell.maps.shape[1:]
    if not (0 <= x < width and 0 <= y < height):
        return no_update
    n = min(24, len(cell.channels))
    values = cell.maps[:n, y, x]
    names = [str(channel) for channel in cell.channels[:n]]
    drawing = HeatMap(
        values=values[:, None],
        title=f"Token {y * width + x}: row {y}, column {x}\n{where}, the top {n} channels",
        rows=names,
        columns=["value"],
        row="channel",
        column="",
        value="signed value",
    )
    figure = interactive(drawing, theme).update_layout(height=120 + 16 * n)
    figure.update_yaxes(autorange="reversed")
    return drawn(figure)
