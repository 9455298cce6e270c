"""Push a run, a sweep or a comparison to a dataset repository on the Hugging Face Hub: only missing files.

Files are uploaded in commits of a few hundred, in the order of :class:`fewchannels.runs.upkeep.contents.Contents`: the
description and the card first, each record with the objects that it names. So an interrupted push leaves a readable run
with fewer tasks, and a repeated one resumes.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewchannels import manifest
from fewchannels.errors import InputError, RunConflictError
from fewchannels.runs.description import COMPARISON, MANIFEST, NAME, kind_of, read_document
from fewchannels.runs.lease import Wait, hold
from fewchannels.runs.place import begun_otherwise
from fewchannels.runs.results import FOLDER, Results, labels
from fewchannels.runs.storage import FolderStorage, Storage
from fewchannels.runs.upkeep.card import card
from fewchannels.runs.upkeep.contents import Contents, name_of
from fewchannels.runs.upkeep.hub import CARD, Head, Repository

_FILES_PER_COMMIT = 256
_BYTES_PER_COMMIT = 2**30
_READ_BYTES = 2**22
MOST_IN_FOLDER = 10_000
"""Files in one folder that the Hub accepts."""
_NOT_OURS = frozenset({CARD, ".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "LICENSE.txt", "CITATION.cff"})
_RECORD = re.compile(r"ledger/\d+\.json")
_REPLACED = re.compile(
    r"(cells|samples|edits)/\d+(-\d+)?\.parquet|ledger/compact/\d+-\d+\.json|"
    r"results/(?P<label>[^/]+)/(units/\d+\.json|[a-z_]+/(\d+|all)\.parquet|figures/\w+\.(png|svg))"
)
"""Files of a run that compactions and repeated analyses delete."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PushPlan:
    """Plan of a push.

    Attributes:
        contents: the run.
        repository: target repository.
        head: current state of the repository; None if it will be created.
        groups: keys to upload, in groups that are best in one commit.
        deleted: files of this run in the repository that the run no longer has.
        card: text of the card; None if the repository already has it.
    """

    contents: Contents
    repository: Repository
    head: Head | None
    groups: list[list[str]]
    deleted: list[str]
    card: str | None

    @property
    def n_files(self) -> int:
        """Files to upload, without the card."""
        return sum(map(len, self.groups))

    @property
    def n_bytes(self) -> int:
        """Bytes to upload, without the card."""
        return sum(self.contents.sizes[key] for group in self.groups for key in group)

    @property
    def is_up_to_date(self) -> bool:
        """Return whether there is nothing to push."""
        return not (self.groups or self.deleted or self.card)


@contextmanager
def held(storage: Storage, on_wait: Wait = lambda why: None) -> Iterator[None]:
    """Hold the leases of a run and of its results, so that nobody changes them in the meantime.

    Raises:
        RunConflictError: another command is writing to one of them.
        StorageError: writing failed.
    """
    with ExitStack() as stack:
        stack.enter_context(hold(storage, on_wait))
        for label in labels(storage.list(FOLDER)):
            stack.enter_context(hold(Results(storage, label).place, on_wait))
        yield


def plan_push(
    storage: Storage,
    contents: Contents,
    repository: Repository,
    is_private: bool | None,
    on_progress: Progress = lambda done, total: None,
) -> PushPlan:
    """Compare a run with its repository. Only reads from both.

    Args:
        storage: storage of the run, whose lease is held.
        contents: contents to upload.
        repository: target repository.
        is_private: whether the repository must be private, or public; None accepts an existing one as it is.
        on_progress: called with the bytes compared so far and in all.

    Raises:
        RunConflictError: the repository has something else, or more than the run.
        InputError: its visibility differs, or a folder has more files than the Hub accepts.
        StorageError: the Hub failed.
    """
    _check_folders(contents)
    head = repository.head()
    if head is None:
        return PushPlan(contents, repository, None, contents.groups, [], card(contents, repository.name, None))
    if is_private is not None and head.is_private != is_private:
        now, wanted = ("private", "public") if head.is_private else ("public", "private")
        raise InputError(
            f"{repository.name} is {now}, and --{wanted} was given. Change it in the settings of {repository.url}, or "
            "choose another name."
        )
    with tempfile.TemporaryDirectory(prefix="fewchannels-") as folder:
        _check_same(storage, contents, repository, head, Path(folder))
        earlier = None
        if CARD in head.files:
            earlier = repository.download(CARD, head.commit, Path(folder)).read_text(encoding="utf-8", errors="replace")
    text = card(contents, repository.name, earlier)
    there = {key for key in contents.sizes if key in head.files}
    total, done = sum(contents.sizes[key] for key in there), 0
    groups = []
    for group in contents.groups:
        missing = []
        for key in group:
            n_bytes = contents.sizes[key]
            if key not in there or not head.files[key].is_same(storage, key, n_bytes):
                missing.append(key)
            if key in there:
                done += n_bytes
                on_progress(done, total)
        if missing:
            groups.append(missing)
    deleted = [key for key in head.files if key not in contents.sizes and _may_go(key, contents)]
    return PushPlan(contents, repository, head, groups, deleted, None if text == earlier else text)


