"""Text sources: each kind lists its columns and yields its rows in batches.

CSV follows RFC 4180: fields with commas, quotes or line ends are in double quotes, and a quote in them is doubled. TSV
has one row per line and no quoting: every character except the tab, including quotes, is part of the field. Tables of
captions are full of literal quotes, and a heuristic would silently change some prompts.
"""

import csv
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from fewchannels.errors import InputError
from fewchannels.manifest.columns import PROMPT_COLUMNS, Survey, check_names, common_type
from fewchannels.manifest.rows import BadRow, Batch, bad_row

BATCH_ROWS = 8192
BATCH_BYTES = 64 * 2**20  # rows with images come in smaller batches
_MAX_FIELD = 64 * 2**20  # characters of a CSV field; a longer one is a quote that is never closed
_SEPARATORS = {",": "commas", ";": "';'", "\t": "tabs", "|": "'|'"}


class Source(ABC):
    """One thing to ingest.

    Attributes:
        name: name as the caller wrote it.
        n_bytes: its size, for progress; 0 if it has none.
        prompt_column: its fixed prompt column, if the caller cannot choose one.
        mixed: columns whose values are of several kinds, and the kinds; known after the survey.
        notes: notes for the user, complete after the rows are read.
    """

    prompt_column: str | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.n_bytes = 0
        self.mixed: dict[str, list[str]] = {}
        self.notes: list[str] = []

    @abstractmethod
    def survey(self) -> Survey:
        """The columns and their plain types, without dictionaries and text layouts.

        Raises:
            InputError: the source does not have the format that its name suggests.
        """

    @abstractmethod
    def batches(self, ignored: Collection[str] = ()) -> Iterator[Batch]:
        """All rows, in order, after :meth:`survey`.

        Args:
            ignored: casefolded names of columns that need not be read.

        Raises:
            InputError: the rest of the source cannot be read.
        """


class Text(Source):
    """A text file, row by row."""

    columns: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.n_bytes = Path(name).stat().st_size

    @contextmanager
    def open(self) -> Iterator[TextIO]:
        """Open the file as text. Bytes that are not UTF-8 become surrogates, so that their row can be reported."""
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
        """Each row's first line, and its values by column, the reason for having none, or None for a blank line."""

    def batches(self, ignored: Collection[str] = ()) -> Iterator[Batch]:
        with self.open() as file:
            lines: list[int] = []
            rows: list[Iterable[Any]] = []
            bad: list[BadRow] = []
            n_blank = began = 0
            for line, row in self.rows(file):
                if row is None:
                    n_blank += 1
                elif isinstance(row, BadRow):
                    bad.append(row)
                else:
                    lines.append(line)
                    rows.append(row)
                if len(rows) + len(bad) == BATCH_ROWS or file.buffer.tell() - began >= BATCH_BYTES:
                    began = file.buffer.tell()
                    yield self._batch(lines, rows, bad, n_blank, began)
                    lines, rows, bad, n_blank = [], [], [], 0
            yield self._batch(lines, rows, bad, n_blank, file.buffer.tell())

    def _batch(
        self, lines: list[int], rows: list[Iterable[Any]], bad: list[BadRow], n_blank: int, done_bytes: int
    ) -> Batch:
        values = zip(*rows, strict=True) if rows else [()] * len(self.columns)
        columns = {name: list(column) for name, column in zip(self.columns, values, strict=True)}
        return Batch(lines, columns, bad, n_blank, done_bytes)


class Lines(Text):
    """Plain text: one prompt per line."""

    columns = ("prompt",)
    prompt_column = "prompt"

    def survey(self) -> Survey:
        return {"prompt": pa.string()}

    def rows(self, file: TextIO) -> Iterator[tuple[int, Iterable[Any] | BadRow | None]]:
        for line, text in enumerate(file, start=1):
            yield line, (text,) if text.strip() else None


