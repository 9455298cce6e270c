"""Words for rows of query results, as plain values: numbers with intervals, lists and counts. Imports no NumPy."""

from collections.abc import Sequence
from typing import Any

from fewchannels.settings.units import number

Row = dict[str, Any]
Rows = Sequence[Row]
_MOST_NAMED = 8


def ranged(row: Row, mean: str, ends: str) -> str:
    """Format a column with its interval, if the row has one: ``19.4 (95 %: 17.1 to 22.1)``.

    Args:
        row: the row.
        mean: column of the mean.
        ends: start of the names of the columns of the interval's ends; empty for ``low`` and ``high``.
    """
    low, high = (row.get(f"{ends}_{end}" if ends else end) for end in ("low", "high"))
    text = number(row[mean])
    return text if low is None or high is None else f"{text} (95 %: {number(low)} to {number(high)})"


def spanned(rows: Rows, name: str) -> str:
    """Format a count that rows may differ in: ``24``, or ``6 to 8``."""
    found = sorted({int(row[name]) for row in rows if row[name] is not None})
    return " to ".join(f"{n:,}" for n in dict.fromkeys((found[0], found[-1]))) if found else "0"


def most(rows: Rows, name: str, *, least: bool = False) -> Row:
    """The row with the largest value of a column, or the smallest; the first of several."""
    known = [row for row in rows if row[name] is not None] or list(rows)
    sign = 1 if least else -1
    return min(known, key=lambda row: sign * (row[name] or 0))


def counted(n: int, what: str) -> str:
    """Format a count: ``1 sample``, ``24 samples``."""
    return f"{n:,} {what}{'s' * (n != 1)}"


def also(parts: Sequence[str]) -> str:
    """Join parts to a list: ``a, b and c``; of many the first ones."""
    if len(parts) > _MOST_NAMED:
        return f"{', '.join(parts[:_MOST_NAMED])} and {len(parts) - _MOST_NAMED:,} more"
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def named(channels: Sequence[int]) -> str:
    """Name channels: ``channel 46``, ``channels 46 and 75``."""
    return f"channel{'s' * (len(channels) != 1)} {also([str(channel) for channel in channels])}"
