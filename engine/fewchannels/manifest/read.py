"""Read parts of a manifest: samples, ids, columns, and a summary."""

import hashlib
import io
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from fewchannels.errors import InputError, unknown
from fewchannels.files.durable import as_url
from fewchannels.manifest.columns import plain
from fewchannels.manifest.rows import OPTIONAL_COLUMNS
from fewchannels.tables import schema

TABLES_OF_PROMPTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")
"""Suffixes of files that become manifests, which they are not yet."""
_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
_MOST_DISTINCT = 10_000  # values of an extra column that are distinguished
_COMMONEST = 5


@dataclass(frozen=True)
class Sample:
    """One manifest row. The attributes are the columns of ``schemas/manifest.yaml``; None means the run's setting."""

    sample_id: str
    prompt: str
    seed: int
    negative_prompt: str | None = None
    width: int | None = None  # pixels
    height: int | None = None  # pixels
    steps: int | None = None
    guidance: float | None = None
    mask: str | None = None
    reference: str | None = None


ManifestFile = str | Path | BinaryIO
"""A manifest's path, or an opened manifest."""

COLUMNS = [field.name for field in fields(Sample)]


def read_samples(path: ManifestFile, start: int, stop: int) -> list[Sample]:
    """The samples ``[start, stop)``; reads only the row groups that contain them.

    Raises:
        InputError: the file is not a manifest, or has no such samples.
    """
    return samples_at(path, range(start, stop))


def samples_at(path: ManifestFile, rows: Sequence[int]) -> list[Sample]:
    """The samples of the given rows, in their order; reads only the row groups that contain them.

    Raises:
        InputError: the file is not a manifest, or has no such samples.
    """
    with opened(path) as file:
        metadata = file.metadata
        if outside := [row for row in rows if not 0 <= row < metadata.num_rows]:
            raise InputError(f"{str(path)!r} has samples 0 to {metadata.num_rows - 1}; {outside[0]} is out of range.")
        places: dict[int, int] = {}
        groups: list[int] = []
        wanted, before, n_read = set(rows), 0, 0
        for group in range(metadata.num_row_groups):
            n = metadata.row_group(group).num_rows
            if not wanted.isdisjoint(range(before, before + n)):
                groups.append(group)
                places |= {row: row - before + n_read for row in wanted & set(range(before, before + n))}
                n_read += n
            before += n
        table = file.read_row_groups(groups, columns=COLUMNS)
        return [Sample(**row) for row in table.take(pa.array([places[row] for row in rows], pa.int64())).to_pylist()]


def sample_ids(path: ManifestFile) -> list[str]:
    """The id of every sample, in order.

    Raises:
        InputError: the file is not a manifest.
    """
    with opened(path) as file:
        return file.read(columns=["sample_id"]).column("sample_id").to_pylist()


def is_manifest(path: str | Path) -> bool:
    """Return whether a path is a Parquet file with a manifest's columns; its rows are not read."""
    if not str(path).endswith(".parquet") or not Path(path).is_file():
        return False
    try:
        with opened(path):
            return True
    except InputError:
        return False


