"""Tasks in this process, where one worker does them all: no Ray has to start, and nothing is imported twice.

What this gives up is what processes of their own are for: where native code crashes or memory runs out, this process
ends, and the same command resumes.
"""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from fewchannels.cluster.notes import noting
from fewchannels.cluster.outcome import TASKS_AT_ONCE, Start, State, outcome_of, refusing
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
    """Do tasks with one worker; yields each one's outcome as it ends.

    The next task is generated while one is written. Whatever ends this early ends the generation as well, at its next
    forward.

    Args:
        work: whose tasks.
        start: makes the worker.
        tasks: to do.
        pool: whose one worker's share is this process's.
        on_turn: called with the state, at least once a second; what it raises ends the work.
    """
    ledger, waiting, running = Ledger(work.storage), deque(tasks), set[Future[dict[str, Any]]]()
    worker: Callable[[int], Record]

    def started() -> Callable[[int], Record]:
        try:
            return start(work, pool.cpus_per_actor, pool.device)
        except FewchannelsError as error:
            return refusing(error)

    def do(task: int) -> dict[str, Any]:
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
        with interrupting():
            threads.shutdown(cancel_futures=True)
