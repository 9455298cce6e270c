"""Identities of runs and results: everything that determines their data, with fingerprints and differences."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def fingerprint(identity: Mapping[str, Any]) -> str:
    """SHA-256, 16 hex digits, of the identity of a run's data; the same for equal mappings in any order."""
    canonical = json.dumps(dict(identity), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


LATER = frozenset({"files", "metric_files"})
"""Fields that were added to identities later, so that older runs and sweeps lack them."""
GROWING = "mask_files"
"""A field whose entries may increase: files that did not exist when a result was begun."""


def known_to(mine: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
    """An identity without the fields in :data:`LATER` that an earlier identity lacks.

    Args:
        mine: the identity.
        theirs: the earlier identity; None if there is none.

    Returns:
        The identity, and the fields that were left out, dotted.
    """
    if theirs is None:
        return dict(mine), []
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    for name, value in mine.items():
        if name in LATER and name not in theirs:
            left_out.append(name)
            continue
        other = theirs.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            value, deeper = known_to(value, other)
            left_out += [f"{name}.{each}" for each in deeper]
        kept[name] = value
    return kept, left_out


def shared(identities: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first of several identities, without the fields in :data:`LATER`, which not all of them have."""
    known = dict(identities[0])
    for each in identities[1:]:
        known, _ = known_to(known, each)
    return known


def grown(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """A result's identity without entries of :data:`GROWING` that did not exist when it was begun."""
    settings, begun = mine.get("settings"), theirs.get("settings")
    if not isinstance(settings, Mapping) or not isinstance(begun, Mapping):
        return dict(mine)
    now, then = settings.get(GROWING), begun.get(GROWING)
    if not isinstance(now, Mapping) or not isinstance(then, Mapping):
        return dict(mine)
    return dict(mine) | {"settings": dict(settings) | {GROWING: {key: now[key] for key in now if key in then}}}


def in_short(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A result's settings, in which :data:`GROWING`, with an entry per file, is replaced by a digest."""
    return dict(settings) | ({GROWING: fingerprint(settings[GROWING])} if GROWING in settings else {})


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Fields in which two identities differ, as ``name: theirs -> mine`` lines; nested names are dotted."""
    lines = []
    for name in sorted(mine.keys() | theirs.keys()):
        new, old = mine.get(name), theirs.get(name)
        if isinstance(new, dict) and isinstance(old, dict):
            lines += [f"{name}.{line}" for line in differences(new, old)]
        elif new != old:
            lines.append(f"{name}: {old!r} -> {new!r}")
    return lines
