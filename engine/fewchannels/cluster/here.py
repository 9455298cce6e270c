"""Run tasks in this process if there is one worker: without Ray, and without importing PyTorch twice.

The isolation of separate processes is lost: if native code crashes or memory runs out, this process ends, and the same
command resumes.
"""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import Any

from fewchannels.cluster.notes import noting
from fewchannels.cluster.outcome import TASKS_AT_ONCE, Closes, Start, State, outcome_of, refusing
from fewchannels.cluster.shares import Pool
from fewchannels.cluster.work import Work
from fewchannels.errors import FewchannelsError
from fewchannels.models.interruption import interrupting
from fewchannels.runs.ledger import Ledger, Record

_TURN_S = 1.0


def outcomes(
    work: Work,
    start: Start,
    tasks: list[int],
    pool: Pool,
    on_turn: Callable[[State], None] = lambda state: None,
) -> Generator[dict[str, Any]]:
    """Run tasks with one worker; yield the outcome of each as it ends.

    The next task is generated while one is written. If this ends early, so does the generation, at its next forward.

    Args:
        work: work that the tasks belong to.
        start: makes the worker.
        tasks: numbers of the tasks.
        pool: pool of one worker, whose share this process has.
        on_turn: called with the state at least once a second; an exception that it raises ends the work.
    """
    ledger, waiting, running = Ledger(work.storage), deque(tasks), set[Future[dict[str, Any]]]()
    worker: Callable[[int], Record] | None = None

    def started() -> Callable[[int], Record]:
        try:
            return start(work, pool.cpus_per_actor, pool.device)
        except FewchannelsError as error:
            return refusing(error)

    def do(task: int) -> dict[str, Any]:
        assert worker is not None
        with noting() as notes:
            outcome, _ = outcome_of(work, ledger, worker, task)
        return outcome | {"notes": notes}

    threads = ThreadPoolExecutor(TASKS_AT_ONCE, "task")
    try:
        starting = threads.submit(started)
        while not wait([starting], timeout=_TURN_S).done:
            on_turn(State(n_starting=1))
        worker = starting.result()
        while waiting or running:
            while waiting and len(running) < TASKS_AT_ONCE:
                running.add(threads.submit(do, waiting.popleft()))
            on_turn(State(n_actors=1))
            done, running = wait(running, timeout=_TURN_S, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()
        on_turn(State())
    finally:
        with interrupting() if running else nullcontext():
            threads.shutdown(cancel_futures=True)
        if isinstance(worker, Closes):  # this process may continue, and start other work
            worker.close()
