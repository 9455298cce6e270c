"""Variables of the environment with which the libraries cannot work."""

import os
import sys

from fewchannels.errors import InputError

_WITHOUT_DOCSTRINGS = 2  # of ``-OO``


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
