"""Results of verification: problems, and a report of all of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fewchannels.runs.storage import Storage, Stored


@dataclass(frozen=True)
class Problem:
    """A difference from what was written.

    Attributes:
        key: the object.
        task: task that it belongs to; None for objects that the whole run shares.
        kind: ``missing``, ``size``, ``checksum``, ``undecodable``, ``record`` or ``disagrees``.
        detail: found and expected values.
    """

    key: str
    task: int | None
    kind: str
    detail: str


@dataclass(frozen=True)
class Report:
    """Report of :func:`fewchannels.runs.upkeep.verify.verify`.

    Attributes:
        n_tasks: tasks of the run.
        n_recorded: tasks with a record.
        n_objects: objects that were checked.
        n_bytes: number of bytes of these objects.
        problems: all problems, by key.
        unrecorded: keys that no record names: remains of unfinished tasks.
        left_over: sizes of temporary files, by name; their writers were interrupted, or are still writing.
        made_by: the command that created the run or the sweep, as the user typed it.
        analyses: analysis of each result that has a problem, by label.
    """

    n_tasks: int
    n_recorded: int
    n_objects: int
    n_bytes: int
    problems: tuple[Problem, ...]
    unrecorded: tuple[str, ...]
    left_over: Mapping[str, int] = field(default_factory=dict)
    made_by: str = "capture"
    analyses: Mapping[str, str] = field(default_factory=dict)

    @property
    def tasks(self) -> list[int]:
        """Tasks to rerun."""
        return sorted({problem.task for problem in self.problems if problem.task is not None})


def check_object(
    storage: Storage,
    sizes: Mapping[str, int],
    key: str,
    expected: Stored,
    task: int | None,
    quick: bool,
    problems: list[Problem],
) -> bytes | None:
    """An object's bytes if they are unchanged; otherwise None, and a problem is added; None for a quick check."""
    if key not in sizes:
        instead = "; a symbolic link is there, which is not followed" if storage.is_linked(key) else ""
        problems.append(Problem(key, task, "missing", f"{expected.n_bytes:,} bytes were stored{instead}"))
    elif sizes[key] != expected.n_bytes:
        problems.append(Problem(key, task, "size", f"{sizes[key]:,} bytes; {expected.n_bytes:,} were stored"))
    elif not quick:
        data = storage.get(key)
        if (found := Stored.of([data])) == expected:
            return data
        problems.append(Problem(key, task, "checksum", f"CRC-32C {found.crc32c}; {expected.crc32c} was stored"))
    return None
