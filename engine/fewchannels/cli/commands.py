"""Groups of commands, each of which checks its words before it does anything."""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

from fewchannels.cli.options import check_words, expanded
from fewchannels.cli.unused import given_to


class Command(TyperCommand):
    """A command that refuses words that cannot be values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse them as Typer does."""
        check_words(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run it, while what was given is known."""
        with given_to(ctx):
            return super().invoke(ctx)


class Commands(typer.Typer):
    """A Typer application whose commands are of that kind."""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **more: Any) -> Callable:
        """Add a command, as Typer does, with an option for every field of settings that it takes."""
        add = super().command(name, cls=cls or Command, **more)

        def added(function: Callable) -> Callable:
            add(expanded(function))
            return function

        return added
