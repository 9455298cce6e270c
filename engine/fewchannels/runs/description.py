"""``run.json``: what a run is; ``sweep.json``, a sweep; ``comparison.json``, a comparison of two runs.

The first two are written last of what begins it, and a run's again when it grows; the third is written last of all.
"""

from typing import Any

from fewchannels.errors import InputError, StorageError
from fewchannels.runs import documents
from fewchannels.runs.storage import Storage, Stored

NAME = "run.json"
MANIFEST = "manifest.parquet"
EMBEDDINGS = "embeddings/"
FORMAT_VERSION = 2
SWEEP = "sweep.json"
SWEEP_FORMAT_VERSION = 1
COMPARISON = "comparison.json"
COMPARISON_FORMAT_VERSION = 1


def read_description(storage: Storage) -> dict[str, Any]:
    """``run.json`` of a run.

    Raises:
        InputError: there is no run, or one of a newer format.
        StorageError: the file is damaged.
    """
    return _read(storage, NAME, FORMAT_VERSION, "run", "capture")


def read_sweep(storage: Storage) -> dict[str, Any]:
    """``sweep.json`` of a sweep.

    Raises:
        InputError: there is no sweep, or one of a newer format.
        StorageError: the file is damaged.
    """
    return _read(storage, SWEEP, SWEEP_FORMAT_VERSION, "sweep", "probe or fewchannels transport")


def read_comparison(storage: Storage) -> dict[str, Any]:
    """``comparison.json`` of a comparison.

    Raises:
        InputError: there is no comparison, or one of a newer format.
        StorageError: the file is damaged.
    """
    return _read(storage, COMPARISON, COMPARISON_FORMAT_VERSION, "comparison", "compare")


def _read(storage: Storage, name: str, latest: int, what: str, command: str) -> dict[str, Any]:
    try:
        description = documents.decode(storage.get(name))
    except (FileNotFoundError, NotADirectoryError):
        remedy = f"Make one with fewchannels {command}."
        if storage.exists(COMPARISON):
            remedy = "It holds a comparison of two runs: fewchannels report and fewchannels sql take that."
        raise InputError(f"{storage.url!r} holds no {what}: it has no {name}. {remedy}") from None
    except documents.DamagedDocumentError as error:
        raise StorageError(
            f"{storage.location(name)} is damaged: {error}. Delete it and run the {what}'s command again: it writes "
            "the file anew and keeps what is done."
        ) from None
    if description.get("format_version", 0) > latest:
        raise InputError(
            f"{storage.url!r} has format_version {description['format_version']}; this version of fewchannels reads up "
            f"to {latest}. Upgrade fewchannels."
        )
    return description


def write_description(storage: Storage, description: dict[str, Any]) -> None:
    """Write ``run.json``. Safe to repeat: it replaces the file."""
    storage.put(NAME, [documents.encode(description)])


def objects_of(description: dict[str, Any]) -> dict[str, Stored]:
    """What is stored once for the whole run, by key: the manifest, and the arrays' metadata and coordinates."""
    return {key: Stored(**stored) for key, stored in description.get("objects", {}).items()}
