"""The command ``fewchannels``: parse, call, print."""

import errno
import signal
import sys

from fewchannels.cli import (
    analyze,
    capture,
    compare,
    demo,
    explore,
    jobs,
    manifest,
    models,
    plot,
    probe,
    query,
    report,
    runs,
    transport,
)
from fewchannels.cli.commands import Commands
from fewchannels.cli.console import say
from fewchannels.errors import FewchannelsError, InputError
from fewchannels.ranges import shown

app = Commands(
    name="fewchannels",
    help="Dataset-scale analysis of massive channels in diffusion transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(manifest.app, name="manifest", help="Make and look at manifests: tables of prompts and seeds.")
app.add_typer(models.app, name="models", help="Which models are known, and how to describe one that is not.")
app.add_typer(runs.app, name="runs", help="Look at runs, check and keep them.")
app.add_typer(analyze.app, name="analyze", help="Stability, concentration and alignment of a run's channels.")
app.add_typer(probe.app, name="probe", help="Disturb channels, and see what becomes of the picture.")
app.add_typer(transport.app, name="transport", help="Move a source's channels into a target's trajectory.")
app.command("plot")(plot.plot)
app.command("capture")(capture.capture)
app.command("compare")(compare.compare)
app.command("demo")(demo.demo)
app.command("report")(report.report)
app.command("explore")(explore.explore)
query.register(app)
jobs.register(app)


def main() -> None:
    """Run the command line; a :class:`FewchannelsError` ends it with a message and the error's own exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not where nohup has it ignored
            signal.signal(number, _end)
    try:
        app()
    except FewchannelsError as error:
        say(f"error: {error}", style="bold red")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        say(f"error: {shown(error.filename)} is too long a name for a file. Give a shorter one.", style="bold red")
        sys.exit(InputError.exit_code)


def _end(number: int, frame: object) -> None:
    """End as after Ctrl+C, so that a file that is half written is removed, with the exit code that shells expect."""
    sys.exit(128 + number)
