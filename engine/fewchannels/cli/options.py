"""Command-line options from the fields of settings: name, help, default, range and check.

A command declares all fields of a dataclass as one parameter, and receives the given values by field:

    @app.command()
    def capture(settings: Annotated[Given, Fields(CaptureConfig)]) -> None:
        config = CaptureConfig(**settings)

:func:`expanded` turns that parameter into one option per field.
"""

import dataclasses
import functools
import inspect
import os
import sys
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from fewchannels.cluster.shares import Pool
from fewchannels.errors import InputError
from fewchannels.settings.ranges import REPEATS, Rule, Several, hold, parsed, rules


def option(settings: type, name: str, *flags: str, about: str | None = None, **more: Any) -> Any:
    """Return a ``typer.Option`` with the help and range of a dataclass field.

    Args:
        settings: the dataclass.
        name: name of the field.
        flags: names on the command line; if empty, the parameter's own name.
        about: help text that replaces the field's.
        more: arguments of ``typer.Option``, such as ``show_default``.
    """
    (metadata,) = (field.metadata for field in dataclasses.fields(settings) if field.name == name)
    return ruled(metadata if about is None else {**metadata, "about": about}, *flags, **more)


def ruled(metadata: Mapping[str, Any], *flags: str, **more: Any) -> Any:
    """Return a ``typer.Option`` with a range, for values that only the command line accepts and no field has.

    Args:
        metadata: metadata from :mod:`fewchannels.settings.ranges`, as for a field.
        flags: names on the command line; if empty, the parameter's own name.
        more: arguments of ``typer.Option``.
    """
    rule: Rule | None = metadata.get("rule")
    about, short = metadata["about"], rule.in_short() if rule else ""
    help_text = f"{about.removesuffix('.')} ({short})." if short else about

    def checked(param: typer.CallbackParam, value: Any) -> Any:
        if value is not None and rule is not None:
            subject = param.opts[0]
            if isinstance(value, str):
                parsed(subject, value, rule)
            elif isinstance(rule, Several) or not isinstance(value, list | tuple):
                hold(subject, value, rule)
        return value

    return typer.Option(*flags, help=help_text, callback=checked, **more)


Given = dict[str, Any]
"""Values by field, without fields that were not given and have no default on the command line."""


@dataclass(frozen=True)
class As:
    """Differences between a field and its option.

    Attributes:
        flag: name of the option, such as ``--actors``; if empty, the field's own.
        about: help text; if empty, the field's own.
        default: default as typed on the command line; None leaves the field out, ``...`` keeps the field's own.
        shown: default as shown in the help; if empty, the default itself.
    """

    flag: str = ""
    about: str = ""
    default: Any = ...
    shown: str = ""


