"""Make a manifest of rows of others."""

from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from fewchannels.errors import InputError
from fewchannels.manifest.write import ROW_GROUP_ROWS


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
