"""The start page: open runs and sweeps, and their progress."""

from typing import Any

from dash import dcc, html

from fewchannels.errors import FewchannelsError
from fewchannels.views.explore.address import run_path, sweep_path
from fewchannels.views.explore.lookup import Places
from fewchannels.views.explore.opened import Opened
from fewchannels.views.explore.widgets import alert, facts, heading, note


def layout(places: Places) -> list[Any]:
    """A card for each run and sweep."""
    return [
        heading("Runs and sweeps"),
        html.Div([_card(name, place) for name, place in places.items()], className="cards wide"),
    ]


def _card(name: str, place: Opened | str) -> html.Article:
    if isinstance(place, str):
        return html.Article([html.H2(name), alert(place)], className="card")
    to = run_path if place.of == "run" else sweep_path
    about = place.description
    shown: dict[str, object] = {"where": place.storage.url, "model": about["model"]["name"]}
    try:
        state = place.state()
    except FewchannelsError as error:
        return html.Article([html.H2(name), facts(shown), alert(error)], className="card")
    what = "samples" if place.of == "run" else f"items ({about['identity']['kind']})"
    shown |= {what: f"{state['n_items']:,}", "tasks done": f"{state['n_tasks_done']:,} of {state['n_tasks']:,}"}
    links = [dcc.Link("Open", href=to(name)), dcc.Link("SQL", href=to(name, "sql"))]
    states = [] if state["n_tasks_done"] == state["n_tasks"] else [note(_unfinished(state["n_tasks_done"]))]
    return html.Article(
        [html.H2(f"{name}, a {place.of}"), facts(shown), *states, html.P(links, className="links")], className="card"
    )


def _unfinished(n_done: int) -> str:
    if not n_done:
        return "No task is finished yet. Results appear as tasks finish."
    return "Not finished yet. Only finished tasks are shown; more appear as they finish."
