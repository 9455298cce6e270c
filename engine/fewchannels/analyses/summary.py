"""Summaries of analyses: numbers, figures as files, and a page of text that is also readable in a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fewchannels.analyses.document import Figure, Finding

_MOST_HEADLINES = 3


@dataclass(frozen=True)
class Summary:
    """Summary of an analysis, a comparison or a sweep.

    Attributes:
        numbers: numbers of the result as plain values, for ``result.json`` and ``--json``.
        text: short summary in Markdown, which refers to the figures.
        findings: findings, each with a sentence.
        figures: figures of the result.
    """

    numbers: dict[str, Any]
    text: str
    findings: Sequence[Finding] = ()
    figures: Sequence[Figure] = ()

    @property
    def headlines(self) -> list[str]:
        """One to three sentences, which a terminal prints: the first ones of findings, or of the page without any."""
        told = [each.headline for each in self.findings if not each.name.endswith("_by_layer")]
        return told[:_MOST_HEADLINES] or self._paragraphs()[:_MOST_HEADLINES]

    def _paragraphs(self) -> list[str]:
        """Paragraphs of the page that are neither headings nor tables nor images."""
        paragraphs = [" ".join(each.split()) for each in self.text.split("\n\n")]
        return [each for each in paragraphs if each and not each.startswith(("#", "|", "!["))]

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The figures as PNG and SVG, by the names of their files."""
        return as_files(self.figures) if self.figures else {}


def page(title: str, about: str, findings: Sequence[Finding], *, notes: str = "", names: Sequence[str] = ()) -> str:
    """The text of ``summary.md``.

    Args:
        title: title of the page.
        about: description of the data and of the intervals.
        findings: findings in order; each with its table.
        notes: definitions of the terms in the tables.
        names: names of the figures in the same folder.
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
