"""The progress of a capture or a sweep: a bar on a terminal; elsewhere, as in a job's log, a line every half minute."""

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
    """Shows a run's progress on standard error while the context lasts, and says on Ctrl+C that what is done is kept.

    Args:
        place: path or URL of the run, which is looked at first.
        verb: what is done to what is counted, such as ``capturing``.
        what: is counted, such as ``samples``.
        n_samples: of the run.
        of_each: how many of what is counted a sample is.
    """

    def __init__(self, place: str, verb: str, what: str, n_samples: int, of_each: int = 1) -> None:
        self._looking = errors.status(f"looking at {place}")  # a store out of reach is asked for minutes
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
            say("stopped; what is finished is kept: run the same command again to resume", style="yellow")
            raise typer.Exit(130) from None

    def wait(self, why: str) -> None:
        """Say why nothing happens yet."""
        self._looking.stop()
        say(why)

    def begin(self, text: str) -> None:
        """Say what begins, and show the bar."""
        self._looking.stop()
        say(text)
        self._has_begun, self._began = True, time.monotonic()
        if errors.is_terminal:
            self._bar.start()

    def stop(self) -> None:
        """Remove what is shown."""
        self._looking.stop()
        self._bar.stop()

    def describe(self, text: str) -> None:
        """Say what is happening before samples are done."""
        self._bar.update(self._shown, description=text)

    def show(self, progress: "Progress") -> None:
        """Show how far the run is."""
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
