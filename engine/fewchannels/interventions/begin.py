"""Begin a sweep: check its location, then create or resume it."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

from fewchannels.interventions.sweep import CONDITIONS, PAIRS, RANKS, Prepared
from fewchannels.runs import documents
from fewchannels.runs.description import MANIFEST, SWEEP, SWEEP_FORMAT_VERSION, objects_of, read_sweep
from fewchannels.runs.lease import LEASE
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.place import begun_otherwise, check_free
from fewchannels.runs.provenance import by_version, versions
from fewchannels.runs.storage import Storage

_FILES = (MANIFEST, CONDITIONS, PAIRS, RANKS, LEASE)
_FOLDERS = ("edits/", "ledger/", "results/")


def begin_sweep(prepared: Prepared) -> bool:
    """Create the sweep, or recognize it as this one's own to be resumed. Safe to repeat.

    Returns:
        True if the sweep already existed.

    Raises:
        RunConflictError: there is another sweep, or something else.
    """
    sweep, storage = prepared.sweep, prepared.sweep.storage
    begun = read_sweep(storage) if storage.exists(SWEEP) else None
    if begun is not None:
        if begun["fingerprint"] != sweep.fingerprint:
            conflict = f"the sweep in {sweep.place!r} was created with different settings"
            remedy = "Use the settings it was created with, or choose another --out."
            raise begun_otherwise(sweep.identity, begun["identity"], conflict, remedy)
        if all(storage.holds(key, stored) for key, stored in objects_of(begun).items()):
            return True
    objects = {MANIFEST: storage.put(MANIFEST, [prepared.manifest.data])}
    objects |= {key: storage.put(key, [data]) for key, data in prepared.tables.items()}
    content = {
        "format_version": SWEEP_FORMAT_VERSION,
        "fingerprint": sweep.fingerprint,
        "identity": dict(sweep.identity),
        **prepared.about,
        "versions": begun["versions"] if begun else versions(),
        "created": begun["created"] if begun else datetime.now(UTC).isoformat(timespec="seconds"),
        "objects": {key: dataclasses.asdict(each) for key, each in objects.items()},
    }
    storage.put(SWEEP, [documents.to_bytes(content)])
    return begun is not None


def check_place(prepared: Prepared) -> None:
    """Refuse a place that contains other files than a sweep's. Reads only.

    Raises:
        RunConflictError: there are other files; the message names some of them.
    """
    storage = prepared.sweep.storage
    if not storage.exists(SWEEP):
        check_free(storage, lambda key: key in _FILES or key.startswith(_FOLDERS), "sweep")


def summary(storage: Storage) -> dict[str, Any]:
    """Description and progress of a sweep, as plain values.

    Raises:
        InputError: there is no sweep.
    """
    description = read_sweep(storage)
    records = Ledger(storage).records(description["fingerprint"]).values()
    sizes = storage.list()
    names = ("protocol", "n_conditions", "n_edits", "n_tasks", "model", "fingerprint", "created", "versions")
    return {name: description[name] for name in names} | {
        "kind": description["identity"]["kind"],
        "n_items": description["identity"]["n_items"],
        "generation": description["identity"]["generation"],
        "n_tasks_done": len(records),
        "computed_by": by_version(records),
        "n_done": sum(record.n_done for record in records),
        "n_failed": sum(record.n_failed for record in records),
        "files": len(sizes),
        "bytes": sum(sizes.values()),
        "left_over": storage.left_over(),
    }
