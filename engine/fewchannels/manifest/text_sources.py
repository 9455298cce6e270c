"""Sources that are text: each kind tells its columns and gives its rows in batches.

CSV follows RFC 4180: fields with commas, quotes or line ends stand in double quotes, and a quote in them is doubled.
TSV has one row a line and no quoting: every character but the tab is the field's own, quotes too. Tables of captions
are full of quotes that mean themselves, and a rule that guesses would change some prompts without a word.
"""

import csv
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from fewchannels.errors import InputError
from fewchannels.manifest.columns import Survey, check_names, common_type
from fewchannels.manifest.rows import BadRow, Batch, bad_row

BATCH_ROWS = 8192


class Source(ABC):
    """One thing to ingest.

    Attributes:
        name: as the caller wrote it.
        n_bytes: its size, for progress; 0 where it has none.
        prompt_column: its own, where it is not the caller's to choose.
        mixed: columns whose values are of several kinds, and the kinds; known after the survey.
        notes: what a person should know, complete once the rows are read.
    """

    prompt_column: str | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.n_bytes = 0
        self.mixed: dict[str, list[str]] = {}
        self.notes: list[str] = []

    @abstractmethod
    def survey(self) -> Survey:
        """The columns and their types, dictionaries and text layouts made plain.

        Raises:
            InputError: the source cannot be read as what its name says.
        """

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """All rows, in order, after :meth:`survey`.

        Raises:
            InputError: the source cannot be read any further.
        """


class Text(Source):
    """A text file, row by row."""

    columns: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.n_bytes = Path(name).stat().st_size

    @contextmanager
    def open(self) -> Iterator[TextIO]:
        """The file as text. Bytes that are not UTF-8 become surrogates, so that their row can be named later."""
        try:
            with Path(self.name).open("rb") as raw:
                if raw.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                    raise InputError(f"{self.name}: is UTF-16; save it as UTF-8.")
                raw.seek(0)
                yield io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read: {error.strerror}.") from error

    @abstractmethod
    def rows(self, file: TextIO) -> Iterator[tuple[int, Iterable[Any] | BadRow | None]]:
        """Line where it begins, and values of the columns, or why there are none, or None for a blank line."""

    def batches(self) -> Iterator[Batch]:
        with self.open() as file:
            lines: list[int] = []
            rows: list[Iterable[Any]] = []
            bad: list[BadRow] = []
            n_blank = 0
            for line, row in self.rows(file):
                if row is None:
                    n_blank += 1
                elif isinstance(row, BadRow):
                    bad.append(row)
                else:
                    lines.append(line)
                    rows.append(row)
                if len(rows) + len(bad) == BATCH_ROWS:
                    yield self._batch(lines, rows, bad, n_blank, file.buffer.tell())
                    lines, rows, bad, n_blank = [], [], [], 0
            yield self._batch(lines, rows, bad, n_blank, file.buffer.tell())

    def _batch(
        self, lines: list[int], rows: list[Iterable[Any]], bad: list[BadRow], n_blank: int, done_bytes: int
    ) -> Batch:
        values = zip(*rows, strict=True) if rows else [()] * len(self.columns)
        columns = {name: list(column) for name, column in zip(self.columns, values, strict=True)}
        return Batch(lines, columns, bad, n_blank, done_bytes)


class Lines(Text):
    """Plain text: one prompt a line."""

    columns = ("prompt",)
    prompt_column = "prompt"

    def survey(self) -> Survey:
        return {"prompt": pa.string()}

    def rows(self, file: TextIO) -> Iterator[tuple[int, Iterable[Any] | BadRow | None]]:
        for line, text in enumerate(file, start=1):
            yield line, (text,) if text.strip() else None


class Delimited(Text):
    """CSV, or TSV, with a header."""

    _quotes_kept = False
    _remedy = "quote fields that hold commas"

    def survey(self) -> Survey:
        with self.open() as file:
            header = self._header(self._reader(file))
        # pandas writes its index under no name
        self.columns = tuple(name.strip() or f"column_{i}" for i, name in enumerate(header, start=1))
        check_names(self.name, self.columns)
        return dict.fromkeys(self.columns, pa.string())

    def rows(self, file: TextIO) -> Iterator[tuple[int, Iterable[Any] | BadRow | None]]:
        reader = self._reader(file)
        self._header(reader)
        n_columns = len(self.columns)
        n_quoted = 0
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                rule = f"is not CSV: {error}; a quote inside a quoted field is written twice"
                yield line, BadRow(self.name, line, None, "this row", rule)
                continue
            if not row:
                yield line, None
            elif len(row) != n_columns:
                rule = f"has {len(row)} fields, and the header has {n_columns}; {self._remedy}"
                yield line, bad_row(self.name, line, None, row, rule)
            else:
                n_quoted += self._quotes_kept and any(len(x) > 1 and x[0] == '"' == x[-1] for x in row)
                yield line, row
        if n_quoted:
            self.notes.append(
                f"{self.name}: {n_quoted:,} rows have a field that begins and ends with a quote; in TSV quotes are "
                "kept. If they are not part of the text, save the file as CSV"
            )

    def _reader(self, file: TextIO) -> Any:
        return csv.reader(file, strict=True)

    def _header(self, reader: Any) -> list[str]:
        try:
            header = next((row for row in reader if row), None)
        except csv.Error as error:
            raise InputError(f"{self.name}: the header is not CSV: {error}.") from error
        if header is None:
            raise InputError(f"{self.name}: is empty; its first line names the columns.")
        return header


