"""Options that would do nothing beside others: refused, so that nobody believes that they did something."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from fewchannels.errors import InputError

_GIVEN: ContextVar[frozenset[str]] = ContextVar("given", default=frozenset())


@contextmanager
def given_to(context: Any) -> Iterator[None]:
    """Inside, it is known which options the command line gave.

    Args:
        context: of the command, parsed.
    """
    named = {param.name: set(param.opts) for param in context.command.params}
    given = (name for name in named if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE")
    token = _GIVEN.set(frozenset(flag for name in given for flag in named[name]))
    try:
        yield
    finally:
        _GIVEN.reset(token)


def refuse_unused(flags: Iterable[str], why: str) -> None:
    """Refuse options that were given and that nothing uses.

    Args:
        flags: such as ``--trials``.
        why: nothing uses them here.

    Raises:
        InputError: naming the first of those that were given.
    """
    for flag in flags:
        if flag in _GIVEN.get():
            raise InputError(f"{flag} was given, and nothing would use it: {why}. Leave it out.")
