"""Rules of queries: they may only read the catalog's own tables.

DuckDB's own parser makes a tree of a text, and every node of that tree must be one of those listed here. A new node,
statement or function of a later DuckDB is refused until it is listed. The name of a statement is not sufficient:
DuckDB calls ``with x as (copy ... to 'file') select ...`` a SELECT.
"""

import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import duckdb

from fewchannels.errors import InputError
from fewchannels.runs.sql.functions import FUNCTIONS, TABLE_FUNCTIONS
from fewchannels.runs.sql.macros import MACROS

NODES = frozenset(
    {
        # queries
        "SELECT_NODE",
        "SET_OPERATION_NODE",
        "RECURSIVE_CTE_NODE",
        # sources of rows
        "BASE_TABLE",
        "EMPTY",
        "EXPRESSION_LIST",
        "JOIN",
        "PIVOT",
        "SHOW_REF",
        "SUBQUERY",
        "TABLE_FUNCTION",
        # order and number of rows
        "DISTINCT_MODIFIER",
        "LIMIT_MODIFIER",
        "LIMIT_PERCENT_MODIFIER",
        "ORDER_MODIFIER",
        "ASCENDING",
        "DESCENDING",
        "ORDER_DEFAULT",
    }
)
EXPRESSIONS = frozenset(
    {
        "BETWEEN",
        "CASE",
        "CAST",
        "COLLATE",
        "COLUMN_REF",
        "COMPARISON",
        "CONJUNCTION",
        "CONSTANT",
        "FUNCTION",
        "LAMBDA",
        "LAMBDA_REF",
        "OPERATOR",
        "PARAMETER",
        "POSITIONAL_REFERENCE",
        "STAR",
        "SUBQUERY",
        "TYPE",
        "WINDOW",
    }
)
SHOWN = frozenset({"DESCRIBE", "SHOW", "SUMMARY"})
_SHOW_TABLES = '"tables"'
_CATALOG: tuple[list[str], ...] = (["memory", "main"], ["main"], [])
_RECURRING = ["recurring"]
"""How a recursive CTE with a key names the rows that it has so far."""


_Place = tuple[Any, frozenset[str]]


def check(connection: duckdb.DuckDBPyConnection, text: str, of: str, tables: Collection[str]) -> None:
    """Refuse a text that is not one query.

    Args:
        connection: connection whose parser reads it; nothing is run.
        text: SQL.
        of: what it reads: a run, a sweep or a comparison.
        tables: tables that the query may read, in addition to its own common table expressions.

    Raises:
        InputError: the text is not one query; the message has the reason.
        duckdb.Error: the parser does not understand it.
    """
    try:
        tree = _tree(connection, text)
    except RecursionError:
        raise InputError("the query is nested too deeply; use common table expressions.") from None
    _Walk(of, tables).check(tree)


