"""Two samples, of one run or of two, side by side at the same layer and step, and ratios of both runs by layer.

If the second run has not kept that step or layer, the one at the same relative position is shown, as its title says.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from dash import Dash, Input, Output, State, dcc, html

from fewchannels.analyses.document import span
from fewchannels.analyses.figures.drawings import Lines, Series
from fewchannels.analyses.figures.interactive import Theme, interactive
from fewchannels.analyses.figures.overlay import overlay
from fewchannels.errors import FewchannelsError, InputError
from fewchannels.views.explore.address import SHOWN, View, address, page_path, run_path
from fewchannels.views.explore.cells import Seen, see, usual_view
from fewchannels.views.explore.lookup import Places, run_of, runs_of
from fewchannels.views.explore.opened import OpenedRun
from fewchannels.views.explore.widgets import alert, choice, drawn, field, heading, note, place_at, places_slider

_SIDES = ("a", "b")


def layout(places: Places, given: Mapping[str, str]) -> list[Any]:
    """Controls, and the two samples in the address, or the first ones."""
    runs = runs_of(places)
    if not runs:
        return [heading("Compare"), note("No run is open. Sweeps have their own pages.")]
    sides = {side: _named(places, given.get(side), n) for n, side in enumerate(_SIDES)}
    first = run_of(places, sides["a"][0])
    usual = usual_view(first)
    view = View.of(given, usual)
    first.check_kept(view.step, view.layer)
    controls: list[Any] = []
    for side, (name, sample_id) in sides.items():
        letter = side.upper()
        controls += [
            field(f"Run {letter}", choice(f"compare-run-{side}", list(runs), name)),
            field(
                f"Sample {letter}",
                dcc.Input(id=f"compare-sample-{side}", value=sample_id, debounce=True),
                "an id, or a number in the manifest",
            ),
        ]
    controls += [
        field("Layer", places_slider("compare-layer", first.layers, view.layer)),
        field("Step", places_slider("compare-step", first.steps, view.step)),
        field("Show", choice("compare-show", SHOWN, view.show)),
        field(
            "Channel",
            dcc.Input(id="compare-channel", type="number", min=0, value=view.channel, placeholder="each's largest"),
        ),
        dcc.Checklist(
            id="compare-scale",
            options=[{"label": "equal scales", "value": "equal"}],
            value=[] if given.get("scale") == "own" else ["equal"],
        ),
    ]
    return [
        heading("Compare"),
        html.Section(controls, className="controls", **{"aria-label": "Comparison settings"}),
        html.Div(id="compare-pair", className="pair"),
        html.Div(id="compare-runs"),
    ]


def _named(places: Places, text: str | None, n: int) -> tuple[str, str]:
    """Run and sample of ``NAME:ID``; for None, those of the first run or, for the second side, of the last run."""
    if text is None:
        named = [(name, found) for name, run in runs_of(places).items() if (found := _first(run))]
        if not named:
            return next(iter(runs_of(places))), ""
        name, found = named[-1] if n else named[0]
        return name, found[-1] if n and len(named) == 1 else found[0]
    name, _, sample_id = text.partition(":")
    return run_of(places, name).name, sample_id


def _first(run: OpenedRun) -> list[str]:
    """Ids of a run's first two finished samples; none for a run that cannot be read."""
    text = "select sample_id from samples where status = 'done' order by sample limit 2"
    try:
        return [sample_id for (sample_id,) in run.catalog.sql(text).fetchall()]
    except FewchannelsError:
        return []


def _about(run: OpenedRun, text: str) -> dict[str, Any]:
    """A sample by its id, or by its number."""
    if text.isdecimal() and len(text) < 16:
        row = run.catalog.sql("select sample_id from samples where sample = $n", {"n": int(text)}).fetchone()
        if row is None:
            raise InputError(f"no finished sample of {run.name!r} has the index {text}.")
        text = row[0]
    return run.sample(text)


