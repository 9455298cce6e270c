"""``fc.report``: a page of runs, sweeps and comparisons."""

from pathlib import Path

from fewchannels.api.messages import in_python
from fewchannels.api.progress import counting
from fewchannels.errors import InputError
from fewchannels.files.durable import expanded
from fewchannels.runs.opened import Opened
from fewchannels.settings.arguments import checked


@checked
def report(*places: str | Path | Opened, out: str | Path, by: str | None = None, progress: bool = True) -> Path:
    """Write a report: findings with intervals and controls, figures, samples, and the commands that reproduce them.

    Args:
        *places: runs and sweeps, opened or as folders or URLs, finished or not; and comparisons.
        out: ``FILE.html``, which is self-contained, ``FILE.md`` with a folder of images, or ``FILE.pdf``.
        by: column that ranks the best, median and worst samples; None for the default of each place.
        progress: whether to show a progress bar if this takes more than two seconds.

    Returns:
        The file.

    Raises:
        InputError: there is nothing to report, or the file cannot be written.
        StorageError: a place is damaged, or writing failed.

    Example:
        >>> fc.report("RUN", out="report.html", progress=False)
        PosixPath('report.html')
    """
    from fewchannels.views.report.build import build, check_out, write_report

    path = expanded(out)
    with in_python(), counting("report", "part", progress) as update:
        if not places:
            raise InputError("there is nothing to report. Pass a run, a sweep, or the folder of one.")
        check_out(path)
        document = build([where(each) for each in places], by, lambda what, done, total: update(done, total))
        write_report(document, path)
    return path


def where(place: str | Path | Opened) -> str:
    """The folder or URL of a run or sweep, opened or not."""
    if isinstance(place, Opened):
        return place.place
    if not isinstance(place, str | Path):
        raise InputError(f"{place!r:.80} is not a run, sweep or comparison. Pass an opened one, or its folder or URL.")
    return str(place)
