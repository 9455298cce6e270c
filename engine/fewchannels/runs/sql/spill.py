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
    """A folder that no other catalog uses; DuckDB creates it when it needs it. None if none can be created."""
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
    """Maximum number of bytes to write there: half of the disk's free space, at most 64 GiB."""
    return min(shutil.disk_usage(folder.parent).free // 2, _MOST_BYTES)


def remove_left() -> None:
    """Remove folders that killed processes of this user have left behind; no link is followed."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if re.fullmatch(rf"{PREFIX}\w+", entry.name):
                with suppress(OSError, StorageError):
                    _remove_if_left(entry)


def _make() -> Path:
    """Create a folder with a file ``owner`` that this process, and any that it forks, keep locked while they live."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # for this user alone
        try:
            descriptor = os.open(folder / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with suppress(StorageError):  # without locks, nobody can know that it is left over, so nobody removes it
                file_system.lock(descriptor, folder / _OWNER)
            if (folder / _OWNER).exists():
                return folder
        except (FileNotFoundError, BlockingIOError):
            continue  # another process removed it as left over, since it had no locked file yet
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
        os.rmdir(entry.path)  # just created, or its process was killed right after that: it is empty
        return
    try:
        if file_system.lock(owner, Path(entry.path, _OWNER)):  # fails while its owner lives
            shutil.rmtree(entry.path)
    finally:
        os.close(owner)
