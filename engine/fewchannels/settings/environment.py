"""Variables of the environment with which the libraries do not work, or not as they should."""

import os
import sys

from fewchannels.errors import InputError

_WITHOUT_DOCSTRINGS = 2  # of ``-OO``
NARROWEST = 20
"""Columns of the narrowest terminal that there is; a smaller ``COLUMNS``, such as the 0 of some containers, is none."""


def check_environment() -> None:
    """Refuse to start where the libraries would fail in ways that do not name the cause.

    Raises:
        InputError: naming the variable.
    """
    if sys.flags.optimize >= _WITHOUT_DOCSTRINGS:
        raise InputError(
            f"Python runs without docstrings (PYTHONOPTIMIZE={sys.flags.optimize} or -OO), but diffusers and Ray need "
            "theirs. Unset PYTHONOPTIMIZE."
        )
    for rule in os.environ.get("PYTHONWARNINGS", "").split(","):
        action, _, rest = rule.strip().partition(":")
        module = rest.split(":")[2] if rest.count(":") >= 2 else ""  # action:message:category:module
        if action == "error" and not module:
            raise InputError(
                f"PYTHONWARNINGS has {rule.strip()!r}, which turns warnings of libraries such as Ray into errors. "
                "Unset PYTHONWARNINGS, or limit the rule to your module: error:::mymodule."
            )


def settle_environment() -> None:
    """Set environment variables of libraries for a command, in place of those for other programs.

    Figures go to files, whatever backend a notebook or a desktop has chosen; Rich prints nothing to 0 columns. Threads
    that wait for each other sleep: where something else has a CPU, those of OpenMP's that spin took four times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ["MPLBACKEND"] = "agg"
    if is_too_narrow(os.environ.get("COLUMNS", "")):
        del os.environ["COLUMNS"]


def is_too_narrow(columns: str) -> bool:
    """Whether a value of ``COLUMNS`` is no terminal's."""
    return columns.isdecimal() and int(columns) < NARROWEST
