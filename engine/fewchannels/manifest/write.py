"""Ingest: any sources, one manifest. Rows stream; only the ids of the samples stay in memory."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from fewchannels.errors import InputError, StorageError, unknown
from fewchannels.files import as_url, check_output, writing
from fewchannels.manifest.columns import map_columns
from fewchannels.manifest.rows import (
    MAX_SEED,
    OPTIONAL_COLUMNS,
    PATH_COLUMNS,
    BadRow,
    BadRowsError,
    Checked,
    check,
    settings_text,
)
from fewchannels.manifest.sources import open_source
from fewchannels.tables import schema

ROW_GROUP_ROWS = 16_384  # what a worker reads to get at its own rows
_ROW_GROUP_BYTES = 64 * 2**20  # rows with pictures in them fill a group sooner
_KEPT_BAD_ROWS = 10
_MAX_SEEDS = 1_000_000

OnError = Literal["fail", "skip"]
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did. ``n_written == (n_rows - n_bad) * seeds per prompt - n_duplicates``.

    Attributes:
        output: the manifest.
        sources: as they were named.
        prompt_column: the column or columns that were taken as the prompt.
        n_rows: rows read, bad ones too, blank lines not.
        n_written: samples in the manifest.
        n_duplicates: samples left out because their id was there already.
        n_bad: rows left out because they break a rule.
        n_blank: blank lines.
        bad_rows: the first bad rows.
        notes: what a person should know about columns, quotes and files that are not there.
        n_files: different files that masks and references name.
        n_missing: of these, how many are not there.
    """

    output: Path
    sources: tuple[str, ...]
    prompt_column: str
    n_rows: int
    n_written: int
    n_duplicates: int
    n_bad: int
    n_blank: int
    bad_rows: tuple[BadRow, ...]
    notes: tuple[str, ...]
    n_files: int = 0
    n_missing: int = 0


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from text: ``0,1,2``, or a range whose end is left out, ``0:4``, or both, ``0:4,10``.

    Raises:
        InputError: the text is none of these, or a seed is too large, comes twice, or there are too many.
    """
    rule = "Seeds are whole numbers, 0,1,2, or a range whose end is left out, 0:4."
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,19})\s*(?::\s*([0-9]{1,19})\s*)?", part)
        if match is None:
            raise InputError(f"seeds {text!r}: {part.strip()!r} is not a seed. {rule}")
        start = int(match[1])
        stop = start + 1 if match[2] is None else int(match[2])
        if stop <= start:
            raise InputError(f"seeds {text!r}: the range {part.strip()!r} is empty. {rule}")
        ranges.append(range(start, stop))
    if sum(part.stop - part.start for part in ranges) > _MAX_SEEDS:
        raise InputError(f"seeds {text!r}: more than {_MAX_SEEDS:,} seeds. Make several manifests.")
    return _checked_seeds([seed for part in ranges for seed in part])


def _checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    seen: set[int] = set()
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise InputError(f"seed {seed} is not from 0 to {MAX_SEED}.")
        if seed in seen:
            raise InputError(f"seed {seed} is given twice; give each seed once.")
        seen.add(seed)
    if not seen:
        raise InputError("no seeds are given; give at least one, as in 0.")
    return tuple(seeds)


def ingest(
    sources: Sequence[str | Path] | Path,
    output: str | Path,
    *,
    prompt_column: str | None = None,
    seeds: Sequence[int] | None = None,
    on_error: OnError = "fail",
    progress: Progress | None = None,
) -> IngestReport:
    """Make a manifest of one or more tables of prompts. Safe to repeat: the same input gives the same bytes.

    Args:
        sources: files (.csv, .tsv, .jsonl, .ndjson, .json, .parquet, .txt), or ``demo:N`` for N scenes of the demo
            world. Their columns are joined; where a source lacks one, its rows are null there.
        output: the Parquet file; replaced if it is there, and its folder made if it is not.
        prompt_column: of every source that names its columns; None picks the obvious one.
        seeds: each prompt is taken once with each seed; None takes the seed column, or 0 where there is none.
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
        raise InputError("no source is given; name a file of prompts, or demo:256.")
    opened = [open_source(str(source)) for source in sources]
    mapped = map_columns(
        [source.name for source in opened],
        [source.survey() for source in opened],
        [source.prompt_column or prompt_column for source in opened],
        seeds_given=seeds is not None,
    )
    chosen_seeds = None if seeds is None else _checked_seeds(seeds)
    path = Path(output)
    check_output(path)

    tally = _Tally()
    total_bytes = sum(source.n_bytes for source in opened)
    with _writing(path, mapped.extras) as writer:
        finished_bytes = 0
        for source, taken in zip(opened, mapped.taken, strict=True):
            for name, column in taken.items():
                if name in mapped.extras and (kinds := source.mixed.get(column)):
                    source.notes.append(f"{source.name}: column {column!r} is {' or '.join(kinds)}; kept as text")
            n_before = tally.n_rows
            for batch in source.batches():
                checked = check(source.name, batch, taken, mapped.extras)
                tally.count(len(checked.good), checked.bad, batch.n_blank)
                tally.look(checked)
                if on_error == "skip" or not tally.n_bad:  # else nothing will be kept: only look for bad rows
                    tally.n_duplicates += writer.add(checked, chosen_seeds)
                if progress is not None:
                    progress(finished_bytes + batch.done_bytes, total_bytes, tally.n_rows)
            if tally.n_rows == n_before:
                raise InputError(f"{source.name}: has no rows.")
            finished_bytes += source.n_bytes
        if tally.n_bad and (on_error == "fail" or not writer.n_written):
            raise BadRowsError(tally.bad_rows, tally.n_bad, tally.n_rows)
    return IngestReport(
        output=path,
        sources=tuple(source.name for source in opened),
        prompt_column=", ".join(dict.fromkeys(taken["prompt"] for taken in mapped.taken)),
        n_rows=tally.n_rows,
        n_written=writer.n_written,
        n_duplicates=tally.n_duplicates,
        n_bad=tally.n_bad,
        n_blank=tally.n_blank,
        bad_rows=tuple(tally.bad_rows),
        notes=(*(note for source in opened for note in source.notes), *mapped.notes, *tally.notes()),
        n_files=len(tally.files),
        n_missing=sum(not is_there for is_there in tally.files.values()),
    )


