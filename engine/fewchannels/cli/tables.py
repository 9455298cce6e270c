"""Tables for a terminal: words stay whole, and columns that do not fit are listed below instead of squeezed."""

import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fewchannels.cli.console import results

Wide = Annotated[
    bool,
    typer.Option(
        "--wide",
        help="Print every column, even beyond the terminal's width. Pipes, files, CSV and JSON always get all columns.",
    ),
]
_PADDING = 1
_RULE = re.compile(r"\|[-:| ]+\|")


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        head: heading; it may break between words.
        cells: one cell per row.
        unit: unit of the values, shown below the heading.
        is_right: whether the column is right-aligned, as numbers are.
        wraps: whether cells may break between words.
        folds: whether cells may break anywhere, as command lines may.
        is_minor: whether the column is left out unless all columns fit.
        style: style of the cells.
    """

    head: str
    cells: Sequence[str] = field(default_factory=list)
    unit: str = ""
    is_right: bool = False
    wraps: bool = False
    folds: bool = False
    is_minor: bool = False
    style: str = ""

    @property
    def natural(self) -> int:
        """Width at which nothing breaks."""
        return max(map(cell_len, (self.head, self.unit, *self.cells)))

    @property
    def least(self) -> int:
        """Width at which no word breaks."""
        words = [*self.head.split(), *self.unit.split()]
        if self.wraps:
            words += [word for cell in self.cells for word in cell.split()]
        elif not self.folds:
            words += self.cells
        return max(map(cell_len, words), default=1) or 1

    def unit_lines(self, width: int) -> list[str]:
        """Lines of the unit, broken between words."""
        return textwrap.wrap(self.unit, width, break_long_words=False)


def print_table(columns: Sequence[Column], is_wide: bool = False) -> list[str]:
    """Print a table; return the names of columns that do not fit.

    Args:
        columns: columns with equal numbers of cells.
        is_wide: whether to print all columns, even beyond the width of the terminal.
    """
    available = results.width if results.is_terminal else sys.maxsize
    there = list(columns) if is_wide else _fitting(columns, available)
    widths = _widths(there, sys.maxsize if is_wide else available)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, _PADDING, 0, 0))
    units = [column.unit_lines(width) for column, width in zip(there, widths, strict=True)]
    for column, width, lines in zip(there, widths, units, strict=True):
        below = [*lines, *[""] * (max(map(len, units)) - len(lines))]  # aligns the headings
        head = Text(column.head, style="bold").append("".join(f"\n{line}" for line in below), style="dim")
        table.add_column(head, justify="right" if column.is_right else "left", width=width, style=column.style)
    for row in zip(*(column.cells for column in there), strict=True):
        table.add_row(*map(Text, row))
    used = _used(widths)
    # Rich squeezes a table into the width of its console.
    console = results if used <= results.width else Console(file=results.file, width=used, highlight=False)
    console.print(table)
    return [column.head for column in columns if column not in there]


def print_page(text: str, is_wide: bool = False) -> None:
    """Print a page in Markdown, without its images.

    Args:
        text: text of the page.
        is_wide: same as for :func:`print_table`.
    """
    from rich.markdown import Markdown  # not needed by queries

    held: list[str] = []
    rows: list[list[str]] = []

    def flush() -> None:
        if any(held):
            results.print(Markdown("\n".join(held)))
        if rows:
            heads, *cells = rows
            columns = [Column(head, [row[i] for row in cells], wraps=True) for i, head in enumerate(heads)]
            say_left_out(print_table(columns, is_wide))
        held.clear()
        rows.clear()

    for line in text.splitlines():
        is_row = line.startswith("| ") or bool(_RULE.fullmatch(line))
        if is_row != bool(rows) and (held or rows):
            flush()
        if not is_row:
            held += [] if line.startswith("![") else [line]
        elif not _RULE.fullmatch(line):
            rows.append([cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split(" | ")])
    flush()


def say_left_out(names: Sequence[str]) -> None:
    """Print which columns did not fit, if any."""
    if names:
        results.print(f"Columns that do not fit: {', '.join(names)}. --wide prints them.", markup=False)


def _fitting(columns: Sequence[Column], available: int) -> list[Column]:
    """Return all columns if they fit; otherwise the major ones from the left that do, and always the first."""
    if _used([column.least for column in columns]) <= available:
        return list(columns)
    chosen: list[Column] = []
    for column in columns:
        if column.is_minor:
            continue
        if chosen and _used([each.least for each in (*chosen, column)]) > available:
            break
        chosen.append(column)
    return chosen


def _widths(columns: Sequence[Column], available: int) -> list[int]:
    """Return a width for each column: its natural width, or less if the widest columns must shrink."""
    widths, least = [column.natural for column in columns], [column.least for column in columns]
    while _used(widths) > available:
        shrinkable = [i for i in range(len(widths)) if widths[i] > least[i]]
        if not shrinkable:
            break
        widths[max(shrinkable, key=lambda i: widths[i])] -= 1
    return widths


def _used(widths: Sequence[int]) -> int:
    """Return the width of a table with its borders."""
    return sum(widths) + (_PADDING + 1) * len(widths) + 1
