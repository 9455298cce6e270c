"""Printing for all commands: results on standard output, everything else on standard error."""

import json
import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fewchannels.cli import streams
from fewchannels.settings.units import size

results = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def say(text: str, style: str | None = None) -> None:
    """Print a message on standard error, without breaking paths and commands over lines."""
    errors.print(text, style=style, markup=False, soft_wrap=True)


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


def progress_bar() -> Progress:
    """Return a transient progress bar on standard error: description, count, rate, elapsed and remaining time."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
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
