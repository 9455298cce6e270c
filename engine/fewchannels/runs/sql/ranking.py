"""Rank samples by a measure of one cell: of the cell itself, of a channel in it, or of the alignment's clusters."""

from collections.abc import Collection
from dataclasses import dataclass

from fewchannels.runs.sql.columns import Column
from fewchannels.runs.sql.values import quoted

CELL_MEASURES = {
    "ratio": "ratio: largest score / median",
    "energy_share": "energy share of the top k",
    "gini": "Gini of the 32 largest scores",
    "token_norm_ratio": "largest token norm / median",
}
"""Columns of ``cells`` that order samples, and what they are."""
ALIGNMENT_MEASURES = ("iou", "best_iou", "complement_iou", "chance_iou", "area", "mask_area", "ari", "nmi")
"""Columns of an alignment's samples that do."""
CHANNEL = "channel"
"""The score of one channel."""
_TABLE_OF = dict.fromkeys((*CELL_MEASURES, CHANNEL), "cells") | dict.fromkeys(ALIGNMENT_MEASURES, "alignment_samples")


@dataclass(frozen=True)
class CellOfRun:
    """The cell that a measure is about.

    Attributes:
        layer: number of the layer.
        step: number of the step.
        stream: stream of the tokens.
        branch: branch of guidance.
        channel: channel whose score :data:`CHANNEL` is.
        alignment: the view of an alignment's samples.
    """

    layer: int
    step: int
    stream: str = "image"
    branch: str = "cond"
    channel: int = 0
    alignment: str = "alignment_samples"


def measure_named(text: str, own: Collection[str]) -> str | None:
    """The measure of a cell that a text names, plainly or as ``TABLE.NAME``; None if it is something else.

    Args:
        text: text as entered by a user.
        own: names of columns that the manifest's source has, which come first.
    """
    if text in _TABLE_OF:
        return None if text in own else text
    table, _, name = text.rpartition(".")
    return name if _TABLE_OF.get(name) == table else None


def measure_name(measure: str, own: Collection[str]) -> str:
    """The text of a measure; the inverse of :func:`measure_named`."""
    return f"{_TABLE_OF[measure]}.{measure}" if measure in own else measure


def usable(stream: str, branch: str) -> str:
    """The SQL condition on ``cells`` for usable cells of a stream and branch."""
    is_finite = "nonfinite = 0 and if(isfinite(ratio), ratio, null) is not null"
    return f"stream = '{stream}' and branch = '{branch}' and {is_finite}"


def measured(by: str, cell: CellOfRun) -> str:
    """The query for each sample's value of a measure at a cell: ``sample`` and ``value``.

    Args:
        by: the measure, as :func:`measure_named` returns it.
        cell: where.
    """
    at = f"layer = {cell.layer:d} and step = {cell.step:d}"
    if by in ALIGNMENT_MEASURES:
        return (
            f"select sample, {by} as value from {cell.alignment} where {at} and selection = 'top' and trial = 0 and "
            f"n_clusters = (select min(n_clusters) from {cell.alignment})"
        )
    value = f"top_scores[list_position(top_channels, {cell.channel:d}::integer)]" if by == CHANNEL else by
    return f"select sample, {value} as value from cells where {at} and {usable(cell.stream, cell.branch)}"


def of_column(column: Column) -> str:
    """The query for each sample's number in a column of ``samples`` or of ``manifest``: ``sample`` and ``value``."""
    table, name = column
    joined = "" if table == "samples" else " join manifest using (sample_id)"
    return f"select samples.sample, {table}.{quoted(name)}::double as value from samples{joined}"


def ranked(values: str) -> str:
    """The query for finished samples that have a value, the largest first: ``sample`` and ``value``.

    Args:
        values: a query such as :func:`measured` gives.
    """
    return (
        f"select sample, value from ({values}) join samples using (sample) where status = 'done' and "
        "if(isfinite(value), value, null) is not null order by value desc, sample"
    )