def push(
    storage: Storage, plan: PushPlan, *, is_private: bool = True, on_progress: Progress = lambda done, total: None
) -> str:
    """Carry out a plan; returns the last commit. Safe to repeat: a new plan has only the missing files.

    Args:
        storage: storage of the run, whose lease is held.
        plan: plan of the push.
        is_private: whether a new repository is private.
        on_progress: called with the bytes uploaded so far and in all.

    Raises:
        RunConflictError: another commit came in between.
        InputError: the token is rejected.
        StorageError: the Hub cannot be reached, or fails.
    """
    head, repository = plan.head, plan.repository
    if head is None:
        repository.create(is_private)
        head = repository.head()
        if head is None:
            raise InputError(f"{repository.name} was created, but the token may not read it. Use one that may.")
    commit, done = head.commit, 0
    batches = list(_batches(plan.groups, plan.contents.sizes)) or [[]]
    for number, keys in enumerate(batches, start=1):
        added: dict[str, Path | bytes] = {}
        if number == 1 and plan.card:
            added[CARD] = plan.card.encode()
        deleted = plan.deleted if number == len(batches) else []
        part = f", part {number} of {len(batches)}" if len(batches) > 1 else ""
        with _as_files(storage, keys) as files:
            commit = repository.commit(
                f"Upload a {plan.contents.kind} with fewchannels{part}", added | files, deleted, commit
            )
        done += sum(plan.contents.sizes[key] for key in keys)
        on_progress(done, plan.n_bytes)
    return commit


def _batches(groups: Sequence[Sequence[str]], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """The keys of each commit, in order. A group is divided only if it is too large for one commit."""
    batch: list[str] = []
    n_bytes = 0
    for group in groups:
        size = sum(sizes[key] for key in group)
        if batch and (len(batch) + len(group) > _FILES_PER_COMMIT or n_bytes + size > _BYTES_PER_COMMIT):
            yield batch
            batch, n_bytes = [], 0
        for key in group:
            if len(batch) == _FILES_PER_COMMIT:
                yield batch
                batch, n_bytes = [], 0
            batch.append(key)
            n_bytes += sizes[key]
    if batch:
        yield batch


@contextmanager
def _as_files(storage: Storage, keys: Sequence[str]) -> Iterator[dict[str, Path | bytes]]:
    """Objects as local files, by key: the files of a folder, or copies from a bucket while the context lasts."""
    if isinstance(storage, FolderStorage):
        yield {key: Path(storage.location(key)) for key in keys}
        return
    with tempfile.TemporaryDirectory(prefix="fewchannels-") as folder:
        files: dict[str, Path | bytes] = {}
        for number, key in enumerate(keys):
            path = Path(folder, str(number))
            with storage.open(key) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, _READ_BYTES)
            files[key] = path
        yield files


def _check_folders(contents: Contents) -> None:
    counts: dict[str, int] = {}
    for key in contents.sizes:
        folder = key.rpartition("/")[0]
        counts[folder] = counts.get(folder, 0) + 1
    folder, n = max(counts.items(), key=lambda item: item[1])
    if n > MOST_IN_FOLDER:
        raise InputError(
            f"{folder} has {n:,} files, and the Hub accepts {MOST_IN_FOLDER:,} in a folder. Run fewchannels runs "
            "compact for tables; for arrays, capture with a larger --shard-samples, or push exports of parts."
        )


def _check_same(storage: Storage, contents: Contents, repository: Repository, head: Head, folder: Path) -> None:
    """Refuse a repository with something else in it, or with more of this run."""
    name = name_of(head.files)
    if name is None:
        if others := [key for key in head.files if key not in _NOT_OURS]:
            raise RunConflictError(
                f"{repository.name} holds other files ({', '.join(others[:3])}), and no run. Choose another name."
            )
        return
    if name != contents.name:
        raise RunConflictError(f"{repository.name} has a {kind_of(name)}, not a {contents.kind}. Choose another name.")
    repository.download(name, head.commit, folder)
    theirs = read_document(FolderStorage(folder), name)
    check_same(contents.description, theirs, name, repository.name, "Choose another name.")
    if name == COMPARISON:
        return
    ours = set(contents.sizes)
    more = [key for key in head.files if _RECORD.fullmatch(key) and key not in ours]
    if more:
        raise RunConflictError(
            f"{repository.name} has {len(more):,} finished task{'s' * (len(more) != 1)} that {storage.url!r} does not "
            "have. Pull it into a new folder, and continue there."
        )
    if name == NAME and theirs["manifest"]["sha256"] != contents.description["manifest"]["sha256"]:
        repository.download(MANIFEST, head.commit, folder)
        with (folder / MANIFEST).open("rb") as file:
            earlier = manifest.sample_ids(file)[: theirs["geometry"]["n_samples"]]
        with storage.open(MANIFEST) as file:
            if manifest.sample_ids(file)[: len(earlier)] != earlier:
                raise RunConflictError(
                    f"{repository.name} has a run of other samples than {storage.url!r}. Choose another name."
                )


def check_same(mine: Mapping[str, Any], theirs: Mapping[str, Any], name: str, place: str, remedy: str) -> None:
    """Refuse an existing description with different settings, model or pairs.

    Args:
        mine: contents to copy.
        theirs: existing contents.
        name: name of both documents.
        place: location, for the message.
        remedy: end of the message.

    Raises:
        RunConflictError: naming what differs.
    """
    decided = ("identity",) if name == COMPARISON else ("fingerprint", "shard_samples")
    if any(mine.get(field) != theirs.get(field) for field in decided):
        ours, other = (
            {"shard_samples": each.get("shard_samples")} | dict(each.get("identity") or {}) for each in (mine, theirs)
        )
        raise begun_otherwise(ours, other, f"{place} has another {kind_of(name)}", remedy)


def _may_go(key: str, contents: Contents) -> bool:
    """Return whether a file of the repository may be deleted: it was this run's, or of a result that the run has."""
    found = _REPLACED.fullmatch(key)
    return found is not None and (found["label"] is None or found["label"] in contents.results)
