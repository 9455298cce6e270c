"""Figures of a sweep: means against the varied settings, and edited images side by side."""

import re
import textwrap
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pandas as pd

from fewchannels.analyses.document import span
from fewchannels.analyses.figures.drawings import Dots, Drawing, Images, Panels, Series
from fewchannels.errors import InputError, unknown
from fewchannels.interventions.conditions import BASELINES, SELECTIONS
from fewchannels.interventions.effects.contrasts import SETTINGS
from fewchannels.interventions.metrics import METRICS
from fewchannels.runs.images import opened

AXES = {"k": "k", "amount": "amount", "layer": "layers_name", "step": "steps_name"}
"""Possible horizontal axes of a figure, with their columns."""
MAIN = (
    "source_taken",
    "target_kept",
    "n_shown",
    "mse",
    "ssim",
    "lpips",
    "dino",
    "clip_image",
    "clip_score",
    "aesthetic",
)
"""The main metrics, those that say most first."""
_WORDS = {
    "action": "{}",
    "selection": "{}",
    "amount": "amount {:g}",
    "k": "k {:g}",
    "scores_from": "scores from {}",
    "layers_name": "layers {}",
    "steps_name": "steps {}",
    "streams": "stream {}",
    "tokens": "tokens {}",
    "placement": "places {}",
}
_AXIS_LABELS = {"k": "k, channels", "amount": "strength (amount)", "layer": "layers", "step": "denoising steps"}
_MOST_MAIN = 5
_MOST_PANELS = 9
_MOST_DOTS = 36
_MOST_STRIP = (14, 10)  # rows and columns of images
_N_STRIPS = 3
_SIDE = 192  # pixels
_Value = TypeVar("_Value")
_FAILED, _NONE = (np.full((1, 1, 3), gray, np.uint8) for gray in (200, 255))


def varying(edits: pd.DataFrame) -> list[str]:
    """Axes of :data:`AXES` along which a sweep varies its edits, or its baselines if it has nothing else.

    Args:
        edits: rows of ``schemas/edits.yaml``, or their means.
    """
    rows, with_k = _own(edits[edits["condition"].notna()])
    return [axis for axis, name in AXES.items() if (with_k if axis == "k" else rows)[name].nunique() > 1]


def main_metrics(means: pd.DataFrame) -> list[str]:
    """The first 5 of :data:`MAIN` that were measured for edited images."""
    found = set(means.loc[means["condition"].notna() & means["mean"].notna(), "metric"])
    return [metric for metric in MAIN if metric in found][:_MOST_MAIN]


def in_words(row: pd.Series, names: Sequence[str]) -> str:
    """Some of a condition's settings as text, such as ``top, k 8, layers 0-5``."""
    return ", ".join(text.format(row[name]) for name, text in _WORDS.items() if name in names)


def setting_words(groups: pd.DataFrame) -> list[str]:
    """Each group's selection or baseline with the settings that not all groups share: ``top, k 8``.

    Args:
        groups: one row each, with the settings' columns.
    """
    named = [name for name in SETTINGS if _own(groups)[0][name].nunique() > 1]
    return [_label(row, named) for _, row in _with_lines(groups).iterrows()]


def shown_items(edits: pd.DataFrame) -> list[int]:
    """Items whose images :func:`default_figures` shows: 3 that were finished, spread over the sweep."""
    done = edits[(edits["role"] == "undisturbed") & (edits["status"] == "done")]
    return _thinned(sorted(done["item"].unique().tolist()), _N_STRIPS)


def default_figures(edits: pd.DataFrame, means: pd.DataFrame) -> dict[str, Drawing]:
    """Every figure of a sweep, by the name of its file.

    ``dose_AXIS_METRIC`` for each axis that varies and each main metric, ``effects`` for all settings at once if there
    are only a few, and ``strip_ITEM`` for the items of :func:`shown_items` if ``edits`` has their images.

    Args:
        edits: rows of ``schemas/edits.yaml``.
        means: result of :func:`fewchannels.interventions.effects.contrasts.means`.
    """
    metrics = main_metrics(means)
    drawn: dict[str, Drawing] = {
        f"dose_{axis}_{metric}": dose_response(means, metric, axis) for axis in varying(means) for metric in metrics
    }
    if metrics and means["condition"].nunique() <= _MOST_DOTS:
        drawn["effects"] = overview(means, metrics)
    if "image" in edits:
        pictured = set(edits.loc[(edits["role"] == "edited") & edits["image"].notna(), "item"])
        drawn |= {f"strip_{item}": strip(edits, item) for item in shown_items(edits) if item in pictured}
    return drawn


