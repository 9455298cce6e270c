"""Arrow tables: schemas read from ``schemas/*.yaml``, rows to Parquet bytes and back."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

Columns = Mapping[str, Sequence[Any] | np.ndarray]

_SCHEMAS = resources.files("fewchannels").joinpath("schemas")  # in a checkout, a link to the folder at its root
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
    text = _SCHEMAS.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return pa.schema(
        pa.field(column["name"], _TYPES[column["type"]], column["nullable"], metadata={"doc": column["doc"]})
        for column in yaml.safe_load(text)["columns"]
    )


@cache
def tables() -> frozenset[str]:
    """The names of all schemas."""
    files = [path.name for path in _SCHEMAS.iterdir()]
    return frozenset(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def to_parquet(name: str, columns: Columns) -> memoryview:
    """A table as the bytes of one Parquet file in its schema.

    Args:
        name: the table's.
        columns: every column of the schema by name, equally long; a column of lists may be a 2-D array. NaN is null
            in a nullable column.
    """
    return join([pa.Table.from_arrays([_array(columns[f.name], f) for f in schema(name)], schema=schema(name))])


def join(tables: Sequence[pa.Table], order: Sequence[str] = (), group_rows: int | None = None) -> memoryview:
    """Tables of one schema as the bytes of one Parquet file.

    Args:
        tables: one after another.
        order: columns to sort the rows by.
        group_rows: most rows of a row group.
    """
    sink, rows = pa.BufferOutputStream(), pa.concat_tables(tables)
    if order:
        rows = rows.sort_by([(name, "ascending") for name in order])
    pq.write_table(rows, sink, row_group_size=group_rows, compression="zstd", use_dictionary=False)
    return memoryview(sink.getvalue())


def of_samples(table: pa.Table, start: int, stop: int) -> pa.Table:
    """The rows of samples ``[start, stop)``."""
    sample = table.column("sample")
    found = pc.min_max(sample)
    if len(table) and start <= found["min"].as_py() and found["max"].as_py() < stop:
        return table
    return table.filter(pc.and_(pc.greater_equal(sample, start), pc.less(sample, stop)))


def renumbered(table: pa.Table, shift: int, task: int) -> pa.Table:
    """Rows of samples whose indices move by ``shift``, to another task."""
    moved = {"sample": pc.cast(pc.add(table.column("sample"), shift), pa.int64())}
    if "task" in table.column_names:
        moved["task"] = pa.array([task] * len(table), pa.int32())
    for name, values in moved.items():
        i = table.column_names.index(name)
        table = table.set_column(i, table.schema.field(i), values)
    return table


def for_datasets(table: pa.Table) -> pa.Table:
    """A table whose ``image`` column is one that Hugging Face's ``datasets`` shows as images."""
    if "image" not in table.column_names:
        return table
    i = table.column_names.index("image")
    images = table.column("image").combine_chunks()
    nothing = pa.nulls(len(table), pa.string())
    image = pa.StructArray.from_arrays([images, nothing], names=["bytes", "path"], mask=images.is_null())
    features = {field.name: {"_type": "Image"} for field in table.schema if field.name == "image"}
    table = table.set_column(i, "image", image)
    about = {field.name: _feature(field.type) for field in table.schema} | features
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": about}})})


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    return {"dtype": "float32" if kind == pa.float32() else str(kind), "_type": "Value"}


def from_parquet(data: bytes | memoryview) -> pa.Table:
    """Every row of a Parquet file.

    Raises:
        ValueError: it is not whole.
    """
    try:
        return pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it is not readable Parquet: {error}") from None


def as_columns(name: str, rows: Sequence[Mapping[str, Any]]) -> Columns:
    """A table's rows as columns."""
    return {column: [row.get(column) for row in rows] for column in schema(name).names}


def _array(values: Sequence[Any] | np.ndarray, field: pa.Field) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        n, k = values.shape
        offsets = np.arange(0, n * k + 1, k, dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), field.type.value_type))
    return pa.array(values, field.type, from_pandas=field.nullable)
