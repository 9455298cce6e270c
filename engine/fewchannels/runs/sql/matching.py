"""Rows of a Parquet file for which an SQL condition holds, before there is a run."""

from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from fewchannels.errors import InputError
from fewchannels.runs.sql import rules

_SETTINGS = ("enable_external_access = false", "python_enable_replacements = false", "lock_configuration = true")


def matching(path: Path, condition: str) -> list[int]:
    """Positions of the rows for which a condition on the file's columns holds, ascending.

    Args:
        path: the Parquet file.
        condition: SQL expression, such as ``shape = 'star' and seed < 4``; it reads nothing but the file's columns.

    Raises:
        InputError: it is not one expression, or DuckDB does not understand it.
    """
    with duckdb.connect() as connection:
        for setting in _SETTINGS:
            connection.execute(f"set {setting}")
        try:
            rules.check_condition(connection, condition)
            held = connection.from_arrow(pq.read_table(path)).project(f"({condition}\n) as held").fetchall()
        except duckdb.Error as error:
            raise InputError(str(error).strip()) from None
    return [row for row, (value,) in enumerate(held) if value]
