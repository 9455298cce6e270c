"""What the file system of a folder can do: locks, names that survive a crash, advice.

Those that clusters share lack some of it. A file system without locks is refused, since two commands could then write
to one run. One whose folders cannot be made durable is used, with a warning. Advice that it does not take is left out.
"""

import errno
import fcntl
import os
import platform
import warnings
from pathlib import Path

from fewchannels.errors import FewchannelsWarning, StorageError

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
# CIFS, sshfs and others have no way to do it. PostgreSQL and RocksDB pass over the same errors, and no others.
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
        path: path of it, for the message.
        shared: whether others may hold it too, also shared.
        waits: whether to wait for those that have it; without, they are told by the answer.

    Returns:
        Whether it is locked; False where another one has it.

    Raises:
        NoLocksError: the file system has no locks.
        StorageError: it refused for another reason.
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
    """Give up the lock of an open file."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def make_durable(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, would survive a crash of the machine.

    Warns once for a file system that cannot do it for folders.

    Raises:
        OSError: the disk refused.
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
    """Advise the kernel to write these bytes to the disk now, and not only when ``fsync`` asks."""
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        os.posix_fadvise(descriptor, start, n_bytes, os.POSIX_FADV_DONTNEED)
    except OSError:
        return  # it is advice: the bytes are written without it


def set_mode(descriptor: int, mode: int) -> None:
    """Give an open file a mode, where its file system has modes."""
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        if error.errno not in _NO_MODES:
            raise


def _warn(folder: Path, error: OSError) -> None:
    device = folder.stat().st_dev
    if device not in _warned:
        _warned.add(device)
        warnings.warn(
            f"the file system of {str(folder)!r} cannot make the names in a folder durable ({error.strerror}): if the "
            "machine itself crashes, the last files that were written may be missing.",
            DurabilityWarning,
            stacklevel=3,
        )
