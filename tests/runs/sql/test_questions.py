"""Questions of every form still get the right answer, and a run that was compacted is looked at again."""

import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest
from made_run import make_run

from fewchannels.errors import InputError, StorageError
from fewchannels.runs.description import read_description
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.parts import compact
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.sql.writing import write
from fewchannels.runs.storage import open_storage

KEPT = Path(__file__).parents[2] / "data" / "kept_runs" / "format_2"
CELLS = [
    {"sample": i, "layer": layer, "top_channels": [3, 1], "ratio": float(10 * i + layer)}
    for i in range(3)
    for layer in (0, 1)
]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog(make_run(tmp_path_factory.mktemp("questions") / "run", CELLS))


# Worked out by hand: the ratios are 0, 1, 10, 11, 20, 21.
QUESTIONS: dict[str, list[tuple[Any, ...]]] = {
    "with a as (select sum(ratio) as s from cells), b as (from a) select s from b": [(63.0,)],
    "with a as materialized (select 1 as x), b as not materialized (select x + 1 as y from a) select x, y from a, b": [
        (1, 2)
    ],
    "with recursive t(n) as (select 1 union all select n + 1 from t where n < 5) select sum(n) from t": [(15,)],
    "with recursive t(n, m) using key (n) as (select 1, 2 union select n, m + 1 from recurring.t where m < 5) from t": [
        (1, 5)
    ],
    "from samples select count(*)": [(3,)],
    "table run limit 0": [],
    "values (1, 'a'), (2, 'b')": [(1, "a"), (2, "b")],
    "pivot cells on layer in (0, 1) using sum(ratio) group by sample order by sample": [
        (0, 0.0, 1.0),
        (1, 10.0, 11.0),
        (2, 20.0, 21.0),
    ],
    "from (select sample, layer, ratio from cells) pivot (sum(ratio) for layer in (0, 1)) order by 1 limit 1": [
        (0, 0.0, 1.0)
    ],
    "select name, v from (unpivot (select 1 as a, 2 as b) on a, b into name name value v) order by 1": [
        ("a", 1),
        ("b", 2),
    ],
    'select column_name, "max" from (summarize select sample from cells)': [("sample", "2")],
    "select column_name from (describe run) limit 2": [("n_samples",), ("n_steps",)],
    "select count(*) from (show tables)": [(5,)],
    "select sample, row_number() over w, lag(ratio, 1, -1.0) over w from cells window w as (order by ratio) "
    "qualify row_number() over w < 3": [(0, 1, -1.0), (0, 2, 0.0)],
    "select [x * 2 for x in [1, 2, 3] if x > 1], list_transform([1], lambda x: x + 1), list_reduce([1, 2], "
    "lambda a, b: a + b)": [([4, 6], [2], 3)],
    "select * exclude (b) replace (a + 1 as a) from (select 1 as a, 2 as b, 3 as c)": [(2, 3)],
    "select columns('^(sample|layer)$') from cells where ratio = 11": [(1, 1)],
    "select count(*) from cells using sample 100%": [(6,)],
    "select count(*) from cells tablesample reservoir(4 rows) repeatable (3)": [(4,)],
    "select a.x, b.y from (values (1), (2)) a(x) positional join (values (3), (4)) b(y)": [(1, 3), (2, 4)],
    "select a.t, b.v from (values (5)) a(t) asof join (values (1, 'x'), (4, 'y'), (9, 'z')) b(t, v) on a.t >= b.t": [
        (5, "y")
    ],
    "select c.sample, l.twice from samples c, lateral (select c.sample * 2 as twice) l order by 1": [
        (0, 0),
        (1, 2),
        (2, 4),
    ],
    "select count(*) from cells semi join samples using (sample_id) where ratio > any (select 10.0)": [(3,)],
    "select 1 -- at the end": [(1,)],
    "select 1 /* a /* nested */ one */;": [(1,)],
    "select 'é' as \"ü\"": [("é",)],
    "select $$ ; drop table run -- $$": [(" ; drop table run -- ",)],
    "select * from range(2) t(i), unnest(['a']) u(x) order by i": [(0, "a"), (1, "a")],
    "select sum(layer) from cells group by rollup (sample) having count(*) > 2": [(3,)],
    "(select 1) union all by name (select 1) order by all": [(1,), (1,)],
    "select distinct on (layer) layer, ratio from cells order by layer, ratio desc": [(0, 20.0), (1, 21.0)],
    "select main.cells.layer from main.cells order by ratio limit 1": [(0,)],
    "select " + " + ".join(["1"] * 200): [(200,)],
    "select count(*) from cells where " + " or ".join(f"ratio = {i}" for i in range(500)): [(6,)],
}


@pytest.mark.parametrize("text", QUESTIONS)
def test_a_good_question_has_its_answer(text: str, catalog: Catalog) -> None:
    assert catalog.sql(text).fetchall() == QUESTIONS[text]


def test_a_question_has_parameters(catalog: Catalog) -> None:
    assert catalog.sql("select $a + $b", {"a": 1, "b": 2}).fetchall() == [(3,)]
    with pytest.raises(InputError):
        catalog.sql("select $a")


def test_a_question_that_is_nested_without_end_is_refused_in_words(catalog: Catalog) -> None:
    with pytest.raises(InputError):
        catalog.sql("select " + "(" * 5000 + "1" + ")" * 5000)
    with pytest.raises(InputError):
        catalog.sql("select " + " + ".join(["1"] * 5000))


def test_a_catalog_looks_again_when_its_files_were_compacted(tmp_path: Path) -> None:
    run = Path(shutil.copytree(KEPT, tmp_path / "run"))
    storage = open_storage(run)
    description = read_description(storage)
    asked = "select count(*), sum(ratio) from cells"
    with Catalog(run) as catalog:
        before = pq.read_table(run / "cells")["ratio"].to_pylist()
        compact(storage, Ledger(storage).records(description["fingerprint"]), description["shard_samples"])
        parts = [path.name for path in (run / "cells").iterdir()]
        assert "00000.parquet" not in parts
        assert catalog.sql(asked).fetchall() == [(len(before), pytest.approx(sum(before)))]
        for part in parts:
            (run / "cells" / part).unlink()
        with pytest.raises(StorageError, match=r"is missing.*--repair"):
            catalog.sql(asked)


def test_columns_of_equal_names_are_numbered_in_every_output(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [{"top_channels": [1]}])
    joined = "cells a join cells b using (sample)"
    text = f'select a.step, b.step, a.layer as STEP, 7 as step_1, b.step as "Step_1" from {joined}'
    names = ["step", "step_2", "STEP_3", "step_1", "Step_1_1"]
    with Catalog(run) as catalog:
        answer = catalog.sql(text)
        for suffix in (".csv", ".json", ".parquet"):
            write(tmp_path / f"answer{suffix}", catalog.ask(text).batches)
    assert answer.columns == names
    assert answer.arrow().column_names == names
    assert list(answer.df().columns) == names
    assert json.loads(answer.as_json()) == [dict(zip(names, [0, 0, 0, 7, 0], strict=True))]
    assert json.loads((tmp_path / "answer.json").read_text()) == json.loads(answer.as_json())
    assert (tmp_path / "answer.csv").read_text().splitlines()[0].split(",") == names
    assert duckdb.sql(f"from '{tmp_path}/answer.parquet'").columns == names
    assert pd.read_parquet(tmp_path / "answer.parquet").columns.tolist() == names
