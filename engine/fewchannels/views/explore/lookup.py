"""Find open runs and sweeps by their names in addresses."""

from collections.abc import Mapping

from fewchannels.errors import InputError, unknown
from fewchannels.views.explore.opened import Opened, OpenedRun, OpenedSweep

Places = Mapping[str, Opened | str]
"""Open runs and sweeps by name; for those that cannot be opened, the reason."""


def place_of(places: Places, name: str) -> Opened:
    """The run or sweep with a name.

    Raises:
        InputError: there is none, or it could not be opened.
    """
    if name not in places:
        raise unknown("run or sweep that is open", name, places)
    found = places[name]
    if isinstance(found, str):
        raise InputError(found)
    return found


def run_of(places: Places, name: str) -> OpenedRun:
    """The run under a name.

    Raises:
        InputError: there is none.
    """
    found = place_of(places, name)
    if not isinstance(found, OpenedRun):
        raise InputError(f"{name!r} is a sweep; its page is /sweep/{name}.")
    return found


def sweep_of(places: Places, name: str) -> OpenedSweep:
    """The sweep under a name.

    Raises:
        InputError: there is none.
    """
    found = place_of(places, name)
    if not isinstance(found, OpenedSweep):
        raise InputError(f"{name!r} is a run; its page is /run/{name}.")
    return found


def runs_of(places: Places) -> dict[str, OpenedRun]:
    """Every run that is open, by name."""
    return {name: each for name, each in places.items() if isinstance(each, OpenedRun)}
