"""Durations of a task's stages: code reports its stage, and the runner of the task collects them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_taken: ContextVar[dict[str, float] | None] = ContextVar("taken", default=None)


@contextmanager
def collected() -> Iterator[dict[str, float]]:
    """Yield a mapping of stages to seconds, which is filled as this thread reports them inside the context.

    Tasks of other threads have their own.
    """
    taken: dict[str, float] = {}
    token = _taken.set(taken)
    try:
        yield taken
    finally:
        _taken.reset(token)


def took(stage: str, seconds: float) -> None:
    """Report the duration of a stage of this thread's task; repeated reports add up. A collector is optional."""
    taken = _taken.get()
    if taken is not None:
        taken[stage] = taken.get(stage, 0.0) + seconds
