"""What a report says, before it becomes a page: parts, sections, findings, figures and images, in plain values."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewchannels.analyses.figures.drawings import Dots, Drawing, HeatMap, Images, Landscape, Lines, Panels
from fewchannels.measures.intervals import missing

_UNSAFE_IN_QUOTES = '"$`\\!\n'


@dataclass(frozen=True)
class How:
    """A command or a program that gives the numbers again.

    Attributes:
        text: text as it is typed.
        language: ``shell`` or ``python``.
        asks: the query where it is one, as an address of the explorer has it: ``sql`` with its text, or ``query``
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
    """What a reader must know before the numbers."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A small table: its heads, and as many texts in each row."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Finding:
    """What was found, as a sentence whose every number was measured.

    Attributes:
        name: name of the finding, for programs.
        text: the sentence.
        numbers: the same in plain values.
        how: what gives the numbers again.
        table: further numbers of the same finding.
    """

    name: str
    text: str
    numbers: Mapping[str, Any]
    how: Sequence[How]
    table: Table | None = None


@dataclass(frozen=True)
class Findings:
    """Findings, the most important first; ``about`` says how their intervals and controls are meant."""

    about: str
    each: Sequence[Finding]


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
        name: name of the figure, the same in no other of its part: letters, digits and ``_``.
        drawing: what is drawn.
        how: what gives its numbers again.
        less_important: whether a page may fold it away.
    """

    name: str
    drawing: Drawing
    how: Sequence[How]
    less_important: bool = False


@dataclass(frozen=True)
class Shown:
    """One sample of a gallery.

    Attributes:
        rank: why it is shown, such as ``highest``.
        value: value of the metric.
        sample_id: sample id of the sample, or of the sweep's item.
        prompt: its prompt.
        about: what else is known of it.
        images: captions with images ``(y, x, rgb)`` uint8, at most 256 pixels a side; None could not be read.
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
        name: name, as a figure's.
        title: says what by, and n.
        shown: the samples.
        how: what lists them.
    """

    name: str
    title: str
    shown: Sequence[Shown]
    how: Sequence[How]


@dataclass(frozen=True)
class Missing:
    """What was not computed, and the command that would; without one ``why`` says what stands against it."""

    what: str
    how: Sequence[How]
    why: str = ""


Block = Facts | Warnings | Findings | Figure | Gallery | Missing


@dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Part:
    """One run, sweep or comparison.

    Attributes:
        place: location as it was named on the command line.
        kind: ``run``, ``sweep`` or ``comparison``.
        title: its name.
        sections: sections in order.
        numbers: what was run, in plain values, for programs.
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
        """What was found, in plain values, as ``--json`` prints it."""
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
    """A command line of its words, quoted where they need it; SQL in double quotes where a shell leaves it alone."""
    return How(" ".join(_quoted(word) for word in words))


def _quoted(word: str) -> str:
    plain = shlex.quote(word)
    return plain if plain == word or any(c in word for c in _UNSAFE_IN_QUOTES) else f'"{word}"'


def described(drawing: Drawing) -> str:
    """A drawing in words, for those who do not see it."""
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


def number(value: float) -> str:
    """A number to three digits, its whole part whole: ``0.0268``, ``19.7``, ``1,446``."""
    if not np.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def ranged(mean: float, low: float, high: float, n_prompts: Any = None) -> str:
    """A mean with its 95 % interval, or with what stands against one: few prompts, or equal means of all prompts.

    Args:
        mean: mean of some values.
        low: end of its interval; NaN where it has none.
        high: upper end of the interval; like ``low`` without one.
        n_prompts: number of prompts that the values are of; None or NaN where that is not known.
    """
    if np.isfinite(low) and np.isfinite(high):
        return f"{number(mean)} (95 %: {number(low)} to {number(high)})"
    return f"{number(mean)} ({'no interval' if finite(n_prompts) is None else missing(int(n_prompts))})"


def bracketed(mean: Any, low: Any = None, high: Any = None, n_prompts: Any = None) -> str:
    """A mean with its interval as a table has it, whose caption says of what it is; nothing where there is no mean.

    Args:
        mean: mean of some values.
        low: end of its interval.
        high: upper end of the interval; like ``low`` without one.
        n_prompts: what it would be of, which says why there is none; None where the mean has no interval to show.
    """
    if finite(mean) is None:
        return ""
    if finite(low) is not None and finite(high) is not None:
        return f"{number(mean)} ({number(low)} to {number(high)})"
    return number(mean) + ("" if finite(n_prompts) is None else f" ({missing(int(n_prompts))})")


def ranged_row(row: Any) -> str:
    """The same of a row of a frame that has ``mean``, ``low``, ``high`` and, where known, ``n_prompts``."""
    return ranged(float(row["mean"]), float(row["low"]), float(row["high"]), row.get("n_prompts"))


def bracketed_row(row: Any) -> str:
    """Format a row's mean with its interval for a table."""
    return bracketed(row["mean"], row["low"], row["high"], row.get("n_prompts"))


def ends(row: Any) -> dict[str, float | None]:
    """The row's ``mean``, ``low`` and ``high`` in plain values; None where one is not finite."""
    return {name: finite(row[name]) for name in ("mean", "low", "high")}


def finite(value: Any) -> float | None:
    """A plain number; None where it is missing or not finite."""
    return float(value) if value is not None and np.isfinite(value) else None
