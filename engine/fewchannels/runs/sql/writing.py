"""Write an answer of any size as CSV, JSON or Parquet, batch by batch, in little memory."""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from fewchannels.errors import InputError
from fewchannels.files.durable import writing
from fewchannels.runs.sql.values import as_numbers, as_text, for_json, readable
from fewchannels.settings.units import size

FORMATS = (".parquet", ".csv", ".json")
Batches = Iterable[pa.RecordBatch]
_PYTHON_BYTES = 64 * 2**20
_GROUP_ROWS, _GROUP_BYTES = 122_880, 64 * 2**20


def check_format(path: Path) -> str:
    """The ending of a file's name, in lower case.

    Raises:
        InputError: no format has this ending.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"--output is {str(path)!r}; its suffix must be one of {', '.join(FORMATS)}.")
    return suffix


def write(path: Path, batches: Callable[[], Iterator[pa.RecordBatch]]) -> int:
    """Write a result to a file, atomically, in the format of its suffix; replaces the file.

    Args:
        path: ``.parquet``, ``.csv`` or ``.json``.
        batches: function that runs the query and yields at least one batch; called again if a column needs another
            type.

    Returns:
        The number of rows written.

    Raises:
        InputError: no format has this ending, or no file can be written there.
        StorageError: writing failed.
    """
    suffix = check_format(path)
    wide: frozenset[int] = frozenset()
    while True:
        try:
            with writing(path) as file:
                if suffix == ".parquet":
                    return _write_parquet(file, batches(), wide)
                return _write_texts(file, batches(), csv_texts if suffix == ".csv" else json_texts)
        except _WideError as found:
            wide |= {found.column}


def csv_texts(batches: Batches) -> Iterator[str]:
    """CSV, one piece per batch, and at least one piece: JSON for lists, base64 for binary."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for i, batch in enumerate(batches):
        if i == 0:
            writer.writerow(batch.schema.names)
        for row in rows(batch):
            writer.writerow(_csv_value(value) for value in row)
        yield text.getvalue()
        text.seek(0)
        text.truncate()


def json_texts(batches: Batches) -> Iterator[str]:
    """A JSON list of records, one piece per batch: null for NaN, base64 for binary."""
    between = "["
    for batch in batches:
        pieces: list[str] = []
        for row in rows(batch):
            pieces += [between, json.dumps(dict(zip(batch.schema.names, map(for_json, row), strict=True)))]
            between = ",\n "
        yield "".join(pieces)
    yield "]\n" if between != "[" else "[]\n"


def rows(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """A batch's rows as Python values, which take much more memory than Arrow's: few at a time if they are large.

    Raises:
        InputError: a row is too large for that.
    """
    if batch.nbytes <= _PYTHON_BYTES:
        yield from zip(*(readable(column).to_pylist() for column in batch.columns), strict=True)
    elif batch.num_rows > 1:
        middle = batch.num_rows // 2
        yield from rows(batch.slice(0, middle))
        yield from rows(batch.slice(middle))
    else:
        raise InputError(
            f"one row takes {size(batch.nbytes)}, too much to print or to write as text. Select fewer columns, or "
            f"write "
            "to a .parquet file."
        )


def _csv_value(value: Any) -> Any:
    plain_value = for_json(value)
    return json.dumps(plain_value) if isinstance(plain_value, bool | list | dict) else plain_value


class _WideError(Exception):
    """A column of decimals has more digits than a plain number can represent."""

    def __init__(self, column: int) -> None:
        super().__init__(column)
        self.column = column


def _write_texts(file: BinaryIO, batches: Batches, texts: Callable[[Batches], Iterator[str]]) -> int:
    n = 0

    def counted() -> Iterator[pa.RecordBatch]:
        nonlocal n
        for batch in batches:
            n += batch.num_rows
            yield batch

    for text in texts(counted()):
        file.write(text.encode())
    return n


def _write_parquet(file: BinaryIO, batches: Iterator[pa.RecordBatch], wide: Collection[int]) -> int:
    """Write Parquet, with decimals as plain numbers, as in ``Answer``, or as text in one of the wide columns."""
    import pyarrow.parquet as pq

    n, writer = 0, None
    held: list[pa.RecordBatch] = []
    try:
        for batch in batches:
            batch = _plain(batch, wide)
            writer = writer or pq.ParquetWriter(file, batch.schema, compression="zstd")
            held.append(batch)
            n += batch.num_rows
            if sum(each.nbytes for each in held) > _GROUP_BYTES or sum(each.num_rows for each in held) > _GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(held))
                held = []
        if writer is not None:
            writer.write_table(pa.Table.from_batches(held, writer.schema))
    finally:
        if writer is not None:
            writer.close()
    return n


def _plain(batch: pa.RecordBatch, wide: Collection[int]) -> pa.RecordBatch:
    columns = []
    for i, column in enumerate(batch.columns):
        if i in wide:
            column = as_text(column)
        elif pa.types.is_decimal(column.type):
            column = as_numbers(column)
            if column is None:
                raise _WideError(i)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)
