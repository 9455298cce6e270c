"""Digests of files: right, and computed once."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from fewchannels.files import contents


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which files were read, in a process that knows none and with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "_known", {})
    read, own = list[str](), contents._digest
    monkeypatch.setattr(contents, "_digest", lambda path: read.append(path) or own(path))
    return read


def old(path: Path, text: str) -> Path:
    """A file that was last changed long ago, as far as its own time says."""
    path.write_text(text)
    os.utime(path, (time.time() - 100,) * 2)
    return path


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_known", {})


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_digest_is_the_files_and_none_is_of_a_file_that_is_not_there(hashed: list[str], tmp_path: Path) -> None:
    path = old(tmp_path / "a", "one")
    found = contents.digests([path, str(path), tmp_path / "b", tmp_path, "\0"])
    assert found == {str(path): sha("one"), str(tmp_path / "b"): "", str(tmp_path): "", "\0": ""}
    assert hashed == [str(path)]


def test_a_settled_file_is_read_once_by_all_processes(
    hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_SETTLED_S", -1.0)
    path = old(tmp_path / "a", "one")
    for _ in range(3):
        assert contents.digest(path) == sha("one")
        forget(monkeypatch)
    assert hashed == [str(path)]


def test_a_change_of_one_size_and_time_is_seen(
    hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_SETTLED_S", -1.0)
    path = old(tmp_path / "a", "one")
    before = path.stat()
    contents.digest(path)
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    forget(monkeypatch)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert contents.digest(path) == sha("two")


def test_a_file_that_was_just_written_is_not_remembered(hashed: list[str], tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    contents.digest(tmp_path / "a")
    contents.digest(tmp_path / "a")
    assert hashed == [str(tmp_path / "a")] * 2


def test_a_cache_that_cannot_be_used_costs_time_only(
    hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_SETTLED_S", -1.0)
    path = old(tmp_path / "a", "one")
    (tmp_path / "cache" / "fewchannels").mkdir(parents=True)
    (tmp_path / "cache" / "fewchannels" / "digests.sqlite3").write_text("no database")
    assert contents.digest(path) == sha("one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nothing")
    forget(monkeypatch)
    assert contents.digest(path) == sha("one")
