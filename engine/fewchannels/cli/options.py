"""Options from the fields of settings: their name, help, default, range and check.

A command takes all fields of a dataclass as one parameter, and gets what was given, by field:

    @app.command()
    def capture(settings: Annotated[Given, Fields(CaptureConfig)]) -> None:
        config = CaptureConfig(**settings)

:func:`expanded` makes of that parameter an option for each field.
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
    """A ``typer.Option`` with the help and the range of a dataclass' field.

    Args:
        settings: the dataclass.
        name: of the field.
        flags: what it is called on the command line; empty for the parameter's own name.
        about: help in place of the field's.
        more: of ``typer.Option``, such as ``show_default``.
    """
    (metadata,) = (field.metadata for field in dataclasses.fields(settings) if field.name == name)
    return ruled(metadata if about is None else {**metadata, "about": about}, *flags, **more)


def ruled(metadata: Mapping[str, Any], *flags: str, **more: Any) -> Any:
    """A ``typer.Option`` with a range that no field has, for what only the command line takes.

    Args:
        metadata: from :mod:`fewchannels.settings.ranges`, as a field would have it.
        flags: what it is called on the command line; empty for the parameter's own name.
        more: of ``typer.Option``.
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
"""Values by field; what was not given, and has no default on the command line, is left out."""


@dataclass(frozen=True)
class As:
    """How the option of one field differs from the field.

    Attributes:
        flag: its name, such as ``--actors``; empty for the field's own.
        about: its help; empty for the field's own.
        default: as it would be written; None where the field is then left out, ``...`` for the field's own.
        shown: default as the help shows it; empty for the default itself.
    """

    flag: str = ""
    about: str = ""
    default: Any = ...
    shown: str = ""


@dataclass(frozen=True)
class Fields:
    """Options of a dataclass' fields.

    Attributes:
        settings: the dataclass.
        changes: how options differ from their fields, by field.
        without: fields that are no options.
        only: fields that are options; None for all others.
        in_file: whether a settings file may have a field's value: what is not given is then left out.
        panels: where the help shows fields, by the class that defines them.
    """

    settings: type
    changes: Mapping[str, As] = field(default_factory=dict)
    without: Collection[str] = ()
    only: Collection[str] | None = None
    in_file: bool = False
    panels: Mapping[type, str] = field(default_factory=dict)

    def parameters(self) -> dict[str, inspect.Parameter]:
        """A parameter of a command for each field, which is called as its option."""
        kinds = typing.get_type_hints(self.settings)
        there = [each for each in dataclasses.fields(self.settings) if each.name not in self.without]
        chosen = [each for each in there if self.only is None or each.name in self.only]
        # In the order of the panels, as the help shows them.
        places = [self._owner(each.name) for each in chosen]
        order = sorted(range(len(chosen)), key=lambda i: list(self.panels).index(places[i]) if self.panels else i)
        return {chosen[i].name: self._parameter(chosen[i], kinds[chosen[i].name]) for i in order}

    def flags(self) -> list[str]:
        """The options, such as ``--layers``."""
        return [f"--{option.name.replace('_', '-')}" for option in self.parameters().values()]

    def _owner(self, name: str) -> type:
        """The class that defines a field."""
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
        """Values of the fields from what the command line had for each.

        Raises:
            InputError: a text stands for no value.
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
    """A command with an option for every field that a parameter annotated with :class:`Fields` stands for."""
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
    """Refuse words of a command line that cannot be values: blank ones, and bytes that are not text.

    Raises:
        InputError: naming the option.
    """
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if word.startswith("--") and equals:
            subject = flag
        else:
            subject, value = words[i - 1] if i and words[i - 1].startswith("-") else "an argument", word
        if not value.strip():
            raise InputError(f"{subject} is {value!r}, which is blank. Give it a value, or leave it out.")
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
"""Fields of a generation that the model's own values stand for where they are not given."""

Actors = Annotated[
    Given,
    Fields(
        Pool,
        {
            "n_actors": As("--actors", default=None, shown="one per GPU; if none, one per CPU, at most 4"),
            "gpus_per_actor": As(default=None, shown="1 if there are any"),
            "cpus_per_actor": As(default=None, shown="its share of the node's"),
        },
        panels={Pool: "Workers"},
    ),
]
"""What was given of the pool of actors, for :func:`fewchannels.cluster.sizing.choose_pool`."""
