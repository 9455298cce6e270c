"""The command ``fewchannels``: parse, call, print.

A module registers each command or group of commands. What a command needs is imported inside its function, so that
others start without it.

Imported by others: itself.
Imports: errors, files, machine, settings, manifest, models, runs, cluster, capture, analyses, interventions, views.
"""

import errno
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from fewchannels.cli import streams
from fewchannels.cli.commands import Commands
from fewchannels.cli.console import say
from fewchannels.errors import FewchannelsError, FewchannelsWarning, InputError
from fewchannels.settings.environment import check_environment, settle_environment
from fewchannels.settings.ranges import shown

_MODULES = {
    "manifest": ("manifest",),
    "models": ("models",),
    "runs": ("runs",),
    "analyze": ("analyze",),
    "probe": ("probe",),
    "transport": ("transport",),
    "plot": ("plot",),
    "capture": ("capture",),
    "compare": ("compare",),
    "demo": ("demo",),
    "report": ("report",),
    "explore": ("explore",),
    "query": ("query", "sql"),
    "jobs": ("submit", "status", "logs", "stop"),
}
"""Commands and groups of commands, by the module that registers them, in the order of the help."""


def application(word: str = "") -> Commands:
    """Return an application with all commands, or only the one named ``word``: importing all takes longer than a query.

    Args:
        word: first word of the command line.
    """
    app = Commands(
        name="fewchannels",
        help="Dataset-scale analysis of massive channels in diffusion transformers.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)  # makes Typer call even a single command by its name
    is_one = any(word in names for names in _MODULES.values()) and word != "submit"  # submit contains another command
    for module, names in _MODULES.items():
        if word in names or not is_one:
            import_module(f"fewchannels.cli.{module}").register(app)
    return app


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
