"""Check one task's record, tables and arrays against each other. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fewchannels.errors import InputError
from fewchannels.files.images import read_image
from fewchannels.runs.layout import Layout
from fewchannels.runs.ledger import Record


def disagreements(
    layout: Layout,
    score: str,
    record: Record,
    sample_ids: Sequence[str],
    arrays: Mapping[str, np.ndarray],
    samples: Any,
    cells: Any,
) -> Iterator[tuple[str, str]]:
    """Disagreements, as ``(table, description)``.

    Args:
        layout: layout of the run.
        score: the statistic that ranks channels.
        record: record of the task.
        sample_ids: ids of the record's samples, from the manifest.
        arrays: arrays by name, ``(sample, step, layer, ...)``, of the record's samples.
        samples: a ``pyarrow.Table`` of the task's rows.
        cells: rows of ``cells``.
    """
    n, indices = record.stop - record.start, list(range(record.start, record.stop))
    if samples.column("sample").to_pylist() != indices:
        yield "samples", f"{len(samples)} rows that are not samples [{record.start}, {record.stop}), one row each"
        return
    if samples.column("sample_id").to_pylist() != list(sample_ids):
        yield "samples", "its sample_ids differ from those of the manifest"
    n_failed = samples.column("status").to_pylist().count("failed")
    if (record.n_done, record.n_failed) != (n - n_failed, n_failed):
        counted = f"{n - n_failed} done and {n_failed} failed"
        yield "samples", f"{counted}; the record says {record.n_done} and {record.n_failed}"
    expected = set()
    images, n_steps = (samples.column(name).to_pylist() for name in ("image", "n_steps"))
    for sample, image, n_run in zip(indices, images, n_steps, strict=True):
        if image is None:
            continue
        if (reason := _undecodable(image)) is not None:
            yield "samples", f"the image of sample {sample} cannot be decoded: {reason}"
        for track in layout.tracks:
            # A block without the stream, or a step without the branch, has no scores and no row.
            may_lack = (track.stream, track.branch) != ("image", "cond")
            unwritten = np.isnan(arrays[track.prefix + score][sample - record.start]).all(axis=-1)
            expected |= {
                (sample, step, block.layer, track.stream, track.branch)
                for i, step in enumerate(layout.steps)
                for j, block in enumerate(layout.blocks)
                if step < n_run and not (may_lack and unwritten[i, j])
            }
    places = [cells.column(name).to_pylist() for name in ("sample", "step", "layer", "stream", "branch")]
    if len(cells) != len(expected) or set(zip(*places, strict=True)) != expected:
        yield "cells", f"{len(cells)} rows; the samples ran {len(expected)} cells, one row each"
        return
    for track in layout.tracks:
        own = [at == (track.stream, track.branch) for at in zip(*places[3:], strict=True)]
        if any(own):
            yield from _scores_that_differ(layout, track.prefix, score, record, arrays, cells.filter(own))


def _undecodable(image: bytes) -> str | None:
    try:
        read_image(image)
    except InputError as error:
        return str(error)
    return None


def _scores_that_differ(
    layout: Layout, prefix: str, score: str, record: Record, arrays: Mapping[str, np.ndarray], cells: Any
) -> Iterator[tuple[str, str]]:
    steps, layers = list(layout.steps), [block.layer for block in layout.blocks]
    at = (
        np.array(cells.column("sample")) - record.start,
        np.searchsorted(steps, np.array(cells.column("step"))),
        np.searchsorted(layers, np.array(cells.column("layer"))),
    )
    channels = np.array(cells.column("top_channels").to_pylist())
    scores = np.array(cells.column("top_scores").to_pylist(), np.float32)
    if not np.array_equal(np.take_along_axis(arrays[prefix + score][at], channels, axis=-1), scores, equal_nan=True):
        yield "cells", f"top_scores are not the store's {prefix}{score} at top_channels"
    name = f"{prefix}massive_channel"
    if name in arrays and not np.array_equal(arrays[name][at], channels):
        yield "cells", f"top_channels are not the store's {name}"
