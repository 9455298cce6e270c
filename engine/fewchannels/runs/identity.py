"""What decides a run's or a result's data: its fingerprint, and where two of them differ."""

import hashlib
import json
from typing import Any


def fingerprint(identity: dict[str, Any]) -> str:
    """SHA-256, 16 hex digits, of what decides a run's data; the same for equal mappings in any order."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


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
