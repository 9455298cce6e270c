"""Content of a report, independent of its format: parts, sections, findings, figures and images, as plain values."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewchannels.analyses.figures.drawings import Dots, Drawing, HeatMap, Images, Landscape, Lines, Panels
from fewchannels.measures.intervals import missing
from fewchannels.settings.units import number

_END = re.compile(r"(?<=[.]) (?=[A-Z])")
_UNSAFE_IN_QUOTES = '"$`\\!\n'


@dataclass(frozen=True)
class How:
    """A command or a program that reproduces the numbers.

    Attributes:
        text: text of the command or program.
        language: ``shell`` or ``python``.
        asks: the query, if it is one, as parameters of the explorer's URL: ``sql`` with its text, or ``query``
            with its name and ``p.PARAMETER`` with each value.
    """

    text: str
    language: str = "shell"
    asks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Facts:
    """Names and values, such as settings."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Warnings:
    """Warnings that precede the numbers."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A small table: its column headings, and rows of the same length."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Finding:
    """A finding: a sentence in which every number was measured.

    Attributes:
        name: name of the finding, for programs.
        text: the sentence.
        numbers: its numbers as plain values.
        how: commands that reproduce the numbers.
        table: further numbers of the same finding.
    """

    name: str
    text: str
    numbers: Mapping[str, Any]
    how: Sequence[How]
    table: Table | None = None

    @property
    def headline(self) -> str:
        """The first sentence, which a terminal prints."""
        return _END.split(self.text, maxsplit=1)[0]


@dataclass(frozen=True)
class Findings:
    """Findings, the most important first; ``about`` explains their intervals and controls."""

    about: str
    each: Sequence[Finding]


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
        name: name of the figure, unique in its part: letters, digits and ``_``.
        drawing: content of the figure.
        how: commands that reproduce its numbers.
        less_important: whether a page may collapse it.
    """

    name: str
    drawing: Drawing
    how: Sequence[How]
    less_important: bool = False


@dataclass(frozen=True)
class Shown:
    """One sample of a gallery.

    Attributes:
        rank: reason why it is shown, such as ``highest``.
        value: value of the metric.
        sample_id: sample id of the sample, or of the sweep's item.
        prompt: prompt of the sample.
        about: further information about the sample.
        images: captions with images ``(y, x, rgb)`` uint8, at most 256 pixels a side; None if unreadable.
    """

    rank: str
    value: float
    sample_id: str
    prompt: str
    about: str
    images: Sequence[tuple[str, np.ndarray | None]]


@dataclass(frozen=True)
class Gallery:
    """Samples by a metric: highest, median and lowest.

    Attributes:
        name: name of the gallery, with the rules of a figure's name.
        title: title with the metric and n.
        shown: the samples.
        how: commands that list the samples.
    """

    name: str
    title: str
    shown: Sequence[Shown]
    how: Sequence[How]


@dataclass(frozen=True)
class Missing:
    """A missing result and the command that computes it; without a command, ``why`` states the reason."""

    what: str
    how: Sequence[How]
    why: str = ""


Block = Facts | Warnings | Findings | Figure | Gallery | Missing


