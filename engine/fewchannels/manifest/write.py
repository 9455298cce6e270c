"""Ingest sources into one manifest. Rows are streamed; only ids and digests of the samples stay in memory."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from fewchannels.errors import InputError, unknown
from fewchannels.files.durable import check_output
from fewchannels.manifest.columns import SOURCE_FILE, map_columns, source_labels, without
from fewchannels.manifest.report import IngestReport, Tally
from fewchannels.manifest.row_groups import ROW_GROUP_ROWS, written
from fewchannels.manifest.rows import MAX_SEED, BadRowsError, check
from fewchannels.manifest.sources import open_sources

_MAX_SEEDS = 1_000_000

OnError = Literal["fail", "skip"]
Progress = Callable[[int, int, int], None]


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse seeds: ``0,1,2``, ranges such as ``0-3`` or, with an exclusive end, ``0:4``, or both, ``0:4,10``.

    Raises:
        InputError: the text is none of these, a seed is too large or given twice, or there are too many.
    """
    rule = "Seeds are whole numbers, 0,1,2, or a range: 0-3, or 0:4 with an exclusive end."
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,19})\s*(?:([:-])\s*([0-9]{1,19})\s*)?", part)
        if match is None:
            raise InputError(f"seeds {text!r}: {part.strip()!r} is not a seed. {rule}")
        start = int(match[1])
        stop = start + 1 if match[3] is None else int(match[3]) + (match[2] == "-")
        if stop <= start:
            raise InputError(f"seeds {text!r}: the range {part.strip()!r} is empty. {rule}")
        ranges.append(range(start, stop))
    if sum(part.stop - part.start for part in ranges) > _MAX_SEEDS:
        raise InputError(f"seeds {text!r}: more than {_MAX_SEEDS:,} seeds. Create several manifests.")
    return _checked_seeds([seed for part in ranges for seed in part])


def _checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    seen: set[int] = set()
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise InputError(f"seed {seed} is not from 0 to {MAX_SEED}.")
        if seed in seen:
            raise InputError(f"seed {seed} is given twice. Pass each seed once.")
        seen.add(seed)
    if not seen:
        raise InputError("no seeds are given. Pass at least one, such as 0.")
    return tuple(seeds)


