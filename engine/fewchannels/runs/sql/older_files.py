"""Columns of files: parts of one table may come from different versions, since new metrics are added."""

from collections.abc import Collection

import duckdb

from fewchannels.runs.sql import confined
from fewchannels.tables import schema


def by_columns(
    connection: duckdb.DuckDBPyConnection, kind: str, keys: Collection[str]
) -> list[tuple[dict[str, str], str]]:
    """Group a schema's files by the columns that they have: a column is null if a file is older than the column.

    An unreadable file counts as having all columns; the query that reads it reports the error.

    Args:
        connection: connection that may read them.
        kind: the schema.
        keys: keys of the files.

    Returns:
        Each file's condition, by its key, with the select list for these files.
    """
    if not keys:
        return []
    whole = connection.from_arrow(schema(kind).empty_table())
    files = ", ".join(f"'{confined.address(key)}'" for key in keys)
    try:
        rows = connection.sql(f"select file_name, list(name) from parquet_schema([{files}]) group by all").fetchall()
    except duckdb.Error:
        rows = []
    names = {address: frozenset(columns) for address, columns in rows}
    groups: dict[frozenset[str], dict[str, str]] = {}
    for key in keys:
        there = names.get(confined.address(key), frozenset(whole.columns))
        groups.setdefault(there & set(whole.columns), {})[key] = "true"
    types = list(zip(whole.columns, whole.types, strict=True))
    return [
        (own, ", ".join(name if name in there else f"null::{each} as {name}" for name, each in types))
        for there, own in groups.items()
    ]
