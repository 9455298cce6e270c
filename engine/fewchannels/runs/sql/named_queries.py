"""Named queries: each is one file of ``queries/``, described by its own comment header."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from fewchannels.errors import InputError, unknown
from fewchannels.settings.ranges import Number, Rule, Text, Whole, shown

PLACES = ("layer", "step")
"""Names of parameters that are an index of a layer or a step, for which ``all`` and ``last`` stand as well."""
MOST_SHOWN = 8
"""Maximum number of columns that a terminal shows of a query's result."""
_RULES: dict[type, Rule] = {int: Whole(-1, 10**9), float: Number(-1e9, 1e9), str: Text()}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a query.

    Attributes:
        name: name as in ``--param name=value``.
        type: int, float, str or bool.
        default: default value.
        choices: valid values; empty if every value of the type is valid.
        doc: description.
    """

    name: str
    type: type
    default: int | float | str | bool
    choices: tuple[str, ...]
    doc: str

    @property
    def is_place(self) -> bool:
        """Whether it is the index of a layer or a step."""
        return self.type is int and self.name in PLACES

    def parse(self, text: str) -> int | float | str | bool:
        """Parse a text such as ``0.5`` or ``true``, and check the value; ``all`` and ``last`` are returned unchanged.

        Raises:
            InputError: it is not a value of the parameter.
        """
        if self.is_place and text in ("all", "last"):
            return text
        if self.type is bool:
            return self.check({"true": True, "false": False}.get(text.lower(), text))
        return self.check(_RULES[self.type].parse(text))

    def check(self, value: object) -> int | float | str | bool:
        """The value to pass to DuckDB, checked.

        Raises:
            InputError: it has another type, is out of range, or is not one of the choices.
        """
        if not isinstance(value, bool) if self.type is bool else _RULES[self.type].fault(value):
            raise self._refused(value)
        if self.choices and value not in self.choices:
            raise unknown(f"value of parameter {self.name!r}", value, self.choices)
        return self.type(value)  # numpy's numbers become Python's

    def _refused(self, value: object) -> InputError:
        kind = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}[self.type]
        within = "" if self.type is bool or not _RULES[self.type].in_short() else f", {_RULES[self.type].in_short()}"
        return InputError(
            f"parameter {self.name!r} is {shown(value)}; it must be {kind}{within}, for example {self.default!r}."
        )


@dataclass(frozen=True)
class Column:
    """One column of a query's result: its name, its unit or kind, and its description."""

    name: str
    unit: str
    doc: str