def check_condition(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    """Reject a text that is not one expression, so that it cannot escape its parentheses.

    Raises:
        InputError: it is not an expression.
        duckdb.Error: the parser does not understand it.
    """
    frame, tree = _tree(connection, "select true"), _tree(connection, f"select {text}\n")
    chosen = tree.get("select_list", [])
    if (
        len(chosen) != 1
        or chosen[0].get("alias")
        or chosen[0]["class"] == "STAR"
        or tree | {"select_list": []} != frame | {"select_list": []}
    ):
        raise InputError(f"{text!r} is not a single condition. Write one, such as: prompt like '%star%' and seed < 4")


def mentioned(connection: duckdb.DuckDBPyConnection, condition: str) -> frozenset[tuple[str, str]]:
    """The names in a condition and its subqueries, as pairs of table and name; the table is empty for plain names.

    Args:
        connection: connection whose parser reads it; nothing is run.
        condition: a condition that :func:`check_condition` accepts.
    """
    found: set[tuple[str, str]] = set()
    left: list[Any] = [_tree(connection, f"select {condition}\n")]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            names = node.get("column_names") if node.get("class") == "COLUMN_REF" else None
            if names:
                found.add((names[0], names[1]) if len(names) > 1 else ("", names[0]))
            left += node.values()
        elif isinstance(node, list):
            left += node
    return frozenset(found)


def _tree(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    """The parse tree of the one SELECT statement that a text is."""
    statements = connection.extract_statements(text)
    if len(statements) != 1:
        raise InputError(f"a query must be one SELECT statement; this text has {len(statements)} statements.")
    try:
        kind = statements[0].type.name
    except ValueError:  # DuckDB's parser knows kinds of statements that its Python interface lacks
        kind = text.split()[0].upper()
    if kind == "MULTI":
        raise InputError("PIVOT must list its values, such as: pivot ... on column in ('a', 'b') using ...")
    if kind != "SELECT":
        raise _refused(kind)
    ((written,),) = connection.execute("select json_serialize_sql($text)", {"text": text}).fetchall()
    parsed = json.loads(written)
    if parsed["error"] or len(parsed["statements"]) != 1:
        raise InputError(f"this is not one SELECT statement. {parsed.get('error_message', '')}".rstrip())
    node: dict[str, Any] = parsed["statements"][0]["node"]
    return node


def _refused(kind: str) -> InputError:
    return InputError(f"{kind} is refused: the catalog is read-only. Use one SELECT statement.")


class _Walk:
    """Visits every node of a parse tree and refuses what is not allowed."""

    def __init__(self, of: str, tables: Collection[str]) -> None:
        self._of = of
        self._tables = sorted(tables)

    def check(self, tree: Any) -> None:
        """Check a tree. Every node is visited with the names that its tables may have there, in lower case."""
        left: list[_Place] = [(tree, frozenset(name.lower() for name in self._tables))]
        while left:  # no recursion: a sum of a thousand terms is a thousand levels deep
            node, visible = left.pop()
            if isinstance(node, list):
                left += [(each, visible) for each in node]
            elif isinstance(node, dict):
                left += self._below(node, visible)

    def _below(self, node: Mapping[str, Any], visible: frozenset[str]) -> Iterator[_Place]:
        """Check one node; returns those below it."""
        expression, kind = node.get("class"), node.get("type")
        if isinstance(expression, str):
            if expression not in EXPRESSIONS:
                raise _refused(expression)
            if expression == "CONSTANT":
                return
            if name := node.get("function_name"):
                self._function(name)
        elif isinstance(kind, str) and kind not in NODES:
            raise _refused(kind.removesuffix("_NODE").removesuffix("_QUERY").replace("_", " "))
        for name, body in _common_tables(node):
            yield body, visible  # it sees the ones before it, and itself only if it is recursive
            visible |= {name.lower()}
        if kind == "BASE_TABLE":
            self._table(node["qualified_name"]["path"], visible)
        elif kind == "SHOW_REF":
            self._shown(node, visible)
        for key, value in node.items():
            if kind == "TABLE_FUNCTION" and key == "function":
                self._table_function(value["function_name"])
                yield {name: each for name, each in value.items() if name not in ("class", "type")}, visible
            elif kind == "RECURSIVE_CTE_NODE" and key == "right":
                yield value, visible | {node["cte_name"].lower()}
            elif key != "cte_map":
                yield value, visible

    def _table(self, path: list[str], visible: frozenset[str]) -> None:
        *where, name = path
        if name.lower() not in visible or (where not in _CATALOG and where != _RECURRING):
            near = difflib.get_close_matches(name, self._tables, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise InputError(
                f"a query can read only this {self._of}'s tables, and {'.'.join(path)!r} is not one of them.{hint} "
                f"Tables: {', '.join(self._tables)}."
            )

    def _shown(self, node: Mapping[str, Any], visible: frozenset[str]) -> None:
        path = node["qualified_name"].get("path") or []
        if node["show_type"] in SHOWN:
            if path:
                self._table(path, visible)
        elif path != [_SHOW_TABLES]:
            raise InputError(f"a query can show only tables, not {path[-1] if path else 'anything else'}: show tables")

    def _function(self, name: str) -> None:
        if name.lower() not in FUNCTIONS | MACROS:
            near = difflib.get_close_matches(name.lower(), FUNCTIONS, n=1, cutoff=0.7)
            hint = f" Did you mean {near[0]}()?" if near else ""
            raise InputError(f"a query cannot call {name}().{hint} It can call only functions that compute values.")

    def _table_function(self, name: str) -> None:
        if name.lower() not in TABLE_FUNCTIONS:
            raise InputError(
                f"a query can read only this {self._of}'s tables ({', '.join(self._tables)}), not files, URLs or "
                f"settings. {name}() is not one of its table functions: {', '.join(sorted(TABLE_FUNCTIONS))}."
            )


def _common_tables(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for entry in (node.get("cte_map") or {}).get("map", []):
        yield entry["key"], entry["value"]
