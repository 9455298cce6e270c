"""``fewchannels explore``: view runs and sweeps in a browser."""

import os
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewchannels import machine
from fewchannels.cli.console import errors, results, say
from fewchannels.cli.options import Fields, Given
from fewchannels.cli.unused import refuse_unused
from fewchannels.errors import InputError
from fewchannels.models.load_options import Loading

if TYPE_CHECKING:
    from fewchannels.views.explore.live import Live
    from fewchannels.views.explore.server import Bound

LOADING = Fields(Loading, panels={Loading: "How the model of the live page is loaded"})
_TEXT_BROWSERS = ("browsh", "elinks", "links", "lynx", "w3m", "www-browser")


def register(app: typer.Typer) -> None:
    """Register the command."""
    app.command("explore")(explore)


def explore(
    loading: Annotated[Given, LOADING],
    places: Annotated[
        list[str] | None,
        typer.Argument(help="Folders or URLs of runs and sweeps, finished or not.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A model for the live page: demo, a folder or a hub id.", show_default="no live page"),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 chooses a free one.")] = 8050,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub id.", show_default="the hub's default")
    ] = None,
    family: Annotated[
        Path | None,
        typer.Option(help="YAML file that describes a transformer class (docs/families.md).", show_default="none"),
    ] = None,
    public_url: Annotated[
        str | None,
        typer.Option(help="Public URL of a proxy in front of the explorer, including the path.", show_default="none"),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, max=86_400, help="Time limit of a query, in seconds.")] = 60.0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in a browser.")] = True,
) -> None:
    """View runs and sweeps in a browser: galleries, maps over images, sweeps as grids, SQL, a live model.

    The server listens only on this machine, at 127.0.0.1, until interrupted. The URL that it prints contains an access
    token; open that URL in the browser. Every view has its own URL.

    Example: fewchannels explore RUN SWEEP
    Example: fewchannels explore --model demo
    Example: fewchannels explore --model black-forest-labs/FLUX.1-dev --dtype bfloat16 --offload model
    Example: ssh -L 8050:127.0.0.1:8050 NODE fewchannels explore RUN --no-browser
    """
    with errors.status("opening"):
        from fewchannels.views.explore.opened import open_places
        from fewchannels.views.explore.server import bind, serve

        if model is None:
            refuse_unused([*LOADING.flags(), "--revision", "--family"], "there is no --model to load")
        if not places and model is None:
            raise InputError("there is nothing to show. Pass a run, a sweep, or --model demo for the live page.")
        opened = open_places(places or [], timeout)
        failed = [place for place in opened.values() if isinstance(place, str)]
        if failed and len(failed) == len(opened) and model is None:
            raise InputError("\n".join(failed))
        session = _session(model, revision, family, Loading(**loading)) if model else None
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
        os._exit(0)  # a query that still runs in a DuckDB thread would make a normal interpreter exit abort


def _open(bound: "Bound") -> None:
    """Open the URL in a graphical browser: the pages need JavaScript, and a text browser would occupy the terminal."""
    with suppress(webbrowser.Error):  # no browser available; the URL is printed
        chosen = webbrowser.get()
        if Path(getattr(chosen, "name", "")).name not in _TEXT_BROWSERS:
            chosen.open(bound.once())


def _session(model: str, revision: str | None, family: Path | None, loading: Loading) -> "Live":
    from fewchannels.interventions.live.session import LiveModel
    from fewchannels.models.family_file import read_family
    from fewchannels.views.explore.live import Live

    n_threads, described = max(1, machine.processors() - 1), read_family(family) if family else None
    return Live(LiveModel(model, n_threads, revision=revision, family=described, loading=loading), model)
