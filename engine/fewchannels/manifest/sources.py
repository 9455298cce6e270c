"""Sources that can be ingested: files, by their suffix, and the demo world."""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fewchannels.errors import InputError
from fewchannels.files.durable import as_url
from fewchannels.manifest.columns import Survey, check_names, plain
from fewchannels.manifest.rows import Batch
from fewchannels.manifest.text_sources import (
    BATCH_BYTES,
    BATCH_ROWS,
    Delimited,
    JsonArray,
    JsonLines,
    Lines,
    Source,
    Tabbed,
)

DEMO = "demo:"
_SHOWN = 3  # names in a note


def open_sources(names: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Open sources by name: files with a known suffix, folders of such files, or ``demo:N``.

    A folder stands for the files directly in it, in the order of their names.

    Returns:
        The sources, and notes on other files in a folder.

    Raises:
        InputError: there is no such file, its suffix is unknown, or a folder has no file with a known one.
    """
    sources: list[Source] = []
    notes: list[str] = []
    for name in names:
        path = Path(name)
        if name.startswith(DEMO) or not path.is_dir():
            sources.append(_open(name))
            continue
        try:
            inside = sorted(each for each in path.iterdir() if not each.name.startswith("."))
        except OSError as error:
            raise InputError(f"the folder {name!r} cannot be read: {error.strerror}.") from error
        files = [each for each in inside if each.suffix.lower() in _KINDS and each.is_file()]
        if not files:
            raise InputError(f"the folder {name!r} has no file with the suffix {', '.join(_KINDS)}.")
        sources += [_open(str(each)) for each in files]
        if rest := [each.name for each in inside if each not in set(files)]:
            more = f" and {len(rest) - _SHOWN:,} more" if len(rest) > _SHOWN else ""
            notes.append(f"{name}: ignored, not prompts: {', '.join(map(repr, rest[:_SHOWN]))}{more}")
    return sources, notes


def _open(name: str) -> Source:
    """Open a source by name: a file with a known suffix, or ``demo:N``.

    Raises:
        InputError: there is no such file, or its suffix is unknown.
    """
    if name.startswith(DEMO) or name == DEMO.rstrip(":"):
        return _Demo(name)
    path = Path(name)
    if url := as_url(path):
        raise InputError(f"{url!r} is a URL, but prompts are read from a local disk. Copy the file here first.")
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"{name!r} has the suffix {path.suffix or 'nothing'}; a source must have {', '.join(_KINDS)}, or be demo:N."
        )
    if not path.is_file():
        raise InputError(f"there is no file {name!r}.")
    return kind(name)


class _Parquet(Source):
    """A Parquet file. Its rows are counted from 1."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.n_bytes = Path(name).stat().st_size

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(self.name) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.name}: is not readable Parquet: {error}. Write it again.") from error

    def survey(self) -> Survey:
        with self._open() as file:
            found = file.schema_arrow
        check_names(self.name, found.names)
        return {column.name: plain(column.type) for column in found}

    def batches(self, ignored: Collection[str] = ()) -> Iterator[Batch]:
        with self._open() as file:
            metadata = file.metadata
            names = [name for name in file.schema_arrow.names if name.casefold() not in ignored]
            n_done = 0
            for part in file.iter_batches(_batch_rows(metadata, ignored), columns=names if ignored else None):
                columns = {name: _decoded(column) for name, column in zip(part.schema.names, part.columns, strict=True)}
                lines = list(range(n_done + 1, n_done + part.num_rows + 1))
                n_done += part.num_rows
                yield Batch(lines, columns, done_bytes=self.n_bytes * n_done // metadata.num_rows)


def _batch_rows(metadata: pq.FileMetaData, ignored: Collection[str]) -> int:
    """Number of rows per batch, based on the row group with the largest rows."""
    largest = 1
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        columns = (group.column(k) for k in range(group.num_columns))
        read = [each for each in columns if each.path_in_schema.partition(".")[0].casefold() not in ignored]
        largest = max(largest, sum(each.total_uncompressed_size for each in read) // max(group.num_rows, 1))
    return max(1, min(BATCH_ROWS, BATCH_BYTES // largest))


def _decoded(column: pa.Array) -> Any:
    """The column in its plain type; as a list with surrogates if its texts are not UTF-8."""
    kind = plain(column.type)
    try:
        column = column.cast(kind)
        column.validate(full=True)
    except pa.ArrowInvalid:
        if not pa.types.is_string(kind):
            raise
        values = column.cast(pa.binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in values]
    return column


class _Demo(Source):
    """``demo:N``: captions of the demo world, the same for the same N."""

    prompt_column = "prompt"

    def survey(self) -> Survey:
        from fewchannels.demo.world import Scene  # imports torch, which no other source needs

        count = self.name.removeprefix(DEMO)
        if not re.fullmatch(r"[0-9]{1,7}", count) or int(count) == 0:
            raise InputError(f"{self.name!r} must be demo:N with N from 1 to 9999999, such as demo:256.")
        self._n = int(count)
        return dict.fromkeys(("prompt", *(field.name for field in fields(Scene))), pa.string())

    def batches(self, ignored: Collection[str] = ()) -> Iterator[Batch]:
        from fewchannels.demo.world import choose_scenes

        scenes = choose_scenes(self._n, seed=0)
        for start in range(0, self._n, BATCH_ROWS):
            part = scenes[start : start + BATCH_ROWS]
            rows = zip(*((scene.caption, *astuple(scene)) for scene in part), strict=True)
            columns = {name: list(values) for name, values in zip(self.survey(), rows, strict=True)}
            yield Batch(list(range(start + 1, start + len(part) + 1)), columns)


_KINDS: dict[str, type[Source]] = {
    ".csv": Delimited,
    ".tsv": Tabbed,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": JsonArray,
    ".parquet": _Parquet,
    ".txt": Lines,
}
