"""Cached digests of files' contents: of weights, and of images and masks that a manifest names.

A digest is computed once and kept in the user's cache (``$XDG_CACHE_HOME/fewchannels/digests.sqlite3``, else
``~/.cache/...``), by the file's path, size, inode and times. This misses only a change that leaves all of them the
same, including the time of the inode's last change, which no program can set. If no cache can be written, digests are
computed again in each process.
"""

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

_MOST_KEPT = 500_000
_SETTLED_S = 3.0  # a file that was just written may be written again within one tick of its clock
_WAIT_S = 2.0
_READERS = 4
_TABLE = "create table if not exists digests (path text primary key, state text, sha256 text) without rowid"

_known: dict[str, tuple[str, str]] = {}  # of this process: path -> state, digest

MISSING = ""
"""The digest of a file that does not exist or cannot be read."""


def digests(paths: Iterable[str | Path]) -> dict[str, str]:
    """SHA-256 of files, 64 hex digits by path as given; :data:`MISSING` if there is no such file."""
    places = {str(path): os.path.abspath(os.path.expanduser(path)) for path in paths}
    states = {place: state for place in places.values() if (state := _state(place))}
    _recall([place for place in states if place not in _known])
    fresh = [place for place, state in states.items() if _known.get(place, ("", ""))[0] != state]
    with ThreadPoolExecutor(_READERS) as pool:
        computed = dict(zip(fresh, pool.map(_digest, fresh), strict=True))
    kept = {
        place: (states[place], sha256)
        for place, sha256 in computed.items()
        if sha256 and _is_settled(place) and _state(place) == states[place]
    }
    _known.update(kept)
    _remember(kept)
    found = {place: computed[place] if place in computed else _known[place][1] for place in states}
    return {name: found.get(place, MISSING) for name, place in places.items()}


def digest(path: str | Path) -> str:
    """SHA-256 of a file, 64 hex digits; :data:`MISSING` if there is none."""
    return digests([path])[str(path)]


def changed(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Paths in both whose digests differ, in the order of ``was``."""
    return [path for path, digest in was.items() if path in now and now[path] != digest]


def _state(path: str) -> str:
    """The properties of a file by which a change is detected; empty if it is not a file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ""
    if not os.path.isfile(path):
        return ""
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_dev} {found.st_ino}"


def _is_settled(path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return time.time() - max(found.st_mtime, found.st_ctime) > _SETTLED_S


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return MISSING


def _cache() -> Path | None:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(folder, "fewchannels", "digests.sqlite3") if os.path.isabs(folder) else None


def _recall(places: list[str]) -> None:
    """Read the cached digests of files."""
    path = _cache()
    if not places or path is None or not path.is_file():
        return
    with suppress(sqlite3.Error, ValueError), closing(sqlite3.connect(path, timeout=_WAIT_S)) as cache:
        for i in range(0, len(places), 500):
            some = places[i : i + 500]
            asked = f"select path, state, sha256 from digests where path in ({', '.join('?' * len(some))})"
            _known.update({place: (state, sha256) for place, state, sha256 in cache.execute(asked, some)})


def _remember(found: Mapping[str, tuple[str, str]]) -> None:
    path = _cache()
    if not found or path is None:
        return
    with suppress(sqlite3.Error, OSError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_WAIT_S)) as cache, cache:
            cache.execute(_TABLE)
            rows = [(place, *each) for place, each in found.items()]
            cache.executemany("insert or replace into digests values (?, ?, ?)", rows)
            (n,) = cache.execute("select count(*) from digests").fetchone()
            if n > _MOST_KEPT:  # start over
                cache.execute("delete from digests")
