"""Choose some prompts of a manifest: the first ones, or a reproducible random sample, also balanced over a column."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fewchannels.errors import InputError, unknown
from fewchannels.files.durable import write
from fewchannels.manifest.write import select


def choose(
    path: Path,
    output: Path,
    *,
    limit: int | None = None,
    sample: int | None = None,
    by: str | None = None,
    matching: Collection[int] | None = None,
) -> int:
    """Write the samples of some of a manifest's prompts, in their order, as a manifest. Safe to repeat.

    A prompt is taken with all its samples that are not excluded. A sample of prompts is in the order of their MD5, so
    that it does not depend on the order of the source, and a larger one contains a smaller one.

    Args:
        path: the manifest.
        output: the new manifest.
        limit: number of prompts, the first ones; None for all.
        sample: number of prompts, at random; None for all.
        by: column over whose values the random prompts are spread as evenly as possible; None for no such column.
        matching: positions of the only rows to consider; None for all.

    Returns:
        Number of samples written.

    Raises:
        InputError: no row is left, or there is no such column.
        StorageError: the file cannot be written.
    """
    table = pq.read_table(path)
    if by is not None and by not in table.column_names:
        raise unknown("column of the manifest", by, table.column_names)
    prompts = table.column("prompt").to_pylist()
    rows = range(len(prompts)) if matching is None else sorted(matching)
    values = dict.fromkeys(rows) if by is None else dict(enumerate(table.column(by).to_pylist()))
    first = {prompts[row]: values[row] for row in reversed(rows)}
    order = dict.fromkeys(prompts[row] for row in rows)
    wanted = set(_sampled(order, first, sample) if sample is not None else list(order)[:limit])
    chosen = [(0, row) for row in rows if prompts[row] in wanted]
    if not chosen:
        raise InputError(f"none of the {len(prompts):,} samples is left. Choose others, and run the command again.")
    with path.open("rb") as source:
        write(output, bytes(select([source], chosen)))
    return len(chosen)


def _sampled(prompts: Collection[str], category: dict[str, Any], n: int) -> list[str]:
    """The first n prompts by MD5, of each category in turn."""
    ordered = sorted(prompts, key=lambda prompt: hashlib.md5(prompt.encode(), usedforsecurity=False).digest())
    place: dict[Any, int] = {}
    turns = []
    for prompt in ordered:
        turn = place.setdefault(repr(category[prompt]), 0)
        place[repr(category[prompt])] = turn + 1
        turns.append(turn)
    return [prompt for _, prompt in sorted(zip(turns, ordered, strict=True), key=lambda pair: pair[0])][:n]
