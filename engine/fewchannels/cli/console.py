"""Printing for all commands: results on standard output, everything else on standard error."""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.text import Text

from fewchannels.cli import streams
from fewchannels.settings.environment import is_too_narrow
from fewchannels.settings.units import size

_USUAL_WIDTH = 80


class Literal(Console):
    """A console that prints every text as it is: brackets in a path or a prompt are no markup, ``:cat:`` no emoji."""

    def __init__(self, **options: Any) -> None:
        if is_too_narrow(os.environ.get("COLUMNS", "")):
            options.setdefault("width", _USUAL_WIDTH)
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def status(self, status: Any, **options: Any) -> Status:
        """A spinner with a text beside it, as long as the context lasts."""
        return super().status(Text(status), **options)


results = Literal()
errors = Literal(stderr=True)


def say(text: str, style: str | None = None) -> None:
    """Print a message on standard error, without breaking paths and commands over lines."""
    errors.print(text, style=style, soft_wrap=True)


def note(text: str) -> None:
    """Print a warning on standard error."""
    say(f"note: {text}", style="yellow")


def print_json(content: Any) -> None:
    """Print a value as JSON on standard output: uncolored, in UTF-8, with null for non-finite numbers.

    Args:
        content: any value that JSON can represent.
    """
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(_finite(content), indent=2)
    except ValueError:
        text = json.dumps(_finite(content), indent=2, ensure_ascii=False)
    streams.write(f"{text}\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def progress_bar(*, of_bytes: bool = False) -> Progress:
    """Return a transient progress bar on standard error: description, count, rate, elapsed and remaining time.

    Args:
        of_bytes: whether bytes are counted.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn() if of_bytes else MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
    )


def duration(seconds: float) -> str:
    """Format a duration: ``38 s``, ``4 min 10 s``, ``3 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def left_over(sizes: Mapping[str, int]) -> str:
    """Describe leftover temporary files.

    Args:
        sizes: sizes in bytes by file name; at least one.
    """
    return (
        f"{len(sizes):,} temporary file{'s' * (len(sizes) != 1)}, {size(sum(sizes.values()))}, such as "
        f"{next(iter(sizes))}: left by a writer that was killed, or still being written. The name ends with the host "
        "and the process. Once that process has ended, the next command on that host that writes here removes the "
        "file, and so does runs verify --repair"
    )
