"""Ways to change a file of a run, a sweep or a comparison: bits, ends, kinds, and fields under a right checksum."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewchannels.runs import documents

NESTED: Any = []
for _ in range(500):
    NESTED = [NESTED]
OTHERS: list[Any] = [None, True, "x", "../x", "\0", -1, 10**20, 10**400, 1e20, -1e308, [], {}, [[]], {"x": []}, NESTED]
MISSING = object()


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a document, its root left out; of a list's items, the first one's."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, each in items:
        yield (*path, key)
        yield from paths(each, (*path, key))


def with_other(document: bytes, path: tuple[Any, ...], other: Any) -> bytes:
    """A document with another value at a place, or none, and a right checksum if it had one."""
    content = json.loads(document)
    had = content.pop(documents.CHECKSUM, None)
    at = content
    for key in path[:-1]:
        at = at[key]
    if other is MISSING:
        del at[path[-1]]
    else:
        at[path[-1]] = other
    return documents.to_bytes(content) if had else json.dumps(content).encode()


def mutate(path: Path, chance: random.Random) -> str:
    """Change a file in one of the ways; returns which."""
    whole = path.read_bytes()
    is_document = path.suffix == ".json" and "activations.zarr" not in path.parts
    way = chance.choice(["field"] * 4 + ["nested", "bit"] if is_document else ["bit"] * 4 + ["cut", "empty", "folder"])
    if is_document and way == "bit":
        way = chance.choice(["bit", "cut", "empty", "folder"])
    if way == "bit":
        bit = chance.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        return f"bit {bit} flipped"
    if way == "folder":
        path.unlink()
        path.mkdir()
    elif way == "field":
        places = [each for each in paths(json.loads(whole)) if each != (documents.CHECKSUM,)]
        place = chance.choice(places)
        other = chance.choice([*OTHERS, MISSING])
        path.write_bytes(with_other(whole, place, other))
        return f"{'.'.join(map(str, place))} is {'missing' if other is MISSING else repr(other)[:40]}"
    else:
        n = chance.randrange(1, len(whole))
        path.write_bytes({"nested": b"[" * 3000 + b"]" * 3000, "cut": whole[:n], "empty": b""}[way])
    return way
