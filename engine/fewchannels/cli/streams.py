"""Standard output and error of the command line, also if they are not UTF-8, full, or closed."""

import errno
import io
import os
import sys
from typing import Any

from fewchannels.errors import StorageError

_MODES = {0: os.O_RDONLY, 1: os.O_RDONLY, 2: os.O_WRONLY}
"""Mode in which the null device replaces each closed descriptor; writes to 1 still fail."""


class _Results(io.FileIO):
    """Standard output that reports once why it cannot be written."""

    has_failed = False

    def write(self, data: Any) -> int:
        if self.has_failed:
            return len(data)
        try:
            return super().write(data) or 0
        except OSError as error:
            self.has_failed = True
            if error.errno == errno.EPIPE:  # the reader closed the pipe
                raise
            why = "it is closed" if error.errno == errno.EBADF else error.strerror
            raise StorageError(
                f"cannot write to standard output: {why}. Rerun the command with its output redirected elsewhere; "
                "files that it has written are kept."
            ) from None


class _Messages(io.FileIO):
    """Standard error that drops messages it cannot write, without any other effect."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def prepare() -> None:
    """Replace the standard streams with streams that accept any text; characters they cannot encode become escapes.

    The descriptor of a closed stream stays occupied, so that the next opened file does not receive the output.
    """
    for number, mode in _MODES.items():
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest free number
    sys.stdout = _stream(sys.stdout, 1, _Results)
    sys.stderr = _stream(sys.stderr, 2, _Messages)


def finish() -> None:
    """Flush standard output.

    Raises:
        StorageError: it cannot be written.
    """
    if not sys.stdout.closed:
        sys.stdout.flush()


def write(text: str) -> None:
    """Write data to standard output, always in UTF-8 and unchanged."""
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:  # in tests
        sys.stdout.write(text)
        return
    sys.stdout.flush()
    binary.write(text.encode())
    if sys.stdout.isatty():
        binary.flush()


def _stream(stream: Any, number: int, kind: type[io.FileIO]) -> Any:
    if stream is None:  # it was closed, and its descriptor may belong to another file
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