@dataclass(frozen=True)
class Query:
    """A named query: one file of ``queries/``, described by its own comment header.

    Attributes:
        name: the file's name without ``.sql``.
        purpose: question that it answers, and the definitions it uses.
        of: kind of data that it reads, ``run`` or ``sweep``.
        needs: analyses whose results it reads, each under the analysis' own name; free SQL reads other labels.
        grain: meaning of one row.
        parameters: parameters by position in the header.
        columns: columns of the result, in order.
        shown: columns that a terminal shows, at most :data:`MOST_SHOWN`; empty for the first ones.
        sql: the whole file.
        also: name of another query that this one stands for, for the kind of data that the other does not read; None
            without one.
    """

    name: str
    purpose: str
    of: str
    needs: tuple[str, ...]
    grain: str
    parameters: tuple[Parameter, ...]
    columns: tuple[Column, ...]
    sql: str
    shown: tuple[str, ...] = ()
    also: str | None = None

    def parse(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """Parse the texts of parameters; unknown parameters are left unchanged, since :meth:`bind` rejects them.

        Raises:
            InputError: a text is not a value of its parameter.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        return {name: known[name].parse(text) if name in known else text for name, text in texts.items()}

    def bind(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Every parameter's value: the given one, checked, or the default.

        Raises:
            InputError: an unknown parameter, or an invalid value.
        """
        names = [parameter.name for parameter in self.parameters]
        for name in given:
            if not names:
                raise InputError(f"query {self.name!r} has no parameters, but {name!r} was given. Omit it.")
            if name not in names:
                raise unknown(f"parameter of query {self.name!r}", name, names)
        return {p.name: p.check(given[p.name]) if p.name in given else p.default for p in self.parameters}


def _sections(sql: str) -> Iterator[tuple[str, str]]:
    """``(keyword, text)`` of a header; a line indented under its section belongs to it."""
    section: list[str] = []
    for line in sql.splitlines():
        if not line.startswith("--"):
            break
        if line.startswith("--   ") and section:
            section.append(line[2:].strip())
            continue
        if section:
            yield section[0], " ".join(section[1:])
        keyword, _, rest = line[2:].strip().partition(" ")
        section = [keyword.removesuffix(":"), rest]
    if section:
        yield section[0], " ".join(section[1:])


_PARAMETER = re.compile(r"(\w+): (int|float|str|bool) = (\S+)(?: \{(.+?)\})? -- (.+)")
_COLUMN = re.compile(r"(\w+): (.+?) -- (.+)")


def parse_query(name: str, sql: str) -> Query:
    """Read a query's header: lines ``-- purpose:``, ``-- grain:``, ``-- param ...`` and ``-- column ...``.

    ``-- shown:``, the columns that a terminal shows, and ``-- needs:``, analyses, are optional, comma-separated lists.
    So is ``-- of: sweep``; without it, a query reads runs. ``-- as:`` is the name of a query of runs that this one
    replaces for sweeps.

    Raises:
        ValueError: a line of the header is none of these, or does not have their format.
    """
    texts: dict[str, str] = {}
    parameters, columns = [], []
    for keyword, text in _sections(sql):
        if keyword in ("purpose", "of", "as", "needs", "grain", "shown"):
            texts[keyword] = text
        elif keyword == "param" and (match := _PARAMETER.fullmatch(text)):
            kind = {"int": int, "float": float, "str": str, "bool": bool}[match[2]]
            choices = tuple(match[4].split(", ")) if match[4] else ()
            blank = Parameter(match[1], kind, "", choices, match[5])
            parameters.append(Parameter(match[1], kind, blank.parse(match[3]), choices, match[5]))
        elif keyword == "column" and (match := _COLUMN.fullmatch(text)):
            columns.append(Column(match[1], match[2], match[3]))
        else:
            raise ValueError(f"queries/{name}.sql: cannot read the header at {keyword!r} {text!r}")
    needs = tuple(texts["needs"].split(", ")) if "needs" in texts else ()
    of = texts.get("of", "run")
    shown = tuple(texts["shown"].split(", ")) if "shown" in texts else ()
    if wrong := [each for each in shown if each not in [column.name for column in columns]] or shown[MOST_SHOWN:]:
        raise ValueError(f"queries/{name}.sql: cannot show {wrong[0]!r}: no such column, or more than {MOST_SHOWN}")
    return Query(
        name,
        texts["purpose"],
        of,
        needs,
        texts["grain"],
        tuple(parameters),
        tuple(columns),
        sql,
        shown,
        texts.get("as"),
    )


def query_of(name: str, of: str) -> Query:
    """The query with a name, for a ``run`` or a ``sweep``: the same name may stand for one of each.

    Raises:
        InputError: there is no such query.
    """
    if name not in queries():
        raise unknown("query", name, queries())
    others = (query for query in queries().values() if query.also == name and query.of == of)
    return queries()[name] if queries()[name].of == of else next(others, queries()[name])


@cache
def queries() -> dict[str, Query]:
    """Every query of ``queries/``, by name, in alphabetical order."""
    folder = resources.files("fewchannels").joinpath("queries")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    names = [file.name.removesuffix(".sql") for file in files]
    return {name: parse_query(name, file.read_text(encoding="utf-8")) for name, file in zip(names, files, strict=True)}
