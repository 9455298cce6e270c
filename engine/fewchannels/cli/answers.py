"""The result of a query on a terminal: what a named query's rows say, then the rows and columns that matter."""

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from fewchannels.cli.console import results
from fewchannels.cli.tables import Column, print_sentences, print_table

if TYPE_CHECKING:
    from fewchannels.runs.sql.answer import Answer

LONGEST_TEXT = 48
LOST = ("n_nonfinite", "n_failed", "n_without_iou")
"""Columns that count what the others lack; where there is something, they are never left out."""
MOST_COUNTED = 10_000_000
MOST_TOLD = 20_000
"""Maximum number of rows that sentences are made of."""
BY_CHANNEL = "massive_channels"
"""The query whose rows are summarized over layers and steps."""


def print_answer(answer: "Answer", n_rows: int, limit: int, *, is_wide: bool, every_row: bool) -> None:
    """Print a named query's sentences, and a table of its first rows, or of channels over layers and steps.

    Args:
        answer: the first rows of the result, at least :data:`MOST_TOLD` of them if there are as many.
        n_rows: number of rows of the result.
        limit: maximum number of rows to print; 0 for all.
        is_wide: whether to print all columns.
        every_row: whether to print rows by layer and step where they could be summarized.
    """
    from fewchannels.analyses.answers import channels_of_run, sentences

    query = answer.query
    if query is None or n_rows > len(answer):
        print_relation(answer.head(limit) if limit else answer, n_rows, is_wide)
        return
    rows = answer.arrow().to_pylist()
    print_sentences(sentences(query.name, rows))
    if not rows:
        results.print("0 rows")
        return
    cells = {(row["layer"], row["step"]) for row in rows} if query.name == BY_CHANNEL else set()
    if len(cells) > 1 and not (every_row or is_wide):
        _print_channels(channels_of_run(rows), limit, len(rows))
    else:
        print_relation(answer.head(limit) if limit else answer, n_rows, is_wide)


def _print_channels(channels: list[dict], limit: int, n_rows: int) -> None:
    from fewchannels.analyses.answers import WHOLE, WHOLE_UNITS

    shown = channels[:limit] if limit else channels
    print_table(
        [
            Column(name, [cell(row[name]) for row in shown], unit, is_right=True)
            for name, unit in zip(WHOLE, WHOLE_UNITS, strict=True)
        ],
        is_wide=False,
    )
    n = f"{len(shown)} of {len(channels)}" if len(shown) < len(channels) else f"{len(channels)}"
    results.print(f"{n} channels, means over cells; --rows prints the {n_rows} rows by layer and step")


def print_relation(answer: "Answer", n_rows: int | None = None, is_wide: bool = False) -> None:
    """Print a result as a table: numbers to 4 digits, long texts truncated, units under the column names.

    Of a named query, only its main columns are printed, on a pipe as well. On a terminal, columns that do not fit are
    listed below: bounds of intervals and counts that are all 0 first, then the rightmost columns.

    Args:
        answer: result of :meth:`fewchannels.runs.sql.catalog.Catalog.query` or ``sql``.
        n_rows: total number of rows if the result has only the first of them; above :data:`MOST_COUNTED`, any larger
        number.
        is_wide: whether to print all columns, even beyond the width of the terminal.
    """
    from fewchannels.runs.sql.named_queries import MOST_SHOWN
    from fewchannels.runs.sql.writing import rows

    units = {column.name: column.unit for column in answer.query.columns} if answer.query else {}
    values = [row for batch in answer.batches() for row in rows(batch)]
    columns = list(zip(*values, strict=True)) if values else [()] * len(answer.columns)
    lost = [name for name, column in zip(answer.columns, columns, strict=True) if name in LOST and any(column)]
    main = ((answer.query.shown or answer.columns)[: MOST_SHOWN - len(lost)]) if answer.query else ()
    print_table(
        [
            Column(
                _visible(name),
                [cell(value) for value in column],
                units.get(name, ""),
                is_right=all(value is None or isinstance(value, int | float) for value in column),
                cuts=units.get(name) == "text" or any(isinstance(v, str) and len(v) > LONGEST_TEXT for v in column),
                is_minor=name.endswith(("_low", "_high")) or (name in LOST and not any(column)),
                is_kept=name in LOST and any(column),
            )
            for name, column in zip(answer.columns, columns, strict=True)
        ],
        is_wide,
        {*main, *lost} if answer.query else None,
    )
    results.print(_counted(len(answer), len(answer) if n_rows is None else n_rows))


def _counted(n_shown: int, n_rows: int) -> str:
    if n_shown == n_rows:
        return rows_in_words(n_rows)
    n = f"{n_rows}" if n_rows <= MOST_COUNTED else f"more than {MOST_COUNTED:,}"
    return f"{n_shown} of {n} rows; --limit 0 for all"


def rows_in_words(n: int) -> str:
    """Format a number of rows."""
    return f"{n} row{'s' * (n != 1)}"


def _visible(text: str) -> str:
    """Put a text on one line; escape characters that could move the cursor or that the output cannot encode."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown.encode(results.encoding, "backslashreplace").decode(results.encoding)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1].rstrip() + "…"


def cell(value: Any) -> str:
    """Format a value for a table: numbers with 4 digits, long texts truncated, on one line."""
    return _cut(_visible(_short(value)[: LONGEST_TEXT + 1]))


def _short(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, float | Decimal):
        return _number(float(value))
    if isinstance(value, list):
        return "[" + " ".join(_short(item) for item in value[:LONGEST_TEXT]) + "]"
    return str(value)


def _number(value: float) -> str:
    """Format with 4 significant digits; never round the integer part of a number below ten million."""
    if value == 0 or 1000 <= abs(value) < 1e7:
        return f"{value:.0f}"
    return f"{value:#.4g}"
