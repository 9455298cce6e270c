"""Requests to object stores: timeouts, retries, errors without secrets, and objects as files."""

import io
import os
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from fewchannels.errors import InputError, without_secrets
from fewchannels.runs.storage.endpoints import allows_http, hint

REQUEST_TIMEOUT_VARIABLE = "FEWCHANNELS_REQUEST_TIMEOUT_S"
RETRY_VARIABLE = "FEWCHANNELS_RETRY_S"
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
# Timeouts (408) and too many requests (429) are temporary; other client errors are not.
_LASTING = re.compile(r"status code: 4(?!08|29)|redirect without LOCATION|builder error")


def options(patience_s: float | None = None) -> dict[str, Any]:
    """obstore's options for any store.

    Args:
        patience_s: replaces :func:`retry_seconds`; also limits each single request.

    Raises:
        InputError: a variable of the environment is not a number of seconds.
    """
    timeout = _seconds(REQUEST_TIMEOUT_VARIABLE, "60")
    return {
        "client_options": {
            "timeout": timedelta(seconds=timeout if patience_s is None else min(timeout, patience_s)),
            "connect_timeout": timedelta(seconds=10),
            "allow_http": allows_http(),  # these replace what obstore reads from the environment
        },
        "retry_config": {
            "max_retries": 10**6,  # only the time limits retries
            "backoff": {
                "init_backoff": timedelta(seconds=FIRST_PAUSE_S),
                "max_backoff": timedelta(seconds=LONGEST_PAUSE_S),
                "base": 2,
            },
            "retry_timeout": timedelta(seconds=retry_seconds() if patience_s is None else patience_s),
        },
    }


def retry_seconds() -> float:
    """Time for which a request is retried, in seconds.

    Raises:
        InputError: the variable of the environment is not a number of seconds.
    """
    return _seconds(RETRY_VARIABLE, "300")


def may_pass(error: Exception) -> bool:
    """Return whether an error or a timeout of a store may be temporary, so that a retry can succeed."""
    return not _LASTING.search(str(error))


def reason(error: Exception | str) -> str:
    """One line about an error, without details for the store's support, which may include keys and signatures."""
    text = str(error)
    if found := re.search(r"<Code>(.*?)</Code>(?:\s*<Message>([^<\n]*))?", text):
        return _with_hint(f"{found[1]}: {found[2]}" if found[2] else found[1], text)
    raised = re.search(r"^\w+Error: (.*)", text, re.MULTILINE)  # the last line of a traceback
    line = (raised[1] if raised else text.strip().split("\n")[0]).partition("<?xml")[0]
    line = re.sub(r", after (\d+) retries, .*? - ", r", after \1 retries - ", line).rstrip(": ")
    cause = re.search(r'kind: \w+, message: "([^"]+)"', text)
    line = f"{line}: {cause[1]}" if cause else line or type(error).__name__
    return _with_hint(without_secrets(line), text)


def _with_hint(line: str, text: str) -> str:
    remedy = hint(text)
    return f"{line.rstrip('. ')}. {remedy}" if remedy else line


def _seconds(variable: str, default: str) -> float:
    text = os.environ.get(variable, default)
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or float(text) == 0:
        raise InputError(f"{variable} is {text!r}; it must be a positive number of seconds.")
    return float(text)


class RangeFile(io.RawIOBase):
    """An object as a file for random access.

    Args:
        read: function that returns the bytes from a start to an end.
        size: size of the object.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._at_most(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._at_most(self._size)

    def _at_most(self, n: int) -> bytes:
        end = min(self._at + n, self._size)
        data = self._read(self._at, end) if self._at < end else b""
        self._at += len(data)
        return data
