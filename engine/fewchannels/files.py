"""Files are written whole or not at all, beside their place and then renamed, even after a crash.

What is not finished has a name that says which process writes it. One that was killed leaves its file; whoever comes
next may remove it, since a writer that is gone never ends it. Of processes on other hosts nobody here knows whether
they are gone.
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


def as_url(path: Path) -> str | None:
    """The URL that a path was before it was taken for a path, which leaves one slash of two; None where it was none."""
    scheme = path.parts[0] if path.parts else ""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:", scheme):
        return None
    return f"{scheme}//{path.relative_to(scheme).as_posix()}"


def check_output(path: Path) -> None:
    """Refuse a place where no file can be written, before there is anything to write. Reads only.

    A link is refused rather than followed: whoever made the folder that it is in chose what it points to.

    Raises:
        InputError: it is a URL, or what is there is no regular file: a folder, a link, a device, a pipe.
    """
    if url := as_url(path):
        raise InputError(
            f"{url!r} is a URL, and this file can only be written to a disk of this machine. Name a file there, and "
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
    try:
        _clean(path.parent)
        # Not the name itself with something around it, which may be too long.
        with unfinished(path.with_name(_STEM)) as temporary:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                if earlier := _earlier(path):
                    os.fchmod(file.fileno(), stat.S_IMODE(earlier.st_mode))
                os.fsync(file.fileno())
            os.replace(temporary, path)
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


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A path beside a file's own that nothing else writes to; what is there is removed when the block fails.

    Args:
        path: of the file that is to be written.
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
    """Whether the writer of an unfinished file was a process of this host that is gone.

    Args:
        path: of a file whose name is like :data:`UNFINISHED`, in the words of its writer.
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
    except OSError:  # another user's
        return True
    try:
        about = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return about.rpartition(")")[2].split()[0] not in "ZX"  # what was killed and is not waited for keeps its number


def _clean(folder: Path) -> None:
    """Remove what killed commands have left in a folder of the user's, of files as :func:`writing` names them."""
    for path in folder.glob(f".{_STEM}.*.tmp"):
        if is_left_over(path):
            with suppress(OSError):
                path.unlink()


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