@dataclass(frozen=True)
class Fields:
    """Options of a dataclass's fields.

    Attributes:
        settings: the dataclass.
        changes: differences between options and their fields, by field.
        without: fields that get no option.
        only: fields that get an option; None for all except ``without``.
        in_file: whether a settings file may set a field; options that were not given are then left out.
        panels: help panel of each field, by the class that defines it.
    """

    settings: type
    changes: Mapping[str, As] = field(default_factory=dict)
    without: Collection[str] = ()
    only: Collection[str] | None = None
    in_file: bool = False
    panels: Mapping[type, str] = field(default_factory=dict)

    def parameters(self) -> dict[str, inspect.Parameter]:
        """Return one command parameter per field, named like its option."""
        kinds = typing.get_type_hints(self.settings)
        there = [each for each in dataclasses.fields(self.settings) if each.name not in self.without]
        chosen = [each for each in there if self.only is None or each.name in self.only]
        # In the order of the help panels.
        places = [self._owner(each.name) for each in chosen]
        order = sorted(range(len(chosen)), key=lambda i: list(self.panels).index(places[i]) if self.panels else i)
        return {chosen[i].name: self._parameter(chosen[i], kinds[chosen[i].name]) for i in order}

    def flags(self) -> list[str]:
        """Return the option names, such as ``--layers``."""
        return [f"--{option.name.replace('_', '-')}" for option in self.parameters().values()]

    def _owner(self, name: str) -> type:
        """Return the class that defines a field."""
        return next(each for each in reversed(self.settings.__mro__) if name in inspect.get_annotations(each))

    def _parameter(self, each: Any, kind: Any) -> inspect.Parameter:
        change = self.changes.get(each.name, As())
        default = each.default if change.default is ... else change.default
        shown: bool | str = change.shown or True
        if self.in_file:
            if default not in (None, False):
                shown = change.shown or str(default)
            default = None
        rule = each.metadata.get("rule")
        if isinstance(rule, Several) and each.metadata.get(REPEATS):
            kind, default = list[str] | None, None
        elif isinstance(rule, Several):
            kind = str | None if default is None or default == () else str
            default = None if default == () else default
        elif default is None and kind in (str, int, float, bool):
            kind = kind | None
        if isinstance(default, tuple):
            default = ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in default)
        metadata = each.metadata | ({"about": change.about} if change.about else {})
        if isinstance(rule, Several):  # one that is given has parts
            metadata |= {"rule": dataclasses.replace(rule, least=max(1, rule.least))}
        flag = change.flag or f"--{each.name.replace('_', '-')}"
        option = ruled(metadata, flag, show_default=shown, rich_help_panel=self.panels.get(self._owner(each.name)))
        return inspect.Parameter(
            flag.removeprefix("--").replace("-", "_"),
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind, option],
        )

    def given(self, values: Mapping[str, Any]) -> Given:
        """Convert the command line's values to values of the fields.

        Raises:
            InputError: a text cannot be converted to its field's value.
        """
        known = rules(self.settings)
        found: Given = {}
        for name, value in values.items():
            if value is None:
                continue
            if isinstance(value, list):
                found[name] = tuple(value)
            else:
                found[name] = parsed(name, value, known[name]) if isinstance(value, str) else value
        return found


def expanded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command with each parameter annotated with :class:`Fields` replaced by one option per field."""
    hints = typing.get_type_hints(function, include_extras=True)
    groups: dict[str, tuple[Fields, dict[str, str]]] = {}
    parameters: list[inspect.Parameter] = []
    for each in inspect.signature(function).parameters.values():
        marked = [part for part in typing.get_args(hints[each.name])[1:] if isinstance(part, Fields)]
        if marked:
            options = marked[0].parameters()
            groups[each.name] = (marked[0], {field: option.name for field, option in options.items()})
            parameters += options.values()
        else:
            parameters.append(each.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[each.name]))
    if not groups:
        return function

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        for name, (fields, names) in groups.items():
            values[name] = fields.given({field: values.pop(option) for field, option in names.items()})
        return function(**values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def check_words(words: list[str]) -> None:
    """Reject command-line words that cannot be values: blank words, and bytes that are not text.

    Raises:
        InputError: a word is not valid; the message names its option.
    """
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if word.startswith("--") and equals:
            subject = flag
        else:
            subject, value = words[i - 1] if i and words[i - 1].startswith("-") else "an argument", word
        if not value.strip():
            raise InputError(f"{subject} is {value!r}, which is blank. Give a value, or omit the option.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _not_text(subject, value) from None


def _not_text(subject: str, value: str) -> InputError:
    try:
        os.fsencode(value).decode()
    except UnicodeDecodeError:
        return InputError(f"{subject} is {value!a}, which is not UTF-8 text. Give it another value.")
    encoding = sys.getfilesystemencoding()
    return InputError(f"{subject} is not text in this locale, whose encoding is {encoding}. Set PYTHONUTF8=1.")


OF_THE_MODEL = dict.fromkeys(("guidance_scale", "true_cfg_scale", "height", "width"), As(shown="the model's"))
"""Generation fields whose default is the model's own value."""

Actors = Annotated[
    Given,
    Fields(
        Pool,
        {
            "n_actors": As(
                "--actors", default=None, shown="one per GPU; if none, one per CPU, at most 4; 1 for small work"
            ),
            "gpus_per_actor": As(default=None, shown="1 if there are any"),
            "cpus_per_actor": As(default=None, shown="cores per node / actors"),
        },
        panels={Pool: "Workers"},
    ),
]
"""The given settings of the actor pool, for :func:`fewchannels.cluster.sizing.choose_pool`."""
