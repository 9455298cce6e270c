"""Convert every type of DuckDB to Arrow, Python, JSON and CSV: nothing is silently rounded, wrapped or lost.

A value that they cannot represent becomes the text that DuckDB writes for it, such as ``infinity`` for a date.
"""

import base64
import math
from collections.abc import Sequence
from decimal import Decimal
from itertools import count
from typing import Any

import duckdb
import pyarrow as pa

_WHOLE = ("tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint", "hugeint")
_EXACT = frozenset((*_WHOLE, "boolean", "float", "double", "decimal", "varchar", "blob", "uuid", "enum", "null"))
"""Types that Arrow holds as they are, also within lists. A later DuckDB's new type comes as text."""
_DAYS_AND_TIMES = ("date", "time", "timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns")
_TEMPORAL = frozenset((*_DAYS_AND_TIMES, "timestamp with time zone", "timestamptz_ns"))
"""Arrow holds these, but not every value is one of Python's: see :func:`readable`."""
_FIRST_DAY, _LAST_DAY = -719162, 2932896  # 0001-01-01 and 9999-12-31, counted from 1970
_PER_DAY = {"s": 86400, "ms": 86400 * 10**3, "us": 86400 * 10**6, "ns": 86400 * 10**9}
_NO_END = 2**63 - 1
_DOUBLE_DIGITS = 15


def projection(columns: Sequence[str], types: Sequence[Any]) -> str | None:
    """The select list that casts values that Arrow cannot represent to text; None if there are none."""
    wanted = [None if kind.id in _TEMPORAL else _cast_to(kind) for kind in types]
    if not any(wanted):
        return None
    items = [f"#{i}" if to is None else f"cast(#{i} as {to})" for i, to in enumerate(wanted, 1)]
    return ", ".join(f"{item} as {quoted(name)}" for item, name in zip(items, columns, strict=True))


def distinct(columns: Sequence[str]) -> list[str]:
    """Make the names of an answer's columns distinct: of equal names, as from a join, the second becomes ``NAME_1``.

    Case makes no difference, as in SQL. The first column with a name keeps it.
    """
    given = {name.casefold() for name in columns}
    found: list[str] = []
    taken: set[str] = set()
    for name in columns:
        numbered = name
        for i in count(1):
            if numbered.casefold() not in taken and (numbered == name or numbered.casefold() not in given):
                break
            numbered = f"{name}_{i}"
        found.append(numbered)
        taken.add(numbered.casefold())
    return found


def quoted(name: str) -> str:
    """Quote a column's name for SQL, whatever characters it contains."""
    return '"' + name.replace('"', '""') + '"'


def _cast_to(kind: Any) -> str | None:
    """The type to cast to, with text for values that Arrow cannot represent; None if all can be."""
    if kind.id in _EXACT:
        return None
    if kind.id not in ("list", "array", "struct", "map"):
        return "varchar"
    parts = {name: part for name, part in kind.children if name != "size"}
    wanted = {name: _cast_to(part) for name, part in parts.items()}
    if parts and not any(wanted.values()):
        return None
    inner = {name: to or str(parts[name]) for name, to in wanted.items()}
    if kind.id == "list":
        return f"{inner['child']}[]"
    if kind.id == "array":
        return f"{inner['child']}[{dict(kind.children)['size']}]"
    if kind.id == "map":
        return f"map({inner['key']}, {inner['value']})"
    return f"struct({', '.join(f'{quoted(name)} {to}' for name, to in inner.items())})" if inner else "varchar"


def readable(column: Any) -> Any:
    """Convert an Arrow column to text if Python cannot represent one of its dates or times."""
    kind = column.type
    if not pa.types.is_temporal(kind) or pa.types.is_duration(kind) or pa.types.is_interval(kind):
        return column
    days = pa.types.is_date32(kind)
    limits = _ends(column.cast("int32" if days else "int64"))
    least, most = limits["min"].as_py(), limits["max"].as_py()
    if least is None:
        return column
    if days:
        first, last = _FIRST_DAY, _LAST_DAY
    elif pa.types.is_time(kind):
        first, last = 0, _PER_DAY[kind.unit] - 1  # 24:00 would become 0:00
    else:
        per_day = _PER_DAY[kind.unit]
        first, last = _FIRST_DAY * per_day, min(_LAST_DAY * per_day + per_day, _NO_END) - 1
        first = max(first, 1 - _NO_END)
    return column if first <= least and most <= last else as_text(column)


def plain(column: Any) -> Any:
    """Convert a column of decimals to whole numbers or doubles if that loses nothing, otherwise to text."""
    kind = column.type
    if not pa.types.is_decimal(kind):
        return column
    numbers = as_numbers(column)
    return as_text(column) if numbers is None else numbers


def as_numbers(column: Any) -> Any | None:
    """A column of decimals as int64 or double; None if that would lose a digit."""
    limits = _ends(column)
    sizes = [abs(value.as_py().scaleb(column.type.scale)) for value in limits.values() if value.is_valid]
    if column.type.scale == 0:
        return column.cast("int64") if all(size < 2**63 for size in sizes) else None
    return column.cast("double") if all(size < 10**_DOUBLE_DIGITS for size in sizes) else None


def _ends(column: Any) -> Any:
    """The smallest and the largest value."""
    from pyarrow.compute import min_max  # takes a tenth of a second

    return min_max(column)


def as_text(column: Any) -> Any:
    """A column as the text that DuckDB writes for its values; a decimal with all its digits."""
    if pa.types.is_decimal(column.type):  # Arrow's 128 bits may hold one more digit than its type allows
        texts = [None if value is None else f"{value:f}" for value in column.to_pylist()]
        return (
            pa.chunked_array([pa.array(texts, pa.string())]) if isinstance(column, pa.ChunkedArray) else pa.array(texts)
        )
    with duckdb.connect() as printer:
        printer.execute("set TimeZone = 'UTC'")
        written = printer.from_arrow(pa.table({"x": column})).project("cast(x as varchar)").to_arrow_table().column(0)
    return written if isinstance(column, pa.ChunkedArray) else written.combine_chunks()


def for_json(value: Any) -> Any:
    """The value for JSON: null for NaN, base64 for binary, text for types that JSON does not have."""
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, dict):
        return {str(key): for_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(item) for item in value]
    return value if isinstance(value, str | int | None) else str(value)


def _number(value: Decimal) -> int | float | str:
    if value == value.to_integral_value() and value.as_tuple().exponent == 0:
        return int(value)
    return float(value) if len(value.as_tuple().digits) <= _DOUBLE_DIGITS else f"{value:f}"
