"""Arrow tables: schemas read from ``schemas/*.yaml``, Parquet written whole and durably."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from engine.resources import folder

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


def encoded_bytes(name: str, rows: list[dict[str, Any]]) -> int:
    """Bytes that :func:`write_rows` would write for these rows."""
    sink = pa.BufferOutputStream()
    _encode(name, rows, sink)
    return sink.getvalue().size


def _encode(name: str, rows: list[dict[str, Any]], sink: Any) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema(name)), sink, compression="zstd")


def write_rows(name: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as one Parquet file in the table's schema. Safe to repeat: it replaces the file."""
    temporary = path.with_suffix(".tmp")
    _encode(name, rows, temporary)
    replace_durably(temporary, path)
