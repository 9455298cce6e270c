"""Run tasks on Ray actors: as many as fit, with replacements for those that die, and one outcome per task.

Not Ray Data, which took 8 s of the driver's CPU and 20 MB for every 1,000 tasks (4,000 empty ones, Ray 2.60; this takes
0.5 s and none), ended the run with an actor that had died three times, and could not report how many actors there were.
"""

import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import state as cluster_state  # Ray has no public interface for nodes that are about to leave

from fewchannels.cluster.folder import enter, working_folder
from fewchannels.cluster.nodes import NodeWatch
from fewchannels.cluster.notes import noting
from fewchannels.cluster.outcome import TASKS_AT_ONCE, Start, State, outcome_of, refusing
from fewchannels.cluster.session import MACHINE_FAULT_RETRIES
from fewchannels.cluster.shares import Pool
from fewchannels.cluster.telemetry import ActorTelemetry, PoolTelemetry, labels
from fewchannels.cluster.work import Work
from fewchannels.errors import FewchannelsError
from fewchannels.models.timings import collected
from fewchannels.runs.ledger import Ledger
from fewchannels.settings.environment import settle_environment

NODE_FAULT_RETRIES = 10
"""Number of node losses that a task may survive; losing a node says little about the task."""
_TURN_S = 1.0
_LONGEST_PAUSE_S = 60.0


class Actor:
    """A Ray actor that wraps a worker.

    Args:
        work: work that the tasks belong to.
        start: function that creates the worker.
        n_threads: CPU threads for PyTorch.
        device: ``cuda`` or ``cpu``, depending on its share; None to choose by the machine.
        folder: the driver's working directory, the base of relative paths; empty for the current one.
    """

    def __init__(self, work: Work, start: Start, n_threads: int, device: str | None = None, folder: str = "") -> None:
        enter(folder)
        settle_environment()  # the node may have been started without it
        if device == "cpu":
            # Ray shows all GPUs to an actor that has none (since 2.60), and libraries take what they find.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._work, self._ledger = work, Ledger(work.storage)
        self._telemetry, failure = ActorTelemetry(work, start), None
        try:
            self._worker = start(work, n_threads, device)
        except FewchannelsError as error:  # other actors would fail in the same way; the driver ends the run
            self._worker, failure = refusing(error), error
        self._telemetry.started(failure)

    def node(self) -> str:
        """Ray's id of the actor's node; returns when the model is loaded."""
        return ray.get_runtime_context().get_node_id()

    def do(self, task: int) -> dict[str, Any]:
        """Run a task; returns ``task``, ``error`` and ``fatal`` (both None on success), ``n_bytes`` and ``notes``."""
        self._telemetry.task_started(task)
        with collected() as stages, noting() as notes:
            outcome, record = outcome_of(self._work, self._ledger, self._worker, task)
        outcome["notes"] = notes
        self._telemetry.task_ended(outcome, record, stages)
        return outcome


@dataclass(eq=False)
class _Member:
    """The driver's view of one actor."""

    actor: Any
    node: str = ""
    tasks: set[int] = field(default_factory=set)
    leaves: bool = False
    is_lost: bool = False


def outcomes(
    work: Work,
    start: Start,
    tasks: list[int],
    pool: Pool,
    on_turn: Callable[[State], None] = lambda state: None,
) -> Generator[dict[str, Any]]:
    """Run tasks on the pool; yields the outcome of each as it ends, in any order.

    Actors without room wait, which makes Ray's autoscaler add nodes; actors without remaining work end. A task whose
    actor died is retried, at most :data:`MACHINE_FAULT_RETRIES` times, or :data:`NODE_FAULT_RETRIES` times if its node
    was lost. Nodes with a preemption notice get no more tasks.

    Args:
        work: work that the tasks belong to.
        start: function that creates a worker.
        tasks: tasks to run.
        pool: pool of actors.
        on_turn: called with the pool's state, at least once a second; an exception from it ends the pool.

    Raises:
        FewchannelsError: actors keep dying before any task is finished and no other actor works, or no node is left.
    """
    crew = _Crew(work, start, tasks, pool)
    try:
        while crew.is_busy():
            on_turn(crew.state())
            yield from crew.turn()
        on_turn(crew.state())
    finally:
        crew.end()