def dose_response(means: pd.DataFrame, metric: str, axis: str) -> Panels:
    """A metric against a varied setting: a line with its band for each selection, a panel for each remaining setting.

    All channels, which have no k, are drawn at every k, and baselines next to all edits of the same amount. Unedited
    images are a thin line, if they have the metric.

    Args:
        means: result of :func:`fewchannels.interventions.effects.contrasts.means`.
        metric: a column of ``edits``.
        axis: one of :data:`AXES`.

    Returns:
        At most 9 panels; the title has the total number.

    Raises:
        InputError: there is no such axis, or the metric was not measured.
    """
    if axis not in AXES:
        raise unknown("axis", axis, AXES)
    measured = means[means["condition"].notna() & means["mean"].notna()]
    if metric not in set(measured["metric"]):
        raise unknown("metric of edited images", metric, measured["metric"].unique())
    column = AXES[axis]
    rows = _beside(measured[measured["metric"] == metric], column)
    place, ticks = _places(rows[column])
    apart = _apart(rows[column])
    reach = [apart[str(name)] for name in rows[column]] if ticks else 0
    rows = rows.assign(place=place, reach=reach).sort_values("place", kind="stable")
    fixed = [name for name in SETTINGS if name not in (column, "selection")]
    named = [name for name in fixed if rows[name].nunique() > 1]
    parts = {in_words(part.iloc[0], named): part for _, part in rows.groupby(fixed, sort=False)}
    varied = [heading for heading, part in parts.items() if _has_dose(part)]
    shown = _thinned(varied or list(parts), _MOST_PANELS)
    drawn = {
        heading: {str(line): _line(each) for line, each in parts[heading].groupby("line", sort=False)}
        for heading in shown
    }
    for level in means.loc[(means["action"] == "undisturbed") & (means["metric"] == metric), "mean"]:
        ends = np.array([place.min(), place.max()])
        for lines in drawn.values():
            lines["unedited"] = Series(ends, np.full(2, level), reference=True)
    unnamed = in_words(rows.iloc[0], ["action", *(name for name in AXES.values() if name not in (column, *named))])
    some = f", {len(shown)} of {len(parts)} settings" if len(shown) < len(parts) else ""
    return Panels(
        drawn=drawn,
        names=[*SELECTIONS, *BASELINES],
        title=f"{_about(metric)}\n{unnamed}; mean over {counted(rows)}{some}, bands: 95 % over prompts",
        x=_AXIS_LABELS[axis],
        y=_labeled(metric),
        ticks=ticks,
        log=axis == "k" and place.min() > 0 and place.max() >= 8 * place.min(),
    )


def overview(means: pd.DataFrame, metrics: Sequence[str]) -> Dots:
    """Means of some metrics in every group of conditions, with the unedited images' level.

    Args:
        means: result of :func:`fewchannels.interventions.effects.contrasts.means`.
        metrics: columns of ``edits``, a panel for each.
    """
    rows = means[means["condition"].notna()]
    groups = rows.drop_duplicates("condition").reset_index(drop=True)
    place = pd.Series(groups.index, index=groups["condition"])
    drawn = {}
    for metric in metrics:
        each = rows[rows["metric"] == metric]
        mean, low, high = (each[name].to_numpy(float) for name in ("mean", "low", "high"))
        drawn[_labeled(metric)] = Series(each["condition"].map(place).to_numpy(float), mean, low, high)
    levels = means[(means["action"] == "undisturbed") & means["metric"].isin(metrics)]
    return Dots(
        drawn=drawn,
        labels=setting_words(groups),
        title=f"Every setting: mean over {counted(rows[rows['metric'].isin(metrics)])}, bars: 95 % over prompts"
        + ("; dotted: unedited" if len(levels) else ""),
        levels={_labeled(row["metric"]): row["mean"] for _, row in levels.iterrows()},
    )


