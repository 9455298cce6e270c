"""Resolve column names in conditions on samples: the manifest's own column first, then that of ``samples``.

A source may have columns of any name, including ``task`` and ``status``. In a condition, in ``--by`` and in a gallery,
such a name refers to the source's column. ``manifest.NAME`` and ``samples.NAME`` name one of the two explicitly.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from fewchannels.errors import InputError, unknown
from fewchannels.runs.sql.answer import Answer
from fewchannels.runs.sql.values import quoted
from fewchannels.tables import schema

TABLES = ("samples", "manifest")
_IMAGE = "image"
_JOINED = "samples join manifest using (sample_id)"
Column = tuple[str, str]
"""Table and name."""


class Asked(Protocol):
    """Protocol of a run's catalog, which runs queries."""

    def sql(self, text: str) -> Answer:
        """The answer to a query."""

    def condition(self, text: str | None) -> str:
        """A condition in parentheses, which it cannot escape."""

    def mentioned(self, text: str) -> Collection[Column]:
        """The names in a condition, as pairs of table and name; the table is empty for plain names."""


@dataclass(frozen=True)
class Columns:
    """The columns of a run's samples.

    Attributes:
        samples: names of the columns of ``samples``, except the image.
        manifest: names of the columns of ``manifest``.
        own: names of the manifest's columns that come from its source, in lower case.
    """

    samples: tuple[str, ...]
    manifest: tuple[str, ...]
    own: frozenset[str]

    @classmethod
    def of(cls, asked: Asked) -> "Columns":
        """The columns of a run's samples."""
        samples = [name for name in asked.sql("select * from samples limit 0").columns if name != _IMAGE]
        manifest = asked.sql("select * from manifest limit 0").columns
        ours = {name.casefold() for name in schema("manifest").names}
        return cls(tuple(samples), tuple(manifest), frozenset(name.casefold() for name in manifest) - ours)

    @cached_property
    def named(self) -> dict[str, Column]:
        """Table and name of every column, by its name in a condition: ``samples.NAME`` if the source has ``NAME``."""
        found = {f"samples.{name}" if name in self.own else name: ("samples", name) for name in self.samples}
        alone = [name for name in self.manifest if name.casefold() in self.own or name not in self.samples]
        return found | {name: ("manifest", name) for name in alone}

    def get(self, text: str) -> Column | None:
        """The column that a text names, ignoring case; None if there is none."""
        folded = text.casefold()
        by_name = {name.casefold(): column for name, column in self.named.items()}
        every = [("samples", name) for name in self.samples] + [("manifest", name) for name in self.manifest]
        by_table = {f"{table}.{name}".casefold(): (table, name) for table, name in every}
        return by_name.get(folded) or by_table.get(folded)

    def find(self, text: str) -> Column:
        """Same as :meth:`get`, but raises if there is none.

        Raises:
            InputError: there is none.
        """
        found = self.get(text)
        if found is None:
            raise unknown("column", text, sorted(self.named))
        return found

    def of_samples(self, name: str) -> str:
        """The SQL of a column of ``samples``."""
        return f"samples.{name}" if name in self.own else name


def chosen(asked: Asked, where: str | None = None, by: str | None = None) -> str:
    """The query for the samples of finished tasks that meet a condition: ``sample``, and ``value`` of a column.

    Args:
        asked: a catalog of a run.
        where: a condition on the columns of ``samples`` and ``manifest``; None takes all.
        by: the column to return as ``value``; None for none.

    Raises:
        InputError: there is no such column, or the condition is not one expression.
    """
    if not where and by is None:
        return "select sample from samples"
    condition = asked.condition(where)
    columns = Columns.of(asked)
    ours = {"sample": "samples.sample"}
    if by is not None:
        ours["value"] = _written(columns.find(by))
    if not where:
        return f"select {_list(ours)} from {_JOINED}"
    # A condition sees one table: plain names, then two records for names with a table, then the requested column.
    flat = {name: _written(column) for name, column in columns.named.items() if column[1] == name}
    for table, record in _records(columns, asked.mentioned(where)):
        flat = {name: text for name, text in flat.items() if name.casefold() != table} | {table: record}
    inner = {_unused(name, flat): text for name, text in ours.items()}
    outer = {name: quoted(alias) for name, alias in zip(ours, inner, strict=True)}
    return f"select {_list(outer)} from (select {_list(flat | inner)} from {_JOINED}) where {condition}"


def _records(columns: Columns, mentioned: Collection[Column]) -> Iterator[Column]:
    """Records ``samples`` and ``manifest`` of columns, so that ``samples.NAME`` is valid in a condition.

    They contain only the columns that are mentioned, since DuckDB reads everything in a record. A record hides a
    source's column with its name.

    Raises:
        InputError: both are mentioned.
    """
    for table in TABLES:
        wanted = {name.casefold() for where, name in mentioned if where.casefold() == table}
        fields = [name for name in getattr(columns, table) if name.casefold() in wanted]
        if not fields:
            continue
        if table in columns.own and table in {name.casefold() for where, name in mentioned if not where}:
            raise InputError(
                f"the condition names {table}.{fields[0]} and the source's column {table!r}, but the name can refer to "
                "only one of the two. Use two conditions, or leave the column out of the manifest."
            )
        yield table, f"struct_pack({', '.join(f'{quoted(name)} := {table}.{quoted(name)}' for name in fields)})"


def _written(column: Column) -> str:
    table, name = column
    return f"{table}.{quoted(name)}"


def _list(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{text} as {quoted(name)}" for name, text in columns.items())


def _unused(name: str, taken: Collection[str]) -> str:
    while name in {each.casefold() for each in taken}:
        name += "_"
    return name
