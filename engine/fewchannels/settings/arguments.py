"""Arguments of public functions, checked against their annotations."""

import ast
import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from fewchannels.errors import InputError

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def checked(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Reject arguments of another type than annotated, before the function does anything.

    Only annotations are checked of which every part is one of :data:`_KINDS`; NumPy's numbers are accepted as well.

    Raises:
        InputError: from the decorated function: an argument has another type.
    """

    @functools.wraps(function)
    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        signature = _signature(function)
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            parts = _parts(parameter.annotation)
            if parts <= _KINDS.keys() and not any(_KINDS[part][1](value) for part in parts):
                words = " or ".join(words for part, (words, _) in _KINDS.items() if part in parts)
                raise InputError(f"{name} is {value!r:.80}; it must be {words}.")
        return function(*args, **kwargs)

    return call


_signature = functools.cache(inspect.signature)


@functools.cache
def _parts(annotation: Any) -> frozenset[str]:
    """The parts of a union, by name without its module."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return frozenset(_members(ast.parse(re.sub(r"\b(\w+\.)+", "", text), mode="eval").body))


def _members(node: ast.expr) -> list[str]:
    if isinstance(node, ast.BinOp):
        return _members(node.left) + _members(node.right)
    return [ast.unparse(node)]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _all(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def several(value: Any) -> bool:
        if not isinstance(value, Collection):  # an iterator could be read only once, and by the function itself
            return isinstance(value, Iterable)
        return not isinstance(value, str | Mapping) and all(map(is_one, value))

    return several


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("text", _is_text),
    "Path": ("a path", lambda value: isinstance(value, Path)),
    "int": ("a whole number", _is_whole),
    "float": ("a number", _is_number),
    "bool": ("True or False", lambda value: isinstance(value, bool | np.bool_)),
    "Sequence[str]": ("a list of texts", _all(_is_text)),
    "Sequence[Mapping[str, Any]]": ("a list of dictionaries", _all(lambda value: isinstance(value, Mapping))),
    "None": ("None", lambda value: value is None),
}
