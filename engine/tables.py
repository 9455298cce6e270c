"""Arrow tables: schemas read from ``schemas/*.yaml``, Parquet written whole and durably."""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from engine.resources import folder

Columns = Mapping[str, Sequence[Any] | np.ndarray]

_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "string": pa.string(),
    "binary": pa.binary(),
    "list<int32>": pa.list_(pa.int32()),
    "list<float32>": pa.list_(pa.float32()),
}


@cache
def schema(name: str) -> pa.Schema:
    """The Arrow schema of a table, e.g. ``schema("cells")``; column docs travel as field metadata."""
    text = folder("schemas").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return pa.schema(
        pa.field(column["name"], _TYPES[column["type"]], column["nullable"], metadata={"doc": column["doc"]})
        for column in yaml.safe_load(text)["columns"]
    )


def make_durable(path: Path) -> None:
    """Flush a file, then the folder entry that names it, to the disk."""
    for target in (path, path.parent):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_durably(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name, so that readers see all of it or none of it, even after a crash."""
    make_durable(temporary)
    os.replace(temporary, path)
    make_durable(path)


def encoded_bytes(name: str, columns: Columns) -> int:
    """Bytes that :func:`write_columns` would write."""
    sink = pa.BufferOutputStream()
    _encode(name, columns, sink)
    return sink.getvalue().size


def write_columns(name: str, columns: Columns, path: Path) -> None:
    """Write a table as one Parquet file in its schema. Safe to repeat: it replaces the file.

    Args:
        name: the table's.
        columns: every column of the schema by name, equally long; a column of lists may be a 2-D array.
        path: the file.
    """
    temporary = path.with_suffix(".tmp")
    _encode(name, columns, temporary)
    replace_durably(temporary, path)


def write_rows(name: str, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as :func:`write_columns` writes columns; what a row lacks is null."""
    write_columns(name, as_columns(name, rows), path)


def as_columns(name: str, rows: Sequence[Mapping[str, Any]]) -> Columns:
    """A table's rows as columns."""
    return {column: [row.get(column) for row in rows] for column in schema(name).names}


def _encode(name: str, columns: Columns, sink: Any) -> None:
    arrays = [_array(columns[field.name], field.type) for field in schema(name)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema(name)), sink, compression="zstd", use_dictionary=False)


def _array(values: Sequence[Any] | np.ndarray, kind: pa.DataType) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        n, k = values.shape
        offsets = np.arange(0, n * k + 1, k, dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), kind.value_type))
    return pa.array(values, kind)