class _Crew:
    def __init__(self, work: Work, start: Start, tasks: list[int], pool: Pool) -> None:
        self._waiting = deque(tasks)
        self._most = min(pool.n_actors, len(tasks))
        self._arguments = (work, start, pool.cpus_per_actor, pool.device, working_folder())
        self._remote = ray.remote(
            num_cpus=pool.cpus_per_actor,
            num_gpus=pool.gpus_per_actor,
            max_concurrency=TASKS_AT_ONCE,
            max_restarts=0,  # a new actor takes its place, on any node
            max_task_retries=0,
        )(Actor)
        self._label, self._telemetry = " ".join(labels(work, start).values()), PoolTelemetry(work, start)
        self._starting: dict[Any, _Member] = {}
        self._members: list[_Member] = []
        self._running: dict[Any, tuple[_Member, int]] = {}
        self._tries: Counter[tuple[int, bool]] = Counter()  # by task, and whether it was the node
        self._n_begun = self._n_deaths = self._n_stillborn = 0
        self._hires_from = self._looked = -math.inf
        self._state, self._nodes = State(), NodeWatch(pool)

    def is_busy(self) -> bool:
        return bool(self._waiting or self._running)

    def state(self) -> State:
        self._state.n_actors, self._state.n_starting = len(self._members), len(self._starting)
        return self._state

    def turn(self) -> Iterator[dict[str, Any]]:
        """Start actors, assign tasks, and wait briefly; yields outcomes."""
        self._hire()
        self._look_at_nodes()
        self._hand_out()
        self._tell()
        waited = [*self._starting, *self._running]
        ready, _ = ray.wait(waited, timeout=_TURN_S)
        if ready:
            ready, _ = ray.wait(waited, num_returns=len(waited), timeout=0)
        for reference in ready:
            if reference in self._starting:
                self._started(reference)
            elif (outcome := self._ended(reference)) is not None:
                yield outcome
        self._dismiss()

    def end(self) -> None:
        """End all actors."""
        for member in (*self._members, *self._starting.values()):
            _kill(member)
        for each in (self._members, self._starting, self._running):
            each.clear()
        self._tell(at_once=True)

    def _tell(self, *, at_once: bool = False) -> None:
        state = self.state()
        told = {
            "tasks_waiting": len(self._waiting),
            "tasks_running": len(self._running),
            "tasks_handed_out_again": state.n_again,
            "actors_live": state.n_actors,
            "actors_starting": state.n_starting,
            "actors_lost": state.n_lost,
        }
        self._telemetry.tell(told, at_once=at_once)

    def _hire(self) -> None:
        if time.monotonic() < self._hires_from:
            return
        staying = sum(not member.leaves for member in self._members) + len(self._starting)
        wanted = min(self._most, len(self._waiting) + sum(bool(each.tasks) for each in self._members))
        for _ in range(wanted - staying):
            self._n_begun += 1
            member = _Member(self._remote.options(name=f"{self._label} {self._n_begun}").remote(*self._arguments))
            self._starting[member.actor.node.remote()] = member

    def _look_at_nodes(self) -> None:
        if time.monotonic() < self._looked + _TURN_S:
            return
        self._nodes.look(has_actors=bool(self._members))
        self._looked, leaving = time.monotonic(), cluster_state.get_draining_nodes()
        for member in self._members:
            member.leaves = member.node in leaving

    def _hand_out(self) -> None:
        """Assign tasks to idle actors first, and second tasks only while more tasks wait than there are actors."""
        staying = [member for member in self._members if not member.leaves]
        for n_tasks in range(TASKS_AT_ONCE):
            for member in staying:
                if not self._waiting or (n_tasks and len(self._waiting) <= len(staying)):
                    return
                # A task whose actor died runs alone in its next actor, so that it cannot fail another one again.
                is_suspect = any(self._tries[task, False] for task in (self._waiting[0], *member.tasks))
                if len(member.tasks) == n_tasks and not (n_tasks and is_suspect):
                    task = self._waiting.popleft()
                    member.tasks.add(task)
                    self._running[member.actor.do.remote(task)] = member, task

    def _started(self, reference: Any) -> None:
        member = self._starting.pop(reference)
        try:
            member.node = ray.get(reference)
        except ray.exceptions.RayActorError as error:
            self._lose(member, error)
            # If no actor can start on a node, those on other nodes continue; it is retried, less and less often.
            self._n_stillborn += 1
            self._hires_from = time.monotonic() + min(2 ** (self._n_stillborn - 2), _LONGEST_PAUSE_S)
        else:
            self._members.append(member)
            self._n_stillborn = 0

    def _ended(self, reference: Any) -> dict[str, Any] | None:
        """The outcome of a task; None if it must be retried."""
        member, task = self._running.pop(reference)
        member.tasks.discard(task)
        try:
            outcome = ray.get(reference)
        except ray.exceptions.RayActorError as error:
            self._lose(member, error)
            of_node = _is_of_node(error)
            self._tries[task, of_node] += 1
            if self._tries[task, of_node] > (NODE_FAULT_RETRIES if of_node else MACHINE_FAULT_RETRIES):
                n = self._tries[task, of_node]
                return {"task": task, "error": f"its actor died {n} times: {error}", "fatal": None, "n_bytes": 0}
            self._state.n_again += 1
            self._state.reassigned.add(task)
            self._waiting.appendleft(task)
            return None
        self._n_deaths = 0
        return outcome

    def _lose(self, member: _Member, error: ray.exceptions.RayActorError) -> None:
        """Handle an actor that died or is unreachable, as reported by each of its tasks."""
        if member.is_lost:
            return
        member.is_lost = True
        if member in self._members:
            self._members.remove(member)
        _kill(member)  # one that is only unreachable must not return beside its replacement
        self._state.n_lost += 1
        self._n_deaths += not _is_of_node(error)
        is_last = not any(each.tasks for each in self._members)
        if is_last and self._n_deaths > MACHINE_FAULT_RETRIES * self._most:
            raise FewchannelsError(
                f"{self._n_deaths} actors died before any task was finished, the last with: {str(error).strip()}"
            )

    def _dismiss(self) -> None:
        """End actors without remaining work or on nodes that are about to leave, and release their resources."""
        for member in [each for each in self._members if not each.tasks and (each.leaves or not self._waiting)]:
            self._members.remove(member)
            _kill(member)
        if not self._waiting:
            for reference, member in list(self._starting.items()):
                del self._starting[reference]
                _kill(member)


def _kill(member: _Member) -> None:
    with suppress(Exception):  # it may be gone, or unreachable
        ray.kill(member.actor, no_restart=True)


def _is_of_node(error: ray.exceptions.RayActorError) -> bool:
    """Return whether an actor was lost with its node, or with the connection to it."""
    is_unreachable = isinstance(error, ray.exceptions.ActorUnavailableError)
    return is_unreachable or error.preempted or "node has died" in str(error)
