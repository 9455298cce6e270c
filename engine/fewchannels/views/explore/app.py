"""The explorer: a Dash application over open runs and sweeps, for this machine's own browser."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dash import ClientsideFunction, Dash, Input, Output, dcc, html
from flask import request

from fewchannels.errors import FewchannelsError, InputError
from fewchannels.views.explore import compare, console, findings, gallery, home, live, sample, sweep
from fewchannels.views.explore.address import KEYS, asked, page_path
from fewchannels.views.explore.files import serve_files
from fewchannels.views.explore.guard import guard
from fewchannels.views.explore.keys import Keys
from fewchannels.views.explore.lookup import Places, place_of, run_of, sweep_of
from fewchannels.views.explore.posts import CheckedDash, check_posts
from fewchannels.views.explore.site import Prefixed, Site
from fewchannels.views.explore.widgets import alert, heading

ASSETS = Path(__file__).parent / "assets"


def make_app(places: Places, site: Site, keys: Keys, session: live.Live | None = None) -> Dash:
    """The application.

    Args:
        places: result of :func:`fewchannels.views.explore.opened.open_places`.
        site: addresses of the explorer.
        keys: keys that open it.
        session: a model for the live page; None for none.
    """
    app = CheckedDash(
        "fewchannels",
        routes_pathname_prefix="/",
        requests_pathname_prefix=f"{site.prefix}/",
        title="fewchannels",
        update_title="",
        assets_folder=str(ASSETS),
        suppress_callback_exceptions=True,
        add_log_handler=False,
        enable_mcp=False,
    )
    app.server.extensions[KEYS] = keys
    app.server.wsgi_app = Prefixed(app.server.wsgi_app, site.prefix)
    app.layout = functools.partial(_shell, has_live=session is not None)
    for page in (gallery, sample, compare, sweep, console, findings):
        page.register(app, places)
    if session is not None:
        live.register(app, session)
    _route(app, places, session)
    serve_files(app.server, places)
    app.clientside_callback(
        ClientsideFunction("fewchannels", "theme"),
        Output("theme", "data"),
        Input("theme-button", "n_clicks"),
    )
    app.clientside_callback(ClientsideFunction("fewchannels", "link"), Output("linked", "data"), Input("link", "data"))
    guard(app.server, site, keys, app.csp_hashes())
    check_posts(app.server, app.callback_map)
    return app


def _shell(*, has_live: bool) -> html.Div:
    return html.Div(
        [
            dcc.Location(id="address", refresh="callback-nav"),
            dcc.Store(id="theme"),
            dcc.Store(id="link"),
            dcc.Store(id="linked"),
            html.A("Skip to the page", href="#page", className="skip"),
            html.Header(
                [
                    dcc.Link("fewchannels", href=page_path(), className="brand"),
                    html.Nav(
                        [
                            dcc.Link("Runs", href=page_path()),
                            dcc.Link("Compare", href=page_path("compare")),
                            *([dcc.Link("Live", href=page_path("live"))] * has_live),
                        ],
                        **{"aria-label": "Pages"},
                    ),
                    html.Button("Theme", id="theme-button", type="button"),
                ]
            ),
            html.Main(id="page", tabIndex="-1"),
        ]
    )


def _route(app: Dash, places: Places, session: live.Live | None) -> None:
    @app.callback(Output("page", "children"), Input("address", "pathname"), Input("address", "search"))
    def show(path: str | None, search: str | None) -> Any:
        try:
            return page_of(places, session, (path or "/").removeprefix(request.script_root), asked(search))
        except FewchannelsError as error:
            return [heading("This cannot be shown"), alert(error)]


def page_of(places: Places, session: live.Live | None, path: str, given: Mapping[str, str]) -> Any:
    """Content of an address.

    Raises:
        FewchannelsError: there is no content at the address, or it cannot be read.
    """
    parts = [unquote(part) for part in path.strip("/").split("/") if part]
    match parts:
        case []:
            return home.layout(places)
        case ["live"]:
            return live.layout(session, given)
        case ["compare"]:
            return compare.layout(places, given)
        case ["run", name]:
            return gallery.layout(run_of(places, name), given)
        case ["run", name, "sample", sample_id]:
            return sample.layout(run_of(places, name), sample_id, given)
        case ["sweep", name]:
            return sweep.layout(sweep_of(places, name), given)
        case ["run" | "sweep", name, "sql"]:
            return console.layout(place_of(places, name), given)
    raise InputError(f"there is no page {path!r}. The start page lists the open runs and sweeps.")
