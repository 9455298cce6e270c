"""What a question or an analysis reads is what was stored, or is refused."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from two_runs import ROWS, captured

from fewchannels import open_run
from fewchannels.errors import StorageError
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.parts import Parts, compact
from fewchannels.runs.sql import checksums
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.storage import Stored, open_storage

QUESTION = "select sample, seconds from samples order by sample"


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Path:
    return captured(tmp_path, "RUN", tiny_model, ROWS, shard_samples=4)


def with_other_seconds(run: Path) -> Path:
    """Write a part again with another value in every row: whole Parquet, as a bit that flips on a page may be."""
    part = run / "samples" / "00001.parquet"
    table = pq.read_table(part)
    at = table.schema.get_field_index("seconds")
    field = table.schema.field(at)
    doubled = pa.array([2 * value for value in table.column("seconds").to_pylist()], field.type)
    pq.write_table(table.set_column(at, field, doubled), part)
    return part


def ask(run: Path) -> object:
    with Catalog(run) as catalog:
        return catalog.sql(QUESTION).fetchall()


def test_a_question_refuses_another_value_and_names_the_file(run: Path) -> None:
    part = with_other_seconds(run)
    with pytest.raises(StorageError, match=rf"{part} is damaged: its CRC-32C is [0-9a-f]{{8}}, and .*runs verify"):
        ask(run)


def test_the_value_is_another_one_where_nothing_compares(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ask(run)
    with_other_seconds(run)
    monkeypatch.setattr(checksums, "MOST_BYTES", 0)
    assert ask(run) != before


def test_every_question_refuses_and_not_only_the_first(run: Path) -> None:
    part = run / "samples" / "00001.parquet"
    whole = part.read_bytes()
    with Catalog(run) as catalog:
        with_other_seconds(run)
        for _ in range(2):
            with pytest.raises(StorageError, match="is damaged"):
                catalog.sql(QUESTION)
        part.write_bytes(whole)
        assert len(catalog.sql(QUESTION).fetchall()) == 8


def test_a_file_is_read_through_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    of = Stored.of
    monkeypatch.setattr(checksums.Stored, "of", lambda parts: read.append(1) or of(parts))
    with Catalog(run) as catalog:
        for _ in range(3):
            catalog.sql("select * from samples join cells using (sample)").fetchall()
    assert len(read) == 5  # two parts of two tables, and the manifest


def test_a_part_of_a_task_that_was_done_again_is_taken(run: Path) -> None:
    storage = open_storage(run)
    ledger = Ledger(storage)
    earlier = ledger.find(1)
    assert earlier is not None
    part = with_other_seconds(run)
    data = part.read_bytes()
    later = earlier.objects | {"samples/00001.parquet": Stored.of([data])}
    rows = Parts(storage, {1: earlier})
    with pytest.raises(StorageError, match="its CRC-32C is"):
        rows.rows("samples", 1)
    ledger.write(type(earlier)(**{**vars(earlier), "objects": later}))
    assert rows.rows("samples", 1).num_rows == 4


def test_a_catalog_that_is_open_while_a_task_is_done_again_looks_again(run: Path) -> None:
    storage = open_storage(run)
    record = Ledger(storage).find(1)
    assert record is not None
    with Catalog(run) as catalog:
        part = with_other_seconds(run)
        objects = record.objects | {"samples/00001.parquet": Stored.of([part.read_bytes()])}
        Ledger(storage).write(type(record)(**{**vars(record), "objects": objects}))
        rows = [row for task in (0, 1) for row in pq.read_table(run / f"samples/{task:05d}.parquet").to_pylist()]
        assert catalog.sql(QUESTION).fetchall() == [(row["sample"], row["seconds"]) for row in rows]


@pytest.mark.parametrize(
    "use",
    [
        lambda run: compact(open_storage(run), open_run(run).catalog._records, 4),
        lambda run: Parts(open_storage(run), open_run(run).catalog._records).rows("samples", 1),
    ],
    ids=["compact", "rows"],
)
def test_what_copies_rows_refuses_another_value(run: Path, use: Callable[[Path], object]) -> None:
    with_other_seconds(run)
    with pytest.raises(StorageError, match=r"samples/00001.parquet is damaged"):
        use(run)
