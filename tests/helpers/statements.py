"""Statements of every kind that DuckDB's parser knows, and the places where one can be put."""

import re
from collections.abc import Iterator

STATEMENTS = {
    "INVALID": [],  # what has not been parsed
    "RELATION": [],  # of the Python API
    "LOGICAL_PLAN": [],  # of the C++ API
    "SELECT": ["select * from read_text('{file}')", "from '{file}'", "select getenv('HOME')"],
    "INSERT": ["insert into run select * from run returning *", "insert into tasks default values"],
    "UPDATE": ["update run set model = 'X' returning *", "update tasks set host = 'X' returning host"],
    "DELETE": ["delete from tasks returning *", "truncate tasks"],
    "CREATE": [
        "create table mine as select 1 as a",
        "create temp table mine as select 1 as a",
        "create or replace view cells as select 1 as a",
        "create schema mine",
        "create sequence mine",
        "create type mine as enum ('a')",
        "create secret mine (type s3, key_id 'a', secret 'b')",
        "create persistent secret mine (type s3, key_id 'a', secret 'b')",
        "create index mine on run (n_samples)",
    ],
    "CREATE_FUNC": ["create macro abs(x) as 7", "create macro samples() as table select 1 as a"],
    "PREPARE": ["prepare p as delete from tasks", "prepare p as select 1"],
    "EXECUTE": ["execute p"],
    "ALTER": ["alter table run add column x int", "alter view cells rename to others"],
    "TRANSACTION": ["begin", "begin transaction read write", "commit", "rollback", "abort", "end", "start transaction"],
    "COPY": [
        "copy (select 1 as a) to '{file}' (format parquet, use_tmp_file false)",
        "copy (select 1 as a) to '{file}'",
        "copy run to '{new}' (format csv)",
        "copy (select 1 as a) to '{address}' (format parquet, use_tmp_file false)",
        "copy (select 1 as a) to '{address}'",
        "copy (select 1 as a) to 'new.parquet'",
        "copy (select 1 as a) to (current_setting('allowed_paths')[1]) (format parquet, use_tmp_file false)",
        "copy (select 1 as a, 2 as b) to 'parts' (format parquet, partition_by (a))",
        "copy run from '{file}'",
    ],
    "COPY_DATABASE": ["copy from database memory to memory"],
    "ANALYZE": ["analyze", "analyse", "analyze run"],
    "VARIABLE_SET": ["set variable x = 1"],
    "EXPLAIN": ["explain analyze delete from tasks", "explain analyze copy run to '{new}'", "explain select 1"],
    "DROP": ["drop table run", "drop view cells", "drop schema main cascade"],
    "EXPORT": ["export database '{new}'"],
    "PRAGMA": ["pragma database_list", "pragma import_database('{new}')"],
    "VACUUM": ["vacuum", "vacuum analyze"],
    "CALL": ["call pragma_version()", "call enable_logging()", "checkpoint", "force checkpoint"],
    "SET": [
        "set enable_external_access = true",
        "set threads = 1",
        "reset threads",
        "use main",
        "set TimeZone = 'Asia/Tokyo'",
    ],
    "LOAD": ["install httpfs", "load httpfs", "update extensions"],
    "EXTENSION": ["connect", "disconnect"],
    "ATTACH": ["attach '{new}.db' as other", "attach '{file}' as other"],
    "DETACH": ["detach memory"],
    "MULTI": ["pivot cells on layer using count(*)", "import database '{new}'"],
    "MERGE_INTO": ["merge into run using tasks on true when matched then delete returning *"],
}
"""By the name of the kind; ``{file}`` is a file of the run, ``{address}`` what the catalog calls it, ``{new}`` none."""

BODIES = ("SELECT", "INSERT", "UPDATE", "DELETE", "COPY")
"""Kinds that DuckDB takes as the body of a common table expression."""
PLACES = (
    "{}",
    "{};",
    "{}; select 1",
    "select 1; {}",
    "{} -- end",
    "/* /* a */ b */ {}",
    "with x as ({}) select * from x",
    "with x as materialized ({}) select 1",
    "with x as (select 1), y as ({}) from y",
    "with y as (with x as ({}) select * from x) select * from y",
    "with recursive x as ({} union all select 1) select * from x",
    "with recursive x as (select 1 as a union all ({})) select * from x",
    "select * from ({})",
    "select * from (with x as ({}) select * from x) limit 1",
    "select ({})",
    "select (with x as ({}) select count(*) from x)",
    "select exists (with x as ({}) from x)",
    "select * from cells where sample in (with x as ({}) select 1 from x)",
    "select * from cells, lateral (with x as ({}) select * from x) y",
    "select list_transform([1], lambda i: (with x as ({}) select 1 from x))",
    "values ((with x as ({}) select 1 from x))",
    "select 1 union all (with x as ({}) select 1 from x)",
    "select 1 order by (with x as ({}) select 1 from x)",
    "select 1 limit (with x as ({}) select 1 from x)",
    "select * from range((with x as ({}) select 1 from x))",
    "pivot (with x as ({}) select 1 as a from x) on a in (1) using count(*)",
    "unpivot (with x as ({}) select 1 as a from x) on a",
    "summarize (with x as ({}) select 1 as a from x)",
    "describe with x as ({}) select 1 as a from x",
    "explain analyze with x as ({}) select 1 as a from x",
    "create macro m() as table with x as ({}) select 1 from x",
    "prepare p as with x as ({}) select 1 from x",
    "copy (with x as ({}) select 1 as a from x) to 'new.csv'",
    "select 1) ; {} --",
    "select 1\n) union all ({}",
    "select $$ $$; {}",
)
"""Texts that hold a statement, at the top and below it."""

CONDITIONS = (
    "true) union all (with x as ({}) select 1 from x",
    "true) or (true); {} --",
    "{}",
    "exists (with x as ({}) from x)",
    "sample in (with x as ({}) select 1 from x)",
    "sample in ({})",
    "true; {}",
)
"""Conditions that hold a statement."""


def placed(statement: str, places: tuple[str, ...] = PLACES) -> Iterator[str]:
    """A statement in every place, its own braces kept."""
    for place in places:
        yield place.replace("{}", statement)


def filled(statement: str, **names: str) -> str:
    """A statement with the names of files in it."""
    return re.sub(r"\{(\w+)\}", lambda match: names[match[1]], statement)