def strip(edits: pd.DataFrame, item: int, conditions: Sequence[str] | None = None, axis: str | None = None) -> Images:
    """An item's images: a row for each selection and remaining setting, a column for each position on an axis.

    Every row begins with the unedited image, followed by the source's. A failed image is gray; one that the sweep does
    not have is white.

    Args:
        edits: rows of ``schemas/edits.yaml``, those of the item with their images.
        item: index of the item.
        conditions: ids of the conditions to show; None for the first trials of the remaining setting with the most
            conditions, the last one of several.
        axis: one of :data:`AXES`; None for the one with the most positions.

    Returns:
        At most 14 rows and 10 columns of images, evenly spread.

    Raises:
        InputError: there is no such axis, or the item has no such edited image.
    """
    if axis is not None and axis not in AXES:
        raise unknown("axis", axis, AXES)
    own = edits[edits["item"] == item]
    chosen = own["trial"] == 0 if conditions is None else own["condition_id"].isin(list(conditions))
    rows = own[(own["role"] == "edited") & chosen].sort_values("condition")
    if rows.empty:
        raise InputError(
            f"item {item} has no edited images of these conditions. Choose another item or other conditions."
        )
    column = AXES[axis or max(AXES, key=lambda name: _own(rows)[1][AXES[name]].nunique())]
    rows = _beside(rows, column)
    place, ticks = _places(rows[column])
    rows = rows.assign(place=place)
    fixed = [name for name in SETTINGS if name not in (column, "selection")]
    if conditions is None:
        parts = [part for _, part in rows.groupby(fixed, sort=False)]
        rows = max(reversed(parts), key=len)
    named = [name for name in SETTINGS if name != column and rows[name].nunique() > 1]
    rows = rows.assign(label=[_label(row, named) for _, row in rows.iterrows()])
    cells = {(row["label"], row["place"]): row["image"] for _, row in rows.iterrows()}
    labels = _thinned(list(dict.fromkeys(rows["label"])), _MOST_STRIP[0])
    places = _thinned(sorted(set(rows["place"])), _MOST_STRIP[1])
    first = own[own["role"] != "edited"].sort_values("role", ascending=False).drop_duplicates("role")
    beside = [_opened(image) for image in first["image"]]
    grid = [
        [*beside, *(_opened(cells[label, at]) if (label, at) in cells else _NONE for at in places)] for label in labels
    ]
    word = _WORDS[column].partition(" ")[0]
    headings = [f"{word} {ticks[int(at)] if ticks else f'{at:g}'}" for at in places]
    about = own.iloc[0]
    title = [f"{about['item_id']}: {about['prompt']}"]
    title += [f"source: {about['source_prompt']}"] if pd.notna(about["source_prompt"]) else []
    title.append(in_words(rows.iloc[0], [name for name in ("action", *AXES.values()) if name not in (column, *named)]))
    return Images(
        rows=grid,
        labels=labels,
        columns=[*first["role"].replace("undisturbed", "unedited"), *headings],
        title="\n".join(textwrap.shorten(text, 90, placeholder=" ...") for text in title),
    )


def _label(row: pd.Series, names: Sequence[str]) -> str:
    """Label of a group, with its selection or baseline first, without settings that it does not have."""
    lacked = set(SETTINGS) - {"amount"} if row["line"] in BASELINES else {"k"} if row["line"] == "all" else set()
    rest = in_words(row, [name for name in names if name not in lacked and name != "selection"])
    return f"{row['line']}, {rest}" if rest else str(row["line"])


