"""Export a run's tables as a folder that ``datasets.load_dataset`` opens, images as images."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from fewchannels.errors import InputError
from fewchannels.runs.lease import LEASE
from fewchannels.runs.parts import TABLES
from fewchannels.runs.place import check_free
from fewchannels.runs.sql import columns
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.storage import Storage, Stored
from fewchannels.runs.upkeep.merge import Source
from fewchannels.tables import for_datasets, join, of_samples

_PART_BYTES = 256 * 2**20
_CARD_KEY = "README.md"
_OURS = re.compile(rf"{re.escape(LEASE)}|{re.escape(_CARD_KEY)}|(samples|cells)/part(-[0-9a-f]+)+\.parquet")
_CARD = """---
configs:
- config_name: samples
  default: true
  data_files: samples/part-{export}-*.parquet
- config_name: cells
  data_files: cells/part-{export}-*.parquet
---

{n} samples of a run of {model} (fingerprint {fingerprint}, weights {weights}), captured with fewchannels.

- `samples`: one row per sample: prompt, seed, image.
- `cells`: one row per (sample, step, layer, stream, branch): the channels of largest `{score}` score, their scores,
  ratio to the median, share of energy.

Columns are described in the Parquet files' field metadata.
"""


def chosen_samples(catalog: Catalog, where: str) -> list[int]:
    """Indices of the finished samples for which an SQL condition holds, ascending.

    Args:
        catalog: catalog of the run.
        where: over the columns of ``samples`` and ``manifest``, such as ``prompt like '%star%'``; see
            :mod:`fewchannels.runs.sql.columns`.

    Raises:
        InputError: it is not one condition, or DuckDB does not understand it.
    """
    found = catalog.sql(
        f"select sample from samples join ({columns.chosen(catalog, where)}) using (sample) where status = 'done' "
        "order by sample"
    )
    return [sample for (sample,) in found.fetchall()]


def check_place(out: Storage) -> None:
    """Refuse a place with files that are not from an earlier export. Reads only.

    Raises:
        RunConflictError: naming some of them.
    """
    check_free(out, lambda key: bool(_OURS.fullmatch(key)))


def export(
    storage: Storage,
    samples: Sequence[int],
    out: Storage,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write ``samples`` and ``cells`` of selected samples, and a card that lists their files. Safe to repeat.

    An earlier export stays as it is until the card names the files of the new one, and is then deleted. Only with the
    lease of ``out``.

    Args:
        storage: storage of the run.
        samples: indices of samples that are done, ascending.
        out: an empty place, or one with an earlier export, see :func:`check_place`.
        on_progress: called with the samples written so far and in all.

    Raises:
        InputError: no sample is given.
        RunConflictError: ``out`` holds other files.
    """
    if not samples:
        raise InputError("no finished sample meets the --where condition, so nothing was written.")
    check_place(out)
    out.clean()
    source = Source(storage)
    by_task: dict[int, list[int]] = {}
    for sample in samples:
        by_task.setdefault(sample // source.layout.shard_samples, []).append(sample)
    # The name depends only on the selection, so an interrupted or repeated export writes the same files.
    selection = [source.description["fingerprint"], list(samples), [source.records[task].checksum for task in by_task]]
    name, written = Stored.of([json.dumps(selection).encode()]).crc32c, {_CARD_KEY, LEASE}
    pending: dict[str, list[Any]] = {table: [] for table in TABLES}
    n_parts, n_written = dict.fromkeys(TABLES, 0), 0

    def flush(table: str) -> None:
        key = f"{table}/part-{name}-{n_parts[table]:05d}.parquet"
        out.put(key, [join([for_datasets(each) for each in pending[table]])])
        written.add(key)
        n_parts[table] += 1
        pending[table] = []

    for task, chosen in by_task.items():
        for table in TABLES:
            rows = source.parts.rows(table, task)
            pending[table] += [of_samples(rows, sample, sample + 1) for sample in chosen]
            if sum(each.nbytes for each in pending[table]) > _PART_BYTES:
                flush(table)
        n_written += len(chosen)
        on_progress(n_written, len(samples))
    for table in TABLES:
        if pending[table]:
            flush(table)
    about = source.description
    card = _CARD.format(
        export=name,
        n=len(samples),
        model=about["config"]["model"],
        fingerprint=about["fingerprint"],
        weights=about["model"]["weights_sha256"][:16],
        score=about["config"]["score"],
    )
    out.put(_CARD_KEY, [card.encode()])
    out.delete(key for key in out.list() if key not in written)
