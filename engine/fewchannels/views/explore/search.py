"""Search in a gallery: filter samples by prompt and SQL condition, and order them by any column or a measure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewchannels.errors import InputError, unknown
from fewchannels.runs.sql.columns import Columns, chosen
from fewchannels.runs.sql.ranking import CELL_MEASURES, CHANNEL, CellOfRun, measure_name, measure_named, measured
from fewchannels.views.explore.address import number
from fewchannels.views.explore.opened import OpenedRun

PER_PAGE = 48
_ALIGNED = ("iou", "best_iou", "complement_iou", "area")
_NOT_SORTED = {("samples", "sample_id"), ("samples", "error"), ("samples", "task"), ("manifest", "mask")}


@dataclass(frozen=True)
class Search:
    """Settings of a search.

    Attributes:
        text: text that the prompt contains, in any case.
        where: an SQL condition on columns of ``samples`` and ``manifest``.
        by: order of samples: a column, a measure of a cell, ``channel`` or ``iou``, with the names of :func:`measures`.
        is_ascending: whether the smallest value comes first.
        layer: layer of the cell for a measure.
        step: step of the cell for a measure.
        channel: channel for ``channel``, which orders by its score.
        page: page number, from 1.
        measure: measure of a cell that ``by`` names, if it is one.
    """

    text: str = ""
    where: str = ""
    by: str = "sample"
    is_ascending: bool = True
    layer: int = 0
    step: int = 0
    channel: int = 0
    page: int = 1
    measure: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, str], run: OpenedRun) -> "Search":
        """Read the search in a URL's query.

        Raises:
            InputError: a value is not valid.
        """
        found = Columns.of(run.catalog)
        by = given.get("by", found.of_samples("sample"))
        layer, step = number(given, "layer", run.layers[len(run.layers) // 2]), number(given, "step", run.steps[-1])
        channel, page = number(given, "channel", 0), number(given, "page", 1)
        assert layer is not None
        assert step is not None
        run.check_kept(step, layer)
        order = given.get("order", "least" if found.get(by) else "largest")
        if order not in ("least", "largest"):
            raise InputError(f"order is {order!r} in the URL; it must be least or largest.")
        return cls(
            given.get("text", ""),
            given.get("where", ""),
            by,
            order == "least",
            layer,
            step,
            channel or 0,
            max(1, page or 1),
            measure_of(run, by),
        )

    @property
    def needs_cell(self) -> bool:
        """Return whether the order depends on layer and step."""
        return self.measure is not None

    def as_query(self) -> dict[str, object]:
        """Convert it to a URL's query; a change returns to the first page."""
        said: dict[str, object] = {"text": self.text, "where": self.where}
        said |= {"by": self.by, "order": "least" if self.is_ascending else "largest"}
        if self.needs_cell:
            said |= {"layer": self.layer, "step": self.step}
        if self.measure == CHANNEL:
            said["channel"] = self.channel
        return said | ({"page": self.page} if self.page > 1 else {})


@dataclass(frozen=True)
class Found:
    """One page of samples.

    Attributes:
        n: number of all matches.
        rows: ``sample``, ``sample_id``, ``prompt``, ``status`` and ``value`` of each sample.
    """

    n: int
    rows: list[dict[str, Any]]


def measure_of(run: OpenedRun, by: str) -> str | None:
    """The measure of a cell that samples are ordered by; None if it is a column."""
    return measure_named(by, Columns.of(run.catalog).own)


def measures(run: OpenedRun) -> dict[str, str]:
    """Everything that samples can be ordered by, with its label."""
    found = Columns.of(run.catalog)
    of_cells = CELL_MEASURES | {CHANNEL: f"one channel's {run.score}"}
    if "alignment" in run.catalog.results:
        of_cells |= {name: f"{name}: clusters by top channels against the subject" for name in _ALIGNED}
    named = {name: name for name, column in found.named.items() if column not in _NOT_SORTED}
    return named | {measure_name(name, found.own): label for name, label in of_cells.items()}


def find(run: OpenedRun, search: Search) -> Found:
    """The samples of one page.

    Args:
        run: run to search.
        search: settings of the search.

    Raises:
        InputError: there is no such order, or the condition is not SQL.
    """
    known = measures(run)
    if search.by not in known:
        raise unknown("column or measure", search.by, known)
    found = chosen(run.catalog, search.where, None if search.measure else search.by)
    if search.measure is not None:
        cell = CellOfRun(search.layer, search.step, channel=search.channel)
        found = f"select sample, value from ({found}) left join ({measured(search.measure, cell)}) using (sample)"
    order = "asc" if search.is_ascending else "desc"
    text = f"""
        select sample, sample_id, prompt, status, value, count(*) over () as n
        from samples join ({found}) using (sample)
        where contains(lower(prompt), lower($text))
        order by value {order} nulls last, sample
        limit {PER_PAGE} offset {(search.page - 1) * PER_PAGE}
    """
    question = run.catalog.ask(text, {"text": search.text}, run.limits)
    with run.under_way.asking(question):
        answer = question.answer()
    rows = [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]
    return Found(rows[0]["n"] if rows else 0, rows)
