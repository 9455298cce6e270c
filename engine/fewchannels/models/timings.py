"""What a task's time goes to: whoever does a part of it says so, whoever runs the task collects it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_taken: ContextVar[dict[str, float] | None] = ContextVar("taken", default=None)


@contextmanager
def collected() -> Iterator[dict[str, float]]:
    """Yields the seconds by stage that this thread says inside, filled as it continues; tasks of other threads have
    their own."""
    taken: dict[str, float] = {}
    token = _taken.set(taken)
    try:
        yield taken
    finally:
        _taken.reset(token)


def took(stage: str, seconds: float) -> None:
    """Say that a stage of this thread's task took so long; said again, it adds up. Nobody need be listening."""
    taken = _taken.get()
    if taken is not None:
        taken[stage] = taken.get(stage, 0.0) + seconds
