"""``fewchannels plot``: a sweep's means, contrasts and figures, drawn again over what is finished."""

import json
from typing import Annotated

import typer
from rich.markdown import Markdown

from engine.cli.console import results, say
from engine.cli.sweeps import Metrics, effects


def plot(
    sweep: Annotated[str, typer.Argument(help="Folder or URL of the sweep, finished or not.")],
    metric: Metrics = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Measure a sweep's effects over what is finished, and draw dose-response curves and strips of pictures.

    Example: fewchannels plot SWEEP
    """
    from engine.storage import open_storage

    finding = effects(open_storage(sweep), metric or ())
    if as_json:
        results.print_json(json.dumps(finding.numbers))
        return
    results.print(Markdown(finding.text))
    say(f"figures: {', '.join(sorted(finding.files))}, in {sweep}/results/effects/")
