"""Contents of a run, a sweep or a comparison: its own files, in an order in which they can be copied.

A copy is readable at any moment if the description comes first and each record after the objects that it names, in the
order in which the original was written. The user's own files in the folder, temporary files, leases and the messages
of failed attempts are not part of it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fewchannels.errors import IncompleteRunError, InputError, StorageError
from fewchannels.runs import arrays
from fewchannels.runs.description import (
    COMPARISON,
    NAME,
    READERS,
    kind_of,
    objects_of,
    read_comparison,
    read_document,
)
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.parts import FOLDER as COMPACTIONS
from fewchannels.runs.results import BEGUN, END, FOLDER, finished, labels
from fewchannels.runs.storage import Storage
from fewchannels.runs.upkeep.checked_results import check_results
from fewchannels.runs.upkeep.repair import check_report
from fewchannels.runs.upkeep.verify import verify

Progress = Callable[[int, int], None]
_OWN = re.compile(
    r"(run|sweep|comparison)\.json|[a-z_]+\.parquet|summary\.md|"
    r"(activations\.zarr|cells|samples|edits|ledger|results|figures)/.+"
)
_NOT_COPIED = re.compile(r"(.*/)?(lease\.json|\..*)|ledger/failed/.*")


def is_own(key: str) -> bool:
    """Return whether a key belongs to a run, a sweep or a comparison, and is copied."""
    return bool(_OWN.fullmatch(key)) and not _NOT_COPIED.fullmatch(key)


def name_of(keys: Iterable[str]) -> str | None:
    """The document that identifies a location, among its keys; None if it is none of the three."""
    there = set(keys)
    return next((name for name in READERS if name in there), None)


@dataclass(frozen=True)
class Contents:
    """A run, a sweep or a comparison whose every object has been checked.

    Attributes:
        name: name of its document, see :data:`fewchannels.runs.description.READERS`.
        description: content of the document.
        groups: keys in the order in which to copy them; those of a group are best copied together.
        sizes: size of each of these keys in bytes.
        n_items: samples, or a sweep's items; of a comparison, the samples that were compared.
        n_done: number of finished ones.
        results: every finished result, by label.
        unfinished: labels of unfinished results, which are not copied.
    """

    name: str
    description: dict[str, Any]
    groups: list[list[str]]
    sizes: Mapping[str, int]
    n_items: int
    n_done: int
    results: Mapping[str, Mapping[str, Any]]
    unfinished: list[str]

    @property
    def kind(self) -> str:
        """``run``, ``sweep`` or ``comparison``."""
        return kind_of(self.name)

    @property
    def n_bytes(self) -> int:
        """Size of all of its objects."""
        return sum(self.sizes.values())

    @property
    def n_missing(self) -> int:
        """Samples or items that are not done, or failed."""
        return self.n_items - self.n_done

    def check_complete(self, place: str) -> None:
        """Refuse incomplete contents.

        Raises:
            IncompleteRunError: saying how much is missing.
        """
        if self.n_missing:
            what = "samples" if self.name == NAME else "items"
            raise IncompleteRunError(
                f"{place!r} is not complete: {self.n_missing:,} of {self.n_items:,} {what} are missing or failed. "
                "Rerun its command to finish it, or give --partial to push what is there."
            )


def check_exists(storage: Storage) -> str:
    """The document of the run, the sweep or the comparison at a place. Reads only.

    Raises:
        InputError: there is none, or one of a newer format.
        StorageError: it is damaged.
    """
    name = next((name for name in READERS if storage.exists(name)), NAME)
    read_document(storage, name)
    return name


def checked(storage: Storage, quick: bool, on_progress: Progress = lambda done, total: None) -> Contents:
    """Check every object of a run, a sweep or a comparison, and return its contents. Reads only.

    Args:
        storage: the place.
        quick: presence and sizes only; otherwise every byte is read.
        on_progress: called with the tasks checked so far and in all.

    Raises:
        InputError: there is none of the three, or a run of format version 1.
        StorageError: an object is damaged, or arrays are behind a link.
    """
    name = check_exists(storage)
    if storage.is_linked(arrays.NAME):
        raise StorageError(
            f"{storage.location(arrays.NAME)} is a symbolic link, which can be read but not copied. Replace it with "
            "its target folder."
        )
    if name == COMPARISON:
        return _comparison(storage, quick)
    report = verify(storage, quick=quick, on_progress=on_progress)
    check_report(report, storage.url)
    description = read_document(storage, name)
    listing = storage.list()
    of_results = check_results(storage, listing, quick=True).named
    left_out = {*report.unrecorded, *(key for key in listing if key.startswith(FOLDER) and key not in of_results)}
    kept = {key: n for key, n in listing.items() if is_own(key) and key not in left_out}
    ended = {result.label: result for result in finished(storage, kept)}
    unfinished = [label for label in labels(kept) if label not in ended]
    kept = {key: n for key, n in kept.items() if not key.startswith(tuple(f"{FOLDER}{each}/" for each in unfinished))}
    records = Ledger(storage).records(description["fingerprint"])
    n_items = description["geometry"]["n_samples"] if name == NAME else description["identity"]["n_items"]
    return Contents(
        name=name,
        description=description,
        groups=list(_grouped(name, description, records, kept)),
        sizes=kept,
        n_items=n_items,
        n_done=sum(record.n_done for record in records.values()),
        results={label: result.read() for label, result in ended.items()},
        unfinished=unfinished,
    )


def _grouped(
    name: str, description: dict[str, Any], records: Mapping[int, Record], keys: Mapping[str, int]
) -> Iterator[list[str]]:
    """The keys: shared objects and the description, then each task with its record, then compactions and results."""
    left = dict.fromkeys(keys)

    def taken(wanted: Iterable[str]) -> list[str]:
        found = [key for key in wanted if key in left]
        for key in found:
            del left[key]
        return found

    yield taken([*sorted(objects_of(description)), name])
    for task, record in records.items():
        yield taken([*record.objects, Ledger.key(task)])
    compacted = [key for key in left if not key.startswith(FOLDER)]
    yield taken(sorted(compacted, key=lambda key: key.startswith(COMPACTIONS)))
    for label in labels(left):
        mine = [key for key in left if key.startswith(f"{FOLDER}{label}/")]
        yield taken(
            sorted(mine, key=lambda key: (not key.endswith(f"/{BEGUN}"), key.endswith(f"/{END}"), "/units/" in key))
        )


def _comparison(storage: Storage, quick: bool) -> Contents:
    description = read_comparison(storage)
    objects, sizes = objects_of(description), storage.list()
    for key, stored in objects.items():
        if sizes.get(key) != stored.n_bytes or not (quick or storage.holds(key, stored)):
            raise StorageError(
                f"{storage.location(key)} is missing or damaged. Run fewchannels compare with --replace, which "
                "recreates the comparison."
            )
    if not objects:
        raise InputError(f"{storage.url!r} is a comparison without checksums. Create it again with --replace.")
    keys = [*objects, COMPARISON]
    n = description["numbers"]["n_samples"]
    return Contents(COMPARISON, description, [keys], {key: sizes[key] for key in keys}, n, n, {}, [])
