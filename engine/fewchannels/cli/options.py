"""Options from the fields of settings: their help, with the range in it, and their check, before any work."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import typer

from fewchannels.errors import InputError
from fewchannels.settings.ranges import Rule, Several, hold, parsed, rules


def option(settings: type, name: str, *flags: str, about: str | None = None, **more: Any) -> Any:
    """A ``typer.Option`` with the help and the range of a dataclass' field.

    Args:
        settings: the dataclass.
        name: of the field.
        flags: what it is called on the command line; empty for the parameter's own name.
        about: help in place of the field's.
        more: of ``typer.Option``, such as ``show_default``.
    """
    (metadata,) = (field.metadata for field in fields(settings) if field.name == name)
    return ruled(metadata if about is None else {**metadata, "about": about}, *flags, **more)


def ruled(metadata: Mapping[str, Any], *flags: str, **more: Any) -> Any:
    """A ``typer.Option`` with a range that no field has, for what only the command line takes.

    Args:
        metadata: from :mod:`fewchannels.settings.ranges`, as a field would have it.
        flags: what it is called on the command line; empty for the parameter's own name.
        more: of ``typer.Option``.
    """
    rule: Rule = metadata["rule"]
    about, short = metadata["about"], rule.in_short()
    help_text = f"{about.removesuffix('.')} ({short})." if short else about

    def checked(param: typer.CallbackParam, value: Any) -> Any:
        if value is not None:
            subject = param.opts[0]
            if isinstance(value, str):
                parsed(subject, value, rule)
            elif isinstance(rule, Several) or not isinstance(value, list | tuple):
                hold(subject, value, rule)
        return value

    return typer.Option(*flags, help=help_text, callback=checked, **more)


def given(settings: type, name: str, text: str) -> Any:
    """The value of a field that an option's text stands for.

    Raises:
        InputError: it stands for none, or for one out of the field's range.
    """
    return parsed(name, text, rules(settings)[name])


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
            raise InputError(f"{subject} is {value!a}, which is not UTF-8 text. Give it another value.") from None