class Delimited(Text):
    """CSV, or TSV, with a header."""

    _kind = "CSV"
    _separator = ","
    _quoted = True  # whether fields may be quoted
    _remedy = "quote fields that hold commas"
    _is_declared = False  # whether the first line is Excel's, such as sep=;

    @contextmanager
    def open(self) -> Iterator[TextIO]:
        before = csv.field_size_limit(_MAX_FIELD)
        try:
            with super().open() as file:
                yield file
        finally:
            csv.field_size_limit(before)

    def survey(self) -> Survey:
        with self.open() as file:
            lines = (line for line in file if line.strip())
            first = next(lines, "")
            if self._kind == "CSV" and (declared := re.fullmatch(r"sep=([^\w\s\"]|\t)\s*", first)):
                self._separator, self._is_declared = declared[1], True
                first = next(lines, "")
        self._check_separator(first)
        with self.open() as file:
            header = self._header(self._reader(file))
        # pandas writes its index without a name
        self.columns = tuple(name.strip() or f"column_{i}" for i, name in enumerate(header, start=1))
        check_names(self.name, self.columns)
        return dict.fromkeys(self.columns, pa.string())

    def _check_separator(self, header: str) -> None:
        """Refuse a header that another character splits into more fields: in many countries, Excel writes ';'."""
        own = _fields(header, self._separator, quoted=self._quoted)
        for separator, name in _SEPARATORS.items():
            fields = _fields(header, separator)
            is_prompt = any(each.strip().casefold() in PROMPT_COLUMNS for each in fields)
            if own and len(fields) > len(own) and (len(own) == 1 or is_prompt):
                raise InputError(
                    f"{self.name}: its fields seem to be separated by {name}: save it with commas as .csv, or with "
                    f"tabs as .tsv. If {name} is part of a column's name, rename the column."
                )

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
                yield line, BadRow(self.name, line, None, "this row", f"is not {self._kind}: {self._why(error)}")
                continue
            if not row:
                yield line, None
            elif len(row) != n_columns:
                rule = f"has {len(row)} fields, and the header has {n_columns}; {self._remedy}"
                yield line, bad_row(self.name, line, None, row, rule)
            else:
                n_quoted += not self._quoted and any(len(x) > 1 and x[0] == '"' == x[-1] for x in row)
                yield line, row
        if n_quoted:
            self.notes.append(
                f"{self.name}: {n_quoted:,} rows have a field that begins and ends with a quote; in TSV quotes are "
                "kept. If they are not part of the text, save the file as CSV"
            )

    def _why(self, error: csv.Error) -> str:
        if "field limit" in str(error):
            return f"a field has more than {_MAX_FIELD:,} characters, probably because of an unclosed quote"
        return f"{error}; double any quote inside a quoted field"

    def _reader(self, file: TextIO) -> Any:
        return _reader(file, self._separator, quoted=self._quoted)

    def _header(self, reader: Any) -> list[str]:
        try:
            if self._is_declared:
                next(row for row in reader if row)
            header = next((row for row in reader if row), None)
        except csv.Error as error:
            raise InputError(f"{self.name}: the header is not {self._kind}: {self._why(error)}.") from error
        if header is None:
            raise InputError(f"{self.name}: is empty; the first line must name the columns.")
        return header


class Tabbed(Delimited):
    _kind = "TSV"
    _separator = "\t"
    _quoted = False
    _remedy = "in TSV, a field cannot contain a tab or a line break"


def _reader(lines: Iterable[str], separator: str, *, quoted: bool) -> Any:
    if quoted:
        return csv.reader(lines, delimiter=separator, strict=True)
    return csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE, strict=True)


def _fields(line: str, separator: str, *, quoted: bool = True) -> list[str]:
    """The fields of a single line; empty if it is not a whole row."""
    try:
        return next(_reader([line], separator, quoted=quoted), [])
    except csv.Error:
        return []


class _Json(Text):
    """JSON objects. Their keys and the types of the values are known after all objects have been read."""

    @abstractmethod
    def objects(self, file: TextIO) -> Iterator[tuple[int, Any]]:
        """Each value's first line, and the value, the reason for having none, or None for a blank line."""

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
        rule = 'is not a JSON object such as {"prompt": "a red star"}'
        if isinstance(value, str) and value is not _NULL:
            rule += "; for plain prompts, one per line, use .txt"
        return bad_row(self.name, line, None, value, rule)


class JsonLines(_Json):
    def objects(self, file: TextIO) -> Iterator[tuple[int, Any]]:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                yield line, None
                continue
            try:
                value = json.loads(text, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                value = bad_row(self.name, line, None, text.rstrip("\r\n"), f"is not JSON: {error}")
            yield line, _NULL if value is None else value


class JsonArray(JsonLines):
    """One array of objects, or JSON Lines with this suffix. An array is read at once; JSON Lines suits large tables."""

    def objects(self, file: TextIO) -> Iterator[tuple[int, Any]]:
        if self._has_lines(file):
            yield from super().objects(file)
            return
        text = file.read()
        decoder = json.JSONDecoder(object_pairs_hook=_object)
        line, counted = 1, 0
        position = _after_space(text, 0)
        if text[position : position + 1] != "[":
            raise InputError(f"{self.name}: is not an array of objects, [{{...}}, ...]. {_instead(text[position:])}")
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
            raise InputError(f"{self.name}:{line}: the array is malformed; separate objects with ',' and end with ']'.")

    def _has_lines(self, file: TextIO) -> bool:
        """Return whether the first line is a complete object and another follows, as datasets and pandas write them."""
        lines = (line for line in file if line.strip())
        first, second = next(lines, ""), next(lines, "")
        file.seek(0)
        try:
            return isinstance(json.loads(first), dict) and second.lstrip()[:1] == "{"
        except (ValueError, RecursionError):
            return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Check that an object's names are unique: of two values with the same name, JSON readers drop one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"one object has {next(name for name in names if names.count(name) > 1)!r:.60} twice")
    return found


def _instead(text: str) -> str:
    """Remedy for JSON that is not an array."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "For one object per line, use .jsonl."
    if isinstance(value, dict) and value and all(isinstance(each, dict) for each in value.values()):
        name = next(iter(value))
        return (
            f"It is an object of {len(value):,} objects, the first is {name!r:.60}: if each is a row, write them as an "
            "array; if each is a column (pandas' to_json), write it with orient='records'."
        )
    return "Put its rows in an array, or write one object per line as .jsonl."


_NULL = "null"  # as an element: a bad row, whereas None would be a blank line
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
