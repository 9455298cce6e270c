"""Pull a run, a sweep or a comparison from a dataset repository on the Hugging Face Hub into a folder or a bucket.

Objects are downloaded beside the run and then stored as a capture stores them, atomically and durably: shared objects,
the description, then each record after its objects. So an interrupted pull leaves a readable run with fewer tasks, and
a repeated one resumes. Existing objects are never replaced.
"""

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fewchannels.errors import InputError, RunConflictError, StorageError
from fewchannels.runs.description import NAME, kind_of, objects_of, read_document
from fewchannels.runs.lease import LEASE
from fewchannels.runs.place import check_free
from fewchannels.runs.results import BEGUN, END, FOLDER
from fewchannels.runs.storage import FolderStorage, Storage
from fewchannels.runs.upkeep.contents import is_own, name_of
from fewchannels.runs.upkeep.hub import CARD, Head, Repository
from fewchannels.runs.upkeep.push import check_same
from fewchannels.settings.units import size

_AT_ONCE = 8
_READ_BYTES = 2**22
_WAITING = ".pull"
"""Folder of unfinished downloads in a run; listings of a run have no folders of such names."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PullPlan:
    """Plan of a pull.

    Attributes:
        name: name of the document that describes the contents, see :data:`fewchannels.runs.description.READERS`.
        repository: source repository.
        head: current state of the repository.
        sizes: sizes of the missing objects by key, in the order in which they are stored.
        n_files: files of the run in the repository.
    """

    name: str
    repository: Repository
    head: Head
    sizes: Mapping[str, int]
    n_files: int

    @property
    def n_bytes(self) -> int:
        """Bytes to download."""
        return sum(self.sizes.values())


def find(repository: Repository, revision: str | None = None) -> Head:
    """Find the run, sweep or comparison in a repository.

    Args:
        repository: the repository.
        revision: a commit, a branch or a tag; None takes the latest commit.

    Raises:
        InputError: there is no such repository, or no run in it.
    """
    head = repository.head(revision)
    if head is None:
        raise InputError(
            f"there is no dataset {repository.name} on the Hub that the token may read. Check the name; for a private "
            "one, set HF_TOKEN, or run: hf auth login."
        )
    if name_of(head.files) is None:
        found = f", but {', '.join(list(head.files)[:3])}" if head.files else ""
        raise InputError(
            f"{repository.url} has no run, sweep or comparison{found}. Give a repository that fewchannels runs "
            "push made."
        )
    return head


def check_place(storage: Storage, head: Head) -> None:
    """Refuse a place with other files. Reads only.

    Raises:
        RunConflictError: naming some of them.
    """
    if name_of(storage.list()) is None:
        check_free(storage, lambda key: key in (CARD, LEASE) or (key in head.files and is_own(key)), "run")


def plan_pull(
    storage: Storage, repository: Repository, head: Head, on_progress: Progress = lambda done, total: None
) -> PullPlan:
    """Compare a place with a repository; the run's description is downloaded. Only with the lease of the place.

    Args:
        storage: the place.
        repository: what is pulled.
        head: state of the repository, from :func:`find`.
        on_progress: called with the bytes compared so far and in all.

    Raises:
        RunConflictError: the place has something else, or different contents of this run.
        StorageError: the place has too little space, or the Hub failed.
    """
    check_place(storage, head)
    name = name_of(head.files) or NAME
    listing = storage.list()
    mine = name_of(listing)
    if mine not in (None, name):
        raise RunConflictError(
            f"{storage.url!r} has a {kind_of(mine or NAME)}, not a {kind_of(name)}. Choose a new place."
        )
    with tempfile.TemporaryDirectory(prefix="fewchannels-") as folder:
        repository.download(name, head.commit, Path(folder))
        description = read_document(FolderStorage(Path(folder)), name)
    if mine is not None:
        remedy = f"Pull {repository.name} into a new place."
        check_same(description, read_document(storage, name), name, repr(storage.url), remedy)
    wanted = {key: file for key, file in head.files.items() if is_own(key)}
    there = {key: listing[key] for key in wanted if key in listing}
    done, differing, total = 0, [], sum(there.values())
    for key, n_bytes in there.items():
        if not wanted[key].is_same(storage, key, n_bytes):
            differing.append(key)
        done += n_bytes
        on_progress(done, total)
    if differing:
        raise RunConflictError(
            f"{len(differing):,} files of {storage.url!r} differ from those of {repository.name}, such as "
            f"{', '.join(differing[:3])}. Pull into a new place; or delete damaged files, to download them again."
        )
    shared = objects_of(description)
    ranks = {key: _rank(key, name, shared) for key in wanted if key not in there}
    missing = sorted(ranks, key=lambda key: ranks[key])
    plan = PullPlan(name, repository, head, {key: wanted[key].n_bytes for key in missing}, len(wanted))
    free = storage.free_bytes()
    if free is not None and free < plan.n_bytes:
        raise StorageError(
            f"{repository.name} needs {size(plan.n_bytes)}, and {storage.url!r} has {size(free)} free. Free some "
            "space, or choose another place."
        )
    return plan


def pull(storage: Storage, plan: PullPlan, on_progress: Progress = lambda done, total: None) -> None:
    """Download and store the planned objects. Only with the lease of the place; safe to repeat with a new plan.

    Args:
        storage: the place.
        plan: plan of the pull.
        on_progress: called with the bytes stored so far and in all.

    Raises:
        InputError: the token is rejected.
        StorageError: the Hub or the place failed.
    """
    done = 0
    with _waiting(storage) as folder, ThreadPoolExecutor(_AT_ONCE) as pool:

        def downloaded(key: str) -> Path:
            return plan.repository.download(key, plan.head.commit, folder)

        keys = list(plan.sizes)
        for start in range(0, len(keys), _AT_ONCE):
            batch = keys[start : start + _AT_ONCE]
            for key, path in zip(batch, pool.map(downloaded, batch), strict=True):
                storage.put(key, _parts(path))
                path.unlink()
                done += plan.sizes[key]
                on_progress(done, plan.n_bytes)


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            yield data


def _rank(key: str, name: str, shared: Collection[str]) -> tuple[int, str]:
    """Position of a key in the order of a pull, which is the order in which the run was written.

    Shared objects come first, then the description, the beginnings of results, data, records, and ends of results.
    """
    if key in shared:
        return 0, key
    if key == name:
        return 1, key
    if key.startswith(FOLDER):
        return (2 if key.endswith(f"/{BEGUN}") else 6 if key.endswith(f"/{END}") else 5 if "/units/" in key else 3), key
    return (4 if key.startswith("ledger/") else 3), key


@contextmanager
def _waiting(storage: Storage) -> Iterator[Path]:
    """A folder for downloads: beside the objects, so that it can be resumed, or a temporary one for a bucket."""
    if not isinstance(storage, FolderStorage):
        with tempfile.TemporaryDirectory(prefix="fewchannels-") as folder:
            yield Path(folder)
        return
    path = storage.path / _WAITING
    if path.is_symlink():
        raise StorageError(f"{path} is a symbolic link, which downloads could follow anywhere. Delete it.")
    path.mkdir(exist_ok=True)
    yield path
    shutil.rmtree(path, ignore_errors=True)
