"""One row: the rules for its values, its id, and the message for a row that breaks a rule."""

import hashlib
import json
import math
import os
import re
import reprlib
import struct
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from fewchannels.errors import InputError
from fewchannels.files.durable import as_url

MAX_CHARACTERS = 10_000  # of a text; a longer one is a misread file, not a prompt
MAX_SEED = 2**63 - 1  # torch's generator takes larger ones, modulo 2**64
MAX_SIDE = 65_536  # pixels
MAX_STEPS = 100_000
PATH_COLUMNS = ("mask", "reference")
OPTIONAL_COLUMNS = ("negative_prompt", "width", "height", "steps", "guidance", "mask", "reference")

NOT_UTF8 = "is not UTF-8 text; save the file as UTF-8"
_LISTED = 10  # bad rows named in a message
_SHOWN = 60  # characters of a value named in a message
_SHORT = reprlib.Repr()  # repr itself gives up on a deeply nested value
_SHORT.maxstring = _SHOWN


@dataclass(frozen=True)
class BadRow:
    """A row that breaks a rule, with the first rule that it breaks."""

    file: str
    line: int  # physical line where the row begins, from 1; in Parquet and the demo world the row's number, from 1
    column: str | None  # name of the column in the source; None if the row as a whole is wrong
    value: str  # repr of the value, shortened: safe to print
    rule: str

    def __str__(self) -> str:
        column = "" if self.column is None else f" {self.column!r}:"
        return f"{self.file}:{self.line}:{column} {self.value} {self.rule}"


class BadRowsError(InputError):
    """Some rows are not valid, so nothing was written. ``n_bad`` counts them; ``bad_rows`` has the first ones."""

    def __init__(self, bad_rows: Sequence[BadRow], n_bad: int, n_rows: int) -> None:
        self.bad_rows = tuple(bad_rows[:_LISTED])
        self.n_bad = n_bad
        lines = [f"{n_bad:,} of {n_rows:,} rows are bad; nothing was written."]
        lines += [f"  {row}" for row in self.bad_rows]
        if n_bad > len(self.bad_rows):
            lines.append(f"  ... and {n_bad - len(self.bad_rows):,} more")
        lines.append("Fix them, or skip them with --on-error skip." if n_bad < n_rows else "Fix them.")
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Batch:
    """Some rows of one source, as read."""

    lines: list[int]  # where each row begins
    columns: Mapping[str, Any]  # source column -> its values, a list or an Arrow array
    bad: list[BadRow] = field(default_factory=list)  # rows that could not be parsed
    n_blank: int = 0  # blank lines
    done_bytes: int = 0  # of the source, at the end of this batch


@dataclass(frozen=True)
class Checked:
    """A batch after checking."""

    good: list[int]  # positions in the batch of the rows that break no rule
    columns: dict[str, list[Any]]  # manifest column -> values in the schema's type; None at bad rows
    extras: dict[str, pa.Array]
    bad: list[BadRow]  # by line


def bad_row(file: str, line: int, column: str | None, value: object, rule: str) -> BadRow:
    """A :class:`BadRow` with its value made printable and short."""
    text = _SHORT.repr(value)
    return BadRow(file, line, column, text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...", rule)


def canonical(prompt: str) -> str:
    """A prompt in the form stored in a manifest: stripped and in NFC."""
    return unicodedata.normalize("NFC", prompt.strip())


def sample_id(prompt: str, seed: int, **optional: Any) -> str:
    """The id of a sample: 16 hex digits.

    Args:
        prompt: the prompt, stripped and in NFC, as in a manifest.
        seed: random seed of the sample's noise.
        optional: values of :data:`OPTIONAL_COLUMNS`; None is the same as omitting one.
    """
    return hashlib.sha256(f"{prompt}\0{seed}{settings_text(optional)}".encode()).hexdigest()[:16]


def settings_text(optional: Mapping[str, Any]) -> str:
    """The part of the hashed text that follows prompt and seed: ``NUL name NUL value`` for each column that is set.

    Texts contain no NUL, so two samples never share an encoding. Guidance is encoded by its float32 bits, big-endian,
    in hex: 3.5 is the same number in a CSV file, a float32 column and a float64 column.
    """
    parts = []
    for name in OPTIONAL_COLUMNS:
        value = optional.get(name)
        if value is not None:
            parts.append(f"\0{name}\0{struct.pack('>f', value).hex() if name == 'guidance' else value}")
    return "".join(parts)


def check(file: str, batch: Batch, taken: Mapping[str, str], extras: Mapping[str, pa.DataType]) -> Checked:
    """Check every row of a batch, and convert the values.

    Paths become absolute: a relative path is relative to the folder of the table that names it.

    Args:
        file: the source's name, for messages, and the path of a table.
        batch: the rows.
        taken: manifest column -> source column, for both the schema's columns and the extra ones.
        extras: type of each extra column in the manifest.

    Raises:
        InputError: an extra column's values do not fit the type that it has in the manifest.
    """
    faults: dict[int, BadRow] = {}

    def fault(row: int, column: str, value: object, rule: str) -> None:
        faults.setdefault(row, bad_row(file, batch.lines[row], column, value, rule))

    folder = Path(file).absolute().parent
    columns: dict[str, list[Any]] = {}
    arrays: dict[str, pa.Array] = {}
    for name, source_column in taken.items():
        values = batch.columns[source_column]
        if name in extras:
            arrays[name] = _extra(file, source_column, values, extras[name], fault)
            continue
        convert, converted = _CONVERT[name], []
        is_path = name in PATH_COLUMNS
        for row, value in enumerate(values.to_pylist() if isinstance(values, pa.Array) else values):
            try:
                plain = convert(value)
                converted.append(_absolute(folder, plain) if is_path and plain else plain)
            except ValueError as error:
                fault(row, source_column, value, str(error))
                converted.append(None)
        columns[name] = converted
    good = [row for row in range(len(batch.lines)) if row not in faults]
    return Checked(good, columns, arrays, sorted([*batch.bad, *faults.values()], key=lambda bad: bad.line))


def _extra(
    file: str, column: str, values: Any, kind: pa.DataType, fault: Callable[[int, str, object, str], None]
) -> pa.Array:
    """Convert an extra column to its manifest type. As text, mixed values become JSON; invalid UTF-8 is an error."""
    try:
        return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)
    except UnicodeEncodeError:
        pass
    except pa.ArrowException as error:
        if isinstance(values, pa.Array) or not pa.types.is_string(kind):
            raise InputError(
                f"{file}: column {column!r} is {kind} over all rows and sources, but a value does not fit: {error}. "
                "Give the column one type, or remove it from the source."
            ) from error
    texts = [
        value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values
    ]
    for row, text in enumerate(texts):
        if text is not None and not is_unicode(text):
            fault(row, column, text, NOT_UTF8)
            texts[row] = None
    return pa.array(texts, kind)


