"""The live page: a prompt, its massive channels as they form step by step, and an edit next to the original."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from dash import Dash, Input, Output, State, dcc, html, no_update

from fewchannels.analyses.figures.drawings import HeatMap
from fewchannels.analyses.figures.interactive import Theme, data_uri, interactive
from fewchannels.analyses.figures.overlay import Overlay, overlay
from fewchannels.errors import FewchannelsError, InputError
from fewchannels.interventions.conditions import SELECTIONS
from fewchannels.interventions.live.ask import ACTIONS, TOKENS, Ask, parse
from fewchannels.interventions.live.trajectory import RowStep, Snapshot, Trajectory
from fewchannels.views.explore.address import address, page_path
from fewchannels.views.explore.widgets import alert, choice, drawn, heading, note, place_at, places_slider
from fewchannels.views.explore.widgets import field as labeled

if TYPE_CHECKING:
    from fewchannels.interventions.live.session import LiveModel

_EVERY_MS = 300
_MOST_KNOWN = 64
_NONE = "none"
_FIRST = "a large red star in the center on a blue background"
_EDIT_FIELDS = ("action", "factor", "alpha", "source", "selection", "k", "channels", "layers", "steps", "tokens")
_IMAGE_FIELDS = ("prompt", "seed", "n_steps", "guidance")
_FIELDS = (*_IMAGE_FIELDS, *_EDIT_FIELDS)


@dataclass
class Live:
    """A model that generates for the page, and the generations that pages show.

    Attributes:
        model: the session.
        name: name of the model, for display.
    """

    model: "LiveModel"
    name: str
    _known: OrderedDict[Ask, Trajectory] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def begin(self, ask: Ask) -> Trajectory:
        """Start the requested generation, or return the running or finished one of the same request.

        Raises:
            InputError: the model cannot do it, or another generation is running, possibly for another window.
        """
        with self._lock:
            running = self._running()
            if running is not None and running.ask != ask:
                done = f"{len(running.snapshot().steps)} of {running.n_steps} steps"
                raise InputError(
                    f"another generation is running, {done}: {running.ask.prompt[:60]!r}. Wait for it to finish, or "
                    "press Cancel."
                )
            generation = self.model.begin(ask)
            self._known[ask] = generation
            self._known.move_to_end(ask)
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return generation

    def cancel(self) -> bool:
        """End the running generation before its next block; return whether there was one."""
        with self._lock:
            running = self._running()
        if running is not None:
            running.cancel("somebody pressed Cancel")
        return running is not None

    def _running(self) -> Trajectory | None:
        """The running generation. A canceled one counts until it has ended."""
        return next((each for each in self._known.values() if not each.snapshot().has_ended), None)

    def find(self, ask: Ask) -> Trajectory | None:
        """Find the generation of a request without starting it, so that two windows do not cancel each other's."""
        with self._lock:
            return self._known.get(ask)


