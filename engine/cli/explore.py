"""``fewchannels explore``: look at runs and sweeps in a browser."""

import webbrowser
from typing import Annotated

import typer

from engine.cli.console import errors, results, say


def explore(
    places: Annotated[list[str], typer.Argument(help="Folders or URLs of runs and sweeps, finished or not.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 8050,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in a browser.")] = True,
) -> None:
    """Look at runs and sweeps in a browser: galleries, maps over pictures, sweeps as grids, an SQL console.

    It serves this machine alone, at an address of 127.0.0.1, until it is interrupted. Every view has its own address.

    Example: fewchannels explore RUN SWEEP
    Example: ssh -L 8050:127.0.0.1:8050 NODE fewchannels explore RUN --no-browser
    """
    with errors.status("opening"):
        from engine.explore.opened import open_places
        from engine.explore.server import bind, serve

        opened = open_places(places)
        server, address = bind(opened, port)
    for name, place in opened.items():
        if isinstance(place, str):
            say(f"{name} cannot be shown: {place}", style="yellow")
    results.print(address, markup=False)
    say("Interrupt with Ctrl+C.")
    serve(server, lambda: webbrowser.open(address) if browser else None)
