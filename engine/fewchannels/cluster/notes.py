"""Notes on tasks for the end of a run: why samples failed, and which prompts were truncated."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from fewchannels.errors import IncompleteRunError


@dataclass
class Notes:
    """Notes on one task or on several.

    Attributes:
        errors: the first error of each kind, and the number of samples that failed with that kind, by kind.
        n_cut: samples whose prompt the text encoder truncated.
        longest: tokens of the longest of these prompts.
        limit: maximum number of tokens of the text encoder; 0 if none was truncated.
    """

    errors: dict[str, tuple[str, int]] = field(default_factory=dict)
    n_cut: int = 0
    longest: int = 0
    limit: int = 0

    def add(self, other: "Notes") -> None:
        """Add the notes of another task."""
        for kind, (first, n) in other.errors.items():
            kept, n_before = self.errors.get(kind, (first, 0))
            self.errors[kind] = kept, n_before + n
        self.n_cut += other.n_cut
        self.longest, self.limit = max(self.longest, other.longest), max(self.limit, other.limit)


_current: ContextVar[Notes | None] = ContextVar("notes", default=None)


@contextmanager
def noting() -> Iterator[Notes]:
    """Collect this thread's notes inside the context; yields the collection."""
    notes = Notes()
    token = _current.set(notes)
    try:
        yield notes
    finally:
        _current.reset(token)


def note_failures(errors: Iterable[str]) -> None:
    """Note why samples failed.

    Args:
        errors: error of each failed sample, as ``KIND: TEXT``.
    """
    for error in errors:
        # Errors that differ only in numbers, such as counts and sizes, are of one kind.
        _note(Notes(errors={re.sub(r"\d+", "N", error.partition(":")[0]): (error, 1)}))


def note_cut_prompts(lengths: Iterable[int], limit: int) -> None:
    """Note prompts that the text encoder truncated.

    Args:
        lengths: lengths of these prompts, in tokens.
        limit: maximum number of tokens of the text encoder.
    """
    for length in lengths:
        _note(Notes(n_cut=1, longest=length, limit=limit))


def _note(notes: Notes) -> None:
    current = _current.get()
    if current is not None:
        current.add(notes)


def check_measured(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to base an estimate on failed samples.

    Args:
        rows: rows of the measured batch, with ``status`` and ``error``.

    Raises:
        IncompleteRunError: samples failed; the message has their number and the first reason.
    """
    if errors := [row["error"] for row in rows if row["status"] == "failed"]:
        raise IncompleteRunError(
            f"{len(errors)} of the {len(rows)} images that were generated to estimate time and size failed, so there "
            f"is no estimate. The first failed with {errors[0]}"
        )
