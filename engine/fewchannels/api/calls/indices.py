"""Layers and steps as Python arguments: a word, one index, or several."""

from collections.abc import Iterable
from numbers import Integral
from typing import Any

from fewchannels.errors import InputError

Indices = str | int | Iterable[int]
"""A word such as ``all``, one index, or several; negative ones count from the end."""


def as_text(name: str, value: Indices, n: int) -> str:
    """Convert a choice to a command's text: ``all``, ``last``, or indices such as ``0,5``.

    Args:
        name: name of the argument.
        value: the choice.
        n: number of layers or steps.

    Raises:
        InputError: the value is none of these, or an index does not exist.
    """
    if isinstance(value, str):
        return value
    chosen = several(name, value)
    if wrong := [each for each in chosen if not -n <= each < n]:
        raise InputError(f"{name} includes {wrong[0]}; valid are 0 to {n - 1}, or -{n} to -1 from the end.")
    return ",".join(str(each % n) for each in chosen)


def of_each_run(name: str, value: Indices) -> str:
    """Convert a choice for runs whose numbers of layers and steps may differ: ``all``, ``last``, or ``0,-1``.

    Raises:
        InputError: the value is not a word, an index, or several.
    """
    return value if isinstance(value, str) else ",".join(map(str, several(name, value)))


def several(name: str, value: Any) -> list[int]:
    """One index or several as a list, NumPy's integers included.

    Args:
        name: name of the argument.
        value: the choice.

    Raises:
        InputError: the value is neither.
    """
    chosen = list(value) if isinstance(value, Iterable) else [value]
    if not chosen or not all(isinstance(each, Integral) and not isinstance(each, bool) for each in chosen):
        raise InputError(f"{name} is {value!r:.80}; pass 'all', an index, or several, such as range(2, 5) or [0, -1].")
    return [int(each) for each in chosen]


def kept(name: str, value: Indices) -> Indices:
    """Keep a choice: a word as it is, and indices as a tuple, which can be read more than once.

    Raises:
        InputError: the value is not a word, an index, or several.
    """
    if isinstance(value, str):
        return value
    return tuple(several(name, tuple(value) if isinstance(value, Iterable) else value))
