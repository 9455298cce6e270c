"""The command ``fewchannels``: parse, call, print.

A module registers each command or group of commands. What a command needs is imported inside its function, so that
others start without it.

Imported by others: itself.
Imports: errors, files, machine, settings, manifest, models, runs, cluster, captures, analyses, interventions, views.
"""

import errno
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fewchannels.cli import streams
from fewchannels.cli.commands import Commands
from fewchannels.cli.console import results, say
from fewchannels.errors import FewchannelsError, FewchannelsWarning, InputError
from fewchannels.settings.environment import check_environment, settle_environment
from fewchannels.settings.ranges import shown

_PANELS: dict[str, dict[str, tuple[str, ...]]] = {
    "Start": {"demo": ("demo",), "manifest": ("manifest",), "models": ("models",)},
    "Capture and query": {"capture": ("capture",), "runs": ("runs",), "query": ("query", "sql")},
    "Analyze": {"analyze": ("analyze",), "compare": ("compare",)},
    "Intervene": {"probe": ("probe",), "transport": ("transport",), "plot": ("plot",)},
    "Look": {"report": ("report",), "explore": ("explore",)},
    "Jobs of a Ray cluster": {"jobs": ("submit", "status", "logs", "stop")},
}
"""Commands and groups of commands, by the module that registers them and their panel of the help, in its order."""
_MODULES = {module: names for modules in _PANELS.values() for module, names in modules.items()}


class _InOrder(TyperGroup):
    """The commands in the order of their panels."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, those of the first panel first."""
        return [name for names in _MODULES.values() for name in names if name in self.commands]


def application(word: str = "") -> Commands:
    """Return an application with all commands, or only the one named ``word``: importing all takes longer than a query.

    Args:
        word: first word of the command line.
    """
    app = Commands(
        name="fewchannels",
        cls=_InOrder,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Dataset-scale analysis of massive channels in diffusion transformers.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)  # makes Typer call even a single command by its name
    is_one = any(word in names for names in _MODULES.values()) and word != "submit"  # submit contains another command
    for module, names in _MODULES.items():
        if word in names or not is_one:
            import_module(f"fewchannels.cli.{module}").register(app)
    panel_of = {name: panel for panel, modules in _PANELS.items() for names in modules.values() for name in names}
    for command in app.registered_commands:
        command.rich_help_panel = panel_of[str(command.name)]
    for group in app.registered_groups:
        group.rich_help_panel = panel_of[str(group.name)]
    return app


def _print_version(is_given: bool) -> None:
    if is_given:
        from importlib.metadata import version

        results.print(f"fewchannels {version('fewchannels')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version, and exit.")
    ] = False,
) -> None:
    """Options of the command without a subcommand."""


def __getattr__(name: str) -> Any:
    if name == "app":
        return application()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Run the command line; a :class:`FewchannelsError` ends it with a message and the error's own exit code."""
    streams.prepare()
    settle_environment()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not where nohup has it ignored
            signal.signal(number, _end)
    code = _ended(_run)
    sys.exit(_ended(streams.finish) or code)


def _run() -> None:
    check_environment()
    application(*sys.argv[1:2])()


def _ended(work: Callable[[], object]) -> Any:
    """Run the command line; return the exit code."""
    try:
        with _plain_warnings():
            work()
    except SystemExit as ended:
        return ended.code
    except BrokenPipeError:
        return 1
    except FewchannelsError as error:
        say(f"error: {error}", style="bold red")
        return error.exit_code
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        say(f"error: {shown(error.filename)} is too long for a file name. Give a shorter one.", style="bold red")
        return InputError.exit_code
    return 0


@contextmanager
def _plain_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = partial(_show_warning, warnings.showwarning)
        yield


def _show_warning(show: Callable[..., None], message: Warning, category: type[Warning], *where: Any) -> None:
    """Show a warning; omit the line of source code for the project's own warnings."""
    if issubclass(category, FewchannelsWarning):
        say(f"warning: {message}", style="yellow")
    else:
        show(message, category, *where)


def _end(number: int, frame: object) -> None:
    """Exit as after Ctrl+C: remove half-written files, and return the exit code that shells expect."""
    sys.exit(128 + number)
