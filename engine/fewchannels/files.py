"""Files that a user names: written whole or not at all, beside their place and then renamed, even after a crash."""

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fewchannels.errors import InputError, StorageError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def check_output(path: Path) -> None:
    """Refuse a place where no file can be written, before there is anything to write. Reads only.

    A link is refused rather than followed: whoever made the folder that it is in chose what it points to.

    Raises:
        InputError: it is a URL, or what is there is no regular file: a folder, a link, a device, a pipe.
    """
    if scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*:$", path.parts[0] if path.parts else ""):
        given = f"{scheme[0]}//{path.relative_to(scheme[0]).as_posix()}"
        raise InputError(
            f"{given!r} is a URL, and this file can only be written to a disk of this machine. Name a file there, and "
            "copy it with the tools of its store."
        )
    _earlier(path)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to be written, which gets its name when the block ends well and vanishes when it does not.

    Until then, whatever has the name stays. Several may write one name at a time: each has a file of its own, and the
    last one to end gives the name. A file that is replaced hands on its mode.

    Args:
        path: of the file, in a folder that is there. The file's own ``name`` is its unfinished path.

    Raises:
        InputError: as :func:`check_output` does.
        StorageError: the disk refused, or an OSError in the block was not caught there.
    """
    check_output(path)
    # Not the name itself with something around it, which may be too long.
    temporary = path.with_name(f".fewchannels-{secrets.token_hex(8)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                if earlier := _earlier(path):
                    os.fchmod(file.fileno(), stat.S_IMODE(earlier.st_mode))
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        make_durable(path.parent)
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError(f"cannot write {str(path)!r}: {why}. Mend that, or name another place.") from error


def write(path: Path, data: bytes) -> int:
    """Write a file as :func:`writing` does; returns its size in bytes.

    Raises:
        InputError: as :func:`check_output` does.
        StorageError: the disk refused.
    """
    with writing(path) as file:
        file.write(data)
    return len(data)


def make_durable(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, would survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _earlier(path: Path) -> os.stat_result | None:
    """What is to be replaced; None where there is nothing."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {error.strerror}. Name another place.") from error
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "no regular file")
        raise InputError(f"{str(path)!r} is {kind}, which is never replaced. Name a file to write.")
    return found
