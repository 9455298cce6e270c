"""Where the project's own data files are: ``schemas/`` and ``queries/``."""

from importlib import resources
from importlib.resources.abc import Traversable


def folder(name: str) -> Traversable:
    """The folder ``schemas`` or ``queries`` of the package; in a checkout, a link to the one at its root."""
    return resources.files("fewchannels").joinpath(name)
