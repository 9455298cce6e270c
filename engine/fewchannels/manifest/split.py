"""Split a manifest into parts that are captured separately, such as by an array of jobs, and merged at the end."""

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from fewchannels.errors import InputError, StorageError
from fewchannels.files.durable import writing
from fewchannels.manifest.manifest import Manifest
from fewchannels.manifest.row_groups import ROW_GROUP_ROWS

MOST_PARTS = 10_000
_PART = re.compile(r"part-\d+\.parquet")


@dataclass(frozen=True)
class ManifestPart:
    """A part of a manifest.

    Attributes:
        path: its path.
        n_samples: number of its samples.
    """

    path: Path
    n_samples: int


def split(path: str | Path, n_parts: int, folder: str | Path) -> list[ManifestPart]:
    """Write the rows of a manifest, in order, as parts whose sizes differ by at most one sample. Safe to repeat.

    Runs of the parts, merged in this order, have the manifest's own order.

    Args:
        path: the manifest.
        n_parts: number of parts, from 2 to the number of samples.
        folder: the folder for ``part-0000.parquet`` and so on; created if it does not exist.

    Raises:
        InputError: it is not a manifest, has fewer samples, or the folder has parts of another split.
        StorageError: a part cannot be written.
    """
    whole = Manifest.read(path)
    most = min(whole.n_samples, MOST_PARTS)
    if not 2 <= n_parts <= most:
        raise InputError(f"{str(path)!r} has {whole.n_samples:,} samples; give 2 to {most:,} parts, not {n_parts:,}.")
    target = Path(folder)
    names = [f"part-{part:04d}.parquet" for part in range(n_parts)]
    try:
        target.mkdir(parents=True, exist_ok=True)
        there = sorted(each.name for each in target.iterdir() if _PART.fullmatch(each.name))
    except OSError as error:
        raise StorageError(f"cannot write to {str(target)!r}: {error.strerror}. Choose another folder.") from None
    if others := [name for name in there if name not in names]:
        raise InputError(
            f"{str(target)!r} has parts of another split, such as {others[0]}, which an array of jobs would take for "
            "this one's. Delete them, or choose another folder."
        )
    rows = pq.read_table(whole.open())
    parts = []
    for number, name in enumerate(names):
        start, stop = (whole.n_samples * each // n_parts for each in (number, number + 1))
        with writing(target / name) as file:
            pq.write_table(rows.slice(start, stop - start), file, compression="zstd", row_group_size=ROW_GROUP_ROWS)
        parts.append(ManifestPart(target / name, stop - start))
    return parts
