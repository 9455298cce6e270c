"""Folder for data of DuckDB that do not fit in memory: private to this process, and deleted when it ends."""

import atexit
import itertools
import os
import re
import shutil
import stat
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from fewchannels.errors import StorageError
from fewchannels.files import file_system

PREFIX = "fewchannels-spill-"
_OWNER = "owner"
_MOST_BYTES = 64 * 2**30

_making = threading.Lock()
_numbers = itertools.count()
_own: Path | None = None


def new_folder() -> Path | None:
    """A folder that no other catalog uses, not made yet: DuckDB makes it when it needs it. None if none can be."""
    global _own
    with _making:
        if _own is None or not _own.is_dir():
            remove_left()
            try:
                _own = _make()
            except OSError:
                return None
            atexit.register(shutil.rmtree, _own, ignore_errors=True)
        return _own / str(next(_numbers))


def most_bytes(folder: Path) -> int:
    """The most to write there: half of what the disk has free, at most 64 GiB."""
    return min(shutil.disk_usage(folder.parent).free // 2, _MOST_BYTES)


def remove_left() -> None:
    """Remove what processes of this user that were killed have left behind; no link is followed."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if re.fullmatch(rf"{PREFIX}\w+", entry.name):
                with suppress(OSError, StorageError):
                    _remove_if_left(entry)


def _make() -> Path:
    """A new folder, whose file ``owner`` this process, and whoever it forks, keeps locked as long as it lives."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # for this user alone
        try:
            descriptor = os.open(folder / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with suppress(StorageError):  # without locks nobody can tell that it is left behind, and nobody removes it
                file_system.lock(descriptor, folder / _OWNER)
            if (folder / _OWNER).exists():
                return folder
        except (FileNotFoundError, BlockingIOError):
            continue  # another process thought it was left behind: it had no locked file yet
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _remove_if_left(entry: os.DirEntry[str]) -> None:
    about = entry.stat(follow_symlinks=False)
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        return
    try:
        owner = os.open(os.path.join(entry.path, _OWNER), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        os.rmdir(entry.path)  # made a moment ago, or killed then: it is empty
        return
    try:
        if file_system.lock(owner, Path(entry.path, _OWNER)):  # not while its owner lives
            shutil.rmtree(entry.path)
    finally:
        os.close(owner)
