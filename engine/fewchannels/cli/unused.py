"""Reject options that would have no effect in combination with others."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from fewchannels.errors import InputError

_GIVEN: ContextVar[frozenset[str]] = ContextVar("given", default=frozenset())


@contextmanager
def given_to(context: Any) -> Iterator[None]:
    """Record, within this context, which options were given on the command line.

    Args:
        context: parsed context of the command.
    """
    named = {param.name: set(param.opts) for param in context.command.params}
    given = (name for name in named if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE")
    token = _GIVEN.set(frozenset(flag for name in given for flag in named[name]))
    try:
        yield
    finally:
        _GIVEN.reset(token)


def refuse_unused(flags: Iterable[str], why: str) -> None:
    """Reject options that were given but have no effect.

    Args:
        flags: options without effect, such as ``--trials``.
        why: reason, as the end of the message.

    Raises:
        InputError: one of them was given; the message names the first.
    """
    for flag in flags:
        if flag in _GIVEN.get():
            raise InputError(f"{flag} would have no effect: {why}. Omit it.")
