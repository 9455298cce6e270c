"""Atomic changes of several objects: a run that grows, a task that is rerun.

New objects are stored beside the old ones, under ``changes/NAME.TOKEN/``. Then ``changes/NAME.json`` is stored, which
commits the change: from then on, any holder of the lease can finish it. Then each object is moved to its place, and
the document that names them, ``run.json`` or a record, which readers trust, is replaced.

A process that was suspended cannot know for how long, and another may have made a change in the meantime. So a change
names the document that it replaces, and is abandoned if that document has changed. See ``schemas/store.md``, Change.
"""

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field

from fewchannels.errors import RunConflictError
from fewchannels.runs import documents
from fewchannels.runs.description import MANIFEST, NAME
from fewchannels.runs.storage import Buffer, Storage, Stored

FOLDER = "changes/"
RUN = "run"
_MOVED = re.compile(r"manifest\.parquet$|(activations\.zarr|cells|samples|edits)/")


@dataclass(frozen=True)
class Change:
    """A change that is committed, but not finished yet.

    Attributes:
        name: name of the change: ``run``, or a task's number.
        folder: folder with the new objects.
        target: key of the document that names them.
        document: new content of that document.
        replaces: content of that document when the change was started; None if there was none.
    """

    name: str
    folder: str
    target: str
    document: dict[str, Any]
    replaces: Stored | None

    @property
    def key(self) -> str:
        """Key of the change itself."""
        return f"{FOLDER}{self.name}.json"

    @cached_property
    def objects(self) -> dict[str, Stored]:
        """The objects that the new document names, by key."""
        return {key: Stored(**each) for key, each in self.document["objects"].items()}

    def finish(self, storage: Storage) -> None:
        """Move every object to its final key, then put the document. Safe to repeat, even concurrently.

        Raises:
            RunConflictError: the document has changed, or an object is neither in the folder nor in its place, so
                another change has overtaken this one.
            StorageError: writing failed.
        """
        new = documents.to_bytes(self.document)
        if storage.stored(self.target) not in (self.replaces, Stored.of([new])):
            raise _overtaken(storage, self.target)
        # The manifest is moved after the document: readers of the earlier document take the first rows of the
        # manifest, and the new manifest may have other values in the user's own columns.
        early = [key for key in self.objects if key != MANIFEST]
        late = [key for key in self.objects if key == MANIFEST]
        self._move(storage, early)
        storage.put(self.target, [new])
        self._move(storage, late)
        storage.delete([self.key])
        storage.prune(FOLDER)

    def _move(self, storage: Storage, keys: Iterable[str]) -> None:
        waiting = storage.list(self.folder)
        for key in keys:
            if self.folder + key in waiting:
                storage.move(self.folder + key, key)
            elif not storage.holds(key, self.objects[key]):
                raise _overtaken(storage, key)


def _overtaken(storage: Storage, key: str) -> RunConflictError:
    return RunConflictError(
        f"{key!r} of {storage.url!r} was replaced by another command while it was being written, so this command "
        "stops writing."
    )


class _Document(documents.Fields):
    objects: documents.Objects


class _Settled(documents.Fields):
    folder: Annotated[str, Field(pattern=r"^changes/(run|[0-9]+)\.[0-9a-f]+/\z")]
    target: Annotated[str, Field(pattern=r"^(run\.json|ledger/[0-9]+\.json)\z")]
    document: _Document
    replaces: documents.StoredFields | None


def name_of(task: int) -> str:
    """Name of a change of a task."""
    return f"{task:05d}"


