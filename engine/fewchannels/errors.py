"""The exception tree, grouped by what a handler would do about it. Each group has its own exit code."""

import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterable

_SECRET_NAME = re.compile(
    r"(AWS|AZURE|GOOGLE)_.*(KEY|KEY_ID|SECRET|TOKEN|PASSWORD|SAS|CREDENTIAL)|HF_TOKEN|RAY_AUTH_TOKEN", re.IGNORECASE
)
_PUBLIC_NAME = re.compile(r".*(_FILE|_URI|_URL|_CREDENTIALS)", re.IGNORECASE)  # they say where, not what
_FEWEST_CHARACTERS = 8


def without_secrets(text: str) -> str:
    """A text without what is secret in it: users and queries of URLs, and the environment's keys and tokens."""
    text = re.sub(r"(https?://)[^\s'\"<>]*@", r"\1...@", text)  # a password may have a slash or an @ in it
    text = re.sub(r"(\w+://[^\s?'\"<>]*)\?[^\s'\"<>]+", r"\1?...", text)  # a signed URL's query is a credential
    for name, value in os.environ.items():
        if len(value) >= _FEWEST_CHARACTERS and _SECRET_NAME.fullmatch(name) and not _PUBLIC_NAME.fullmatch(name):
            text = text.replace(value, "...")
    return text


class FewchannelsError(Exception):
    """Base class of all errors shown to users. ``str(error)`` states the problem, the rule and the remedy.

    It appears in terminals, logs and records, so secrets are removed from it.

    Attributes:
        exit_code: exit code of a command that ends with it.
        kind: name of the group, which stays the same in later versions.
    """

    exit_code = 1
    kind = "error"

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class InputError(FewchannelsError, ValueError):
    """Invalid input, such as a wrong option or file. Correct the input; nothing was written."""

    exit_code = 2
    kind = "input"


class FamilyMismatchError(InputError):
    """The model did not run as its family describes, so its recorded data would have no known meaning. All samples are
    affected; the remedy is a family file that describes the pipeline.
    """

    kind = "family_mismatch"


class RunConflictError(FewchannelsError):
    """The run on disk was created with different settings; choose another folder or use its settings."""

    exit_code = 3
    kind = "run_conflict"


class StorageError(FewchannelsError):
    """Storage failed (no space, no permission, damaged files). Fix it, then rerun to resume."""

    exit_code = 4
    kind = "storage"


class IncompleteRunError(FewchannelsError):
    """The run ended with missing or failed samples; their records have the reasons. Rerun to retry them."""

    exit_code = 5
    kind = "incomplete_run"


class FewchannelsWarning(UserWarning):
    """What a person should know of, and what ends nothing."""


def warn(text: str, category: type[Warning] = FewchannelsWarning) -> None:
    """Warn at the line of the caller's code outside this package, however many of its frames are in between."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in (__package__, "contextlib"):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def unknown(kind: str, value: object, valid: Iterable[object]) -> InputError:
    """An :class:`InputError` for a name that is not one of ``valid``, with the nearest one that is."""
    names = [str(name) for name in valid]
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {value!r}.{hint} Valid: {', '.join(names)}.")