@dataclass(frozen=True)
class Section:
    """A heading and its content."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Part:
    """One run, sweep or comparison.

    Attributes:
        place: location as given on the command line.
        kind: ``run``, ``sweep`` or ``comparison``.
        title: name of the run, sweep or comparison.
        sections: sections in order.
        numbers: settings and counts as plain values, for programs.
    """

    place: str
    kind: str
    title: str
    sections: Sequence[Section]
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def blocks(self) -> list[Block]:
        """Every block, in order."""
        return [block for section in self.sections for block in section.blocks]

    def findings(self) -> list[Finding]:
        """Every finding, in order."""
        return [each for block in self.blocks() if isinstance(block, Findings) for each in block.each]

    def figures(self) -> list[Figure]:
        """Every figure, in order."""
        return [block for block in self.blocks() if isinstance(block, Figure)]


@dataclass(frozen=True)
class Document:
    """A report: its title, and a part for each run, sweep and comparison."""

    title: str
    parts: Sequence[Part]

    def numbers(self) -> dict[str, Any]:
        """The findings as plain values, as printed by ``--json``."""
        return {
            "parts": [
                {
                    "of": part.place,
                    "kind": part.kind,
                    "what_was_run": dict(part.numbers),
                    "warnings": [t for block in part.blocks() if isinstance(block, Warnings) for t in block.texts],
                    "findings": [
                        {"name": each.name, "text": each.text, "numbers": dict(each.numbers)}
                        for each in part.findings()
                    ],
                    "missing": [
                        {"what": block.what, "commands": [how.text for how in block.how], "why": block.why}
                        for block in part.blocks()
                        if isinstance(block, Missing)
                    ],
                }
                for part in self.parts
            ]
        }

    def commands(self) -> list[How]:
        """Every command and program that reproduces a finding, a figure or a gallery, each once."""
        found: dict[How, None] = {}
        for part in self.parts:
            for each in [*part.findings(), *(b for b in part.blocks() if isinstance(b, Figure | Gallery))]:
                found |= dict.fromkeys(each.how)
        return list(found)


def shell(*words: str) -> How:
    """Join words to a command line, with quotes if needed; SQL in double quotes if a shell does not change it."""
    return How(" ".join(_quoted(word) for word in words))


def _quoted(word: str) -> str:
    plain = shlex.quote(word)
    return plain if plain == word or any(c in word for c in _UNSAFE_IN_QUOTES) else f'"{word}"'


def described(drawing: Drawing) -> str:
    """A text description of a drawing, for screen readers."""
    title = " ".join(drawing.title.split())
    match drawing:
        case Lines():
            return f"Lines: {title}. Across: {drawing.x}. Up: {drawing.y}. Lines: {_listed(drawing.series)}."
        case HeatMap():
            return f"Heat map: {title}. Across: {drawing.column}. Up: {drawing.row}. Colour: {drawing.value}."
        case Landscape():
            return f"Surface: {title}. Axes: {drawing.column} and {drawing.row}. Height: {drawing.value}."
        case Panels():
            lines = {name: None for series in drawing.drawn.values() for name in series}
            return f"{len(drawing.drawn)} panels of lines: {title}. Across: {drawing.x}. Lines: {_listed(lines)}."
        case Dots():
            return f"Means with intervals: {title}. Panels: {_listed(drawing.drawn)}."
        case Images():
            return f"Images: {title}. Rows: {_listed(drawing.labels)}. Columns: {_listed(drawing.columns)}."


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(" ".join(str(name).split()) for name in names)


def span(counts: Iterable[Any]) -> str:
    """Format the numbers of units behind several means: ``24``, or ``6 to 8`` if they differ."""
    found = sorted({int(count) for count in counts})
    return " to ".join(f"{n:,}" for n in dict.fromkeys((found[0], found[-1])))


def ranged(mean: float, low: float, high: float, n_prompts: Any = None) -> str:
    """Format a mean with its 95 % interval, or with the reason for having none: few prompts, or equal means.

    Args:
        mean: mean of some values.
        low: lower end of the interval; NaN if there is none.
        high: upper end of the interval; like ``low`` without one.
        n_prompts: number of prompts behind the values; None or NaN if unknown.
    """
    if np.isfinite(low) and np.isfinite(high):
        return f"{number(mean)} (95 %: {number(low)} to {number(high)})"
    return f"{number(mean)} ({'no interval' if finite(n_prompts) is None else missing(int(n_prompts))})"


def bracketed(mean: Any, low: Any = None, high: Any = None, n_prompts: Any = None) -> str:
    """Format a mean with its interval for a table, whose caption describes it; empty if there is no mean.

    Args:
        mean: mean of some values.
        low: lower end of the interval.
        high: upper end of the interval; like ``low`` without one.
        n_prompts: number of prompts, which explains a missing interval; None if no interval is to be shown.
    """
    if finite(mean) is None:
        return ""
    if finite(low) is not None and finite(high) is not None:
        return f"{number(mean)} ({number(low)} to {number(high)})"
    return number(mean) + ("" if finite(n_prompts) is None else f" ({missing(int(n_prompts))})")


def ranged_row(row: Any) -> str:
    """Format a row of a data frame that has ``mean``, ``low``, ``high`` and, where known, ``n_prompts``."""
    return ranged(float(row["mean"]), float(row["low"]), float(row["high"]), row.get("n_prompts"))


def bracketed_row(row: Any) -> str:
    """Format a row's mean with its interval for a table."""
    return bracketed(row["mean"], row["low"], row["high"], row.get("n_prompts"))


def ends(row: Any) -> dict[str, float | None]:
    """The row's ``mean``, ``low`` and ``high`` in plain values; None if one is not finite."""
    return {name: finite(row[name]) for name in ("mean", "low", "high")}


def finite(value: Any) -> float | None:
    """A plain number; None if it is missing or not finite."""
    return float(value) if value is not None and np.isfinite(value) else None
