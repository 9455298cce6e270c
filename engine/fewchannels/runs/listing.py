"""Runs, sweeps and comparisons below a folder, each with what it is and how far it is."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fewchannels.errors import FewchannelsError, InputError
from fewchannels.runs.description import COMPARISON, NAME, SWEEP, kind_of, read_document
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.results import finished
from fewchannels.runs.storage import FolderStorage, Storage, open_storage

_DOCUMENTS = (NAME, SWEEP, COMPARISON)


@dataclass(frozen=True)
class Listed:
    """One run, sweep or comparison.

    Attributes:
        place: path or URL.
        kind: ``run``, ``sweep`` or ``comparison``.
        model: name of the model; of a comparison both runs.
        n_samples: number of samples, of a sweep items.
        n_tasks: number of tasks; None for a comparison.
        n_tasks_done: number of finished tasks; None for a comparison.
        results: labels of finished results.
        created: time at which it was begun; empty if unknown.
        error: reason why it cannot be read; empty if it can.
    """

    place: str
    kind: str
    model: str = ""
    n_samples: int | None = None
    n_tasks: int | None = None
    n_tasks_done: int | None = None
    results: tuple[str, ...] = ()
    created: str = ""
    error: str = ""


def listed(folder: str) -> list[Listed]:
    """Every run, sweep and comparison in a folder and the folders below it, by path; those inside of others are not.

    Args:
        folder: path or URL.

    Raises:
        InputError: there is no such folder.
        StorageError: it cannot be listed.
    """
    storage = open_storage(folder)
    if isinstance(storage, FolderStorage) and not storage.path.is_dir():
        raise InputError(f"there is no folder {folder!r}. Check the path.")
    is_local = isinstance(storage, FolderStorage)
    places = dict(_documents(storage))
    return [
        _read(os.path.normpath(os.path.join(folder, inside)) if is_local else f"{folder.rstrip('/')}/{inside}", name)
        for inside, name in places.items()
    ]


def _documents(storage: Storage) -> Iterator[tuple[str, str]]:
    """Each place's path below the folder, and the name of its document."""
    if isinstance(storage, FolderStorage):
        for path, folders, files in os.walk(storage.path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found = next((name for name in _DOCUMENTS if name in files), None)
            if found is not None:
                folders.clear()
                yield os.path.relpath(path, storage.path), found
        return
    taken: list[str] = []
    for key in sorted(storage.list(), key=lambda key: (key.rpartition("/")[0], key)):
        inside, _, name = key.rpartition("/")
        if name in _DOCUMENTS and not any(f"{inside}/".startswith(f"{each}/") for each in taken):
            taken.append(inside)
            yield inside, name


def _read(place: str, document: str) -> Listed:
    storage, kind = open_storage(place), kind_of(document)
    try:
        about = read_document(storage, document)
        labels = tuple(result.label for result in finished(storage, storage.list("results/")))
        if kind == "comparison":
            numbers: dict[str, Any] = about["numbers"]
            return Listed(place, kind, " and ".join(about["runs"].values()), numbers["n_samples"])
        of_run = kind == "run"
        return Listed(
            place,
            kind,
            about["config"]["model"] if of_run else about["model"]["name"],
            about["geometry"]["n_samples"] if of_run else about["identity"]["n_items"],
            about["n_tasks"],
            len(Ledger(storage).keys()),
            labels,
            about.get("created", ""),
        )
    except FewchannelsError as error:
        return Listed(place, kind, error=str(error))
