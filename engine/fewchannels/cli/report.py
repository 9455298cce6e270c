"""``fewchannels report``: runs, sweeps and comparisons as one self-contained page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewchannels.cli.console import errors, print_json, progress_bar, say
from fewchannels.settings.units import size

if TYPE_CHECKING:
    from fewchannels.analyses.document import Document
    from fewchannels.views.report.build import Progress


def register(app: typer.Typer) -> None:
    """Register the command."""
    app.command("report")(report)


def report(
    places: Annotated[
        list[str], typer.Argument(help="Folders or URLs of runs and sweeps, finished or not, and of comparisons.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Output: FILE.html (self-contained), FILE.md (with a folder of images), or FILE.pdf."
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Column that ranks the best, median and worst samples.",
            show_default="iou, else ratio; for sweeps each main metric",
        ),
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also print FILE.html to FILE.pdf, using Chromium.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON; --out is then optional.")
    ] = False,
) -> None:
    """Write a report of runs and their findings: sentences with intervals and controls, figures, samples, commands.

    Example: fewchannels report RUN SWEEP -o report.html
    Example: fewchannels report RUN -o report.md --by best_iou
    """
    from fewchannels.errors import InputError
    from fewchannels.views.report.build import build, check_out
    from fewchannels.views.report.pdf import find_browser

    if out is None and not as_json:
        raise InputError(
            "--out is missing; give -o report.html, report.md or report.pdf, or --json to print only the findings."
        )
    if out is not None:
        check_out(out)
    if pdf and (out is None or out.suffix.lower() != ".html"):
        raise InputError(
            f"--pdf prints an HTML report, but --out is {str(out or '')!r}. Give -o report.html, or -o report.pdf."
        )
    if pdf:
        find_browser()
    with progress_bar() as bar:
        shown = bar.add_task("reading", total=len(places), rate="")

        def on_progress(what: str, done: int, total: int) -> None:
            bar.update(shown, description=what, completed=done, total=total)

        document = build(places, by, on_progress)
        said = _write(document, out, pdf, on_progress) if out is not None else []
    for line in said:
        say(line)
    if as_json:
        print_json(document.numbers())


def _write(document: "Document", out: Path, pdf: bool, on_progress: "Progress") -> list[str]:
    """Write the report; return the messages to print."""
    from fewchannels.views.report.build import write_report

    wrote = size(write_report(document, out, on_progress))
    match out.suffix.lower():
        case ".md":
            return [f"wrote {out} and {out.with_name(f'{out.stem}_figures')}/ ({wrote})"]
        case ".html":
            said = [f"wrote {out} ({wrote}), open it with a browser"]
            return [*said, *([_print(out, out.with_suffix(".pdf"))] if pdf else [])]
        case _:
            return [f"wrote {out} ({wrote})"]


def _print(page: Path, out: Path) -> str:
    from fewchannels.views.report.pdf import find_browser, print_pdf

    with errors.status(f"printing {out}"):
        return f"wrote {out} ({size(print_pdf(page, out, find_browser()))})"
