"""The catalog: what a run's tables hold, what may be asked of them, and what is refused."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_run import FINGERPRINT, make_run, replace_part

from fewchannels.errors import FewchannelsError, InputError, RunConflictError, StorageError
from fewchannels.runs.sql.catalog import VIEWS, Catalog
from fewchannels.runs.sql.named_queries import queries
from fewchannels.tables import schema

CELLS = [{"sample": i, "layer": layer, "top_channels": [3, 1]} for i in range(5) for layer in (0, 1)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five samples in tasks 0, 1 and 2, of which 1 has no record."""
    samples = [{"sample": 4, "prompt": "a [b] cat", "image": b"\x89PNG 4"}]
    return make_run(tmp_path_factory.mktemp("catalog") / "run", CELLS, samples, shard_samples=2, unrecorded=[1])


@pytest.fixture(scope="module")
def catalog(run: Path) -> Catalog:
    return Catalog(run)


def kind_of(kind: pa.DataType) -> str:
    return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)


def test_the_views_have_the_schemas_columns(catalog: Catalog) -> None:
    for table in ("cells", "samples", "manifest"):
        assert catalog.sql(f"select * from {table}").columns == schema(table).names
    assert {name for (name,) in catalog.sql("show tables").fetchall()} == set(VIEWS)


def test_only_tasks_with_a_record_are_seen(catalog: Catalog) -> None:
    assert catalog.sql("select distinct sample from cells order by sample").fetchall() == [(0,), (1,), (4,)]
    assert catalog.sql("select sample from samples order by sample").fetchall() == [(0,), (1,), (4,)]
    assert catalog.sql("select count(*) from manifest").fetchone() == (5,)
    records = catalog.sql(
        "select task, start, stop, n_done, n_failed, cast(finished as varchar) from tasks order by task"
    )
    assert records.fetchall() == [(0, 0, 2, 2, 0, "2026-01-02 03:04:05"), (2, 4, 5, 1, 0, "2026-01-02 03:04:05")]


def test_the_run_is_one_row(catalog: Catalog) -> None:
    answer = catalog.sql("select * from run")
    assert dict(zip(answer.columns, answer.fetchone() or (), strict=True)) == {
        "n_samples": 5,
        "n_steps": 1,
        "n_layers": 2,
        "n_channels": 16,
        "n_tokens": 16,
        "top_k": 2,
        "score": "mean_abs",
        "model": "demo",
        "fingerprint": FINGERPRINT,
        "n_tasks": 3,
        "n_tasks_done": 2,
    }
    assert len(answer) == 1


def test_a_run_without_records_has_empty_tables_of_the_right_types(tmp_path: Path) -> None:
    with Catalog(make_run(tmp_path / "run", CELLS, unrecorded=[0])) as empty:
        for table in ("cells", "samples"):
            found = empty.sql(f"select * from {table}").arrow()
            assert found.num_rows == 0
            assert found.schema.names == schema(table).names
            assert [kind_of(kind) for kind in found.schema.types] == [kind_of(kind) for kind in schema(table).types]
        assert len(empty.sql("select * from tasks")) == 0
        assert empty.sql("select n_tasks, n_tasks_done from run").fetchone() == (1, 0)


@pytest.mark.parametrize(
    "name", ["a b", "it's", 'a"b', "a*b", "a?b", "a[1]b", "a[b", "k=12", "a\\b", "é", "--x", "{a,b}"]
)
def test_a_run_may_have_any_name(name: str, tmp_path: Path) -> None:
    for decoy in ("axb", "a1b", "ab"):  # what a*b, a?b and a[1]b would match as patterns
        (tmp_path / decoy / "cells").mkdir(parents=True)
        (tmp_path / decoy / "cells" / "00000.parquet").write_text("not Parquet")
    with Catalog(make_run(tmp_path / name, CELLS)) as odd:
        assert odd.sql("select count(*), count(distinct layer) from cells").fetchone() == (10, 2)
        assert odd.sql("select * from samples limit 0").columns == schema("samples").names
        manifest = odd.sql("select * from manifest")
        assert (len(manifest), manifest.columns) == (5, schema("manifest").names)


