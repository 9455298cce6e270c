"""Limits of a query: memory of its result, and time."""

import math
from dataclasses import dataclass

from fewchannels import machine
from fewchannels.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Limits of one query. None means no limit.

    Attributes:
        rows: rows of the answer.
        n_bytes: number of bytes of the answer in memory, in Arrow's format.
        seconds: seconds from the start of the query to the last row.

    Raises:
        InputError: a limit is not a number above 0.
    """

    rows: int | None = None
    n_bytes: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("rows", self.rows), ("n_bytes", self.n_bytes), ("seconds", self.seconds)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"the query limit {name} is {value!r}; it must be a positive number, or None.")


def default_limits() -> Limits:
    """A quarter of the memory that is still available to this process, and no limit on time."""
    return Limits(n_bytes=max(64 * 2**20, machine.free_bytes() // 4))
