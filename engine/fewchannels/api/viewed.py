"""Reporting and exploring, for runs and sweeps alike."""

from pathlib import Path

from fewchannels.api.explorer import Explorer, explore
from fewchannels.api.report import report
from fewchannels.runs.opened import Opened


class Viewed(Opened):
    """A run or a sweep that can be reported and explored."""

    def report(self, out: str | Path, *, by: str | None = None, progress: bool = True) -> Path:
        """Write a report of it: :func:`fewchannels.report`."""
        return report(self, out=out, by=by, progress=progress)

    def explore(self, *, port: int = 0, browser: bool = False) -> Explorer:
        """Serve it to a browser: :func:`fewchannels.explore`."""
        return explore(self, port=port, browser=browser)
