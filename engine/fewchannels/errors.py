"""The exception tree, grouped by what a handler would do about it. Each group has its own exit code."""

import difflib
from collections.abc import Iterable


class FewchannelsError(Exception):
    """Anything this project reports to a person. ``str(error)`` says what is wrong, the rule and the remedy."""

    exit_code = 1


class InputError(FewchannelsError):
    """The caller gave something that cannot work; changing the input mends it. Nothing was written."""

    exit_code = 2


class RunConflictError(FewchannelsError):
    """The run on disk was begun with something else; choose another folder or the settings it has."""

    exit_code = 3


class StorageError(FewchannelsError):
    """The disk refused (no space, no permission, damaged files); free it or repair it and run again to resume."""

    exit_code = 4


class IncompleteRunError(FewchannelsError):
    """The run ended and some samples are missing or failed; their records say why. Run again to retry them."""

    exit_code = 5


def unknown(kind: str, value: object, valid: Iterable[object]) -> InputError:
    """An :class:`InputError` for a name that is not one of ``valid``, with the nearest one that is."""
    names = [str(name) for name in valid]
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {value!r}.{hint} Valid: {', '.join(names)}.")