def test_a_run_may_be_named_by_a_relative_path(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    with Catalog("run") as relative:
        monkeypatch.chdir("/")
        assert relative.sql("select count(*) from samples").fetchone() == (3,)


REFUSED = {
    "COPY": "copy cells to 'stolen.csv'",
    "ATTACH": "attach 'other.db'",
    "LOAD": "install httpfs",
    "PRAGMA": "pragma database_list",
    "SET": "set enable_external_access = true",
    "CREATE": "create table mine as select 1",
    "INSERT": "insert into run select * from run",
    "UPDATE": "update run set n_samples = 0",
    "DELETE": "delete from tasks",
    "DROP": "drop view cells",
    "ALTER": "alter table run add column x int",
    "EXPORT": "export database 'there'",
    "TRANSACTION": "begin",
    "EXPLAIN": "explain analyze delete from tasks",
    "PREPARE": "prepare p as select 1",
    "CALL": "call pragma_version()",
    "VACUUM": "vacuum",
    "DETACH": "detach memory",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_statement_that_is_no_question_is_refused_by_name(
    kind: str, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"{kind} is refused: the catalog is read-only. Use one SELECT"):
        catalog.sql(REFUSED[kind])
    assert not list(tmp_path.iterdir())
    assert catalog.sql(
        "select n_samples, (select count(*) from tasks), (select count(*) from cells) from run"
    ).fetchone() == (
        5,
        2,
        6,
    )


@pytest.mark.parametrize(
    ("text", "n"), [("", 0), ("-- nothing", 0), ("select 1; select 2", 2), ("select 1; drop view cells", 2)]
)
def test_one_statement_is_asked_at_a_time(text: str, n: int, catalog: Catalog) -> None:
    with pytest.raises(InputError, match=f"a query must be one SELECT statement; this text has {n}"):
        catalog.sql(text)


def test_a_pivot_must_name_its_values(catalog: Catalog) -> None:
    with pytest.raises(InputError, match="PIVOT must list its values"):
        catalog.sql("pivot cells on layer using count(*) group by sample")
    assert len(catalog.sql("pivot cells on layer in (0, 1) using count(*) group by sample")) == 3


OUTSIDE = [
    "select * from read_text('/etc/passwd')",
    "select * from read_csv('{parent}/secret.csv')",
    "select * from '{parent}/secret.csv'",
    "select * from read_csv('{run}/../secret.csv')",
    "select * from read_text('../secret.csv')",
    "select * from read_text('{run}/link.csv')",
    "select * from read_text('{run}/cells/../../secret.csv')",
    "select * from read_parquet('{run}/cells/00001.parquet')",
    "select * from read_parquet('{run}/cells/*.parquet')",
    "select * from read_blob('{run}/run.json')",
    "select * from read_json('{run}/run.json')",
    "select * from glob('{parent}/*')",
    "select * from read_text('~/.bashrc')",
    "select * from read_csv('/dev/stdin')",
    "select * from read_csv('https://example.com/a.csv')",
    "select * from 's3://bucket/a.parquet'",
    "select * from sniff_csv('{parent}/secret.csv')",
    "select * from parquet_metadata('{run}/cells/00001.parquet')",
    "select * from duckdb_secrets()",
]


@pytest.mark.parametrize("text", OUTSIDE)
def test_no_other_file_can_be_read(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", CELLS, shard_samples=4, unrecorded=[1])
    (tmp_path / "secret.csv").write_text("word\nsecret\n")
    (run / "link.csv").symlink_to(tmp_path / "secret.csv")
    monkeypatch.chdir(run)
    with (
        Catalog(run) as catalog,
        pytest.raises(InputError, match="can read only this run's tables") as caught,
    ):
        catalog.sql(text.format(run=run, parent=tmp_path))
    assert "\nsecret" not in str(caught.value)


def test_the_environment_and_pythons_variables_cannot_be_read(catalog: Catalog) -> None:
    hidden = catalog.sql("select 1 as word").df()
    for text in ("select getenv('HOME')", "select * from hidden", "select * from os.environ"):
        with pytest.raises(InputError):
            catalog.sql(text)
    assert len(hidden) == 1


def test_a_misspelt_name_brings_the_nearest_one(catalog: Catalog) -> None:
    with pytest.raises(InputError, match=r'"ratios" not found(.|\n)*"ratio"'):
        catalog.sql("select ratios from cells")
    with pytest.raises(
        InputError, match=r"Did you mean(.|\n)*cells(.|\n)*Tables: cells, manifest, run, samples, tasks"
    ):
        catalog.sql("select * from cell")
    with pytest.raises(InputError, match='syntax error at or near "'):
        catalog.sql("select * frm cells order")
    with pytest.raises(InputError, match="Could not convert string 'x'"):
        catalog.sql("select cast(prompt[:0] || 'x' as int) from samples")
    with pytest.raises(InputError, match="parameters: x"):
        catalog.sql("select $x")


def test_an_error_carries_no_trace_of_its_cause(catalog: Catalog) -> None:
    with pytest.raises(InputError) as caught:
        catalog.sql("select nothing")
    assert caught.value.__suppress_context__


def test_a_folder_without_a_run_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nowhere.*fewchannels capture"):
        Catalog(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is not a run.*fewchannels capture"):
        Catalog(tmp_path)


def test_a_run_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"format_version 99.*Upgrade fewchannels"):
        Catalog(make_run(tmp_path / "run", CELLS, format_version=99))


def test_a_description_without_a_part_is_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"run\.json is damaged: geometry.n_tokens: field required"):
        Catalog(
            make_run(tmp_path / "run", CELLS, geometry={"n_samples": 1, "n_steps": 1, "n_layers": 1, "n_channels": 1})
        )


def test_a_record_of_another_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunConflictError, match=f"00000.json has fingerprint {FINGERPRINT}, but the run has other"):
        Catalog(make_run(tmp_path / "run", CELLS, fingerprint="other"))


@pytest.mark.parametrize("part", ["cells/00000.parquet", "samples/00000.parquet", "manifest.parquet"])
def test_a_missing_part_is_named(part: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", CELLS)
    (run / part).unlink()
    with pytest.raises(StorageError, match=f"{part} is missing"):
        Catalog(run)


@pytest.mark.parametrize("task", [0, 1])
def test_a_damaged_part_is_named(task: int, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", CELLS, shard_samples=4)
    part = run / "cells" / f"{task:05d}.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(StorageError, match=f"cannot be read(.|\n)*{task:05d}.parquet"):
        Catalog(run).sql("select sum(ratio) from cells")


def test_a_part_that_goes_away_later_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", CELLS)
    catalog = Catalog(run)
    shutil.rmtree(run / "cells")
    with pytest.raises(StorageError, match="cells"):
        catalog.sql("select sum(ratio) from cells")


def test_a_catalog_is_the_run_as_it_was_when_it_was_opened(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", CELLS, shard_samples=2, unrecorded=[1])
    record = json.loads((run / "ledger" / "00000.json").read_text()) | {"task": 1, "start": 2, "stop": 4}
    before = Catalog(run)
    (run / "ledger" / "00001.json").write_text(json.dumps(record))
    assert before.sql("select count(*) from samples").fetchone() == (3,)
    assert Catalog(run).sql("select count(*) from samples").fetchone() == (5,)


def test_manifest_columns_of_the_users_own_are_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", CELLS)
    manifest = pq.read_table(run / "manifest.parquet")
    pq.write_table(
        manifest.append_column("my subject", [["dog", "cat", "dog", "cat", "dog"]]), run / "manifest.parquet"
    )
    with Catalog(run) as catalog:
        rows = catalog.sql(
            'select "my subject", count(*) from cells join manifest using (sample_id) group by 1 order by 1'
        )
    assert rows.fetchall() == [("cat", 4), ("dog", 6)]


def test_an_answer_is_rows_a_frame_or_a_table(catalog: Catalog) -> None:
    answer = catalog.sql("select sample, top_channels from cells where layer = 0 order by sample")
    assert answer.fetchall() == [(0, [3, 1]), (1, [3, 1]), (4, [3, 1])]
    assert answer.fetchone() == (0, [3, 1])
    assert len(answer) == 3
    assert answer.df()["sample"].tolist() == [0, 1, 4]
    assert answer.arrow().column_names == answer.columns == ["sample", "top_channels"]
    assert answer.head(2).fetchall() == [(0, [3, 1]), (1, [3, 1])]
    assert catalog.sql("select 1 where false").fetchone() is None
    assert catalog.sql("select 1 as a, 2 as a").fetchall() == [(1, 2)]


def test_numbers_are_plain_whatever_duckdb_sums_them_to(catalog: Catalog) -> None:
    answer = catalog.sql(
        "select sum(sample) as s, 0.5 as half, 1e30::hugeint as huge, 'nan'::float as lost from samples"
    )
    total, half, huge, lost = answer.fetchone() or ()
    assert (total, half, huge) == (5, 0.5, f"{int(1e30)}")
    assert isinstance(total, int)
    assert math.isnan(lost)
    assert [kind.kind for kind in answer.df().dtypes] == ["i", "f", "O", "f"]


def test_an_answer_prints_as_a_table_without_its_images(catalog: Catalog) -> None:
    shown = repr(catalog.sql("select sample, image, null::blob as nothing from samples where sample = 4"))
    assert "sample" in shown
    assert "<6 bytes>" in shown
    assert "PNG" not in shown


def test_an_image_is_found_by_its_id(catalog: Catalog) -> None:
    assert catalog.image(f"{4:016x}") == b"\x89PNG 4"
    assert catalog.image("' or true --") is None


def test_an_answer_is_written_whole_as_parquet(catalog: Catalog, tmp_path: Path) -> None:
    answer = catalog.sql("select sample, top_channels from cells order by sample, layer")
    answer.write_parquet(tmp_path / "it's [1].parquet")
    assert pq.read_table(tmp_path / "it's [1].parquet").to_pylist() == answer.arrow().to_pylist()
    assert os.listdir(tmp_path) == ["it's [1].parquet"]
    with pytest.raises(StorageError, match="cannot write"):
        answer.write_parquet(tmp_path / "missing" / "a.parquet")


def test_an_unknown_query_brings_the_nearest_one(catalog: Catalog) -> None:
    with pytest.raises(InputError, match=r"unknown query 'masive_channels'. Did you mean 'massive_channels'"):
        catalog.query("masive_channels")


BAD_PARAMETERS: list[tuple[str, dict[str, Any], str]] = [
    ("massive_channels", {"layr": 1}, "unknown parameter of query 'massive_channels' 'layr'. Did you mean 'layer'"),
    (
        "massive_channels",
        {"layer": 1.5},
        "is 1.5; it must be a whole number, -1 to 1,000,000,000, for example -1",
    ),
    ("massive_channels", {"layer": True}, "parameter 'layer' is True; it must be a whole number"),
    ("massive_channels", {"layer": "1 or true"}, "it must be a whole number"),
    ("massive_channels", {"min_frequency": float("nan")}, "it must be a finite number"),
    ("massive_channels", {"min_frequency": None}, "it must be a finite number"),
    ("layer_profile", {"measure": 3}, "parameter 'measure' is 3; it must be text"),
    ("layer_profile", {"measure": "gin"}, "unknown value of parameter 'measure' 'gin'. Did you mean 'gini'"),
    ("failures", {"top": 3}, "query 'failures' has no parameters, but 'top' was given"),
]


@pytest.mark.parametrize(("name", "parameters", "message"), BAD_PARAMETERS)
def test_an_unfit_parameter_is_refused_with_the_rule(
    name: str, parameters: dict[str, Any], message: str, catalog: Catalog
) -> None:
    with pytest.raises(InputError, match=message):
        catalog.query(name, **parameters)


def test_a_query_of_an_older_versions_result_says_how_to_make_it_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", CELLS, results={"alignment": {"means": [{"iou": 0.5}]}})
    part = run / "results" / "alignment" / "means" / "00000.parquet"
    replace_part(part, pq.read_table(part).drop_columns(["over_random_low"]))
    with Catalog(run) as older:
        remedy = f"fewchannels analyze alignment {run} --replace"
        with pytest.raises(InputError, match=rf"(?s)result alignment was written by an older version.*{remedy}"):
            older.query("alignment_by_layer")
        assert older.sql("select iou from alignment_means").fetchall() == [(0.5,)]


def test_numpys_numbers_are_parameters_too(catalog: Catalog) -> None:
    answer = catalog.query("massive_channels", layer=np.int64(1), min_frequency=np.float32(0), top=np.int32(1))
    assert answer.df()["layer"].tolist() == [1]


def test_every_error_of_a_question_is_one_that_people_can_act_on(catalog: Catalog) -> None:
    for text in (
        "select",
        "select (",
        "select 'a'::bit",
        "select error('no')",
        "select * from run r join",
    ):
        with pytest.raises(FewchannelsError):
            catalog.sql(text)


def test_queries_are_listed_in_order_of_their_names() -> None:
    assert list(queries()) == sorted(queries())
    assert {"massive_channels", "channel_stability", "layer_profile", "step_profile", "failures"} <= set(queries())
