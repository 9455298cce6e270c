"""Every setting has a rule: kept in its dataclass field's metadata, and checked when the dataclass is made.

    @dataclass(frozen=True)
    class Settings:
        steps: int = field(default=20, metadata=within(1, 10_000, "Denoising steps."))

        def __post_init__(self) -> None:
            check(self)

The command line takes an option's help and its check from the same field (``fewchannels.cli.options``).
"""

import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Protocol

from fewchannels.errors import InputError

MOST_SEED = 2**63 - 1
IS_LATER = "is_later"
REPEATS = "repeats"
"""Metadata key of a tuple's field whose option is repeated for each part."""
LATER = {IS_LATER: True}
"""Metadata of a field that documents leave out at its default: a format had it not at first."""
MOST_INDEX = 1_000_000
"""Of a channel, and of channels in a set: far above any model's."""
_MOST_CHARACTERS = 4_096
_MOST_LISTED = 1_000
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlong = 40


class Rule(Protocol):
    """What a value must be."""

    def parse(self, text: str) -> Any:
        """The value that a text stands for; the text itself where it stands for none."""

    def fault(self, value: Any) -> str:
        """What a value that breaks the rule must be, such as ``it must be 1 to 10``; empty for a valid value."""

    def in_short(self) -> str:
        """The rule for a line of help, such as ``1 to 10``; empty if there is nothing to say."""


@dataclass(frozen=True)
class Whole:
    """A whole number between two ends, both included."""

    least: int
    most: int

    def parse(self, text: str) -> Any:
        """Digits are ASCII: ``int`` would take those of every script, and underscores."""
        text = text.strip()
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,40}", text) else text

    def fault(self, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, Integral):
            return f"it must be a whole number, {self.in_short()}"
        return "" if self.least <= int(value) <= self.most else f"it must be {self.in_short()}"

    def in_short(self) -> str:
        return f"{_number(self.least)} to {_number(self.most)}"


@dataclass(frozen=True)
class Number:
    """A finite number between two ends, both included unless ``exclusive``."""

    least: float
    most: float
    exclusive: bool = False

    def parse(self, text: str) -> Any:
        """ASCII only, and without Python's underscores."""
        try:
            return float(text) if text.isascii() and "_" not in text else text
        except ValueError:
            return text

    def fault(self, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, Real):
            return f"it must be a number, {self.in_short()}"
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            return f"it must be a finite number, {self.in_short()}"
        inside = self.least < number < self.most if self.exclusive else self.least <= number <= self.most
        return "" if inside else f"it must be {self.in_short()}"

    def in_short(self) -> str:
        least, most = _number(self.least), _number(self.most)
        return f"above {least} and below {most}" if self.exclusive else f"{least} to {most}"


