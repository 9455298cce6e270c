"""Many commands in a row, each in a fork of one process that has imported everything: a tenth of a second a command.

Run under the shim; a command is a line of JSON on the standard input, its exit code a line of the answer. Nothing is
replaced but Ray: an actor in the process itself does the tasks, by the worker's own code.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from crash_points import Armed, How, Shim


class Forks:
    """The process, and what its commands meet. One command at a time.

    Args:
        folder: where its files go.
        shim: the library; without it nothing is counted, and nothing struck.
        watched: folders whose changes count.
        environment: of the process, besides the test's own.
    """

    def __init__(
        self,
        folder: Path,
        shim: Shim | None = None,
        watched: Sequence[Path] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.armed: Armed | None = shim.armed(folder) if shim else None
        counted = shim.environment(self.armed, watched) if shim and self.armed else {}
        self._said = folder / "said"
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self._said)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | (environment or {}) | counted,
            text=True,
        )

    def run(self, arguments: Sequence[str], at: int = 0, how: How = How.NOTHING) -> int:
        """A command's exit code, negative where a signal ended it.

        Args:
            arguments: of ``fewchannels``.
            at: the call to strike at, from 1; 0 for none.
            how: what happens then.
        """
        assert self._process.stdin
        assert self._process.stdout
        if self.armed:
            self.armed.arm(at, how)
        self._process.stdin.write(json.dumps(list(arguments)) + "\n")
        self._process.stdin.flush()
        self._child = int(self._process.stdout.readline())
        return int(self._process.stdout.readline())

    def kill(self) -> None:
        """Kill the command that runs now."""
        os.kill(self._child, signal.SIGKILL)

    def said(self) -> str:
        """What the last command printed."""
        return self._said.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """End the process, at once: it has nothing to put away."""
        self._process.kill()
        self._process.communicate()


def _one_after_the_other() -> None:
    """Have one worker of the process that asks for tasks do them, and each when the one before is written.

    Calls are counted, so that the same one is the same in every run: two tasks at once would mix theirs.
    """
    from fewchannels.cluster import tasks
    from fewchannels.cluster.outcome import Start
    from fewchannels.cluster.pool import Actor
    from fewchannels.cluster.shares import Pool
    from fewchannels.cluster.work import Work
    from fewchannels.runs import lease
    from fewchannels.runs.upkeep import pull

    def outcomes(work: Work, start: Start, numbers: list[int], pool: Pool, on_turn: Any) -> Iterator[dict[str, Any]]:
        actor = Actor(work, start, 1)
        yield from map(actor.do, numbers)

    # A lease in a bucket is waited for so many times as long.
    lease.BEAT_S = float(os.environ.get("CRASH_BEAT_S", lease.BEAT_S))
    pull._AT_ONCE = 1
    tasks._workers = lambda pool, is_here: nullcontext(outcomes)


def _serve(said: str) -> None:
    import torch

    import fewchannels.analyses.comparison.compare
    import fewchannels.analyses.figures.still
    import fewchannels.captures.worker
    import fewchannels.interventions.effects.measure
    import fewchannels.interventions.worker
    import fewchannels.runs.upkeep.datasets
    import fewchannels.runs.upkeep.verify
    import fewchannels.views.report.build  # noqa: F401
    from fewchannels.cli import main

    torch.set_num_threads(1)
    _one_after_the_other()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.close(0)
            file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.argv = ["fewchannels", *json.loads(line)]
            code = 0
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException:
                sys.excepthook(*sys.exc_info())
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(child, flush=True)  # noqa: T201
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve(sys.argv[1])