def is_unicode(text: str) -> bool:
    """Return False if the text contains surrogates: bytes that are not UTF-8, or half of a JSON escape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: Any, *, canonical: bool) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("is not text; write it in quotes")
    text = value.strip()
    if not text.isascii():
        if not is_unicode(text):
            raise ValueError(NOT_UTF8)
        if canonical:
            text = unicodedata.normalize("NFC", text)
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"is {len(text):,} characters long; the limit is {MAX_CHARACTERS:,}")
    if "\0" in text:
        raise ValueError("contains a NUL character, which is not allowed")
    return text or None


def _prompt(value: Any) -> str:
    text = _text(value, canonical=True)
    if text is None:
        raise ValueError("is empty; a prompt needs at least one character other than white space")
    return text


def _negative_prompt(value: Any) -> str | None:
    return _text(value, canonical=True)


def _path(value: Any) -> str | None:
    return _text(value, canonical=False)  # NFC would rename the file


def _absolute(folder: Path, path: str) -> str:
    if as_url(Path(path)):
        return path
    return str(Path(folder, os.path.expanduser(path)))


_WHOLE = re.compile(r"\+?0*([0-9]+)(?:\.0*)?")  # pandas writes whole numbers as 512.0 in a column with gaps
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_EXACT = 2**53  # floats above it are not exact, so a seed would not be either


def _is_absent(value: Any) -> bool:
    """Return whether a value is null, an empty text, or the NaN that stands for null in a column of floats."""
    return (
        value is None
        or (isinstance(value, float | Decimal) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def _whole(low: int, high: int) -> Callable[[Any], int | None]:
    def convert(value: Any) -> int | None:
        if _is_absent(value):
            return None
        number: int | None = None
        if isinstance(value, float):
            number = int(value) if value.is_integer() and abs(value) <= _EXACT else None
        elif not isinstance(value, bool):
            match = _WHOLE.fullmatch(str(value).strip())
            # int() itself rejects a number with thousands of digits, with another message.
            number = int(match[1]) if match and len(match[1]) <= len(str(high)) else None
        if number is None or not low <= number <= high:
            raise ValueError(f"is not a whole number from {low} to {high}")
        return number

    return convert


_whole_seed = _whole(0, MAX_SEED)


def _seed(value: Any) -> int | None:
    try:
        return _whole_seed(value)
    except ValueError as error:
        raise ValueError(f"{error}{_why_not(value)}") from None


def _why_not(value: Any) -> str:
    """Explain the meaning that other tools give to a seed that is out of range."""
    try:
        number = float(str(value).strip())
    except ValueError:
        return ""
    if number == -1:
        return "; if -1 means a random seed, choose a seed, or leave it empty for seed 0"
    if number > MAX_SEED:
        return "; PyTorch's generator would reduce it modulo 2**64, and seeds are never changed here"
    return ""


def _guidance(value: Any) -> float | None:
    if _is_absent(value):
        return None
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    is_decimal = isinstance(value, str) and _DECIMAL.fullmatch(value.strip())
    try:
        number = float(value) if is_number or is_decimal else math.nan
        (rounded,) = struct.unpack(">f", struct.pack(">f", number))
    except OverflowError:
        rounded = math.inf
    if not math.isfinite(rounded):
        raise ValueError("is not a finite number in the range of float32")
    return rounded + 0.0  # negative zero becomes zero


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "prompt": _prompt,
    "seed": _seed,
    "negative_prompt": _negative_prompt,
    "width": _whole(1, MAX_SIDE),
    "height": _whole(1, MAX_SIDE),
    "steps": _whole(1, MAX_STEPS),
    "guidance": _guidance,
    "mask": _path,
    "reference": _path,
}
