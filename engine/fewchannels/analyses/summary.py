"""What an analysis came to: numbers, figures as files, and a page that a terminal shows as well."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fewchannels.analyses.document import Figure, Finding


@dataclass(frozen=True)
class Summary:
    """What an analysis, a comparison or a sweep came to.

    Attributes:
        numbers: the answers in plain values, for ``result.json`` and ``--json``.
        text: a short summary in Markdown; figures are named in it.
        findings: its sentences.
        figures: its figures.
    """

    numbers: dict[str, Any]
    text: str
    findings: Sequence[Finding] = ()
    figures: Sequence[Figure] = ()

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The figures as PNG and SVG, by the names of their files."""
        return as_files(self.figures) if self.figures else {}


def page(title: str, about: str, findings: Sequence[Finding], *, notes: str = "", names: Sequence[str] = ()) -> str:
    """The text of ``summary.md``.

    Args:
        title: title of the page.
        about: what was looked at, and how intervals are meant.
        findings: findings in order; each with its table.
        notes: what a reader must know of the tables' words.
        names: names of the figures that lie beside it.
    """
    lines = [f"# {title}", "", about, ""]
    for each in findings:
        lines += [each.text, ""]
        if each.table is not None:
            lines += [f"{each.table.caption}:", "", *table(each.table.heads, each.table.rows)]
    lines += [notes, ""] if notes else []
    return "\n".join([*lines, *images(names), ""])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, and an empty one."""
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows)] + [""]


def images(names: Sequence[str]) -> list[str]:
    """A line for each figure."""
    return [f"![{name}](figures/{name}.png)" for name in names]


def as_files(figures: Sequence[Figure]) -> dict[str, bytes]:
    """Figures as PNG and SVG under the names of their files."""
    from fewchannels.analyses.figures import still  # takes a second to import, and workers draw nothing

    return still.as_files({figure.name: figure.drawing for figure in figures})
