"""Build a report from runs, sweeps and comparisons, and write it in one of the formats."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from fewchannels.analyses.document import Document, Part
from fewchannels.analyses.evidence import open_evidence
from fewchannels.errors import InputError
from fewchannels.files.durable import check_output, write
from fewchannels.runs.storage import open_storage
from fewchannels.views.report.comparison_part import comparison_part
from fewchannels.views.report.pdf import find_browser, print_pdf
from fewchannels.views.report.run_part import run_part
from fewchannels.views.report.sweep_part import sweep_part

KINDS = (".html", ".md", ".pdf")
Progress = Callable[[str, int, int], None]


def check_out(out: Path) -> None:
    """Refuse a file in an unknown format, or in a folder that does not exist.

    Raises:
        InputError: the message names the formats; or a PDF needs a browser that is not installed.
    """
    if out.suffix.lower() not in KINDS:
        raise InputError(
            f"--out is {str(out)!r}; its suffix must be {', '.join(KINDS[:-1])} or {KINDS[-1]}. Give, for example, "
            "-o report.html."
        )
    check_output(out)
    if not out.parent.is_dir():
        raise InputError(
            f"--out is {str(out)!r}, but there is no folder {str(out.parent)!r}. Create it, or choose another."
        )
    if out.suffix.lower() == ".pdf":
        find_browser()


def build(places: Sequence[str], by: str | None, on_progress: Progress = lambda what, done, total: None) -> Document:
    """Read runs and sweeps, finished or not, and comparisons into a report.

    Args:
        places: folders or URLs of runs, sweeps and comparisons.
        by: the column that samples are shown by; None for each part's own.
        on_progress: called with the activity, the number done, and the total.

    Raises:
        InputError: a place contains none of these, or there is no such column.
        StorageError: one is damaged.
        RunConflictError: one contains records of another.
    """
    parts: list[Part] = []
    titles = [open_storage(place).name or place for place in places]
    for place, title in zip(places, titles, strict=True):
        name = title if titles.count(title) == 1 else place
        on_progress(f"reading {name}", len(parts), len(places))
        evidence = open_evidence(place)
        with evidence.catalog:
            if evidence.catalog.of == "comparison":
                parts.append(comparison_part(evidence, name))
            else:
                make = sweep_part if evidence.catalog.of == "sweep" else run_part
                parts.append(make(evidence, name, by, on_progress))
    return Document(f"Report of {', '.join(part.title for part in parts)}", parts)


def write_report(document: Document, out: Path, on_progress: Progress = lambda what, done, total: None) -> int:
    """Write a report in the format that the file's suffix names, atomically; returns its size in bytes.

    Raises:
        InputError: a PDF needs a browser that is not installed.
        StorageError: writing failed.
    """
    kind = out.suffix.lower()
    if kind == ".md":
        from fewchannels.views.report.markdown import write_markdown

        return write_markdown(document, out, on_progress)
    if kind == ".html":
        return write_html(document, out, on_progress)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_html(document, page, on_progress)
        on_progress(f"printing {out}", 0, 1)
        return print_pdf(page, out, find_browser())


def write_html(document: Document, out: Path, on_progress: Progress = lambda what, done, total: None) -> int:
    """Write the page, atomically; returns its size in bytes.

    Raises:
        StorageError: writing failed.
    """
    from fewchannels.views.report.page import as_html

    return write(out, as_html(document, on_progress).encode())
