"""Provenance of a run's tasks: versions of libraries, threads, and files that a manifest names."""

import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from fewchannels.errors import RunConflictError
from fewchannels.files.contents import digests
from fewchannels.runs.ledger import Record
from fewchannels.runs.storage import Storage

LIBRARIES = ("fewchannels", "torch", "diffusers", "transformers", "numpy")
_THREADS = "threads"
_UNKNOWN = "not recorded"
_N_DIGITS = 16


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect the last bits."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def computed_by(n_threads: int, earlier: Record | None = None, triton: str | None = None) -> dict[str, str]:
    """Versions and CPU threads, in the format of a record.

    Args:
        n_threads: number of threads of PyTorch.
        earlier: earlier provenance of the same task, some of whose samples are unchanged; differences are listed twice.
        triton: version of Triton if its kernels reduced the hidden states; None if PyTorch's operations did.
    """
    now = versions() | {_THREADS: str(n_threads)} | ({"triton": triton} if triton else {})
    return now if earlier is None else joined([earlier.computed_by, now])


def joined(several: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Provenance of a task whose samples come from several tasks, with each distinct value once; empty if unknown."""
    names = dict.fromkeys(name for each in several for name in each)
    found = {name: [part for each in several for part in each.get(name, _UNKNOWN).split(", ")] for name in names}
    return {name: ", ".join(dict.fromkeys(parts)) for name, parts in found.items()}


def named_files(paths: Iterable[str | None], earlier: Record | None = None) -> dict[str, str]:
    """Digests, 16 hex digits by path, of files that determine a task's data; missing files are left out."""
    found = {path: digest[:_N_DIGITS] for path, digest in digests(path for path in paths if path).items() if digest}
    return dict(earlier.files if earlier else {}) | found


def check_named_files(storage: Storage, records: Iterable[Record]) -> None:
    """Refuse files that have changed since tasks were finished. Files that no longer exist are not compared.

    Args:
        storage: storage of the run or sweep.
        records: records of finished tasks.

    Raises:
        RunConflictError: naming one of them.
    """
    was: dict[str, set[str]] = {}
    for record in records:
        for path, digest in record.files.items():
            was.setdefault(path, set()).add(digest)
    now = {path: digest[:_N_DIGITS] for path, digest in digests(was).items() if digest}
    if others := [path for path, found in was.items() if len(found | {now.get(path, "")} - {""}) > 1]:
        first = others[0]
        raise RunConflictError(
            f"{len(others)} of the files that {storage.url!r} depends on have changed, such as "
            f"{first!r}: SHA-256 {' and '.join(sorted(was[first]))} when tasks ran, {now.get(first, 'missing')} "
            "now. Restore them, or choose another --out."
        )


def notes(records: Iterable[Record], n_threads: int, unknown: Iterable[str] = ()) -> list[str]:
    """Notes before a run is resumed: differences between its finished tasks and the next ones.

    Args:
        records: records of finished tasks.
        n_threads: CPU threads of the tasks to come.
        unknown: fields of the identity that the run was created without.
    """
    now, found = computed_by(n_threads), list[str]()
    counts: Counter[tuple[str, str]] = Counter()
    for record in records:
        for name, value in record.computed_by.items():
            if name in now and (name != _THREADS or record.device.startswith("cpu")):
                counts[name, value] += 1
    for (name, value), n in sorted(counts.items()):
        if value != now[name]:
            what = f"{value} CPU threads" if name == _THREADS else f"{name} {value}"
            found.append(f"{n:,} finished task{'s' * (n > 1)} ran with {what}; it is {now[name]} now")
    if left_out := sorted(unknown):
        found.append(
            f"it was created by an earlier version, which recorded no digest of {' and '.join(left_out)}, so a change "
            "there would not be noticed"
        )
    return found


def in_words(computed: Mapping[str, Any]) -> str:
    """Versions as one text: ``diffusers 0.42.1, ..., threads 1``."""
    return ", ".join(f"{name} {value}" for name, value in sorted(computed.items()))


def by_version(records: Iterable[Record]) -> dict[str, int]:
    """Number of tasks finished by each set of versions and threads, in descending order."""
    return dict(Counter(in_words(each.computed_by) or _UNKNOWN for each in records).most_common())