def ingest(
    sources: Sequence[str | Path] | Path,
    output: str | Path,
    *,
    prompt_column: str | None = None,
    ignore_columns: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    on_error: OnError = "fail",
    progress: Progress | None = None,
) -> IngestReport:
    """Create a manifest from one or more tables of prompts. Safe to repeat: the same input gives the same bytes.

    Args:
        sources: files (.csv, .tsv, .jsonl, .ndjson, .json, .parquet, .txt), folders of them, or ``demo:N`` for N
            scenes of the demo world. The manifest has the columns of all sources; if a source lacks one, its rows are
            null there. If there are several sources, a column ``source_file`` has the name of each row's file.
        output: the Parquet file; replaced if it exists, and its folder is created if needed.
        prompt_column: prompt column of every source that names its columns; None picks the obvious one.
        ignore_columns: columns to leave out of every source that has them, regardless of their meaning; in any case.
        seeds: seeds with which to repeat each prompt; None takes the seed column, or 0 if there is none.
        on_error: "fail" writes nothing if any row is bad; "skip" leaves bad rows out.
        progress: called after each batch with bytes read, bytes of all sources, and rows read.

    Raises:
        InputError: a source, a row (as :class:`BadRowsError`), a column or a seed breaks a rule; nothing was written.
        StorageError: the manifest cannot be written.
    """
    if on_error not in get_args(OnError):
        raise unknown("on_error", on_error, get_args(OnError))
    if isinstance(sources, str | Path):
        sources = [sources]
    if not sources:
        raise InputError("no source is given. Pass a file of prompts, a folder of such files, or demo:256.")
    opened, notes = open_sources([str(source) for source in sources])
    names = [source.name for source in opened]
    several = len(opened) > 1
    surveys = without(ignore_columns, [source.survey() for source in opened], prompt_column, source_file=several)
    ignored = {name.casefold() for name in ignore_columns}
    mapped = map_columns(
        names,
        surveys,
        [source.prompt_column or prompt_column for source in opened],
        seeds_given=seeds is not None,
        source_file=several and SOURCE_FILE not in ignored,
    )
    labels = source_labels(names)
    chosen_seeds = None if seeds is None else _checked_seeds(seeds)
    path = Path(output)
    check_output(path)

    tally = Tally()
    total_bytes = sum(source.n_bytes for source in opened)
    with written(path, mapped.extras, [name for name in mapped.extras if name != mapped.source_file]) as writer:
        finished_bytes = 0
        for source, label, taken in zip(opened, labels, mapped.taken, strict=True):
            for name, column in taken.items():
                if name in mapped.extras and (kinds := source.mixed.get(column)):
                    source.notes.append(f"{source.name}: column {column!r} is {' or '.join(kinds)}; kept as text")
            n_before = tally.n_rows
            for batch in source.batches(ignored):
                checked = check(source.name, batch, taken, mapped.extras)
                if mapped.source_file:
                    checked.extras[mapped.source_file] = pa.array([label] * len(batch.lines), pa.string())
                tally.count(checked, taken, batch.n_blank)
                tally.look(checked)
                if on_error == "skip" or not tally.n_bad:  # otherwise nothing will be kept: only look for bad rows
                    writer.add(checked, chosen_seeds)
                if progress is not None:
                    progress(finished_bytes + batch.done_bytes, total_bytes, tally.n_rows)
            if tally.n_rows == n_before:
                raise InputError(f"{source.name}: has no rows.")
            finished_bytes += source.n_bytes
        if tally.n_bad and (on_error == "fail" or not writer.n_written):
            raise BadRowsError(tally.bad_rows, tally.n_bad, tally.n_rows)
    return IngestReport(
        output=path,
        sources=tuple(str(source) for source in sources),
        prompt_column=", ".join(dict.fromkeys(taken["prompt"] for taken in mapped.taken)),
        n_rows=tally.n_rows,
        n_written=writer.n_written,
        n_duplicates=writer.n_duplicates,
        n_differing=writer.n_differing,
        differing_columns=writer.differing,
        n_bad=tally.n_bad,
        n_blank=tally.n_blank,
        bad_rows=tuple(tally.bad_rows),
        settings=tally.settings(),
        ignored_columns=tuple(ignore_columns),
        notes=(*notes, *(note for source in opened for note in source.notes), *mapped.notes, *tally.notes()),
        n_files=len(tally.files),
        n_missing=sum(not is_there for is_there in tally.files.values()),
    )


def select(sources: Sequence[BinaryIO], rows: Sequence[tuple[int, int]]) -> memoryview:
    """The bytes of a manifest with the chosen rows in the given order.

    Args:
        sources: opened manifests. If one lacks another's extra column, its rows are null there. Names that differ only
            in case are one column, spelled as in the first, since SQL ignores case.
        rows: ``(source, row)`` positions.

    Raises:
        InputError: the same extra column has different types in two sources.
    """
    tables = [pq.read_table(pa.PythonFile(source, mode="r")) for source in sources]
    spelled: dict[str, str] = {}
    for i, table in enumerate(tables):
        tables[i] = table.rename_columns([spelled.setdefault(name.casefold(), name) for name in table.column_names])
    try:
        joined = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise InputError(f"the manifests cannot be merged: {error}. Drop or rename the column in one.") from None
    first = [sum(len(table) for table in tables[:i]) for i in range(len(tables))]
    chosen = joined.take(pa.array([first[source] + row for source, row in rows], pa.int64()))
    sink = pa.BufferOutputStream()
    pq.write_table(chosen, sink, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    return memoryview(sink.getvalue())
