"""Which samples a gallery shows: by prompt, SQL condition and any column, ordered by any of them or by a measure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewchannels.errors import InputError, unknown
from fewchannels.runs.sql.ranking import CELL_MEASURES, CHANNEL, CellOfRun, is_of_cell, measured
from fewchannels.runs.sql.values import quoted
from fewchannels.views.explore.address import number
from fewchannels.views.explore.opened import OpenedRun

PER_PAGE = 48
_ALIGNED = ("iou", "best_iou", "complement_iou", "area")
_NOT_SORTED = {"sample_id", "image", "mask", "error", "task"}


@dataclass(frozen=True)
class Search:
    """What to look for.

    Attributes:
        text: that the prompt contains, in any case.
        where: an SQL condition on columns of ``samples`` and ``manifest``.
        by: what samples are ordered by: a column, a measure of a cell, ``channel`` or ``iou``.
        is_ascending: whether the least comes first.
        layer: of the cell whose measure it is.
        step: likewise.
        channel: whose score it is.
        page: from 1.
    """

    text: str = ""
    where: str = ""
    by: str = "sample"
    is_ascending: bool = True
    layer: int = 0
    step: int = 0
    channel: int = 0
    page: int = 1

    @classmethod
    def of(cls, given: Mapping[str, str], run: OpenedRun) -> "Search":
        """What a query asks for.

        Raises:
            InputError: a value that cannot be.
        """
        by = given.get("by", "sample")
        layer, step = number(given, "layer", run.layers[len(run.layers) // 2]), number(given, "step", run.steps[-1])
        channel, page = number(given, "channel", 0), number(given, "page", 1)
        assert layer is not None
        assert step is not None
        run.check_kept(step, layer)
        order = given.get("order", "least" if by in columns(run) else "largest")
        if order not in ("least", "largest"):
            raise InputError(f"order is {order!r} in the address; it takes least or largest.")
        return cls(
            given.get("text", ""),
            given.get("where", ""),
            by,
            order == "least",
            layer,
            step,
            channel or 0,
            max(1, page or 1),
        )

    @property
    def needs_cell(self) -> bool:
        """Whether layer and step decide."""
        return is_of_cell(self.by)

    def as_query(self) -> dict[str, object]:
        """It as a query; pages are numbered from the first again where it is changed."""
        said: dict[str, object] = {"text": self.text, "where": self.where}
        said |= {"by": self.by, "order": "least" if self.is_ascending else "largest"}
        if self.needs_cell:
            said |= {"layer": self.layer, "step": self.step}
        if self.by == CHANNEL:
            said["channel"] = self.channel
        return said | ({"page": self.page} if self.page > 1 else {})


@dataclass(frozen=True)
class Found:
    """One page of samples.

    Attributes:
        n: of all that were found.
        rows: each a sample's ``sample``, ``sample_id``, ``prompt``, ``status`` and ``value``.
    """

    n: int
    rows: list[dict[str, Any]]


def columns(run: OpenedRun) -> list[str]:
    """Columns of samples and manifest that samples can be ordered by."""
    names = run.catalog.sql(f"{run.catalog.joined()} limit 0").columns
    return [name for name in names if name not in _NOT_SORTED]


def measures(run: OpenedRun) -> dict[str, str]:
    """Everything that samples can be ordered by, with its label."""
    named = {name: name for name in columns(run)}
    named |= CELL_MEASURES | {CHANNEL: f"one channel's {run.score}"}
    if "alignment" in run.catalog.results:
        named |= {name: f"{name}: top channels' clusters and the subject" for name in _ALIGNED}
    return named


def find(run: OpenedRun, search: Search) -> Found:
    """The samples of one page.

    Args:
        run: that is looked at.
        search: what to look for.

    Raises:
        InputError: there is nothing to order by of that name, or the condition is not SQL.
    """
    known = measures(run)
    if search.by not in known:
        raise unknown("column or measure", search.by, known)
    value, joined = quoted(search.by), ""
    if search.needs_cell:
        value, cell = "measure", CellOfRun(search.layer, search.step, channel=search.channel)
        joined = f"left join (select sample, value as measure from ({measured(search.by, cell)})) using (sample)"
    order = "asc" if search.is_ascending else "desc"
    text = f"""
        with everything as ({run.catalog.joined()}),
        chosen as (
            select * from everything
            where contains(lower(prompt), lower($text)) and {run.catalog.condition(search.where)}
        )
        select sample, sample_id, prompt, status, {value} as value, count(*) over () as n
        from chosen {joined}
        order by value {order} nulls last, sample
        limit {PER_PAGE} offset {(search.page - 1) * PER_PAGE}
    """
    question = run.catalog.ask(text, {"text": search.text}, run.limits)
    with run.under_way.asking(question):
        found = question.answer()
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
    return Found(rows[0]["n"] if rows else 0, rows)
