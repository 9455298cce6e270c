"""The result of a query: a table in memory, as pandas, Arrow, JSON, CSV or Parquet."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from fewchannels.runs.sql import writing
from fewchannels.runs.sql.named_queries import Query
from fewchannels.runs.sql.values import plain, readable

if TYPE_CHECKING:
    import pandas as pd


_MOST_SHOWN = 50


class Answer:
    """The result of a query, in memory: ``.df()``, ``.arrow()``, ``.fetchall()``, or print it.

    Decimals and huge integers become plain numbers if that loses nothing, and text otherwise. A column of dates or
    times becomes text if Python cannot represent one of them, such as ``infinity``.

    Args:
        table: a ``pyarrow.Table``.
        query: the named query, which describes its columns; None for free SQL.
    """

    def __init__(self, table: Any, query: Query | None = None) -> None:
        self.query = query
        for i, field in enumerate(table.schema):
            column = readable(plain(table.column(i)))
            if column.type != field.type:
                table = table.set_column(i, field.name, column)
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

    to_pandas = df
    to_arrow = arrow

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Every row, as Python values."""
        return list(zip(*(column.to_pylist() for column in self._table.columns), strict=True))

    def fetchone(self) -> tuple[Any, ...] | None:
        """The first row; None if there is none."""
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
            printer.execute("set TimeZone = 'UTC'")
            return str(printer.from_arrow(table))

    def _repr_html_(self) -> str:
        """A table for notebooks: the first rows, binary values as their sizes."""
        shown = self.head(_MOST_SHOWN).df()
        for name in shown.columns:
            shown[name] = [f"<{len(value)} bytes>" if isinstance(value, bytes) else value for value in shown[name]]
        more = f"<p>{len(self):,} rows, the first {_MOST_SHOWN} shown</p>" if len(self) > _MOST_SHOWN else ""
        return shown.to_html(index=False, escape=True, max_cols=None) + more

    def as_json(self) -> str:
        """Records as JSON: null for NaN, base64 for binary."""
        return "".join(writing.json_texts(self.batches()))

    def as_csv(self) -> str:
        """CSV: JSON for lists, base64 for binary."""
        return "".join(writing.csv_texts(self.batches()))

    def write_parquet(self, path: Path) -> None:
        """Write it as one Parquet file, atomically. Safe to repeat: it replaces the file.

        Raises:
            StorageError: writing failed.
        """
        writing.write(path, self.batches)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield Arrow record batches, at least one."""
        return iter(self._table.to_batches() or [pa.RecordBatch.from_pylist([], self._table.schema)])
