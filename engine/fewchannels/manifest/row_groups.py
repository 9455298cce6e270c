"""Write the samples of checked rows, each once, in row groups of bounded size."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fewchannels.errors import StorageError
from fewchannels.files.durable import writing
from fewchannels.manifest.rows import OPTIONAL_COLUMNS, Checked, settings_text
from fewchannels.tables import schema

ROW_GROUP_ROWS = 16_384  # read by a worker to get its own rows
_ROW_GROUP_BYTES = 64 * 2**20  # rows with images fill a group sooner
_DIGEST = np.dtype("<u4")  # of a value's digest, by which duplicates are compared
_DIGEST_BYTES = _DIGEST.itemsize
_TEXTS = [column.name for column in schema("manifest") if pa.types.is_string(column.type)]


class Writer:
    """Writes the samples of checked rows, in the order in which they come.

    Args:
        file: file to write to.
        columns: columns of the manifest.
        compared: extra columns in which a duplicate may differ from the sample that was kept.

    Attributes:
        n_written: samples so far.
        n_duplicates: samples left out because their id was there already.
        n_differing: number of these that differ from the kept sample in a column of ``compared``.
    """

    def __init__(self, file: pq.ParquetWriter, columns: pa.Schema, compared: Collection[str]) -> None:
        self.n_written = self.n_duplicates = self.n_differing = 0
        self._file = file
        self._schema = columns
        self._compared = tuple(compared)
        self._differing: set[str] = set()
        self._seen: dict[int, bytes] = {}  # the 64 bits of each id -> digests of its compared columns
        self._pending: list[pa.Table] = []
        self._pending_rows = self._pending_bytes = 0

    @property
    def differing(self) -> tuple[str, ...]:
        """The compared columns in which any duplicate differs from the sample that was kept."""
        return tuple(name for name in self._compared if name in self._differing)

    def add(self, checked: Checked, seeds: Sequence[int] | None) -> None:
        """Write the samples of the good rows: one for each seed, or the row's own.

        The memory it takes does not grow with the number of seeds.
        """
        ids: list[str] = []
        rows: list[int] = []
        sample_seeds: list[int] = []
        n_bytes = 0
        prompts, own_seeds = checked.columns["prompt"], checked.columns.get("seed")
        settings, digests = _settings(checked), self._digests(checked)
        sizes = _row_bytes(checked, len(seeds or (0,)))
        for row in checked.good:
            prompt = prompts[row]
            settings_of_row = settings[row] if settings else ""
            for seed in seeds or ((own_seeds[row] if own_seeds else None) or 0,):
                digest = hashlib.sha256(f"{prompt}\0{seed}{settings_of_row}".encode()).digest()[:8]
                key = int.from_bytes(digest)
                if (kept := self._seen.get(key)) is not None:
                    self._leave_out(kept, digests[row])
                    continue
                self._seen[key] = digests[row]
                ids.append(digest.hex())
                rows.append(row)
                sample_seeds.append(seed)
                n_bytes += sizes[row] if sizes else 0
                if len(ids) == ROW_GROUP_ROWS or n_bytes >= _ROW_GROUP_BYTES:
                    self._append(checked, ids, rows, sample_seeds)
                    ids, rows, sample_seeds, n_bytes = [], [], [], 0
        if ids:
            self._append(checked, ids, rows, sample_seeds)

    def _digests(self, checked: Checked) -> list[bytes]:
        """The digests of each row's compared columns, concatenated."""
        n_rows, width = len(checked.columns["prompt"]), _DIGEST_BYTES * len(self._compared)
        absent = np.full(n_rows, _digest(None), _DIGEST)
        columns = [_digests(checked.extras[name]) if name in checked.extras else absent for name in self._compared]
        whole = np.stack(columns, axis=1).tobytes() if columns else b""
        return [whole[row * width : (row + 1) * width] for row in range(n_rows)]

    def _leave_out(self, kept: bytes, left_out: bytes) -> None:
        self.n_duplicates += 1
        if kept != left_out:
            self.n_differing += 1
            parts = range(0, len(kept), _DIGEST_BYTES)
            self._differing |= {
                name
                for name, at in zip(self._compared, parts, strict=True)
                if kept[at : at + _DIGEST_BYTES] != left_out[at : at + _DIGEST_BYTES]
            }

    def _append(self, checked: Checked, ids: list[str], rows: list[int], seeds: list[int]) -> None:
        given: dict[str, Any] = {"sample_id": ids, "seed": seeds}
        for name, values in checked.columns.items():
            if name != "seed":
                given[name] = [values[row] for row in rows]
        positions = pa.array(rows, pa.int64())
        for name, array in checked.extras.items():
            given[name] = array.take(positions)
        arrays = [
            given[column.name]
            if isinstance(given.get(column.name), pa.Array)
            else pa.array(given.get(column.name, [None] * len(ids)), column.type)
            for column in self._schema
        ]
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._pending.append(table)
        self._pending_rows += len(table)
        self._pending_bytes += table.nbytes
        self.n_written += len(ids)
        if self._pending_bytes >= _ROW_GROUP_BYTES:
            self.flush()
        elif self._pending_rows >= ROW_GROUP_ROWS:
            pending = pa.concat_tables(self._pending)
            self._file.write_table(pending.slice(0, ROW_GROUP_ROWS))
            rest = pending.slice(ROW_GROUP_ROWS)
            self._pending, self._pending_rows, self._pending_bytes = [rest], len(rest), rest.nbytes

    def flush(self) -> None:
        """Write pending samples as a row group, which may be short."""
        if self._pending_rows:
            self._file.write_table(pa.concat_tables(self._pending))
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0


