"""Messages for Python: the option ``--top-k`` of a command is named as the argument ``top_k``."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from fewchannels.errors import FewchannelsError

_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*[a-z]|[a-z])(?![\w-])")
_FILE = r"('[^']*'|\S+?)(?=\.?(?:\s|$))"
_INGEST = re.compile(f"fewchannels manifest ingest {_FILE} -o {_FILE}")
_REPORT = re.compile(r"(?<![\w-])-o (report\.\w+)")
_RERUN = re.compile(r"\bRerun the (same )?command\b")
_NAMED_OTHERWISE = {
    "pairs": "pairs",
    "selection": "selections",
    "action": "actions",
    "amount": "amounts",
    "alpha": "amounts",
    "metric": "metrics",
    "placement": "placements",
    "actors": "workers",
    "gpus-per-actor": "gpus_per_worker",
    "cpus-per-actor": "threads_per_worker",
}
_FIELDS = {"n_actors": "workers", "gpus_per_actor": "gpus_per_worker", "cpus_per_actor": "threads_per_worker"}


def for_python(text: str) -> str:
    """Replace the options in a message by the names of arguments, and commands by calls."""
    text = re.sub("|".join(_FIELDS), lambda field: _FIELDS[field[0]], text)
    text = _INGEST.sub(lambda command: "fc.ingest({}, {})".format(*(_quoted(each) for each in command.groups())), text)
    text = _REPORT.sub(lambda option: f"out={option[1]!r}", text)
    return _OPTION.sub(_argument, _RERUN.sub("Make the same call again", text))


@contextmanager
def in_python() -> Iterator[None]:
    """Rewrite the messages of errors for Python, and raise them."""
    try:
        yield
    except FewchannelsError as error:
        error.args = (for_python(str(error)),)
        raise


def _quoted(path: str) -> str:
    return path if path.startswith("'") else repr(path)


def _argument(option: re.Match[str]) -> str:
    return _NAMED_OTHERWISE.get(option[1], option[1].replace("-", "_"))
