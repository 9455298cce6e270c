"""A question only reads: statements of every kind, in every place, leave the run and the catalog as they were.

Two barriers hold this up, the rules for what a question may contain and a DuckDB that cannot write. Each is tested with
the other taken away, and the corpus with both taken away: then it does write.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pytest
import s3_server as s3
from made_run import make_run
from statements import BODIES, CONDITIONS, PLACES, STATEMENTS, filled, placed

from fewchannels.errors import FewchannelsError, InputError
from fewchannels.runs.sql import catalog as catalogs
from fewchannels.runs.sql import confined, rules
from fewchannels.runs.sql.catalog import VIEWS, Catalog
from fewchannels.runs.sql.limits import Limits
from fewchannels.runs.storage import ObjectStorage, Storage, open_storage
from fewchannels.runs.upkeep.datasets import chosen_samples

CELLS = [{"sample": i, "layer": layer, "top_channels": [3, 1]} for i in range(3) for layer in (0, 1)]
PART = "samples/00000.parquet"
WRITES = "with x as (copy (select 1 as a) to '{file}' (format parquet, use_tmp_file false)) select * from x"
CHANGES = "with x as (update run set model = 'X' returning *) select * from x"


class Watched:
    """A run, its open catalog, and all that a question could change."""

    def __init__(self, storage: Storage, folder: Path) -> None:
        self.storage, self.folder = storage, folder
        self.catalog = Catalog(storage.url)
        self.names = {
            "file": storage.location(PART),
            "address": confined.address(PART),
            "new": str(folder / "new"),
        }
        self.before = self.stored(), self.tables()

    def stored(self) -> dict[str, str]:
        """Every file's digest, of the run and of what lies around it."""
        found = {str(path): _digest(path.read_bytes()) for path in sorted(self.folder.rglob("*")) if path.is_file()}
        if isinstance(self.storage, ObjectStorage):
            found |= {key: _digest(self.storage.get(key)) for key in self.storage.list()}
        return {name: digest for name, digest in found.items() if confined.spill.PREFIX not in name}

    def tables(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table."""
        texts = {name: f"select * from {name} order by all" for name in (*VIEWS, "(show tables)")}
        return {name: self.catalog.sql(text).fetchall() for name, text in texts.items()}

    def ask(self, statement: str) -> None:
        """Ask it, whatever comes of it."""
        text = filled(statement, **self.names)
        with suppress(FewchannelsError, duckdb.Error):
            self.catalog.sql(text, limits=Limits(rows=1000, seconds=20))
        if not isinstance(self.storage, ObjectStorage):  # of which a look takes too long
            assert self.stored() == self.before[0], text


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[s3.S3Server]:
    with s3.s3_server(seed=1) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture
def away(request: pytest.FixtureRequest) -> str:
    """Which barriers are taken away."""
    return getattr(request, "param", "neither")


@pytest.fixture
def watched(
    request: pytest.FixtureRequest, away: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Watched]:
    """A run in a folder, or a bucket; the working and the temporary folder are beside it, and watched too."""
    if away in ("the confinement", "both"):
        confinement_away(monkeypatch)
    for place in ("here", "tmp"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    storage = open_storage(make_run(tmp_path / "run", CELLS))
    if "bucket" in request.node.name:
        request.getfixturevalue("server")
        bucket = open_storage(f"s3://{s3.BUCKET}/only-reads-{id(request.node)}")
        for key in storage.list():
            bucket.put(key, [storage.get(key)])
        storage = bucket
    found = Watched(storage, tmp_path)
    if away in ("the rules", "both"):
        monkeypatch.setattr(rules, "check", lambda *_: None)
        monkeypatch.setattr(rules, "check_condition", lambda *_: None)
    yield found
    found.catalog.close()


def confinement_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_writable(self: Any, path: str, mode: str = "rb", **_: Any) -> Any:
        location = self._location(path)
        return self._bucket.open(location, mode) if self._bucket else open(location, mode)

    monkeypatch.setattr(confined, "confine", lambda *_: None)
    monkeypatch.setattr(confined.ReadOnlyFiles, "open", open_writable)
    monkeypatch.setattr(catalogs, "TRANSACTION", "begin; commit")


@pytest.mark.parametrize("away", ["neither", "the rules", "the confinement"], indirect=True)
@pytest.mark.parametrize("kind", [kind for kind, statements in STATEMENTS.items() if statements])
def test_no_statement_changes_anything_wherever_it_is_put(
    kind: str, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = PLACES if kind in BODIES else (*PLACES[:10], *PLACES[-4:])
    for statement in STATEMENTS[kind]:
        for text in placed(statement, places):
            watched.ask(text)
        for condition in placed(statement, CONDITIONS):
            with suppress(FewchannelsError, duckdb.Error):
                chosen_samples(watched.catalog, filled(condition, **watched.names))
    assert watched.stored() == watched.before[0]
    monkeypatch.undo()
    assert watched.tables() == watched.before[1]


@pytest.mark.parametrize("away", ["neither", "the rules", "the confinement"], indirect=True)
def test_no_statement_changes_a_bucket(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    for statement in (*STATEMENTS["COPY"], *STATEMENTS["UPDATE"]):
        for text in placed(statement, ("{}", "with x as ({}) select * from x")):
            watched.ask(text)
    assert watched.stored() == watched.before[0]
    monkeypatch.undo()


@pytest.mark.parametrize("away", ["both"], indirect=True)
def test_with_both_barriers_away_a_question_writes(watched: Watched) -> None:
    watched.ask(CHANGES)
    assert watched.tables() != watched.before[1]
    with pytest.raises(AssertionError):
        watched.ask(WRITES)


def test_every_kind_of_statement_has_an_example() -> None:
    assert STATEMENTS.keys() == duckdb.StatementType.__members__.keys()
    with duckdb.connect() as parser:
        for kind, statements in STATEMENTS.items():
            for statement in statements:
                try:
                    found = parser.extract_statements(filled(statement, file="f", address="a", new="n"))
                except duckdb.ParserException:
                    continue
                assert len(found) == 1, (kind, statement)
        words = [word for (word,) in parser.sql("select keyword_name from duckdb_keywords()").fetchall()]
        known = {statement.split()[0] for statements in STATEMENTS.values() for statement in statements}
        alone = {word for word in words if _is_statement(parser, word)} - {"desc", "describe", "show"}
        assert alone <= known


def _is_statement(parser: duckdb.DuckDBPyConnection, text: str) -> bool:
    try:
        return bool(parser.extract_statements(text))
    except duckdb.Error:
        return False


def test_every_function_of_duckdb_has_been_looked_at() -> None:
    with duckdb.connect() as asked:
        names = asked.sql(
            "select distinct lower(function_name) from duckdb_functions() where schema_name != 'pg_catalog' and "
            "function_type in ('scalar', 'aggregate', 'window', 'macro') and "
            "not regexp_matches(function_name, '^(__|icu_|collate_|pg_|has_|inet_|format_)')"
        ).fetchall()
    unseen = {name for (name,) in names} - rules.FUNCTIONS - REFUSED
    assert not unseen


_REFUSED = """
alias assert_true bitstring_byte_comparable can_cast_implicitly cast_to_type col_description combine combine_aggr
constant_or_null create_sort_key current_catalog current_connection_id current_database current_query
current_query_id current_role current_schema current_schemas current_setting current_transaction_id current_user
currval decimal_average finalize get_block_size getvariable hive_partition_component in_search_path index_key
invoke json_copy_strftime_if_date json_copy_strftime_if_timestamp json_deserialize_sql json_serialize_plan
json_serialize_sql make_type map_to_pg_oid nextval obj_description parse_duckdb_log_message replace_type
session_user setseed setval shobj_description sleep_ms stats timetz_byte_comparable to_aggregate_state txid_current
unpivot_list user variant_bytes_to_variant variant_comparator variant_to_parquet_variant vector_type version
write_log
"""
REFUSED = set(_REFUSED.split()) | {"is distinct from", "is not distinct from"}
"""Functions that are no matter of values, or have an operator's name with blanks, which no call can have."""


@pytest.mark.parametrize(
    "text",
    [
        "select * from duckdb_settings()",
        "select current_setting('temp_directory')",
        "select * from pragma_database_list",
        "from pg_catalog.pg_settings",
        "from pg_settings",
        "from duckdb_databases",
        "select * from (with pg_settings as (from pg_settings) from pg_settings)",
        "with recursive pg_settings as (from pg_settings union all from pg_settings) from pg_settings",
        "select * from (with pg_settings as (select 1) from pg_settings), pg_settings",
        "explain select * from cells",
        "select * from parquet_file_metadata('{address}')",
        "select * from glob('{address}')",
        "select * from query('select 1')",
        "select * from query_table('duckdb_settings')",
        "select getenv('HOME')",
        "select 'HOME'.getenv()",
        "select main.getenv('HOME')",
        "show databases",
        "show variables",
        "show all tables",
        "describe '{file}'",
        "summarize '{file}'",
        "select * from json_execute_serialized_sql('x')",
    ],
)
def test_a_question_learns_nothing_of_the_machine(text: str, watched: Watched) -> None:
    with pytest.raises(InputError):
        watched.catalog.sql(filled(text, **watched.names))


def test_an_error_names_no_path_beyond_the_run(watched: Watched) -> None:
    for text in (
        "select nothing from cells",
        "select prompt::int from samples",
        "select * from cells order by nothing",
    ):
        with pytest.raises(InputError) as caught:
            watched.catalog.sql(text)
        assert os.sep not in str(caught.value)


NO_CONDITIONS = [
    "true) union all (select 1",
    "true) or (true",
    "true, true",
    "true limit 1",
    "true as x",
    "--",
    "*",
    "true;",
]


@pytest.mark.parametrize("condition", NO_CONDITIONS)
def test_a_condition_is_one_expression(condition: str, watched: Watched) -> None:
    with pytest.raises(InputError):
        chosen_samples(watched.catalog, condition)


@pytest.mark.parametrize(
    ("condition", "samples"),
    [
        ("true", [0, 1, 2]),
        ("sample > 0 -- all but one", [1, 2]),
        ("false or sample = 1", [1]),
        ("sample in (select sample from cells where layer = 1 and sample < 2)", [0, 1]),
        ("prompt = $x$prompt 2$x$", [2]),
        ("prompt like '%) or (%'", []),
    ],
)
def test_a_condition_chooses_samples(condition: str, samples: list[int], watched: Watched) -> None:
    assert chosen_samples(watched.catalog, condition) == samples
