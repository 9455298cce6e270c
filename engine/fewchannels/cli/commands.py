"""Command groups whose commands validate their arguments before doing anything."""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

from fewchannels.cli.options import check_words, expanded
from fewchannels.cli.unused import given_to


class Command(TyperCommand):
    """A command that rejects arguments that cannot be values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reject arguments that cannot be values, then parse as Typer does."""
        check_words(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command with a record of which options were given."""
        with given_to(ctx):
            return super().invoke(ctx)


class Commands(typer.Typer):
    """A Typer application of such commands."""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **more: Any) -> Callable:
        """Register a command as Typer does, with one option per field of the settings that it accepts."""
        add = super().command(name, cls=cls or Command, **more)

        def added(function: Callable) -> Callable:
            add(expanded(function))
            return function

        return added
