"""A command in this process, as ``fewchannels`` runs it: its exit code, and what it printed."""

import contextlib
import io
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

from typer.testing import CliRunner

from fewchannels.cli import application, main
from fewchannels.errors import FewchannelsError

# Built once for each first word, as a process builds it: Typer takes longer for all commands than most of them run.
_application = cache(application)


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
    given = [str(word) for word in words]
    done = CliRunner().invoke(_application(*given[:1]), given)
    if isinstance(done.exception, FewchannelsError):
        return Answer(done.exception.exit_code, done.stdout, f"{done.stderr}error: {done.exception}")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Answer(done.exit_code, done.stdout, done.stderr)


def line(text: str, folder: Path) -> Answer:
    """Run a line of a shell in a folder by the command's own entry point; whatever that lets through is raised.

    Importing PyTorch and starting Ray for each of many lines takes minutes; where Ray is up, commands use that.
    """
    words, out, errors = shlex.split(text), io.StringIO(), io.StringIO()
    assert words[0] == "fewchannels"
    code: object = 0
    with (
        contextlib.chdir(folder),
        patch.object(sys, "argv", words),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    assert isinstance(code, int), code
    return Answer(code, out.getvalue(), errors.getvalue())
