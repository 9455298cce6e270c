"""``fewchannels explore``: look at runs and sweeps in a browser."""

import os
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewchannels import machine
from fewchannels.cli.console import errors, results, say
from fewchannels.errors import InputError

if TYPE_CHECKING:
    from fewchannels.views.explore.live import Live
    from fewchannels.views.explore.server import Bound

_TEXT_BROWSERS = ("browsh", "elinks", "links", "lynx", "w3m", "www-browser")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("explore")(explore)


def explore(
    places: Annotated[
        list[str] | None,
        typer.Argument(help="Folders or URLs of runs and sweeps, finished or not.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A model for the live page: demo, a folder or a hub id.", show_default="no live page"),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 8050,
    public_url: Annotated[
        str | None,
        typer.Option(help="Address of a proxy in front of it, with the path.", show_default="none"),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, max=86_400, help="Seconds that a question may take.")] = 60.0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in a browser.")] = True,
) -> None:
    """Look at runs and sweeps in a browser: galleries, maps over images, sweeps as grids, SQL, a live model.

    It serves only this machine, at 127.0.0.1, until it is interrupted. The address that it prints contains a token;
    open it to let a browser in. Every view has its own address.

    Example: fewchannels explore RUN SWEEP
    Example: fewchannels explore --model demo
    Example: ssh -L 8050:127.0.0.1:8050 NODE fewchannels explore RUN --no-browser
    """
    with errors.status("opening"):
        from fewchannels.views.explore.opened import open_places
        from fewchannels.views.explore.server import bind, serve

        if not places and model is None:
            raise InputError("there is nothing to look at; give a run, a sweep, or --model demo for the live page.")
        opened = open_places(places or [], timeout)
        failed = [place for place in opened.values() if isinstance(place, str)]
        if failed and len(failed) == len(opened) and model is None:
            raise InputError("\n".join(failed))
        session = _session(model) if model else None
        bound = bind(opened, port, session, public_url)
    for name, place in opened.items():
        if isinstance(place, str):
            say(f"{name} cannot be shown: {place}", style="yellow")
    results.print(bound.address, soft_wrap=True)
    say("Press Ctrl+C to stop.")
    try:
        is_idle = serve(bound, lambda: _open(bound) if browser else None)
    finally:
        if session:
            session.model.close()
    if not is_idle:
        os._exit(0)  # a question that goes on in a thread of DuckDB's would make the interpreter's own end an abort


def _open(bound: "Bound") -> None:
    """Open it in a browser with windows: its pages need JavaScript, and a text browser takes the terminal."""
    with suppress(webbrowser.Error):  # there is none; the address is printed
        chosen = webbrowser.get()
        if Path(getattr(chosen, "name", "")).name not in _TEXT_BROWSERS:
            chosen.open(bound.once())


def _session(model: str) -> "Live":
    from fewchannels.interventions.live.session import LiveModel
    from fewchannels.views.explore.live import Live

    return Live(LiveModel(model, max(1, machine.processors() - 1)), model)
