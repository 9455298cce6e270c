"""What a file system cannot do: refused in words, warned of, or left out."""

import errno
import os
import stat
from pathlib import Path

import pytest

from fewchannels.errors import StorageError
from fewchannels.files import file_system
from fewchannels.files.file_system import DurabilityWarning
from fewchannels.runs.lease import Membership, hold
from fewchannels.runs.storage import open_storage


def test_a_worker_whose_node_has_no_locks_stops_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(tmp_path / "run")
    with hold(storage) as token:

        def fail(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr("fcntl.flock", fail)
        with pytest.raises(StorageError, match="has no file locks"):
            Membership(storage, token)
        monkeypatch.undo()


def test_a_lock_that_fails_for_another_reason_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(StorageError, match=r"cannot lock '\.capture\.lock' in .*Input/output error") as found:
        hold(open_storage(tmp_path / "run")).__enter__()
    assert not isinstance(found.value, file_system.NoLocksError)


def test_python_callers_are_warned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(file_system, "_warned", set())
    storage = open_storage(tmp_path / "run")
    with pytest.warns(DurabilityWarning, match="may be missing"):
        storage.put("a/b.json", [b"{}"])
    storage.put("a/c.json", [b"{}"])  # a second warning would be an error
    assert storage.get("a/b.json") == b"{}"
