"""A whole manifest: read, checked and digested once."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow.parquet as pq

from fewchannels.manifest.read import COLUMNS, ManifestFile, check_path, not_a_manifest, not_readable, opened
from fewchannels.manifest.rows import OPTIONAL_COLUMNS, sample_id, settings_text


@dataclass(frozen=True)
class SettingsUsed:
    """Settings that a manifest's samples override; None in a set stands for the run's setting."""

    has_negative_prompt: bool
    n_references: int  # samples with a reference image
    references: frozenset[str]  # their paths
    guidance: frozenset[float]  # of the samples that have one
    sizes: frozenset[tuple[int | None, int | None]]  # (height, width) in pixels
    steps: frozenset[int | None]


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read completely and checked, so that its file need not be opened again.

    Attributes:
        name: its path as given by the user.
        data: the file's bytes.
        n_samples: rows.
        sha256: of the content, see :func:`digest`.
        used: settings that samples override.
    """

    name: str
    data: bytes = field(repr=False)
    n_samples: int
    sha256: str
    used: SettingsUsed

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a manifest from a disk of this machine, and check it like :meth:`of`.

        Raises:
            InputError: there is no such file, or it is not a manifest.
        """
        check_path(path)
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise not_readable(str(path), error) from error
        return cls.of(data, str(path))

    @classmethod
    def of(cls, data: bytes, name: str) -> Self:
        """Check a manifest: columns, types, no nulls in required columns, and that ids are correct and unique.

        Args:
            data: the file's bytes.
            name: its name in messages.

        Raises:
            InputError: it is not a manifest; the message states where, and how to create one.
        """
        seen: set[int] = set()
        whole, used = hashlib.sha256(), _Used()
        with opened(io.BytesIO(data), name) as file:
            for number, row in enumerate(_rows(file), start=1):
                for column in ("sample_id", "prompt", "seed"):
                    if row[column] is None:
                        raise not_a_manifest(name, f"row {number} has no {column}")
                found = row["sample_id"]
                if found != sample_id(row["prompt"], row["seed"], **{each: row[each] for each in OPTIONAL_COLUMNS}):
                    raise not_a_manifest(
                        name, f"the sample_id of row {number}, {found!r}, does not match its prompt and settings"
                    )
                if int(found, 16) in seen:
                    raise not_a_manifest(name, f"the sample_id of row {number}, {found!r}, occurs twice")
                seen.add(int(found, 16))
                whole.update(_row_digest(row))
                used.add(row)
        if not seen:
            raise not_a_manifest(name, "it has no rows")
        return cls(name, data, len(seen), whole.hexdigest(), used.settings())

    def open(self) -> BinaryIO:
        """The file, from memory."""
        return io.BytesIO(self.data)


class _Used:
    def __init__(self) -> None:
        self._references: list[str] = []
        self._guidance: set[float] = set()
        self._sizes: set[tuple[int | None, int | None]] = set()
        self._steps: set[int | None] = set()
        self._has_negative_prompt = False

    def add(self, row: dict[str, Any]) -> None:
        self._has_negative_prompt |= row["negative_prompt"] is not None
        if row["reference"] is not None:
            self._references.append(row["reference"])
        if row["guidance"] is not None:
            self._guidance.add(row["guidance"])
        self._sizes.add((row["height"], row["width"]))
        self._steps.add(row["steps"])

    def settings(self) -> SettingsUsed:
        return SettingsUsed(
            self._has_negative_prompt,
            len(self._references),
            frozenset(self._references),
            frozenset(self._guidance),
            frozenset(self._sizes),
            frozenset(self._steps),
        )


def digest(path: ManifestFile, n_samples: int | None = None) -> str:
    """SHA-256 over the content, 64 hex digits: every sample's id and columns, in order.

    The encoding of the Parquet file and its extra columns make no difference.

    Args:
        path: the manifest.
        n_samples: number of samples to include, from the first one; None for all.

    Raises:
        InputError: the file is not a manifest.
    """
    whole = hashlib.sha256()
    with opened(path) as file:
        for row in islice(_rows(file), n_samples):
            whole.update(_row_digest(row))
    return whole.hexdigest()


def _row_digest(row: dict[str, Any]) -> bytes:
    text = f"{row['sample_id']}\0{row['prompt']}\0{row['seed']}{settings_text(row)}"
    return hashlib.sha256(text.encode()).digest()  # of a fixed length, so no two rows run together


def _rows(file: pq.ParquetFile) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(columns=COLUMNS):
        columns = [batch.column(name).to_pylist() for name in COLUMNS]
        for values in zip(*columns, strict=True):
            yield dict(zip(COLUMNS, values, strict=True))
