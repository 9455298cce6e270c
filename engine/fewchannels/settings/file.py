"""Settings from a YAML file: plain values of the right kinds, each within its field's range."""

import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fewchannels.errors import InputError, unknown
from fewchannels.settings.ranges import Several, hold, rules, shown

_MOST_BYTES = 2**20
_MOST_WHOLE = 10**18  # a longer number is not a name, and Python may refuse to write it out


def read_yaml(file: Path | None) -> dict[str, Any]:
    """The mapping in a settings file; empty without one.

    Raises:
        InputError: it cannot be read, or holds no mapping.
    """
    if file is None:
        return {}
    import yaml  # takes longer than a command without a file

    try:
        if not file.is_file():
            raise InputError(f"there is no settings file {str(file)!r}.")
        if file.stat().st_size > _MOST_BYTES:
            raise InputError(
                f"{str(file)!r} has more than {_MOST_BYTES:,} bytes, which is too large for a settings file."
            )
        loaded = parsed(file.read_text(encoding="utf-8"))
    except InputError:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"cannot read the settings file {str(file)!r}: {reason}") from None
    if not isinstance(loaded, dict):
        raise InputError(
            f"{str(file)!r} must contain a mapping such as 'top_k: 12', but it contains {type(loaded).__name__}."
        )
    return loaded


def parsed(text: str) -> Any:
    """What YAML holds, in plain values.

    Raises:
        ValueError: a mapping has a name twice, of which YAML's readers drop the first.
        yaml.YAMLError: it is not YAML.
    """
    import yaml

    left = [yaml.compose(text, yaml.SafeLoader)]
    seen: set[int] = set()
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            for key, value in node.value:
                left.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in names:
                    raise ValueError(f"line {key.start_mark.line + 1} has {key.value!r:.60} a second time")
                names.add(key.value)
        elif isinstance(node, yaml.SequenceNode):
            left += node.value
    return yaml.safe_load(text)


def settled(settings: type, loaded: Mapping[Any, Any], source: str, besides: Collection[str] = ()) -> dict[str, Any]:
    """Values for a dataclass' fields from what a file says.

    Args:
        settings: the dataclass.
        loaded: values by field.
        source: what the file is called in messages.
        besides: names that are also valid, for the message about one that is not.

    Raises:
        InputError: an unknown field, a value of the wrong kind, or one out of its range.
    """
    kinds, known = typing.get_type_hints(settings), rules(settings)
    found = {}
    for name, value in loaded.items():
        if name not in kinds:
            raise unknown(f"setting in {source}", name if isinstance(name, str) else shown(name), [*besides, *kinds])
        found[name] = _converted(kinds[name], value)
        rule = known.get(name)
        if not _is_of(kinds[name], found[name]):
            listed = isinstance(rule, Several)
            raise InputError(f"{name} in {source} is {shown(value)}; it must be {_words(kinds[name], listed=listed)}.")
        if rule is not None and found[name] is not None:
            hold(f"{name} in {source}", found[name], rule)
    return found


def _alternatives(kind: Any) -> tuple[type, ...]:
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _converted(kind: Any, value: Any) -> Any:
    """The value as the field has it, where one means the other: 3 for a text, a list for a tuple or for "0,5"."""
    if typing.get_origin(kind) is tuple:
        (each, *_) = typing.get_args(kind)
        return tuple(_converted(each, part) for part in (value if isinstance(value, list) else [value]))
    allowed = _alternatives(kind)
    is_whole = type(value) is int and abs(value) < _MOST_WHOLE
    if float in allowed and is_whole:
        return float(value)
    if str in allowed and is_whole:  # `layers: 3` and `layers: "3"` mean the same
        return str(value)
    if str in allowed and isinstance(value, list) and all(type(part) in (int, str) for part in value):
        return ",".join(shown(part) if type(part) is int else part for part in value)  # `layers: [0, 5]` means "0,5"
    return value


def _is_of(kind: Any, value: Any) -> bool:
    from pydantic import TypeAdapter, ValidationError  # takes longer than a command without a file

    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _words(kind: Any, *, listed: bool) -> str:
    if listed:
        return f"a list of {typing.get_args(kind)[0].__name__}"
    return " or ".join("null" if each is type(None) else each.__name__ for each in _alternatives(kind))
