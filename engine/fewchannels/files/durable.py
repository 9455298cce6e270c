"""Write files atomically: under a temporary name, then renamed, so that a crash leaves no partial file.

The name of an unfinished file identifies the process that writes it. A killed process leaves its file behind; the next
command may remove it, since a process that has ended will never finish it. Whether a process on another host has ended
cannot be determined here.
"""

import os
import platform
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fewchannels.errors import InputError, StorageError
from fewchannels.files.file_system import make_durable, set_mode

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)

UNFINISHED = re.compile(r"\..+\.tmp")
_HOST = re.sub(r"[^\w-]", "_", platform.node())  # without dots, so that one host's name is not the end of another's
_OURS = re.compile(rf"\..+\.{re.escape(_HOST)}-([0-9]+)-[0-9a-f]+\.tmp")
_STEM = "fewchannels"
_written: set[Path] = set()  # by this process, now


def expanded(path: str | Path) -> Path:
    """A path with ``~`` or ``~user`` at its beginning replaced by that user's home folder.

    Raises:
        InputError: the home folder is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(
            f"{str(path)!r} starts with a home folder that cannot be resolved: there is no such user, or HOME is not "
            "set. Give the absolute path, or export HOME."
        ) from None


def as_url(path: Path) -> str | None:
    """The URL of a path that was one before ``Path`` removed one of its two slashes; None if it was not a URL."""
    scheme = path.parts[0] if path.parts else ""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:", scheme):
        return None
    return f"{scheme}//{path.relative_to(scheme).as_posix()}"


def check_output(path: Path) -> None:
    """Refuse a place where no file can be written, before there is anything to write. Reads only.

    A link is refused rather than followed, since somebody else may have created it and chosen its target.

    Raises:
        InputError: it is a URL, or an existing folder, link, device or pipe.
    """
    if url := as_url(path):
        raise InputError(
            f"{url!r} is a URL, but this file can only be written to a local disk. Give a local path, and copy the "
            "file with the store's tools."
        )
    _earlier(path)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to be written, which gets its name when the block succeeds and is removed when it fails.

    Until then, an existing file with the name stays. Several writers may use one name at a time: each has its own file,
    and the last one to finish wins. The new file keeps the mode of the one that it replaces.

    Args:
        path: path of the file, in an existing folder. The file's own ``name`` is its unfinished path.

    Raises:
        InputError: same cases as for :func:`check_output`.
        StorageError: writing failed, or an OSError in the block was not caught there.
    """
    check_output(path)
    try:
        _clean(path.parent)
        # Not derived from the name itself, which could become too long.
        with unfinished(path.with_name(_STEM)) as temporary:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                if earlier := _earlier(path):
                    set_mode(file.fileno(), stat.S_IMODE(earlier.st_mode))
                os.fsync(file.fileno())
            os.replace(temporary, path)
        make_durable(path.parent)
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError(f"cannot write {str(path)!r}: {why}. Fix this, or give another path.") from error


def write(path: Path, data: bytes) -> int:
    """Write a file like :func:`writing`; returns its size in bytes.

    Raises:
        InputError: same cases as for :func:`check_output`.
        StorageError: writing failed.
    """
    with writing(path) as file:
        file.write(data)
    return len(data)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A path in the same folder as a file, to which nothing else writes; it is removed when the block fails.

    Args:
        path: path of the file to be written.
    """
    temporary = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(8)}.tmp")
    _written.add(temporary)
    try:
        yield temporary
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    finally:
        _written.discard(temporary)


def is_left_over(path: Path) -> bool:
    """Return whether the writer of an unfinished file was a process of this host that has ended.

    Args:
        path: path of a file whose name, chosen by its writer, matches :data:`UNFINISHED`.
    """
    found = _OURS.fullmatch(path.name)
    if found is None:
        return False
    return path not in _written if int(found[1]) == os.getpid() else not _lives(int(found[1]))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        return True
    try:
        about = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return about.rpartition(")")[2].split()[0] not in "ZX"  # a zombie keeps its process id


def _clean(folder: Path) -> None:
    """Remove unfinished files of :func:`writing` that killed commands have left in one of the user's folders."""
    for path in folder.glob(f".{_STEM}.*.tmp"):
        if is_left_over(path):
            with suppress(OSError):
                path.unlink()


def _earlier(path: Path) -> os.stat_result | None:
    """The status of the file to be replaced; None if there is none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {error.strerror}. Give another path.") from error
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "not a regular file")
        raise InputError(f"{str(path)!r} is {kind}, which is never replaced. Give the path of a file.")
    return found
