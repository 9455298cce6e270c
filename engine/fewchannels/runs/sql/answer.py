"""What a question returned: a table in memory, as pandas, Arrow, JSON, CSV or Parquet."""

import base64
import csv
import io
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from fewchannels.errors import StorageError
from fewchannels.files import writing
from fewchannels.runs.sql.named_queries import Query

if TYPE_CHECKING:
    import pandas as pd


class Answer:
    """What a question returned, in memory: ``.df()``, ``.arrow()``, ``.fetchall()``, or print it.

    Args:
        table: a ``pyarrow.Table``.
        query: the named query it answers, which says what its columns are; None for free SQL.
    """

    def __init__(self, table: Any, query: Query | None = None) -> None:
        self.query = query
        for i, field in enumerate(table.schema):
            if str(field.type).startswith("decimal"):  # sums of integers and literals such as 0.5
                table = table.set_column(i, field.name, _without_decimals(table.column(i)))
        self._table = table

    @property
    def columns(self) -> list[str]:
        """The columns' names."""
        return list(self._table.column_names)

    def arrow(self) -> Any:
        """As an Arrow table."""
        return self._table

    def df(self) -> "pd.DataFrame":
        """As a pandas frame."""
        return self._table.to_pandas()

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Every row, as Python values."""
        return list(zip(*(column.to_pylist() for column in self._table.columns), strict=True))

    def fetchone(self) -> tuple[Any, ...] | None:
        """The first row, or None when there is none."""
        return next(iter(self.head(1).fetchall()), None)

    def head(self, n: int) -> "Answer":
        """The first ``n`` rows."""
        return Answer(self._table.slice(0, n), self.query)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __repr__(self) -> str:
        table = self._table
        for i, field in enumerate(table.schema):
            if str(field.type) == "binary":
                sizes = [None if blob is None else f"<{len(blob)} bytes>" for blob in table.column(i).to_pylist()]
                table = table.set_column(i, field.name, [sizes])
        with duckdb.connect() as printer:
            return str(printer.from_arrow(table))

    def as_json(self) -> str:
        """Records as JSON: null for NaN, base64 for binary."""
        lines = [json.dumps(dict(zip(self.columns, _plain(row), strict=True))) for row in self.fetchall()]
        return "[" + ",\n ".join(lines) + "]\n"

    def as_csv(self) -> str:
        """CSV: JSON for lists, base64 for binary."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.fetchall():
            writer.writerow(json.dumps(_plain(v)) if isinstance(v, bool | list | dict) else _plain(v) for v in row)
        return text.getvalue()

    def write_parquet(self, path: Path) -> None:
        """Write it as one Parquet file, whole or not at all. Safe to repeat: it replaces the file.

        Raises:
            StorageError: the disk refused.
        """
        try:
            with writing(path) as file, duckdb.connect() as writer:
                writer.register("answer", self._table)
                place = file.name.replace("'", "''")
                writer.execute(f"copy answer to '{place}' (format parquet, compression zstd, use_tmp_file false)")
        except duckdb.Error as error:
            raise StorageError(f"cannot write {str(path)!r}: {error}") from None


def _without_decimals(column: Any) -> Any:
    try:
        return column.cast("int64" if column.type.scale == 0 else "double")
    except ValueError:  # beyond 64 bits
        return column.cast("double")


def _plain(value: Any) -> Any:
    """The value as JSON can say it."""
    if isinstance(value, Decimal):  # inside lists; a column of them is made plain before
        return float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | None) else str(value)