class Draft:
    """New objects that will replace existing ones.

    Args:
        storage: storage of the run.
        name: name of the change, see :class:`Change`.
        target: key of the document that will name them. Create the draft before you read that document, so that the
            change applies to what you read.
    """

    def __init__(self, storage: Storage, name: str, target: str) -> None:
        self._storage, self._name, self._target = storage, name, target
        self._replaces = storage.stored(target)
        # Two attempts at one task may overlap on a cluster: each has a folder of its own.
        self._folder = f"{FOLDER}{name}.{secrets.token_hex(8)}/"

    def put(self, key: str, parts: Iterable[Buffer]) -> Stored:
        """Store an object beside the current one with its key; raises the same errors as :meth:`Storage.put`."""
        return self._storage.put(self._folder + key, parts)

    def settle(self, document: Mapping[str, Any]) -> None:
        """Commit and finish the change, now that all of its objects are stored.

        Args:
            document: the target's new content, with ``objects`` in the order in which they are to be replaced.

        Raises:
            RunConflictError: another change has overtaken this one; nothing remains of this one.
            StorageError: writing failed. Either nothing has changed, or the change is finished by
                :func:`finish_changes`.
        """
        change = Change(self._name, self._folder, self._target, dict(document), self._replaces)
        content = {
            "folder": change.folder,
            "target": change.target,
            "replaces": None if change.replaces is None else asdict(change.replaces),
            "document": change.document,
        }
        data = documents.to_bytes(content)
        if not self._storage.create(change.key, data):
            finish_change(self._storage, self._name)  # another change, which is finished first
            if not self._storage.create(change.key, data):
                raise _overtaken(self._storage, change.target)
        try:
            change.finish(self._storage)
        except RunConflictError:
            if self._storage.stored(change.key) == Stored.of([data]):
                self._storage.delete([change.key])
            raise


def find_change(storage: Storage, name: str) -> Change | None:
    """The committed change with a name; None if there is none.

    Raises:
        StorageError: it is damaged.
    """
    key = f"{FOLDER}{name}.json"
    remedy = "Delete it: the objects it was to replace are still there, and the next capture repeats the change."
    try:
        with documents.damage(storage, key, remedy):
            return _change(name, documents.from_bytes(storage.get(key), _Settled))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _change(name: str, content: dict[str, Any]) -> Change:
    """Read a change from its document; it may replace only objects of the run or of the task with that name."""
    replaces = content["replaces"]
    change = Change(
        name, content["folder"], content["target"], content["document"], Stored(**replaces) if replaces else None
    )
    own = change.target == (NAME if name == RUN else f"ledger/{name}.json")
    if not own or not change.folder.startswith(f"{FOLDER}{name}.") or not all(map(_MOVED.match, change.objects)):
        raise documents.DamagedDocumentError("it replaces objects that do not belong to it")
    return change


def settled_changes(storage: Storage, keys: Iterable[str]) -> list[Change]:
    """Every change that is committed but not finished, by name.

    Args:
        storage: storage of the run.
        keys: the run's listing.

    Raises:
        StorageError: one is damaged.
    """
    names = [
        key.removeprefix(FOLDER).removesuffix(".json")
        for key in keys
        if key.startswith(FOLDER) and key.count("/") == 1 and key.endswith(".json")
    ]
    return [change for name in sorted(names) if (change := find_change(storage, name)) is not None]


def finish_change(storage: Storage, name: str) -> None:
    """Finish the committed change with a name, if there is one; abandon it if its objects are gone.

    Raises:
        StorageError: the change is damaged, or writing failed.
    """
    if (change := find_change(storage, name)) is None:
        return
    try:
        change.finish(storage)
    except RunConflictError:  # if it has replaced some objects, they do not match the record, and the task is rerun
        storage.delete([change.key])


def finish_changes(storage: Storage) -> None:
    """Finish every committed change, and remove the objects of uncommitted ones. Only with the lease.

    Raises:
        StorageError: a change is damaged, or writing failed.
    """
    for change in settled_changes(storage, storage.list(FOLDER)):
        finish_change(storage, change.name)
    storage.delete(storage.list(FOLDER))
    storage.prune(FOLDER)


def manifest_key(storage: Storage, description: Mapping[str, Any]) -> str:
    """Key of the manifest of a run's description; a draft's key while the run grows."""
    change = find_change(storage, RUN)
    if change is None or change.target != NAME or change.document != description:
        return MANIFEST
    beside = change.folder + MANIFEST
    return beside if storage.exists(beside) else MANIFEST