def _own(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Edits of hidden states that have a k; all edits if there are none."""
    edits = rows[~rows["action"].isin(BASELINES)]
    edits = edits if len(edits) else rows
    with_k = edits[edits["selection"] != "all"]
    return edits, with_k if len(with_k) else edits


def _with_lines(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the ``line`` that each belongs to: its selection, or its baseline."""
    return rows.assign(line=rows["action"].where(rows["action"].isin(BASELINES), rows["selection"]))


def _beside(rows: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Rows with their lines; rows that lack a setting are repeated for all values that others have of it.

    Baselines of amounts that no edit has are left out, unless the amount is the axis.
    """
    rows = _with_lines(rows)
    is_baseline, is_all = rows["line"].isin(BASELINES), rows["line"] == "all"
    edits, every_k, baselines = rows[~is_baseline & ~is_all], rows[is_all], rows[is_baseline]
    if len(edits):
        every_k = every_k.drop(columns="k").merge(edits[["k"]].drop_duplicates(), how="cross")
    edits = pd.concat([edits, every_k])
    if len(edits):
        lacked = [name for name in SETTINGS if name not in ("amount", "selection")]
        if axis == "amount":
            others = edits[lacked].drop_duplicates()
            baselines = baselines.drop(columns=lacked).merge(others, how="cross")
        else:
            others = edits[[*lacked, "amount"]].drop_duplicates()
            baselines = baselines.drop(columns=lacked).merge(others, on="amount")
    return pd.concat([edits, baselines])


def _has_dose(rows: pd.DataFrame) -> bool:
    """Return whether the top or the listed channels are at several positions of the axis."""
    effects = rows[rows["line"].isin(["top", "listed"])]
    return bool((effects.groupby("line")["place"].nunique() > 1).any())


def _places(values: pd.Series) -> tuple[np.ndarray, list[str] | None]:
    """Position of each value on its axis; for names such as 0-5, also the names of the positions 0, 1, ..."""
    if pd.api.types.is_numeric_dtype(values) or values.str.isdigit().all():
        return values.to_numpy(float), None
    names = named_places(values.unique().tolist())
    return values.map({name: place for place, name in enumerate(names)}).to_numpy(float), names


def named_places(names: Sequence[str]) -> list[str]:
    """Names of layers or steps such as ``0-2`` in the model's order, those of a line together; before them words."""
    words = [name for name in names if not any(map(str.isdigit, name))]
    apart = _apart(pd.Series([name for name in names if name not in words], dtype=object))
    return [*sorted(words), *sorted(apart, key=lambda name: (apart[name], *_extent(name)))]


def _extent(name: str) -> tuple[int, int]:
    """Start and end of a range such as 2-5."""
    numbers = [int(number) for number in re.findall(r"\d+", name)] or [0]
    return numbers[0], numbers[-1]


def _apart(values: pd.Series) -> dict[str, int]:
    """The line that each name belongs to: ranges of one line follow one another; shorter ones are assigned first.

    A name belongs to a line of ranges of the same length or, if there is none, to one that contains its neighbor; no
    ranges of a line overlap.
    """
    lines: list[list[tuple[int, int]]] = []
    found = {}
    for name in sorted(set(values.astype(str)), key=lambda each: (np.ptp(_extent(each)), _extent(each), each)):
        first, last = _extent(name)
        free = [i for i, each in enumerate(lines) if all(last < a or b < first for a, b in each)]
        alike = [i for i in free if any(b - a == last - first for a, b in lines[i])]
        beside = [i for i in free if any(b + 1 == first or last + 1 == a for a, b in lines[i])]
        line = next(iter([*alike, *beside]), len(lines))
        lines += [[]] if line == len(lines) else []
        lines[line].append((first, last))
        found[name] = line
    return found


def _line(rows: pd.DataFrame) -> Series:
    """A line along positions, interrupted between single positions and windows of each size."""
    values = rows[["place", "mean", "low", "high"]].to_numpy(float)
    at = np.flatnonzero(np.diff(rows["reach"])) + 1
    gaps = np.full((len(at), 4), np.nan)
    gaps[:, 0] = values[at, 0]
    place, mean, low, high = np.insert(values, at, gaps, axis=0).T
    return Series(place, mean, low, high)


def _labeled(metric: str) -> str:
    return f"{metric} ({METRICS[metric].unit})" if metric in METRICS else metric


def _about(metric: str) -> str:
    return f"{metric}: {METRICS[metric].about}" if metric in METRICS else metric


def counted(rows: pd.DataFrame) -> str:
    """Numbers of items and of prompts of means, for titles and sentences."""
    return f"n = {span(rows['n_items'])} items of {span(rows['n_prompts'])} prompts"


def _thinned(values: list[_Value], most: int) -> list[_Value]:
    """Thin out a list to a maximum length, keeping its ends and evenly spaced elements."""
    if len(values) <= most:
        return values
    return [values[i] for i in np.linspace(0, len(values) - 1, most).round().astype(int)]


def _opened(image: bytes | None) -> np.ndarray:
    if image is None:
        return _FAILED
    small = opened(image)
    small.thumbnail((_SIDE, _SIDE))
    return np.asarray(small)
