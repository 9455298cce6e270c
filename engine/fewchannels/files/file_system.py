"""Capabilities of a folder's file system: locks, names that survive a crash, advice.

File systems that clusters share lack some of these. A file system without locks is refused, since two commands could
then write to one run. If folders cannot be made durable, it is used with a warning. Unsupported advice is omitted.
"""

import errno
import fcntl
import os
import platform
from pathlib import Path

from fewchannels.errors import FewchannelsWarning, StorageError, warn

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
# CIFS, sshfs and others do not support it. PostgreSQL and RocksDB ignore the same errors, and no others.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
_NO_FOLDER_OPEN = (errno.EACCES, errno.EISDIR)
_NO_MODES = (errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_warned: set[int] = set()
"""Devices of folders that cannot be made durable, of which this process has warned."""


class NoLocksError(StorageError):
    """The file system has no locks."""


class DurabilityWarning(FewchannelsWarning):
    """A crash of the machine may undo the last files that were written."""


def lock(descriptor: int, path: Path, *, shared: bool = False, waits: bool = False) -> bool:
    """Lock an open file with ``flock``, for as long as it is open.

    Args:
        descriptor: descriptor of the file.
        path: its path, for the message.
        shared: whether to take a shared lock, which others may hold at the same time.
        waits: whether to wait until the lock is free.

    Returns:
        Whether it is locked; False if another process holds the lock.

    Raises:
        NoLocksError: the file system has no locks.
        StorageError: locking failed for another reason.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        where = f"{str(path.parent)!r} on {platform.node()}"
        if error.errno in _NO_LOCKS:
            raise NoLocksError(
                f"the file system of {where} has no file locks (flock: {error.strerror}), so two commands could write "
                "there at once. Mount it with them (Lustre: -o flock; NFS 3: with its lock service), or choose "
                "another place: a local disk, or a bucket."
            ) from None
        raise StorageError(f"cannot lock {path.name!r} in {where}: {error.strerror}. Run again.") from error
    return True


def unlock(descriptor: int) -> None:
    """Release the lock of an open file."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def make_durable(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, would survive a crash of the machine.

    Warns once for a file system that cannot do it for folders.

    Raises:
        OSError: writing failed.
    """
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if not is_folder or error.errno not in _NO_FOLDER_OPEN:
            raise
        _warn(path, error)
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in _NO_FOLDER_SYNC:
            raise
        _warn(path, error)
    finally:
        os.close(descriptor)


def begin_writing_back(descriptor: int, start: int, n_bytes: int) -> None:
    """Advise the kernel to start writing these bytes to the disk now, not only at ``fsync``."""
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        os.posix_fadvise(descriptor, start, n_bytes, os.POSIX_FADV_DONTNEED)
    except OSError:
        return  # only advice: the bytes are written without it


def set_mode(descriptor: int, mode: int) -> None:
    """Set the mode of an open file, if its file system has modes."""
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        if error.errno not in _NO_MODES:
            raise


def _warn(folder: Path, error: OSError) -> None:
    device = folder.stat().st_dev
    if device not in _warned:
        _warned.add(device)
        warn(
            f"the file system of {str(folder)!r} cannot make the names in a folder durable ({error.strerror}): if the "
            "machine itself crashes, the last files that were written may be missing.",
            DurabilityWarning,
        )
