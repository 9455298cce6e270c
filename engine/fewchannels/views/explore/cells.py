"""Overlay of a sample's cell on its image, with its description."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fewchannels.analyses.figures.overlay import Overlay
from fewchannels.measures.draws import cell_keys
from fewchannels.views.explore.address import View, image_path
from fewchannels.views.explore.opened import Cell, OpenedRun


@dataclass(frozen=True)
class Seen:
    """A cell as shown by a view.

    Attributes:
        cell: data from the store.
        channel: channel that is shown; for content of several channels, the one of the view's rank.
        drawing: drawing over the image.
        text: description with numbers.
    """

    cell: Cell
    channel: int
    drawing: Overlay
    text: str


def usual_view(run: OpenedRun) -> View:
    """Initial view of a sample's page: the last step, the middle layer, the largest channel."""
    layers = run.layers
    return View(step=run.steps[-1], layer=layers[len(layers) // 2], k=max(1, min(12, run.layout.top_k)))


def see(run: OpenedRun, about: dict[str, Any], view: View) -> Seen:
    """One sample at one step and layer.

    Args:
        run: run to show.
        about: result of :meth:`fewchannels.views.explore.opened.OpenedRun.sample`.
        view: settings of the view.

    Raises:
        InputError: the run has not kept it.
    """
    cell = run.cell(about, view.step, view.layer, view.branch)
    kept = cell.channels.tolist()
    at = kept.index(view.channel) if view.channel in kept else min(view.rank, len(kept)) - 1
    is_missing = view.channel is not None and view.channel not in kept
    channel = int(view.channel if view.channel is not None else kept[at])
    where = f"step {view.step}, layer {view.layer}" + (f", {view.branch}" if len(run.branches) > 1 else "")
    k = min(view.k, len(kept))
    outlines = {}
    if view.outline and (mask := run.mask(about["sample"])) is not None:
        outlines["subject"] = mask
    empty = np.full(cell.maps.shape[1:], np.nan, np.float32)
    if view.show == "picture":
        values, title, unit, text = empty, "Image", "", ""
    elif view.show == "channel":
        values = empty if is_missing else cell.maps[at]
        title, unit = f"Channel {channel}, {where}", "signed value"
        text = _of_channel(run, cell, channel, None if is_missing else at)
    else:
        heat, front = _clusters(about, view, cell, k)
        values = front.astype(np.float32) if view.show == "clusters" else heat
        title = f"{'Foreground' if view.show == 'clusters' else 'Heat'} of the top {k}, {where}"
        unit = "foreground" if view.show == "clusters" else f"sum of {k} channels, each 0 to 1"
        text = f"The foreground, the cluster with the larger mean heat, has {front.mean():.0%} of the tokens."
    low, high = (0.0, 1.0) if view.show == "clusters" else (None, None)
    drawing = Overlay(
        image_path(run.name, about["sample"]),
        values,
        f"{title}\nscores: {run.score}",
        unit,
        low,
        high,
        view.opacity / 100,
        outlines,
    )
    return Seen(cell, max(0, min(channel, len(cell.scores) - 1)), drawing, text)


def _of_channel(run: OpenedRun, cell: Cell, channel: int, at: int | None) -> str:
    if not 0 <= channel < len(cell.scores):
        return f"There is no channel {channel}: the model has channels 0 to {len(cell.scores) - 1}."
    score, median = float(cell.scores[channel]), cell.median
    rank = int((cell.scores > cell.scores[channel]).sum()) + 1
    text = f"Channel {channel} has rank {rank} of {len(cell.scores)} here, {run.score} {score:.4g}"
    text += f", {score / median:.4g} times the median." if median > 0 else "; the median is 0."
    if at is None:
        return f"{text} Its map was not recorded; only the top {len(cell.channels)} channels have maps."
    return text


def _clusters(about: dict[str, Any], view: View, cell: Cell, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Heat ``(y, x)`` and foreground ``(y, x)`` bool of the top channels, with the alignment analysis' defaults."""
    import torch  # takes a second, for which the first page would have to wait

    from fewchannels.measures.localization import localize

    shape = cell.maps.shape[1:]
    values = torch.from_numpy(np.ascontiguousarray(cell.maps[:k])).reshape(1, k, -1)
    own = torch.ones(1, values.shape[2], dtype=torch.bool)
    sample_id = np.array([int(about["sample_id"], 16)], np.uint64)
    keys = cell_keys(0, sample_id, view.layer, view.step, 0, 0)
    found = localize(values.nan_to_num(0.0), own, [keys])
    heat, front = (each[0].numpy().reshape(shape) for each in (found.heat, found.foreground))
    return heat, front
