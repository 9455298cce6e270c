"""Progress bars of long calls, in notebooks and terminals."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fewchannels.errors import warn

if TYPE_CHECKING:
    from fewchannels.cluster.tasks import Outcome, Progress

_DELAY_S = 2.0


@contextmanager
def counting(what: str, unit: str, is_shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar if the work takes more than two seconds.

    Args:
        what: description of the work.
        unit: name of a counted unit.
        is_shown: whether to show a bar at all.

    Yields:
        A function that is called with the number done and the total.
    """
    with _bar(what, unit, is_shown, _DELAY_S) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


class RunBar:
    """The bar of a capture or a sweep; a context manager.

    Args:
        what: description of the work, such as ``capturing``.
        unit: name of a counted unit, such as ``image``.
        is_shown: whether to show a bar at all.
    """

    def __init__(self, what: str, unit: str, is_shown: bool) -> None:
        self._what, self._context = what, _bar("checking the inputs", unit, is_shown, 0)
        self._of_each, self._has_begun = 1, False

    def __enter__(self) -> "RunBar":
        self._bar = self._context.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self.describe("done")
        elif self._bar.total is None:  # refused before there was anything to do
            self._bar.leave = False
        self._context.__exit__(kind, error, trace)

    def begin(self, n_samples: int, of_each: int = 1) -> None:
        """Show the amount of work.

        Args:
            n_samples: number of samples.
            of_each: number of counted units per sample.
        """
        self._of_each, self._bar.total = of_each, n_samples * of_each
        self.describe("loading the model")

    def describe(self, text: str) -> None:
        """Set the description of the bar."""
        self._bar.set_description(text)

    def show(self, progress: "Progress") -> None:
        """Show the progress of the run."""
        if not self._has_begun:
            # Samples of earlier calls must not count toward the rate.
            self._has_begun, self._bar.initial = True, progress.n_done * self._of_each
        if progress.n_actors:
            self.describe(self._what)
        if progress.n_failed:
            self._bar.set_postfix(failed=progress.n_failed)
        self._bar.update(progress.n_done * self._of_each - self._bar.n)


@contextmanager
def _bar(what: str, unit: str, is_shown: bool, delay: float) -> Iterator[Any]:
    with warnings.catch_warnings():
        # Without ipywidgets, a notebook shows the bar as a line of text, which is sufficient.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm

        bar = tqdm(desc=what, unit=f" {unit}s", total=None, disable=not is_shown, delay=delay)
    with bar:
        yield bar


def warn_of(outcome: "Outcome") -> None:
    """Warn of prompts that a text encoder truncated."""
    notes = outcome.of_tasks
    if notes.n_cut:
        warn(
            f"the text encoder truncated {notes.n_cut:,} prompts: its limit is {notes.limit:,} tokens, and the longest "
            f"prompt has {notes.longest:,}. The column prompt_truncated of run.samples marks them."
        )
