"""Standard output and error of the command line, whatever they are: not UTF-8, full, closed."""

import errno
import io
import os
import sys
from typing import Any

from fewchannels.errors import StorageError

_MODES = {0: os.O_RDONLY, 1: os.O_RDONLY, 2: os.O_WRONLY}
"""How the null device takes the place of a closed descriptor: what is written to 1 is still refused."""


class _Results(io.FileIO):
    """Standard output, which says once in words why it cannot be written."""

    has_failed = False

    def write(self, data: Any) -> int:
        if self.has_failed:
            return len(data)
        try:
            return super().write(data) or 0
        except OSError as error:
            self.has_failed = True
            if error.errno == errno.EPIPE:  # whoever reads has enough
                raise
            why = "it is closed" if error.errno == errno.EBADF else error.strerror
            raise StorageError(
                f"cannot write to standard output: {why}. Run the command again with its output sent elsewhere; files "
                "that it has written stay."
            ) from None


class _Messages(io.FileIO):
    """Standard error: a message that cannot be written is lost, and changes nothing else."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def prepare() -> None:
    """Make the standard streams ones that every text can be written to; what they cannot encode becomes an escape.

    A closed one does not leave its number to the next file that is opened, which would then be written to.
    """
    for number, mode in _MODES.items():
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest free number
    sys.stdout = _stream(sys.stdout, 1, _Results)
    sys.stderr = _stream(sys.stderr, 2, _Messages)


def finish() -> None:
    """Write what standard output still holds.

    Raises:
        StorageError: it cannot be written.
    """
    if not sys.stdout.closed:
        sys.stdout.flush()


def write(text: str) -> None:
    """Write data to standard output, always in UTF-8 and unchanged."""
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:  # a test's
        sys.stdout.write(text)
        return
    sys.stdout.flush()
    binary.write(text.encode())
    if sys.stdout.isatty():
        binary.flush()


def _stream(stream: Any, number: int, kind: type[io.FileIO]) -> Any:
    if stream is None:  # it was closed, and its number may be another file's
        return io.TextIOWrapper(io.BufferedWriter(kind(os.open(os.devnull, _MODES[number]), "w")), "utf-8")
    try:
        if stream.fileno() != number:
            return stream
    except (OSError, ValueError, AttributeError):
        return stream
    stream.flush()
    raw = kind(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=stream.line_buffering
    )
