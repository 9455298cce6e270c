"""``fewchannels plot``: recompute the means, contrasts and figures of a sweep's finished items, or draw one figure."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewchannels.cli.console import errors, print_json, say
from fewchannels.cli.sweeps import Metrics, effects
from fewchannels.cli.tables import Wide, print_page
from fewchannels.cli.unused import refuse_unused

if TYPE_CHECKING:
    from fewchannels.runs.storage import Storage


def register(app: typer.Typer) -> None:
    """Register the command."""
    app.command("plot")(plot)


def plot(
    sweep: Annotated[str, typer.Argument(help="Folder or URL of the sweep, finished or not.")],
    metric: Metrics = None,
    of: Annotated[
        str | None, typer.Option(help="Draw one figure: this column of the edits table against --axis.")
    ] = None,
    item: Annotated[int | None, typer.Option(help="Draw one figure: the images of this item.")] = None,
    axis: Annotated[
        str | None,
        typer.Option(help="Horizontal axis: k, amount, layer or step.", show_default="the setting that varies"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output file of that figure: FILE.png or FILE.svg.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    wide: Wide = False,
) -> None:
    """Compute a sweep's effects over its finished items, and draw dose-response curves and strips of images.

    With --of or --item, draw only that figure, to --out.

    Example: fewchannels plot SWEEP
    Example: fewchannels plot SWEEP --of ssim --axis k --out ssim.svg
    """
    from fewchannels.errors import InputError
    from fewchannels.files.durable import check_output, write
    from fewchannels.runs.storage import open_storage

    storage = open_storage(sweep)
    if of is None and item is None:
        if axis is not None or out is not None:
            raise InputError("--axis and --out apply to a single figure; choose it with --of METRIC or --item N.")
        outcome = effects(storage, metric or ())
        if as_json:
            print_json(outcome.numbers)
            return
        print_page(outcome.headlines, outcome.text, wide)
        say(f"figures: {', '.join(sorted(outcome.files))}, in {sweep}/results/effects/")
        return
    refuse_unused(["--metric", "--json"], "with --of or --item, one figure is drawn and nothing is measured")
    if of is not None and item is not None:
        raise InputError("--of and --item select two different figures. Pass only one of them.")
    if out is None or out.suffix not in (".png", ".svg"):
        raise InputError(f"--out is {str(out or '')!r}; give the file of the figure: FILE.png or FILE.svg.")
    check_output(out)
    with errors.status(f"drawing {out}"):
        write(out, _figure(storage, of, item, axis, out.suffix[1:]))
    say(f"wrote {out}")


def _figure(storage: "Storage", of: str | None, item: int | None, axis: str | None, kind: str) -> bytes:
    from fewchannels.analyses.figures.still import still
    from fewchannels.interventions.effects.measure import draw_dose, draw_strip

    drawing = draw_strip(storage, item, axis) if item is not None else draw_dose(storage, of or "", axis)
    return still(drawing, [kind])[kind]
