"""What every command prints with: results on standard output, everything else on standard error."""

import re

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from engine.errors import InputError

results = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def say(text: str, style: str | None = None) -> None:
    """Tell the user something, on standard error; paths and commands in it are not broken over lines."""
    errors.print(text, style=style, markup=False, soft_wrap=True)


def progress_bar() -> Progress:
    """A progress bar on standard error: what, how many, rate, time taken and time left; gone when it ends."""
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


def size(n_bytes: float) -> str:
    """Bytes for people, in powers of ten: ``165 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(n_bytes) < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" or n_bytes >= 100 else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def parse_size(text: str) -> int:
    """The bytes that a text such as ``500MB`` or ``2e9`` means, in powers of ten.

    Raises:
        InputError: it means none.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*(k|m|g|t|p)?b?\s*", text.lower())
    try:
        return int(float(match[1]) * 1000 ** " kmgtp".index(match[2] or " "))  # type: ignore[index]
    except (TypeError, ValueError):
        raise InputError(f"{text!r} is no size; give bytes, or kB, MB, GB, TB: 500MB.") from None


def duration(seconds: float) -> str:
    """Seconds for people: ``38 s``, ``4 min 10 s``, ``3 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
