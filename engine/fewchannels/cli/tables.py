"""Tables for a terminal: words stay whole, and columns that do not fit are listed below instead of squeezed."""

import re
import sys
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from fewchannels.cli.console import Literal, results

Wide = Annotated[
    bool,
    typer.Option(
        "--wide",
        help="Print every column, even beyond the terminal's width. CSV, JSON and files always get all columns.",
    ),
]
MOST_COLUMNS = 8
"""Maximum number of columns of a named query or an analysis."""
COMFORTABLE = 100
"""Width of their tables and sentences, in characters, on a pipe and at most on a terminal."""
_PADDING = 1
_SHORTEST_CUT = 24
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
        cuts: whether cells may be truncated to 24 characters, as prompts may.
        is_minor: whether the column is left out unless all columns fit.
        is_kept: whether the column is never left out, as a count of values that the others lack.
        style: style of the cells.
    """

    head: str
    cells: Sequence[str] = field(default_factory=list)
    unit: str = ""
    is_right: bool = False
    wraps: bool = False
    folds: bool = False
    cuts: bool = False
    is_minor: bool = False
    is_kept: bool = False
    style: str = ""

    @property
    def natural(self) -> int:
        """Width at which nothing breaks."""
        return max(map(cell_len, (self.head, self.unit, *self.cells)))

    @property
    def least(self) -> int:
        """Width at which no word breaks, or cells are truncated as far as they may be."""
        words = [*self.head.split(), *self.unit.split()]
        if self.wraps:
            words += [word for cell in self.cells for word in cell.split()]
        elif self.cuts:
            words += [cell[:_SHORTEST_CUT] for cell in self.cells]
        elif not self.folds:
            words += self.cells
        return max(map(cell_len, words), default=1) or 1

    def cell(self, text: str, width: int) -> Text:
        """One of its cells, as it is printed in a column of a width."""
        shown = Text(text)
        if self.cuts:
            shown.truncate(width, overflow="ellipsis")
        return shown

    def unit_lines(self, width: int) -> list[str]:
        """Lines of the unit, broken between words."""
        return textwrap.wrap(self.unit, width, break_long_words=False)


def print_sentences(texts: Sequence[str]) -> None:
    """Print sentences, each on lines of its own."""
    width = min(results.width, COMFORTABLE) if results.is_terminal else COMFORTABLE
    for text in texts:
        for line in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False):
            results.print(line, soft_wrap=True)


def print_table(columns: Sequence[Column], is_wide: bool, main: Collection[str] | None = None) -> None:
    """Print a table, and below it the names of columns that do not fit: a command that calls this has ``--wide``.

    Args:
        columns: columns with equal numbers of cells.
        is_wide: whether to print all columns, even beyond the width of the terminal.
        main: headings of the only columns to print otherwise, in :data:`COMFORTABLE` characters; None for all that fit.
    """
    available = results.width if results.is_terminal else COMFORTABLE if main is not None else sys.maxsize
    chosen = [column for column in columns if main is None or column.head in main]
    there = list(columns) if is_wide else _fitting(chosen, available)
    widths = _widths(there, sys.maxsize if is_wide else available)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, _PADDING, 0, 0))
    units = [column.unit_lines(width) for column, width in zip(there, widths, strict=True)]
    for column, width, lines in zip(there, widths, units, strict=True):
        below = [*lines, *[""] * (max(map(len, units)) - len(lines))]  # aligns the headings
        head = Text(column.head, style="bold").append("".join(f"\n{line}" for line in below), style="dim")
        table.add_column(head, justify="right" if column.is_right else "left", width=width, style=column.style)
    for row in zip(*(column.cells for column in there), strict=True):
        table.add_row(*(column.cell(text, width) for column, text, width in zip(there, row, widths, strict=True)))
    used = _used(widths)
    # Rich squeezes a table into the width of its console.
    console = results if used <= results.width else Literal(file=results.file, width=used)
    console.print(table)
    left_out = [column.head for column in columns if column not in there]
    if left_out:
        results.print(f"Columns that do not fit: {', '.join(left_out)}. --wide prints them.")


def print_page(sentences: Sequence[str], text: str, is_wide: bool) -> None:
    """Print a page's title, sentences, and the page's tables in Markdown with the caption or heading above each.

    Args:
        sentences: what the page says first.
        text: text of the page.
        is_wide: same as for :func:`print_table`; otherwise tables have their first :data:`MOST_COLUMNS` columns.
    """
    title = next((line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")), "")
    if title:
        results.print(Text(title, style="bold"), soft_wrap=True)
    print_sentences(sentences)
    above = ""
    rows: list[list[str]] = []

    def flush() -> None:
        nonlocal above
        if rows:
            heads, *cells = rows
            columns = [Column(head, [row[i] for row in cells], wraps=True) for i, head in enumerate(heads)]
            print_sentences([above.lstrip("# ")])
            print_table(columns, is_wide, heads[:MOST_COLUMNS])
            rows.clear()
            above = ""

    for line in text.splitlines():
        if line.startswith("| ") and not _RULE.fullmatch(line):
            rows.append([cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split(" | ")])
        elif not _RULE.fullmatch(line):
            flush()
            if line.endswith(":") or line.startswith("## "):
                above = line
    flush()


def _fitting(columns: Sequence[Column], available: int) -> list[Column]:
    """Return all columns if they fit; otherwise those that are kept, and the major ones from the left that fit."""
    if _used([column.least for column in columns]) <= available:
        return list(columns)
    kept = [column for column in columns if column.is_kept]
    chosen: list[Column] = []
    for column in columns:
        if column.is_minor or column.is_kept:
            continue
        if chosen and _used([each.least for each in (*kept, *chosen, column)]) > available:
            break
        chosen.append(column)
    return [column for column in columns if column in kept or column in chosen]


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
