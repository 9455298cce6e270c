"""One writer at a time for a run or any other place: a second one is refused, and workers that outlive it stop.

In a folder, the lease is a pair of flocks, which end with the process that holds them: the driver holds one
exclusively, its workers share the other. In an object store, it is an object that only its owner can replace, and that
its owner replaces every few seconds; a process that finds it unchanged for long enough may take it over. Clocks are
never compared.
"""

import errno
import json
import os
import platform
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fewchannels.errors import RunConflictError, StorageError
from fewchannels.files import file_system
from fewchannels.runs.changes import finish_changes
from fewchannels.runs.storage import FolderStorage, ObjectStorage, Storage

DRIVER_LOCK = ".capture.lock"
WORKERS_LOCK = ".workers.lock"
LEASE = "lease.json"
BEAT_S = 5.0
MISSED_BEATS = 6
_ORPHANS_TIMEOUT_S = 120.0
_LOOK_EVERY_S = 0.2

Wait = Callable[[str], None]


@contextmanager
def hold(storage: Storage, on_wait: Wait = lambda why: None, patience_s: float = 0.0) -> Iterator[str]:
    """Hold a place's lease while the context lasts; yield the token that workers check with :class:`Membership`.

    Remains of killed writers are removed first, and a change that an earlier capture had committed is finished.

    Args:
        storage: storage of a run, of one of its results, or of a result of several runs.
        on_wait: called with the reason while waiting for an earlier command to end.
        patience_s: time to wait for another command that holds it, in seconds.

    Raises:
        RunConflictError: another command holds it.
        StorageError: writing failed.
    """
    holding: Any = _hold_folder if isinstance(storage, FolderStorage) else _hold_objects
    deadline = time.monotonic() + patience_s
    with ExitStack() as held:
        while True:
            try:
                token = held.enter_context(holding(storage, on_wait))
                break
            except RunConflictError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_EVERY_S)
        storage.clean()
        finish_changes(storage)
        yield token


class Membership:
    """A worker's share in its capture's lease.

    Args:
        storage: storage of the run.
        token: token of the capture.

    Raises:
        RunConflictError: the capture has ended or another took over.
        StorageError: writing failed.
    """

    def __init__(self, storage: Storage, token: str) -> None:
        self._storage, self._token = storage, token
        self._lock: int | None = None
        if isinstance(storage, FolderStorage):
            with _writing(storage):
                self._lock = _open_lock(path := storage.path / WORKERS_LOCK)
                file_system.lock(self._lock, path, shared=True, waits=True)
        self.check()

    def check(self) -> None:
        """Refuse to continue when the capture is no longer this worker's own.

        Raises:
            RunConflictError: another capture took over.
        """
        check_held(self._storage, self._token)

    def end(self) -> None:
        """Let the next command write, without waiting for this process to end. Safe to repeat."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def check_held(storage: Storage, token: str) -> None:
    """Refuse to continue if another command holds the lease: a suspended process cannot know for how long it was.

    Raises:
        RunConflictError: another command took over.
    """
    owner = _owner(storage)
    if owner.get("token") != token:
        raise RunConflictError(
            f"another command ({_named(owner)}) took over writing to {storage.url!r}, so this command stops writing."
        )


class _Beating:
    """A thread that replaces the lease object every few seconds, to show that its owner is alive."""

    def __init__(self, storage: ObjectStorage, token: str) -> None:
        # A beat that waits for an unreachable store is late anyway; the next one serves the same purpose.
        self.storage, self.token = ObjectStorage(storage.url, patience_s=BEAT_S), token
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop beating, and release the lease."""
        self._end.set()
        self._thread.join()
        with suppress(StorageError):  # the next command then waits until it is sure that no beats come
            if (found := self.storage.get_tagged(LEASE)) and _read(found[0]).get("token") == self.token:
                self.storage.put_if(LEASE, b"{}\n", found[1])

    def _run(self) -> None:
        beat = 0
        while not self._end.wait(BEAT_S):
            beat += 1
            try:
                found = self.storage.get_tagged(LEASE)
                if found is None or _read(found[0]).get("token") != self.token:
                    return  # taken over: the workers detect it before their next record
                self.storage.put_if(LEASE, _document(self.token, beat), found[1])
            except StorageError:
                continue  # the store is unreachable: the next beat may get through


def _document(token: str, beat: int) -> bytes:
    about = {"token": token, "host": platform.node(), "pid": os.getpid(), "beat": beat}
    return (json.dumps(about) + "\n").encode()