@dataclass(frozen=True)
class Text:
    """A text for people or programs: not blank, and without characters that cannot be printed or stored.

    Attributes:
        pattern: regular expression that all of it must match; None for any.
        wanted: the pattern in words.
    """

    pattern: str | None = None
    wanted: str = ""

    def parse(self, text: str) -> Any:
        return text

    def fault(self, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            return f"it must be {self.wanted or 'text, and not empty'}"
        if len(value) > _MOST_CHARACTERS:
            return f"it must be at most {_MOST_CHARACTERS:,} characters long"
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            return f"it must be {self.wanted}"
        return "" if value.isprintable() else "it must not contain control characters or bytes that are not text"

    def in_short(self) -> str:
        return ""


NAME = Text(
    r"[a-z][a-z0-9_]{0,40}",
    "a lower-case letter, then lower-case letters, digits and _, at most 41 characters, such as early: it names tables",
)


@dataclass(frozen=True)
class Several:
    """A list whose parts each satisfy a rule; comma-separated on the command line.

    Attributes:
        each: the rule of a part.
        least: parts, at least.
    """

    each: Rule
    least: int = 1

    def parse(self, text: str) -> Any:
        return tuple(self.each.parse(part.strip()) for part in text.split(",") if part.strip())

    def fault(self, value: Any) -> str:
        if not isinstance(value, tuple | list):
            return "it must be a list"
        if not self.least <= len(value) <= _MOST_LISTED:
            return f"it must list {self.least} to {_number(_MOST_LISTED)} values"
        faults = (self.each.fault(part) for part in value)
        return next((fault.replace("it ", "each ", 1) for fault in faults if fault), "")

    def in_short(self) -> str:
        return f"{each} each" if (each := self.each.in_short()) else ""


@dataclass(frozen=True)
class OrWord:
    """A value that satisfies a rule, or a word in its place."""

    word: str
    rule: Rule

    def parse(self, text: str) -> Any:
        return text if text == self.word else self.rule.parse(text)

    def fault(self, value: Any) -> str:
        fault = "" if value == self.word else self.rule.fault(value)
        return f"{fault}, or {self.word}" if fault else ""

    def in_short(self) -> str:
        return f"{self.rule.in_short()}, or {self.word}"


def within(least: float, most: float, about: str, *, exclusive: bool = False) -> dict[str, Any]:
    """Metadata of a number's field.

    Args:
        least: the least that it may be; of a whole number, an int.
        most: largest permitted value.
        about: what it is, a sentence of help.
        exclusive: whether the ends themselves are refused.
    """
    is_whole = isinstance(least, int) and isinstance(most, int)
    return _metadata(Whole(int(least), int(most)) if is_whole else Number(least, most, exclusive), about)


def text(about: str, pattern: str | None = None, wanted: str = "") -> dict[str, Any]:
    """Metadata of a text's field; see :class:`Text`."""
    return _metadata(Text(pattern, wanted), about)


def name(about: str) -> dict[str, Any]:
    """Metadata of the field of a name that becomes part of tables' names."""
    return _metadata(NAME, about)


def several(each: Rule, about: str, *, least: int = 1, repeats: bool = False) -> dict[str, Any]:
    """Metadata of a tuple's field.

    Args:
        each: the rule of a part.
        about: what it is, a sentence of help.
        least: parts, at least.
        repeats: whether the option is repeated for each part, which may have commas of its own.
    """
    return _metadata(Several(each, least), about) | {REPEATS: repeats}


def flag(about: str) -> dict[str, Any]:
    """Metadata of a yes or no; any is valid."""
    return {"about": about}


def _metadata(rule: Rule, about: str) -> dict[str, Any]:
    return {"rule": rule, "about": about}


def rules(settings: type) -> dict[str, Rule]:
    """The rules of a dataclass' fields, by name."""
    return {field.name: field.metadata["rule"] for field in fields(settings) if "rule" in field.metadata}


def check(settings: Any) -> None:
    """Check the values of a dataclass against its fields' rules; a field whose default is None may be None.

    Raises:
        InputError: one breaks its rule; it names the field, the value and the rule.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if "rule" in field.metadata and not (value is None and field.default is None):
            hold(field.name, value, field.metadata["rule"])


def check_given(settings: type, given: Mapping[str, Any]) -> None:
    """Check values that are meant for a dataclass' fields against their rules; None means not given, and passes.

    Raises:
        InputError: one breaks its rule.
    """
    known = rules(settings)
    for name, value in given.items():
        if value is not None:
            hold(name, value, known[name])


def hold(subject: str, value: Any, rule: Rule) -> None:
    """Check one value against a rule.

    Raises:
        InputError: it breaks the rule; the message begins with the subject.
    """
    if fault := rule.fault(value):
        raise InputError(f"{subject} is {shown(value)}; {fault}.")


def parsed(subject: str, text: str, rule: Rule) -> Any:
    """The value that a text stands for, checked against a rule.

    Raises:
        InputError: it breaks the rule; the message begins with the subject, and shows the text.
    """
    value = rule.parse(text)
    if fault := rule.fault(value):
        raise InputError(f"{subject} is {shown(text if isinstance(value, tuple) else value)}; {fault}.")
    return value


def shown(value: Any) -> str:
    """A value as a message shows it: short, on one line, printable."""
    if value in ((), [], ""):
        return "empty"
    try:
        return ascii(value) if isinstance(value, str) and not value.isprintable() else _SHORT.repr(value)
    except ValueError:  # Python does not print a whole number of more than 4,300 digits
        return "a number of thousands of digits"


def _number(value: float) -> str:
    if value == MOST_SEED:
        return "2^63 - 1"
    return f"{int(value):,}" if value == int(value) else f"{value:g}"