def register(app: Dash, places: Places) -> None:
    """Register the page's callbacks."""

    @app.callback(
        Output("compare-pair", "children"),
        Output("link", "data", allow_duplicate=True),
        Input("compare-run-a", "value"),
        Input("compare-sample-a", "value"),
        Input("compare-run-b", "value"),
        Input("compare-sample-b", "value"),
        Input("compare-layer", "value"),
        Input("compare-step", "value"),
        Input("compare-show", "value"),
        Input("compare-channel", "value"),
        Input("compare-scale", "value"),
        State("theme", "data"),
        prevent_initial_call="initial_duplicate",
    )
    def compare(
        run_a: str,
        sample_a: str | None,
        run_b: str,
        sample_b: str | None,
        layer: int,
        step: int,
        show: str,
        channel: int | None,
        scale: list[str],
        theme: Theme | None,
    ) -> tuple[Any, str]:
        first = run_of(places, run_a)
        layer, step = min(layer, len(first.layers) - 1), min(step, len(first.steps) - 1)
        view = replace(usual_view(first), layer=place_at(first.layers, layer), step=place_at(first.steps, step))
        view = replace(view, show=show, channel=channel)
        chosen = [(run_a, sample_a or ""), (run_b, sample_b or "")]
        shown = [_side(places, name, text, first, view) for name, text in chosen]
        pair = _pair([each for each in shown if not isinstance(each, str)], bool(scale))
        drawn = iter(pair)
        parts = [alert(each) if isinstance(each, str) else _drawn(next(drawn), theme or "light") for each in shown]
        said: dict[str, object] = {side: f"{name}:{text}" for side, (name, text) in zip(_SIDES, chosen, strict=True)}
        said |= view.as_query(usual_view(first)) | ({} if scale else {"scale": "own"})
        return parts, address(page_path("compare"), said)

    @app.callback(
        Output("compare-runs", "children"),
        Input("compare-run-a", "value"),
        Input("compare-run-b", "value"),
        Input("compare-step", "value"),
        State("theme", "data"),
    )
    def compare_runs(run_a: str, run_b: str, step: int, theme: Theme | None) -> Any:
        try:
            first, second = run_of(places, run_a), run_of(places, run_b)
            if first is second:
                return []
            view = replace(usual_view(first), step=place_at(first.steps, min(step, len(first.steps) - 1)))
            drawing = profiles({run: _alike(run, first, view).step for run in (first, second)})
        except FewchannelsError as error:
            return alert(error)
        return drawn(interactive(drawing, theme or "light"))


def profiles(steps: Mapping[OpenedRun, int]) -> Lines:
    """Ratio of the largest channel by layer, for each run at its step."""
    series, counts = {}, []
    for run, step in steps.items():
        answer = run.catalog.query("layer_profile", step=step)
        table = answer.df()
        table = table[table["measure"] == "ratio"]
        x, y, low, high = (table[name].to_numpy(float) for name in ("layer", "mean", "mean_low", "mean_high"))
        series[f"{run.name}, step {step}"] = Series(x, y, low, high)
        counts.append(span(table["n_samples"]) if len(table) else "0")
    title = f"Largest score over the median by layer\nmean over {' and '.join(counts)} samples, 95 % bands"
    return Lines(series=series, title=title, x="layer", y="times the median", least=0)


def _side(
    places: Places, name: str, text: str, first: OpenedRun, view: View
) -> tuple[OpenedRun, dict[str, Any], Seen] | str:
    try:
        run = run_of(places, name)
        about = _about(run, text.strip())
        if about["status"] != "done":
            return f"Sample {about['sample']} of {name!r} failed: {about['error']}"
        return run, about, see(run, about, _alike(run, first, view))
    except FewchannelsError as error:
        return str(error)


def _alike(run: OpenedRun, first: OpenedRun, view: View) -> View:
    """The first run's view in another: at the same layer and step or, if not recorded, the same relative position."""

    def place(mine: list[int], its: list[int], number: int) -> int:
        return number if number in mine else mine[round(its.index(number) / max(1, len(its) - 1) * (len(mine) - 1))]

    step, layer = place(run.steps, first.steps, view.step), place(run.layers, first.layers, view.layer)
    return replace(view, step=step, layer=layer, branch=run.branches[0])


def _pair(shown: list[Any], is_equal: bool) -> list[Any]:
    """The two figures, with a common scale if requested."""
    values = np.concatenate([seen.drawing.values.ravel() for _, _, seen in shown]) if shown else np.zeros(0)
    values = values[np.isfinite(values)]
    if not is_equal or not values.size:
        return shown
    low, high = float(values.min()), float(values.max())
    return [
        (run, about, replace(seen, drawing=replace(seen.drawing, low=low, high=high))) for run, about, seen in shown
    ]


def _drawn(shown: tuple[OpenedRun, dict[str, Any], Seen], theme: Theme) -> html.Section:
    run, about, seen = shown
    to = run_path(run.name, "sample", about["sample_id"])
    return html.Section(
        [
            html.H2(dcc.Link(f"{run.name}, sample {about['sample']}", href=to)),
            html.P(about["prompt"], className="prompt"),
            drawn(overlay(seen.drawing, theme)),
            html.P(seen.text),
        ]
    )