def columns(path: ManifestFile, names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a manifest, including the source's own, as Python values.

    Raises:
        InputError: the file is not a manifest, or has no such column.
    """
    with opened(path) as file:
        there = file.schema_arrow.names
        for name in names:
            if name not in there:
                raise unknown("column of the manifest", name, there)
        return file.read(columns=list(dict.fromkeys(names))).to_pydict()


def other_columns(one: bytes, other: bytes) -> list[str]:
    """Extra columns in which two manifests of the same samples differ, ascending.

    Args:
        one: a manifest.
        other: the other one.
    """
    with opened(io.BytesIO(one), "one") as first, opened(io.BytesIO(other), "other") as second:
        own = [{name for name in file.schema_arrow.names if name not in COLUMNS} for file in (first, second)]
        mine, theirs = (file.read(columns=sorted(own[0] & own[1])) for file in (first, second))
        changed = {name for name in own[0] & own[1] if mine[name].to_pylist() != theirs[name].to_pylist()}
        return sorted((own[0] ^ own[1]) | changed)


def summary(path: str | Path) -> dict[str, Any]:
    """Summarize a manifest, in values that JSON can represent.

    Returns:
        ``n_samples``; ``n_prompts`` (distinct); ``seeds``: ``n``, ``min``, ``max``; ``prompt_characters``: length by
        percentile; ``optional``: number of samples that set it, by column; ``sizes``: height, width and samples, the
        most common first; ``extra``: ``type``, ``n_distinct`` and ``commonest``, by column; ``bytes`` of the file.
        ``n_distinct`` is None if there are more than 10,000 values, or if they are lists or bytes.

    Raises:
        InputError: the file is not a manifest.
    """
    prompts: set[bytes] = set()
    seeds: set[int] = set()
    lengths: Counter[int] = Counter()
    optional: Counter[str] = Counter()
    sizes: Counter[tuple[int | None, int | None]] = Counter()
    with opened(path) as file:
        extra = {column.name: _Values(column.type) for column in file.schema_arrow if column.name not in COLUMNS}
        for batch in file.iter_batches(columns=[*COLUMNS[1:], *extra]):
            for prompt in batch.column("prompt").to_pylist():
                prompts.add(hashlib.sha256(prompt.encode()).digest()[:8])
                lengths[len(prompt)] += 1
            seeds.update(batch.column("seed").to_pylist())
            for name in OPTIONAL_COLUMNS:
                optional[name] += len(batch) - batch.column(name).null_count
            sizes.update(zip(batch.column("height").to_pylist(), batch.column("width").to_pylist(), strict=True))
            for name, values in extra.items():
                values.add(batch.column(name))
        n_samples = file.metadata.num_rows
    return {
        "n_samples": n_samples,
        "n_prompts": len(prompts),
        "seeds": {"n": len(seeds), "min": min(seeds, default=None), "max": max(seeds, default=None)},
        "prompt_characters": {str(percent): _percentile(lengths, percent) for percent in _PERCENTILES if lengths},
        "optional": dict(optional),
        "sizes": [{"height": h, "width": w, "n": n} for (h, w), n in sizes.most_common(_COMMONEST)],
        "extra": {name: values.summary() for name, values in extra.items()},
        "bytes": Path(path).stat().st_size,
    }


class _Values:
    """The distinct values of a column, while there are only a few."""

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind
        self._counts: Counter[Any] | None = None
        if not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            self._counts = Counter()

    def add(self, column: pa.Array) -> None:
        if self._counts is None:
            return
        for pair in column.cast(plain(self._kind)).value_counts():
            value = pair["values"].as_py()
            if not (
                value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
            ):
                value = str(value)
            self._counts[value] += pair["counts"].as_py()
        if len(self._counts) > _MOST_DISTINCT:
            self._counts = None

    def summary(self) -> dict[str, Any]:
        if self._counts is None:
            return {"type": str(self._kind), "n_distinct": None, "commonest": []}
        commonest = [{"value": value, "n": n} for value, n in self._counts.most_common(_COMMONEST)]
        return {"type": str(self._kind), "n_distinct": len(self._counts), "commonest": commonest}


def _percentile(counts: Counter[int], percent: int) -> int:
    """The smallest value with at least ``percent`` % of all values at or below it."""
    needed = percent / 100 * counts.total()
    at_or_below = 0
    for value in sorted(counts):
        at_or_below += counts[value]
        if at_or_below >= needed:
            break
    return value


def check_path(path: str | Path) -> None:
    """Refuse a path without a file.

    Raises:
        InputError: there is no file; the message says how to create a manifest.
    """
    if url := as_url(Path(path)):
        raise InputError(f"{url!r} is a URL, but a manifest is read from a local disk. Copy it here first.")
    if not Path(path).is_file():
        raise InputError(
            f"there is no manifest {str(path)!r}. Create one: fewchannels manifest ingest prompts.csv -o {str(path)!r}."
        )


@contextmanager
def opened(path: ManifestFile, name: str | None = None) -> Iterator[pq.ParquetFile]:
    """Open the Parquet file, and check that it has a manifest's columns and types.

    Args:
        path: the manifest.
        name: its name in messages; None for its path.

    Raises:
        InputError: the file is not a manifest.
    """
    name = name or str(path)
    if isinstance(path, str | Path):
        check_path(path)
    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow
            for column in schema("manifest"):
                if column.name not in found.names:
                    raise not_a_manifest(name, f"it has no column {column.name!r}")
                if found.field(column.name).type != column.type:
                    kind = found.field(column.name).type
                    raise not_a_manifest(name, f"column {column.name!r} is {kind}, not {column.type}")
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise not_readable(name, error) from error


def not_readable(name: str, error: Exception) -> InputError:
    """The error of a file that cannot be read."""
    if Path(name).suffix.lower() in TABLES_OF_PROMPTS:
        return not_a_manifest(name, "it is a table of prompts")
    return InputError(f"{name!r} is not readable Parquet: {error}. Ingest the manifest again.")


def not_a_manifest(name: str, why: str) -> InputError:
    """The error of a file that is not a manifest."""
    return InputError(
        f"{name!r} is not a manifest: {why}. Convert it: fewchannels manifest ingest {shlex.quote(name)} -o "
        f"{shlex.quote(Path(name).stem or 'manifest')}.parquet"
    )