class Tabbed(Delimited):
    _quotes_kept = True
    _remedy = "in TSV a field holds no tab and no line end"

    def _reader(self, file: TextIO) -> Any:
        return csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)


class _Json(Text):
    """JSON objects. Their keys are known, and the types of the values, once all have been read."""

    @abstractmethod
    def objects(self, file: TextIO) -> Iterator[tuple[int, Any]]:
        """Line where it begins, and a value, or why there is none, or None for a blank line."""

    def survey(self) -> Survey:
        kinds: dict[str, set[str]] = {}
        first_bad: BadRow | None = None
        n_objects = 0
        with self.open() as file:
            for line, value in self.objects(file):
                if isinstance(value, dict):
                    n_objects += 1
                    for key, item in value.items():
                        kinds.setdefault(key, set()).add(_json_kind(item))
                elif value is not None and first_bad is None:
                    first_bad = self._as_bad(line, value)
        if not n_objects:
            raise InputError(f"{self.name}: has no rows." if first_bad is None else f"no row can be read: {first_bad}")
        check_names(self.name, kinds)
        self.columns = tuple(kinds)
        survey: dict[str, pa.DataType] = {}
        for key, found in kinds.items():
            survey[key] = reduce(common_type, (_JSON_TYPES[kind] for kind in sorted(found)))
            if pa.types.is_string(survey[key]) and len(found - {"null"}) > 1:
                self.mixed[key] = sorted(found)
        return survey

    def rows(self, file: TextIO) -> Iterator[tuple[int, Iterable[Any] | BadRow | None]]:
        for line, value in self.objects(file):
            if isinstance(value, dict):
                yield line, map(value.get, self.columns)
            else:
                yield line, None if value is None else self._as_bad(line, value)

    def _as_bad(self, line: int, value: Any) -> BadRow:
        if isinstance(value, BadRow):
            return value
        return bad_row(self.name, line, None, value, 'is not a JSON object such as {"prompt": "a red star"}')


class JsonLines(_Json):
    def objects(self, file: TextIO) -> Iterator[tuple[int, Any]]:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                yield line, None
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                value = bad_row(self.name, line, None, text.rstrip("\r\n"), f"is not JSON: {error}")
            yield line, _NULL if value is None else value


class JsonArray(_Json):
    """One array of objects. The text is read whole; JSON Lines is for large tables."""

    def objects(self, file: TextIO) -> Iterator[tuple[int, Any]]:
        text = file.read()
        decoder = json.JSONDecoder()
        line, counted = 1, 0
        position = _after_space(text, 0)
        if text[position : position + 1] != "[":
            raise InputError(f"{self.name}: is not an array of objects, [{{...}}, ...]. One object a line is .jsonl.")
        position = _after_space(text, position + 1)
        more = text[position : position + 1] != "]"
        while more:
            line, counted = line + text.count("\n", counted, position), position
            try:
                value, position = decoder.raw_decode(text, position)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{self.name}:{line}: is not JSON: {error}.") from error
            yield line, _NULL if value is None else value
            position = _after_space(text, position)
            more = text[position : position + 1] == ","
            if more:
                position = _after_space(text, position + 1)
        if text[position : position + 1] != "]" or _after_space(text, position + 1) != len(text):
            line += text.count("\n", counted, position)
            raise InputError(f"{self.name}:{line}: the array ends wrongly; objects are split by ',' and ']' is last.")


_NULL = "null"  # as an element: a bad row, where None would be a blank line
_SPACE = re.compile(r"[ \t\r\n]*")
_JSON_KINDS = {
    str: "text",
    float: "number",
    bool: "true or false",
    type(None): "null",
    list: "list or object",
    dict: "list or object",
}
_JSON_TYPES = {
    "null": pa.null(),
    "true or false": pa.bool_(),
    "whole number": pa.int64(),
    "number": pa.float64(),
    "large number": pa.string(),
    "text": pa.string(),
    "list or object": pa.string(),
}


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return position if match is None else match.end()


def _json_kind(value: Any) -> str:
    if type(value) is int:
        return "whole number" if -(2**63) <= value < 2**63 else "large number"
    return _JSON_KINDS[type(value)]
