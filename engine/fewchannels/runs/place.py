"""Checks of an output location: no other files, and nothing with other settings."""

from collections.abc import Callable, Mapping
from typing import Any

from fewchannels.errors import RunConflictError
from fewchannels.runs.identity import differences
from fewchannels.runs.storage import Storage

_N_NAMED = 3


def check_free(storage: Storage, is_own: Callable[[str], bool], missing: str = "") -> None:
    """Refuse a place that holds other files. Reads only.

    Args:
        storage: the place.
        is_own: function that returns whether a key belongs to the output.
        missing: what the place should contain besides such files, for the message; empty if it may be empty.

    Raises:
        RunConflictError: naming some of them.
    """
    if others := [key for key in storage.list() if not is_own(key)]:
        but = f"no {missing} but " if missing else ""
        raise RunConflictError(
            f"{storage.url!r} contains {but}other files ({', '.join(others[:_N_NAMED])}); choose a new folder or URL."
        )


def begun_otherwise(mine: Mapping[str, Any], theirs: Mapping[str, Any], conflict: str, remedy: str) -> RunConflictError:
    """Return the error for a run, sweep or result with different settings; it names every field that differs.

    Args:
        mine: requested settings, which determine the data.
        theirs: settings of the existing one.
        conflict: beginning of the message, such as ``the run in 'RUN' was created with different settings``.
        remedy: its end.
    """
    lines = "\n  ".join(differences(dict(mine), dict(theirs)))
    return RunConflictError(f"{conflict}:\n  {lines}\n{remedy}")
