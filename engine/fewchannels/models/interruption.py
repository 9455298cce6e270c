"""An end, at its next forward, to every generation of this process: a thread cannot be killed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_requested = threading.Event()


@contextmanager
def interrupting() -> Iterator[None]:
    """Generations of other threads end inside, each with a KeyboardInterrupt."""
    _requested.set()
    try:
        yield
    finally:
        _requested.clear()


def check_interrupted() -> None:
    """End this thread's generation if that was requested.

    Raises:
        KeyboardInterrupt: it was.
    """
    if _requested.is_set():
        raise KeyboardInterrupt