@dataclass
class _Tally:
    n_rows: int = 0
    n_bad: int = 0
    n_blank: int = 0
    n_duplicates: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    files: dict[str, bool] = field(default_factory=dict)

    def look(self, checked: Checked) -> None:
        """Note which of the files that good rows name are there."""
        for name in PATH_COLUMNS:
            values = checked.columns.get(name, ())
            for path in {values[row] for row in checked.good} - {None} if values else ():
                if path not in self.files:
                    self.files[path] = bool(as_url(Path(path))) or os.path.isfile(path)

    def notes(self) -> list[str]:
        """What to say of files that are not there."""
        missing = [path for path, is_there in self.files.items() if not is_there]
        if not missing:
            return []
        which = f"{len(missing):,} of the {len(self.files):,} files that masks and references name are not there"
        return [f"{which}, such as {min(missing)!r}"]

    def count(self, n_good: int, bad: list[BadRow], n_blank: int) -> None:
        self.n_rows += n_good + len(bad)
        self.n_bad += len(bad)
        self.n_blank += n_blank
        self.bad_rows += bad[: _KEPT_BAD_ROWS - len(self.bad_rows)]


class _Writer:
    """Samples of checked rows, once each, in row groups."""

    def __init__(self, file: pq.ParquetWriter, columns: pa.Schema) -> None:
        self.n_written = 0
        self._file = file
        self._schema = columns
        self._seen: set[int] = set()  # the 64 bits of each id
        self._pending: list[pa.Table] = []

    def add(self, checked: Checked, seeds: Sequence[int] | None) -> int:
        """Write the samples of the good rows: one for each seed, or the row's own. Returns how many were there already.

        The memory it takes does not grow with the number of seeds.
        """
        n_duplicates = 0
        ids: list[str] = []
        rows: list[int] = []
        own_seeds = checked.columns.get("seed")
        sample_seeds: list[int] = []
        prompts = checked.columns["prompt"]
        settings = _settings(checked)
        for row in checked.good:
            prompt = prompts[row]
            settings_of_row = settings[row] if settings else ""
            for seed in seeds or (own_seeds[row] if own_seeds else 0,):
                digest = hashlib.sha256(f"{prompt}\0{seed}{settings_of_row}".encode()).digest()[:8]
                key = int.from_bytes(digest)
                if key in self._seen:
                    n_duplicates += 1
                    continue
                self._seen.add(key)
                ids.append(digest.hex())
                rows.append(row)
                sample_seeds.append(seed)
                if len(ids) == ROW_GROUP_ROWS:
                    self._append(checked, ids, rows, sample_seeds)
                    ids, rows, sample_seeds = [], [], []
        self._append(checked, ids, rows, sample_seeds)
        return n_duplicates

    def _append(self, checked: Checked, ids: list[str], rows: list[int], seeds: list[int]) -> None:
        given: dict[str, Any] = {"sample_id": ids, "seed": seeds}
        for name, values in checked.columns.items():
            if name != "seed":
                given[name] = [values[row] for row in rows]
        positions = pa.array(rows, pa.int64())
        for name, array in checked.extras.items():
            given[name] = array.take(positions)
        arrays = [
            given[column.name]
            if isinstance(given.get(column.name), pa.Array)
            else pa.array(given.get(column.name, [None] * len(ids)), column.type)
            for column in self._schema
        ]
        self._pending.append(pa.Table.from_arrays(arrays, schema=self._schema))
        self.n_written += len(ids)
        if sum(table.nbytes for table in self._pending) >= _ROW_GROUP_BYTES:
            self.flush()
        elif sum(len(table) for table in self._pending) >= ROW_GROUP_ROWS:
            pending = pa.concat_tables(self._pending)
            self._file.write_table(pending.slice(0, ROW_GROUP_ROWS))
            self._pending = [pending.slice(ROW_GROUP_ROWS)]

    def flush(self) -> None:
        """Write what is pending as a row group, a short one perhaps."""
        if any(len(table) for table in self._pending):
            self._file.write_table(pa.concat_tables(self._pending))
        self._pending = []


