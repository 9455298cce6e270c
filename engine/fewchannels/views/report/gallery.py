"""Samples with the highest, median and lowest values of a column, each with its images and its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fewchannels.analyses.alignment.findings import Cell
from fewchannels.analyses.document import Gallery, Shown
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.figures.colors import colored
from fewchannels.analyses.ratio import Extreme
from fewchannels.errors import StorageError, unknown
from fewchannels.interventions.effects.contrasts import metrics as edit_metrics
from fewchannels.interventions.metrics import METRICS
from fewchannels.runs.arrays import open_dataset, read
from fewchannels.runs.choices import choose_pool_side
from fewchannels.runs.images import opened
from fewchannels.runs.layout import Track
from fewchannels.runs.sql.columns import TABLES, Column, Columns
from fewchannels.runs.sql.ranking import (
    ALIGNMENT_MEASURES,
    CELL_MEASURES,
    CellOfRun,
    measure_name,
    measure_named,
    measured,
    of_column,
    ranked,
)

SIDE = 256  # pixels
_OF_SAMPLES = ("seconds", "prompt_tokens", "seed")
_EACH = 3  # samples of a run for each rank
_NO_IMAGE = "the image is missing or unreadable"


@dataclass(frozen=True)
class _Ranking:
    """A column by which to rank samples, the query that does so, and the cell of the maps."""

    text: str
    title: str
    layer: int
    step: int


def of_run(evidence: Evidence, found: Extreme, best: Cell | None, by: str | None) -> Gallery | None:
    """Samples of a run by a column; None if no sample has a value.

    Args:
        evidence: the run.
        found: layer with the largest ratio.
        best: cell where the top channels fit the subject best; None without an alignment.
        by: a column; None takes ``iou``, or ``ratio`` without an alignment.

    Raises:
        InputError: there is no such column.
        StorageError: the store is damaged.
    """
    ranking = _ranking(evidence, found, best, by)
    rows = evidence.ask(ranking.text)
    if rows.empty:
        return None
    shown = []
    for rank, place in places(len(rows), _EACH):
        row = rows.iloc[place]
        (about,) = evidence.ask(
            "select sample_id, prompt, seed, grid_height, grid_width, image, top_channels[1] as channel, ratio from "
            f"samples left join (select * from cells where {evidence.of_track} and layer = {ranking.layer} and step = "
            f"{ranking.step}) using (sample, sample_id) where sample = {int(row['sample'])}"
        ).itertuples()
        images = [("image", thumbnail(about.image))]
        grid = _token_map(evidence, int(row["sample"]), ranking, int(about.grid_height), int(about.grid_width))
        if grid is not None and pd.notna(about.channel):
            caption = f"channel {int(about.channel)}, layer {ranking.layer}, step {ranking.step}"
            images.append((f"token map, {caption}", grid))
        text = f"sample {int(row['sample'])}, seed {about.seed}"
        shown.append(Shown(rank, float(row["value"]), about.sample_id, about.prompt, text, images))
    title = f"Samples by {ranking.title}\nn = {len(rows):,} samples; maps: signed values, darkest at each map's minimum"
    return Gallery("gallery", title, shown, [evidence.sql(ranking.text)])


def _ranking(evidence: Evidence, found: Extreme, best: Cell | None, by: str | None) -> _Ranking:
    columns = Columns.of(evidence.catalog)
    of_cells = [*(ALIGNMENT_MEASURES if best else ()), *CELL_MEASURES]
    measure = ("iou" if best else "ratio") if by is None else measure_named(by, columns.own)
    if measure is not None and measure in of_cells:
        layer, step, title = found.layer, found.step, measure
        if best and measure in ALIGNMENT_MEASURES:
            layer, step, title = best.layer, best.step, f"{measure} of the top channels' foreground"
        alignment = evidence.table("alignment", "samples") if best else ""
        cell = CellOfRun(layer, step, evidence.stream, evidence.branch, alignment=alignment)
        return _Ranking(ranked(measured(measure, cell)), f"{title}, layer {layer}, step {step}", layer, step)
    numeric = _numeric(evidence)
    if by is None or columns.get(by) not in numeric:
        known = [measure_name(name, columns.own) for name in of_cells]
        known += [name for name, column in columns.named.items() if column in numeric]
        raise unknown(f"column of {evidence.place!r} to show samples by", by, known)
    return _Ranking(ranked(of_column(columns.find(by))), by, found.layer, found.step)


def _numeric(evidence: Evidence) -> set[Column]:
    """The columns that samples can be ranked by."""
    found = set()
    for table in TABLES:
        frame = evidence.ask(f"select * from {table} limit 0")
        numeric = {(table, name) for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name])}
        found |= {column for column in numeric if table == "manifest" or column[1] in _OF_SAMPLES}
    return found


def places(n: int, each: int) -> list[tuple[str, int]]:
    """Choose rows to show among ``n`` ranked ones, ``each`` per rank, with the reason: each once, the highest first."""
    each = min(each, max(1, n // 3))
    middle = (n - each) // 2
    wanted = [("highest", i) for i in range(each)]
    wanted += [("median", i) for i in range(middle, middle + each)]
    wanted += [("lowest", i) for i in range(n - each, n)]
    first: dict[int, str] = {}
    for rank, place in wanted:
        first.setdefault(place, rank)
    return [(rank, place) for place, rank in first.items()]


def _token_map(evidence: Evidence, sample: int, ranking: _Ranking, height: int, width: int) -> np.ndarray | None:
    """The largest channel's map as colors, by token; None if no maps are kept."""
    name = Track("image", evidence.branch).prefix + "massive_value"
    try:
        data = open_dataset(evidence.storage)
        if evidence.stream != "image" or name not in data:
            return None
        layers, steps = data.layer.values.tolist(), data.step.values.tolist()
        region = ([steps.index(ranking.step)], [layers.index(ranking.layer)])
        values = read(evidence.storage, [name], sample, sample + 1, region)[name][0, 0, 0, 0]
    except (ValueError, OSError) as error:
        raise evidence.unreadable(name, error) from None
    pool = choose_pool_side(evidence.description["config"].get("tokens", "all"))
    height, width = height // pool, width // pool
    grid = values[: height * width].reshape(height, width)
    every = -(-max(grid.shape) // SIDE)
    return colored(grid[::every, ::every])


def thumbnail(data: bytes | None) -> np.ndarray | None:
    """A stored image, at most 256 pixels a side; None if there is none or it cannot be decoded."""
    if not isinstance(data, bytes):
        return None
    try:
        small = opened(data)
    except StorageError:
        return None
    small.thumbnail((SIDE, SIDE))
    return np.asarray(small)


def of_sweep(evidence: Evidence, columns: Sequence[str], condition: int, words: str) -> list[Gallery]:
    """Items of a sweep by columns of ``edits``: a setting's edited image beside the images that it is compared with.

    Args:
        evidence: the sweep.
        columns: columns to rank by.
        condition: index of the setting's first condition in the sweep.
        words: the setting as text.

    Raises:
        InputError: there is no such column.
    """
    drawn = []
    for column in columns:
        if column not in edit_metrics():
            raise unknown(f"column of {evidence.place!r} to show items by", column, edit_metrics())
        text = (
            f"select item, item_id, {column}::double as value from edits where role = 'edited' and condition = "
            f"{condition} and status = 'done' and {column} is not null and if(isfinite({column}::double), 1, null) is "
            "not null order by value desc, item"
        )
        rows = evidence.ask(text)
        if rows.empty:
            continue
        shown = [_item(evidence, rows.iloc[place], rank, condition) for rank, place in places(len(rows), 1)]
        about = f"{column}, {METRICS[column].about} ({METRICS[column].unit})" if column in METRICS else column
        title = f"Items by {about}\n{words}; n = {len(rows):,} items"
        drawn.append(Gallery(f"gallery_{column}", title, shown, [evidence.sql(text)]))
    return drawn


def _item(evidence: Evidence, row: pd.Series, rank: str, condition: int) -> Shown:
    found = evidence.ask(
        f"select role, image, prompt, source_prompt, seed from edits where item = {int(row['item'])} and (role != "
        f"'edited' or condition = {condition}) order by role = 'edited', role desc"
    ).drop_duplicates("role")
    first = found.iloc[0]
    images = [(each.role, thumbnail(each.image)) for each in found.itertuples()]
    about = f"item {int(row['item'])}, seed {first['seed']}"
    if isinstance(first["source_prompt"], str):
        about += f", source: {first['source_prompt']}"
    return Shown(rank, float(row["value"]), str(row["item_id"]), first["prompt"], about, images)


def alternative(caption: str, prompt: str, image: np.ndarray | None) -> str:
    """Alternative text of an image."""
    return f"{caption} of: {prompt}" if image is not None else _NO_IMAGE
