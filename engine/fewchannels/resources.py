"""Where the project's own data files are: ``schemas/`` and ``queries/``."""

from importlib import resources
from importlib.resources.abc import Traversable


def folder(name: str) -> Traversable:
    """The folder ``schemas`` or ``queries``: inside the package in a wheel, beside it in a checkout."""
    inside = resources.files("fewchannels").joinpath(name)
    return inside if inside.is_dir() else resources.files("fewchannels").joinpath("..", "..", name)