def _settings(checked: Checked) -> list[str]:
    """What follows prompt and seed in the hashed text of each row; empty where no row can have any."""
    names = [name for name in checked.columns if name in OPTIONAL_COLUMNS]
    known: dict[tuple[Any, ...], str] = {}  # most tables have the same few settings all over
    texts = []
    for values in zip(*(checked.columns[name] for name in names), strict=True):
        if values not in known:
            known[values] = settings_text(dict(zip(names, values, strict=True)))
        texts.append(known[values])
    return texts


@contextmanager
def _writing(path: Path, extras: dict[str, pa.DataType]) -> Iterator[_Writer]:
    """A writer whose file gets its name when the block ends well, and vanishes when it does not."""
    columns = pa.schema([*schema("manifest"), *(pa.field(name, kind) for name, kind in extras.items())])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {str(path.parent)!r}: {error.strerror}.") from error
    with writing(path) as file, pq.ParquetWriter(file, columns, compression="zstd") as parquet:
        writer = _Writer(parquet, columns)
        yield writer
        writer.flush()


def select(sources: Sequence[BinaryIO], rows: Sequence[tuple[int, int]]) -> memoryview:
    """A manifest's bytes, made of chosen rows in the given order.

    Args:
        sources: opened manifests. Where one lacks another's extra column, its rows are null there.
        rows: ``(source, row)`` positions.

    Raises:
        InputError: the same extra column has different types in two sources.
    """
    tables = [pq.read_table(pa.PythonFile(source)) for source in sources]
    try:
        joined = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise InputError(f"the manifests do not fit together: {error}. Drop or rename the column in one.") from None
    first = [sum(len(table) for table in tables[:i]) for i in range(len(tables))]
    chosen = joined.take(pa.array([first[source] + row for source, row in rows], pa.int64()))
    sink = pa.BufferOutputStream()
    pq.write_table(chosen, sink, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    return memoryview(sink.getvalue())
