"""Every type that DuckDB has is shown, in every form, and nothing comes out as something else."""

import csv
import io
import json
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from made_run import make_run

from fewchannels.cli.query import print_relation
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.sql.writing import write

CELLS = [{"sample": 0, "layer": 0, "top_channels": [3, 1]}]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog(make_run(tmp_path_factory.mktemp("values") / "run", CELLS))


def written(catalog: Catalog, text: str, path: Path) -> list[dict]:
    write(path, catalog.ask(text).batches)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text())))
    return pq.read_table(path).to_pylist()


# Text, as DuckDB itself writes the value.
AS_TEXT = {
    "'infinity'::date": "infinity",
    "'-infinity'::timestamp": "-infinity",
    "'infinity'::timestamptz": "infinity",
    "'infinity'::timestamp_ns": "infinity",
    "timestamp '290000-01-01'": "290000-01-01 00:00:00",
    "'4000-01-01 (BC)'::date": "4000-01-01 (BC)",
    "'24:00:00'::time": "24:00:00",
    "'12:00:00+05:30'::timetz": "12:00:00+05:30",
    "interval '300000 years'": "300000 years",
    "interval 1 day + interval 2 hour": "1 day 02:00:00",
    "340282366920938463463374607431768211455::uhugeint": str(2**128 - 1),
    "'0101'::bit": "0101",
    "'123456789012345678901234567890123456789012345'::bignum": "123456789012345678901234567890123456789012345",
    "union_value(a := 5)": "5",
    "uuid '00000000-0000-0000-0000-00000000000a'": "00000000-0000-0000-0000-00000000000a",
    "'x'::enum('x', 'y')": "x",
    "9999999999999999999999999999.9999999999::decimal(38, 10)": "9999999999999999999999999999.9999999999",
    "(-170141183460469231731687303715884105728)::hugeint": str(-(2**127)),
}


@pytest.mark.parametrize("value", AS_TEXT)
def test_what_python_cannot_hold_is_the_text_that_duckdb_writes(value: str, catalog: Catalog, tmp_path: Path) -> None:
    with duckdb.connect() as plain:
        plain.execute("set TimeZone = 'UTC'")
        assert plain.sql(f"select ({value})::varchar").fetchall() == [(AS_TEXT[value],)]
    answer = catalog.sql(f"select {value} as x, null as y")
    assert answer.fetchall() == [(AS_TEXT[value], None)]
    assert answer.df()["x"].tolist() == [AS_TEXT[value]]
    print_relation(answer)
    for suffix in (".csv", ".json"):
        (row,) = written(catalog, f"select {value} as x", tmp_path / f"a{suffix}")
        assert str(row["x"]) == AS_TEXT[value]
    path = str(tmp_path / "a.parquet")
    write(Path(path), catalog.ask(f"select {value} as x").batches)
    with duckdb.connect() as plain:
        plain.execute("set TimeZone = 'UTC'")
        assert plain.read_parquet(path).project("x::varchar").fetchall() == [(AS_TEXT[value],)]


def test_every_type_there_is_becomes_parquet(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    assert write(path, catalog.ask("select * from test_all_types()").batches) == 3
    assert pq.read_table(path).column_names == catalog.sql("select * from test_all_types() limit 0").columns
    with duckdb.connect() as plain:
        plain.execute("set TimeZone = 'UTC'")
        names = ("date", "timestamp_tz", "time", "time_tz", "interval", "dec38_10", "uhugeint", "struct", "int_array")
        texts = ", ".join(f'"{name}"::varchar' for name in names)
        assert (
            plain.sql(f"select {texts} from '{path}'").fetchall()
            == plain.sql(f"select {texts} from test_all_types()").fetchall()
        )


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_every_type_there_is_can_be_written(suffix: str, catalog: Catalog, tmp_path: Path) -> None:
    rows = written(catalog, "select * from test_all_types()", tmp_path / f"a{suffix}")
    assert len(rows) == 3
    assert rows[0]["date"] is not None
    assert set(rows[0]) == set(catalog.sql("select * from test_all_types() limit 0").columns)


def test_every_type_there_is_can_be_shown(catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    answer = catalog.sql("select * from test_all_types()")
    print_relation(answer)
    assert "infinity" not in capsys.readouterr().err
    assert len(answer.df()) == len(answer.fetchall()) == 3
    assert json.loads(answer.as_json())[1]["hugeint"] is not None
    assert answer.as_csv().count("\n") >= 4


def test_plain_numbers_stay_numbers_in_files(catalog: Catalog, tmp_path: Path) -> None:
    text = "select sum(range) as s, 0.5 as half, sum(0.5) as d, list(range) as l from range(4)"
    for suffix in (".json", ".parquet"):
        (row,) = written(catalog, text, tmp_path / f"a{suffix}")
        assert row == {"s": 6, "half": 0.5, "d": 2.0, "l": [0, 1, 2, 3]}
        assert [type(value) for value in row.values()] == [int, float, float, list]


def test_a_column_is_written_in_full_when_a_late_value_is_wide(catalog: Catalog, tmp_path: Path) -> None:
    text = "select (case when range < 99999 then range else 1e30::hugeint end)::hugeint as x from range(100000)"
    rows = written(catalog, text, tmp_path / "a.parquet")
    assert [rows[0]["x"], rows[-1]["x"], len(rows)] == ["0", str(int(1e30)), 100_000]


def test_a_question_has_one_answer_in_every_time_zone(catalog: Catalog) -> None:
    text = "select '2022-08-08'::timestamptz = '2022-08-08 00:00:00+00'::timestamptz"
    assert catalog.sql(text).fetchall() == [(True,)]
