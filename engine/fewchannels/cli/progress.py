"""Progress of a capture or a sweep: a bar on a terminal; elsewhere, such as in a job's log, a line every 30 seconds."""

import time
from types import TracebackType
from typing import TYPE_CHECKING

import typer

from fewchannels.cli.console import duration, errors, progress_bar, say
from fewchannels.settings.units import size

if TYPE_CHECKING:
    from fewchannels.cluster.tasks import Progress

_LINES_APART_S = 30.0


class RunBar:
    """Context manager that shows a run's progress on standard error; on Ctrl+C, it says that finished work is kept.

    Args:
        place: path or URL of the run, which is opened first.
        verb: description of the work, such as ``capturing``.
        what: name of the counted units, such as ``samples``.
        n_samples: number of samples in the run.
        of_each: number of counted units per sample.
    """

    def __init__(self, place: str, verb: str, what: str, n_samples: int, of_each: int = 1) -> None:
        self._looking = errors.status(f"opening {place}")  # an unreachable store is retried for minutes
        self._has_begun = False
        self._verb, self._what, self._of_each, self._total = verb, what, of_each, n_samples * of_each
        self._bar = progress_bar()
        self._shown = self._bar.add_task("starting and loading the model", total=self._total, rate="")
        self._began = self._said = time.monotonic()
        self._n_at_first: int | None = None

    def __enter__(self) -> "RunBar":
        self._looking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._has_begun and isinstance(error, KeyboardInterrupt):
            say("Interrupted. Finished work is kept; rerun the same command to resume.", style="yellow")
            raise typer.Exit(130) from None

    def wait(self, why: str) -> None:
        """Show why the run is waiting."""
        self._looking.stop()
        say(why)

    def begin(self, text: str) -> None:
        """Print what starts, and show the bar."""
        self._looking.stop()
        say(text)
        self._has_begun, self._began = True, time.monotonic()
        if errors.is_terminal:
            self._bar.start()

    def stop(self) -> None:
        """Remove the bar or the status line."""
        self._looking.stop()
        self._bar.stop()

    def describe(self, text: str) -> None:
        """Describe the current activity until the first samples are done."""
        self._bar.update(self._shown, description=text)

    def show(self, progress: "Progress") -> None:
        """Update the progress."""
        n_done = progress.n_done * self._of_each
        if self._n_at_first is None:
            self._n_at_first = n_done
        seconds = time.monotonic() - self._began
        rate = (n_done - self._n_at_first) / seconds if seconds else 0.0
        parts = [f"{rate:.3g} {self._what}/s"] if rate else []
        parts += [_counted(progress.n_actors, "worker")] if progress.n_actors else []
        parts += [f"{progress.n_starting} starting"] if progress.n_starting else []
        parts += [f"{_counted(progress.n_again, 'task')} again"] if progress.n_again else []
        parts += [f"{progress.n_failed} failed"] if progress.n_failed else []
        parts += [size(progress.n_bytes)] if progress.n_bytes else []
        if progress.n_actors:
            self.describe(self._verb)
        self._bar.update(self._shown, completed=n_done, rate=", ".join(parts))
        if not errors.is_terminal and time.monotonic() >= self._said + _LINES_APART_S:
            self._said = time.monotonic()
            left = f", {duration((self._total - n_done) / rate)} left" if rate else ""
            say(f"{self._verb}: {n_done} of {self._total} {self._what}, {', '.join(parts) or 'no actor yet'}{left}")


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