def _read(data: bytes) -> dict[str, Any]:
    """Content of a lease; empty if it is free, or not a valid document."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _named(owner: dict[str, Any]) -> str:
    known = {"pid", "host"} <= owner.keys()
    return f"process {owner['pid']!s:.20} on {owner['host']!s:.80}" if known else "unknown process"


def _owner(storage: Storage) -> dict[str, Any]:
    try:
        return _read(storage.get(DRIVER_LOCK if isinstance(storage, FolderStorage) else LEASE))
    except FileNotFoundError:
        return {}


def _refused(storage: Storage, owner: dict[str, Any]) -> RunConflictError:
    return RunConflictError(
        f"another command is writing to {storage.url!r} ({_named(owner)}). Wait for it, stop it, or choose another "
        "location."
    )


@contextmanager
def _hold_folder(storage: FolderStorage, on_wait: Wait) -> Iterator[str]:
    token = secrets.token_hex(8)
    with _opened(storage, DRIVER_LOCK) as driver, _opened(storage, WORKERS_LOCK) as workers:
        with _writing(storage):
            file_system.make_durable(storage.path)  # now, so that a warning comes before the work, not after it
        if not file_system.lock(driver, storage.path / DRIVER_LOCK):
            raise _refused(storage, _owner(storage))
        earlier = _owner(storage)
        with _writing(storage):  # before the wait, so that commands that start in the meantime report this process
            os.ftruncate(driver, 0)
            os.pwrite(driver, _document(token, 0), 0)
        _wait_for_orphans(storage, workers, earlier, on_wait)
        file_system.unlock(workers)
        yield token


def _wait_for_orphans(storage: FolderStorage, workers: int, earlier: dict[str, Any], on_wait: Wait) -> None:
    """Wait for workers whose driver was killed: they may still be writing, and end when Ray notices."""
    deadline = time.monotonic() + _ORPHANS_TIMEOUT_S
    told = False
    while not file_system.lock(workers, storage.path / WORKERS_LOCK):
        if not told:
            on_wait("workers of an earlier command are still writing; waiting for them to end")
            told = True
        if time.monotonic() > deadline:
            raise RunConflictError(
                f"workers of an earlier command ({_named(earlier)}) are still writing to {storage.url!r} after "
                f"{_ORPHANS_TIMEOUT_S:.0f} s. Stop them, then rerun to resume."
            )
        time.sleep(_LOOK_EVERY_S)


@contextmanager
def _writing(storage: FolderStorage) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write to {storage.url!r}: {error.strerror}. Fix this, then rerun.") from error


@contextmanager
def _opened(storage: FolderStorage, name: str) -> Iterator[int]:
    with _writing(storage):
        storage.path.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(storage.path / name)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """Open the file of a lock, and create it if necessary. Never opens another of the user's files."""
    refusal = (
        f"{path} is not a plain file with a single name, so writing to it could change another file. Delete it, and "
        "run again."
    )
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StorageError(refusal) from None
        raise
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
        os.close(descriptor)
        raise StorageError(refusal)
    return descriptor


@contextmanager
def _hold_objects(storage: ObjectStorage, on_wait: Wait) -> Iterator[str]:
    token = secrets.token_hex(8)
    found = storage.get_tagged(LEASE)
    if found is not None and _read(found[0]):
        found = _outwaited(storage, found, on_wait)
    if not storage.put_if(LEASE, _document(token, 0), found and found[1]):
        raise _refused(storage, _owner(storage))
    beating = _Beating(storage, token)
    beating.start()
    try:
        yield token
    finally:
        beating.stop()


def _outwaited(storage: ObjectStorage, found: tuple[bytes, Any], on_wait: Wait) -> tuple[bytes, Any] | None:
    """The lease, once its owner has not replaced it for long enough, as measured by this process alone."""
    owner = _read(found[0])
    on_wait(f"an earlier command ({_named(owner)}) did not release its lease; waiting {BEAT_S * MISSED_BEATS:.0f} s")
    deadline = time.monotonic() + BEAT_S * MISSED_BEATS
    while time.monotonic() < deadline:
        time.sleep(BEAT_S / 5)
        again = storage.get_tagged(LEASE)
        if again is None or not _read(again[0]):
            return again
        if again[0] != found[0]:
            raise _refused(storage, _read(again[0]))
    return found
