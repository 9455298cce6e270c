"""A user's own family: the fields of :mod:`fewchannels.models.family` in a YAML file."""

import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from fewchannels.errors import InputError
from fewchannels.models.family import Family
from fewchannels.settings.file import parsed

_MOST_SHOWN = 20
_SHORT = reprlib.Repr()  # a file of a few lines may contain nested lists that take a gigabyte to print
_SHORT.maxlevel = 2


def read_family(path: Path) -> tuple[str, Family]:
    """Read a file with one family: a mapping from the transformer's class name to the fields of a Family.

    Raises:
        InputError: the file cannot be read, or a field is unknown, missing or of the wrong kind.
    """
    try:
        loaded = parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"cannot read the family file {str(path)!r}: {reason}") from None
    return named_family(loaded, str(path))


def named_family(loaded: Any, source: str) -> tuple[str, Family]:
    """A family from a mapping whose only key is the transformer's class name.

    Raises:
        InputError: it is not such a mapping, or a field is wrong.
    """
    if not isinstance(loaded, dict) or len(loaded) != 1:
        raise InputError(f"{source!r} must contain one family: the transformer's class name and, below it, its fields.")
    ((name, given),) = loaded.items()
    return str(name), family_of(given, source)


def family_of(given: Any, source: str) -> Family:
    """A family from plain values.

    Raises:
        InputError: naming the fields that are wrong.
    """
    try:
        return TypeAdapter(Family).validate_python(given)
    except ValidationError as error:
        wrong = "\n  ".join(
            f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']} (it is {_SHORT.repr(each['input'])})"
            for each in error.errors()[:_MOST_SHOWN]
        )
        raise InputError(
            f"the family in {source!r} cannot be read:\n  {wrong}\ndocs/families.md has the fields."
        ) from None


def as_fields(family: Family) -> dict[str, Any]:
    """A family as plain values that :func:`family_of` reads, without fields that have their defaults."""
    return _plain(family)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        required = {field.name for field in fields(value) if field.default is field.default_factory is MISSING}
        given = {field.name: getattr(value, field.name) for field in fields(value)}
        default = {field.name: _default(field) for field in fields(value)}
        return {name: _plain(each) for name, each in given.items() if name in required or each != default[name]}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
