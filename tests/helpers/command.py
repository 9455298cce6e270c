"""A command in this process, as ``fewchannels`` runs it: its exit code, and what it printed."""

from dataclasses import dataclass

from typer.testing import CliRunner

from fewchannels.cli import app
from fewchannels.errors import FewchannelsError


@dataclass(frozen=True)
class Answer:
    """How a command ended.

    Attributes:
        code: its exit code.
        stdout: results.
        stderr: everything else, the error's message included.
    """

    code: int
    stdout: str
    stderr: str


def command(*words: object) -> Answer:
    """Run a command; whatever is no error of the project's own is raised, as it would be printed with a traceback."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, FewchannelsError):
        return Answer(done.exception.exit_code, done.stdout, f"{done.stderr}error: {done.exception}")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Answer(done.exit_code, done.stdout, done.stderr)
