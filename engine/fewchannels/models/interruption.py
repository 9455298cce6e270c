"""End all generations of this process, each at its next forward, since a thread cannot be killed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_requested = threading.Event()


@contextmanager
def interrupting() -> Iterator[None]:
    """End the generations of all other threads, each with a KeyboardInterrupt, while the context lasts."""
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
