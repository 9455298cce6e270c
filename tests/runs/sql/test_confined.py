"""What DuckDB reads of a run's files: what is in them, from as many threads as there are."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fewchannels.runs.sql import confined
from fewchannels.runs.storage import open_storage


def test_many_threads_read_one_file_at_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1000, (3, 1_000_000))
    table = pa.table(dict(zip("abc", values, strict=True)))
    pq.write_table(table, tmp_path / "file.parquet", row_group_size=5_000)
    connection = confined.connect(open_storage(tmp_path))
    connection.execute("set threads = 8")
    confined.confine(connection, ["file.parquet"])
    text = f"select sum(a), sum(b), sum(c) from read_parquet('{confined.address('file.parquet')}')"
    expected = tuple(values.sum(axis=1).tolist())
    for _ in range(10):
        assert connection.execute(text).fetchone() == expected
