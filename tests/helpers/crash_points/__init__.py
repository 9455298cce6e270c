"""Crash points: a real process is killed, or refused, at the n-th call that changes a folder.

The calls are counted by a small library in C that is preloaded into the process and into all that it starts
(``shim.c``); the count is theirs together, so that captures with real actors have points too.

    shim = build(folder)                                          # or None where there is no compiler
    points = shim.count(["fewchannels", "capture", ...], [run])   # what each call does, in order
    shim.crash(["fewchannels", "capture", ...], [run], at=17, how=How.KILL_BEFORE)
"""

import os
import signal
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from preload import compiled

_STATE = struct.Struct("<4Q")  # count, at, how, session


class How(IntEnum):
    """What happens at a point."""

    NOTHING = 0
    KILL_BEFORE = 1
    KILL_AFTER = 2
    TORN = 3  # half of the bytes are written, then the process is killed; other calls than writes: as KILL_BEFORE
    REFUSE = 4  # this call alone fails with EIO
    FULL = 5  # this call and all later ones that take room fail with ENOSPC


KILLS = (How.KILL_BEFORE, How.KILL_AFTER, How.TORN)


@dataclass(frozen=True)
class Armed:
    """What a process and its children are to meet; the files of one run of a command."""

    state: Path
    log: Path

    def arm(self, at: int = 0, how: How = How.NOTHING, session: int = 0) -> None:
        """Begin to count at 0 again, and strike at a call; with a session, all of its processes are killed."""
        self.log.write_bytes(b"")
        with self.state.open("r+b") as file:  # in place: processes have it mapped
            file.write(_STATE.pack(0, at, how, session))

    def points(self) -> list[str]:
        """The calls so far: the name of each, and the path below its folder."""
        return self.log.read_text(encoding="utf-8").splitlines()


@dataclass(frozen=True)
class Shim:
    """The library, built."""

    library: Path

    def armed(self, folder: Path) -> Armed:
        """New files for a command's count and calls."""
        armed = Armed(folder / "crash.state", folder / "crash.log")
        armed.state.write_bytes(bytes(_STATE.size))
        armed.arm()
        return armed

    def environment(self, armed: Armed, watched: Sequence[Path]) -> dict[str, str]:
        """What a process needs to be counted."""
        return {
            "LD_PRELOAD": str(self.library),
            "CRASH_STATE": str(armed.state),
            "CRASH_LOG": str(armed.log),
            "CRASH_FOLDERS": ":".join(map(os.path.abspath, watched)),
        }

    def count(self, command: Sequence[str], watched: Sequence[Path], **options: Mapping[str, str]) -> list[str]:
        """Run a command undisturbed: what each of its calls does.

        Raises:
            AssertionError: the command failed.
        """
        done, points = self._run(command, watched, 0, How.NOTHING, whole_tree=False, **options)
        assert done.returncode == 0, done.stdout
        return points

    def crash(
        self,
        command: Sequence[str],
        watched: Sequence[Path],
        at: int,
        how: How,
        *,
        whole_tree: bool = False,
        **options: Mapping[str, str],
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that is struck at its call number ``at``, from 1.

        Args:
            command: what to run.
            watched: folders whose changes count.
            at: the call.
            how: what happens then.
            whole_tree: whether a kill ends every process that the command has started, not only the one that called.
            options: ``environment``: of the process, besides the test's own.
        """
        return self._run(command, watched, at, how, whole_tree=whole_tree, **options)[0]

    def _run(
        self,
        command: Sequence[str],
        watched: Sequence[Path],
        at: int,
        how: How,
        *,
        whole_tree: bool,
        environment: Mapping[str, str] | None = None,
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        with tempfile.TemporaryDirectory(prefix="crash-") as folder, tempfile.TemporaryFile("w+") as output:
            armed = self.armed(Path(folder))
            variables = os.environ | (environment or {}) | self.environment(armed, watched)
            # A leader that waits, so that the session is known before the command's first call.
            leader = ["sh", "-c", 'read go; exec "$@"', "sh", *command]
            process = subprocess.Popen(
                leader,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )
            armed.arm(at, how, process.pid if whole_tree else 0)
            try:
                process.communicate(b"\n", timeout=300)
            finally:
                end_session(process.pid)
                process.wait()
            output.seek(0)
            said = output.read()
            return subprocess.CompletedProcess(list(command), process.returncode, said), armed.points()


def end_session(session: int) -> None:
    """Kill what is left of a session, as the tests' own commands have one each."""
    for entry in Path("/proc").iterdir():
        with suppress(ProcessLookupError, PermissionError):
            if entry.name.isdecimal() and os.getsid(int(entry.name)) == session:
                os.kill(int(entry.name), signal.SIGKILL)


def build(folder: Path) -> Shim | None:
    """Compile the library into a folder; None where that cannot be done."""
    library = compiled(Path(__file__).with_name("shim.c"), folder)
    return Shim(library) if library else None
