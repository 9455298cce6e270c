"""``run.json``: what a run is. Written last of what begins a run, and again when the run grows."""

from typing import Any

from engine import documents
from engine.errors import InputError, StorageError
from engine.storage import Storage, Stored

NAME = "run.json"
MANIFEST = "manifest.parquet"
EMBEDDINGS = "embeddings/"
FORMAT_VERSION = 2


def read_description(storage: Storage) -> dict[str, Any]:
    """``run.json`` of a run.

    Raises:
        InputError: there is no run, or one of a newer format.
        StorageError: the file is damaged.
    """
    try:
        description = documents.decode(storage.get(NAME))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{storage.url!r} holds no run: it has no {NAME}. Make one with fewchannels capture."
        ) from None
    except documents.DamagedDocumentError as error:
        raise StorageError(
            f"{storage.location(NAME)} is damaged: {error}. Delete it and run the capture's command again: it writes "
            "the file anew and keeps what is done."
        ) from None
    if description.get("format_version", 0) > FORMAT_VERSION:
        raise InputError(
            f"{storage.url!r} has format_version {description['format_version']}; this version of fewchannels reads up "
            f"to {FORMAT_VERSION}. Upgrade fewchannels."
        )
    return description


def write_description(storage: Storage, description: dict[str, Any]) -> None:
    """Write ``run.json``. Safe to repeat: it replaces the file."""
    storage.put(NAME, [documents.encode(description)])


def objects_of(description: dict[str, Any]) -> dict[str, Stored]:
    """What is stored once for the whole run, by key: the manifest, and the arrays' metadata and coordinates."""
    return {key: Stored(**stored) for key, stored in description.get("objects", {}).items()}
