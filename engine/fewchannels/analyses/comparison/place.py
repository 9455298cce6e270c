"""Where a comparison is written: begun, layer by layer, and whole once ``comparison.json`` is there.

``begun.json`` says what is compared; ``units/NNNNN.json`` holds a unit's rows and is written after its part of
``samples``. So an interrupted comparison resumes with the layers that are left. Both are deleted at the end.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from fewchannels.errors import RunConflictError
from fewchannels.runs import documents
from fewchannels.runs.description import COMPARISON
from fewchannels.runs.identity import differences
from fewchannels.runs.lease import LEASE
from fewchannels.runs.storage import Count, Storage
from fewchannels.tables import Columns, encode

_BEGUN, _UNITS = "begun.json", "units/"
_OURS = re.compile(
    rf"{re.escape(LEASE)}|{re.escape(COMPARISON)}|{re.escape(_BEGUN)}|units/\d+\.json|summary\.md|samples/\d+\.parquet|"
    r"(agreement|differences|profiles)\.parquet|figures/\w+\.(png|svg)"
)
Rows = list[dict[str, Any]]


class _Begun(documents.Fields):
    identity: dict[str, Any]


class _Unit(documents.Fields):
    unit: Count
    objects: documents.Objects
    rows: dict[documents.Name, list[dict[str, Any]]]


def check_place(out: Storage) -> None:
    """Refuse a place that holds other files than a comparison's. Reads only.

    Raises:
        RunConflictError: naming some of them.
    """
    if others := [key for key in out.list() if not _OURS.fullmatch(key)]:
        raise RunConflictError(f"{out.url!r} holds other files ({', '.join(others[:3])}); choose a new place.")


def begin(out: Storage, identity: Mapping[str, Any], *, replace: bool) -> dict[int, dict[str, Rows]]:
    """Take a place for a comparison, or resume the one there. A finished one is made anew. Only with the lease.

    Args:
        out: the place.
        identity: what is compared, in plain values.
        replace: whether to delete another comparison there.

    Returns:
        Rows of the units that are done, by table.

    Raises:
        RunConflictError: another comparison is in the place.
        StorageError: what says which comparison is there is damaged.
    """
    out.clean()
    stored = {key: size for key, size in out.list().items() if key != LEASE}
    found = next((key for key in (COMPARISON, _BEGUN) if key in stored), None)
    lines = differences(dict(identity), _identity(out, found)) if found and not replace else []
    if lines:
        raise RunConflictError(
            f"{out.url!r} holds another comparison:\n  " + "\n  ".join(lines) + "\nGive --replace to delete it, or "
            "choose another place."
        )
    if found == _BEGUN and not replace:
        return _units(out, stored)
    out.delete([COMPARISON])
    out.delete(stored)
    out.put(_BEGUN, [documents.encode({"identity": dict(identity)})])
    return {}


def write_unit(out: Storage, unit: int, rows: Mapping[str, Rows], layer: int, samples: Columns | None) -> None:
    """Write a unit's part of ``samples`` if it has one, then its rows. Safe to repeat.

    Args:
        out: the place.
        unit: its number.
        rows: in plain values, by table.
        layer: whose ``samples`` they are.
        samples: columns of ``comparison_samples``.
    """
    objects = {}
    if samples is not None:
        key = f"samples/{layer:05d}.parquet"
        objects[key] = asdict(out.put(key, [encode("comparison_samples", samples)]))
    out.put(f"units/{unit:05d}.json", [documents.encode({"unit": unit, "objects": objects, "rows": dict(rows)})])


def end(out: Storage, about: Mapping[str, Any], files: Mapping[str, bytes | memoryview]) -> None:
    """Write tables and figures, then ``comparison.json``; then delete what only an interrupted comparison needs."""
    objects = {name: asdict(out.put(name, [data])) for name, data in files.items()}
    stored = out.list()
    for _, unit in _finished(out, stored):
        objects |= unit["objects"]
    out.put(COMPARISON, [documents.encode({**about, "objects": objects})])
    out.delete([*(key for key in stored if key.startswith(_UNITS)), _BEGUN])


def _identity(out: Storage, key: str) -> dict[str, Any]:
    return dict(documents.read(out, key, _Begun, "Give --replace.")["identity"])


def _units(out: Storage, stored: Mapping[str, int]) -> dict[int, dict[str, Rows]]:
    return {unit: content["rows"] for unit, content in _finished(out, stored)}


def _finished(out: Storage, stored: Mapping[str, int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every unit that is done, with its record; one whose record or part is gone or cut short is not."""
    for key in stored:
        if not key.startswith(_UNITS):
            continue
        try:
            unit = documents.decode(out.get(key), _Unit)
        except documents.DamagedDocumentError:
            continue
        if all(stored.get(part) == each["n_bytes"] for part, each in unit["objects"].items()):
            yield int(unit["unit"]), unit