def _digests(array: pa.Array) -> np.ndarray:
    """The digest of each value."""
    if pa.types.is_nested(array.type):
        return np.array([_digest(None if value is None else repr(value)) for value in array.to_pylist()], _DIGEST)
    encoded = array.dictionary_encode()
    digests = [_digest(value) for value in (*encoded.dictionary.to_pylist(), None)]
    indices = encoded.indices.fill_null(len(digests) - 1)
    return np.array(digests, _DIGEST)[indices.to_numpy(zero_copy_only=False)]


def _digest(value: Any) -> int:
    """A number that is equal for equal values."""
    if value != value:  # NaN
        value = None
    # A tuple's hash is well mixed; a number's own hash is the number itself, whose low bits may collide.
    return hash((value,)) % 2**32


def _row_bytes(checked: Checked, n_seeds: int) -> list[int]:
    """Size of each row's sample; empty if all samples of the batch are small together."""
    texts = [values for name, values in checked.columns.items() if name in _TEXTS]
    arrays = list(checked.extras.values())
    n_bytes = sum(array.nbytes for array in arrays) + sum(len(text or "") for values in texts for text in values)
    if n_bytes * n_seeds < _ROW_GROUP_BYTES:
        return []
    return [
        sum(array.slice(row, 1).nbytes for array in arrays) + sum(len(values[row] or "") for values in texts)
        for row in range(len(checked.columns["prompt"]))
    ]


def _settings(checked: Checked) -> list[str]:
    """The part of each row's hashed text after prompt and seed; empty if no row has one."""
    names = [name for name in checked.columns if name in OPTIONAL_COLUMNS]
    known: dict[tuple[Any, ...], str] = {}  # most tables have the same few settings in all rows
    texts = []
    for values in zip(*(checked.columns[name] for name in names), strict=True):
        if values not in known:
            known[values] = settings_text(dict(zip(names, values, strict=True)))
        texts.append(known[values])
    return texts


@contextmanager
def written(path: Path, extras: dict[str, pa.DataType], compared: Collection[str]) -> Iterator[Writer]:
    """A writer whose file gets its name when the block succeeds, and is removed when it fails.

    Args:
        path: path of the manifest.
        extras: its columns in addition to the schema's.
        compared: same as for :class:`Writer`.

    Raises:
        StorageError: the manifest cannot be written.
    """
    columns = pa.schema([*schema("manifest"), *(pa.field(name, kind) for name, kind in extras.items())])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {str(path.parent)!r}: {error.strerror}.") from error
    with writing(path) as file, pq.ParquetWriter(file, columns, compression="zstd") as parquet:
        writer = Writer(parquet, columns, compared)
        yield writer
        writer.flush()