def layout(live: Live | None, given: Mapping[str, str]) -> list[Any]:
    """Controls, filled in from the address; generation starts only when the button is pressed."""
    if live is None:
        raise InputError("no model is loaded. Start the explorer with --model demo, or a folder or hub id.")
    said = {"prompt": _FIRST, "seed": "0", "action": _NONE, "selection": "top", "k": "8", "layers": "all"}
    said |= {"steps": "all", "tokens": "all"} | {name: given[name] for name in _FIELDS if name in given}
    layers = [block.layer for block in live.model.geometry.blocks]
    shape = live.model.geometry
    usual = f"default ({shape.pipeline.default_guidance:g})" if shape.takes_guidance else "none for this model"
    guidance = {"placeholder": usual, "disabled": not shape.takes_guidance}
    controls = [
        labeled("Prompt", dcc.Textarea(id="live-prompt", value=said["prompt"], rows=3)),
        labeled("Seed", dcc.Input(id="live-seed", value=said["seed"])),
        labeled("Steps", dcc.Input(id="live-n_steps", value=said.get("n_steps", ""), placeholder="the usual")),
        labeled("Guidance scale", dcc.Input(id="live-guidance", value=said.get("guidance", ""), **guidance)),
        html.H2("Edit"),
        labeled("Action", choice("live-action", [_NONE, *ACTIONS], said["action"])),
        labeled("Factor of scale", dcc.Input(id="live-factor", value=said.get("factor", ""))),
        labeled("Strength (0 to 1) of other actions", dcc.Input(id="live-alpha", value=said.get("alpha", ""))),
        labeled("Source prompt of transport", dcc.Textarea(id="live-source", value=said.get("source", ""), rows=2)),
        labeled("Channels", choice("live-selection", SELECTIONS, said["selection"])),
        labeled("k", dcc.Input(id="live-k", value=said["k"])),
        labeled("Listed channels", dcc.Input(id="live-channels", value=said.get("channels", ""), placeholder="46,121")),
        labeled("Layers", dcc.Input(id="live-layers", value=said["layers"]), "all, or indices such as 0,3"),
        labeled(
            "Steps of the edit", dcc.Input(id="live-steps", value=said["steps"]), "all, last, or indices such as 0,3"
        ),
        labeled("Tokens", choice("live-tokens", TOKENS, said["tokens"])),
        html.Button("Generate", id="live-go", type="button", className="go", title="Ctrl+Enter"),
        html.Button("Cancel", id="live-cancel", type="button"),
    ]
    looks = [
        labeled("Layer", places_slider("live-layer", layers, layers[len(layers) // 2])),
        labeled("Step", dcc.Slider(id="live-step", min=0, max=1, step=1, value=0, marks=None, updatemode="drag")),
        dcc.Checklist(id="live-latest", options=[{"label": "follow the latest step", "value": "on"}], value=["on"]),
        labeled("Rank of the channel", dcc.Input(id="live-rank", type="number", min=1, max=8, value=1)),
    ]
    waiting = "This URL describes a generation. Press Generate to start it."
    return [
        dcc.Store(id="live-ask"),
        dcc.Store(id="live-ended"),
        dcc.Interval(id="live-tick", interval=_EVERY_MS, disabled=True),
        heading(f"Live: {live.name}"),
        html.Div(
            [
                html.Section(controls, className="controls side", **{"aria-label": "Generation settings"}),
                html.Section(
                    [
                        html.Div(id="live-error"),
                        html.Div(
                            note(waiting if "prompt" in given else "Press Generate to see the channels form."),
                            id="live-state",
                        ),
                        html.Div(looks, className="controls"),
                        html.Div(id="live-rows", className="pair"),
                        html.Div(id="live-ratios", className="pair"),
                    ]
                ),
            ],
            className="live",
        ),
    ]


def register(app: Dash, live: Live) -> None:
    """Register the page's callbacks."""

    @app.callback(
        Output("live-ask", "data"),
        Output("live-error", "children"),
        Output("live-step", "max"),
        Output("link", "data", allow_duplicate=True),
        Input("live-go", "n_clicks"),
        *(State(f"live-{name}", "value") for name in _FIELDS),
        prevent_initial_call="initial_duplicate",
    )
    def begin(clicks: int | None, *values: Any) -> tuple[Any, ...]:
        if not clicks:  # opening a page starts nothing, since any site may link to it
            return no_update, None, no_update, no_update
        query = _query(dict(zip(_FIELDS, values, strict=True)))
        try:
            generation = live.begin(parse(query))
        except FewchannelsError as error:
            return no_update, alert(error), no_update, no_update
        asked = {"query": query, "n": clicks}
        return asked, None, max(1, generation.n_steps - 1), address(page_path("live"), query)

    @app.callback(Output("live-tick", "disabled"), Input("live-ask", "data"), Input("live-ended", "data"))
    def pause(asked: dict[str, Any] | None, ended: int | None) -> bool:
        # Not by the page: a response about the previous generation may arrive after the next one has started.
        return asked is None or asked["n"] == ended

    @app.callback(
        Output("live-error", "children", allow_duplicate=True),
        Input("live-cancel", "n_clicks"),
        prevent_initial_call=True,
    )
    def cancel(clicks: int | None) -> Any:
        if not clicks:
            return no_update
        return None if live.cancel() else note("Nothing is being generated.")

    @app.callback(
        Output("live-state", "children"),
        Output("live-rows", "children"),
        Output("live-ratios", "children"),
        Output("live-step", "value"),
        Output("live-ended", "data"),
        Input("live-tick", "n_intervals"),
        Input("live-layer", "value"),
        Input("live-step", "value"),
        Input("live-rank", "value"),
        Input("live-latest", "value"),
        State("live-ask", "data"),
        State("theme", "data"),
        prevent_initial_call=True,
    )
    def look(
        tick: int | None,
        layer: int,
        step: int,
        rank: int | None,
        latest: list[str],
        asked: dict[str, Any] | None,
        theme: Theme | None,
    ) -> tuple[Any, ...]:
        generation = live.find(parse(asked["query"])) if asked else None
        if asked is None or generation is None:
            return no_update, no_update, no_update, no_update, asked and asked["n"]
        now = generation.snapshot()
        at = len(now.steps) - 1 if latest else max(0, min(step, len(now.steps) - 1))
        rows = _rows(generation, now, at, layer, rank or 1, theme or "light") if now.steps else no_update
        ratios = [drawn(interactive(each, theme or "light")) for each in ratio_maps(generation, now)]
        ended = asked["n"] if now.has_ended else no_update
        return _state(generation, now), rows, ratios if now.steps else no_update, max(0, at), ended


def _query(values: Mapping[str, Any]) -> dict[str, str]:
    """Values of the controls; an edit's settings only if there is an edit."""
    said = {name: str(value).strip() for name, value in values.items() if value not in (None, "")}
    if said.get("action", _NONE) == _NONE:
        return {name: said[name] for name in _IMAGE_FIELDS if name in said}
    for name, owner in (("factor", "scale"), ("source", "transport")):
        if said["action"] != owner:
            said.pop(name, None)
    if said["action"] == "scale":
        said.pop("alpha", None)
    if said.get("selection") != "listed":
        said.pop("channels", None)
    return {name: text for name, text in said.items() if text}


def _state(generation: Trajectory, now: Snapshot) -> Any:
    if now.error:
        return alert(f"{now.state}: {now.error}")
    text = f"{now.state}, {len(now.steps)} of {generation.n_steps} steps"
    if now.measures:
        said = {name: value for name, value in now.measures.items() if value is not None}
        text += "; the edit: " + ", ".join(f"{name} {value:.3g}" for name, value in said.items())
    bar = html.Progress(value=str(len(now.steps)), max=str(generation.n_steps), **{"aria-label": "steps done"})
    return html.P([bar, " ", text], role="status")


def _rows(generation: Trajectory, now: Snapshot, at: int, layer: int, rank: int, theme: Theme) -> list[html.Section]:
    """Each row of the batch at a step and layer: its map, over its image once that is finished."""
    step, block = now.steps[at], place_at(generation.blocks, layer)
    shown = {role: _map(step.rows[role], layer, rank) for role in generation.roles}
    values = np.stack([each[1] for each in shown.values()])
    low, high = float(values.min()), float(values.max())
    sections = []
    for role, (channel, one, text) in shown.items():
        title = f"{role}: channel {channel}, step {step.step}, layer {block.layer}\n{text}"
        drawing = Overlay(now.images.get(role), one, title, "signed value", low, high, 0.6 if now.images else 1.0)
        parts: list[Any] = [drawn(overlay(drawing, theme).update_layout(height=380))]
        if role in now.images:
            parts.append(html.Img(src=data_uri(now.images[role]), alt=f"image, {role}", className="image"))
        sections.append(html.Section(parts))
    return sections


def _map(row: RowStep, layer: int, rank: int) -> tuple[int, np.ndarray, str]:
    """Channel, map ``(y, x)`` and text of one rank."""
    k = max(1, min(rank, row.channels.shape[1])) - 1
    channels = ", ".join(map(str, row.channels[layer].tolist()))
    return int(row.channels[layer, k]), row.maps[layer, k], f"largest here: {channels}"


def ratio_maps(generation: Trajectory, now: Snapshot) -> list[HeatMap]:
    """Ratio of the largest channel by layer and step, for the unedited and the edited row, on one scale."""
    values = {
        role: np.stack([step.rows[role].ratio for step in now.steps], axis=1)
        for role in ("undisturbed", "edited")
        if role in generation.roles and now.steps
    }
    missing = generation.n_steps - len(now.steps)
    both = np.stack(list(values.values())) if values else np.zeros(0)
    return [
        HeatMap(
            values=np.pad(each, ((0, 0), (0, missing)), constant_values=np.nan),
            title=f"{role}: largest score over the median, one image",
            rows=[block.layer for block in generation.blocks],
            columns=list(range(generation.n_steps)),
            row="layer",
            column="step",
            value="times the median",
            ends=(float(np.nanmin(both)), float(np.nanmax(both))),
        )
        for role, each in values.items()
    ]
