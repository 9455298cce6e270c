"""One worker of this process: how it ends early, with tasks that only wait."""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from stub_work import StubWork

from fewchannels.cluster import here
from fewchannels.cluster.outcome import State
from fewchannels.cluster.shares import Pool
from fewchannels.errors import InputError, StorageError
from fewchannels.models.interruption import check_interrupted
from fewchannels.runs.ledger import Record

ALONE = Pool(1, 0, 1)
GENERATES = threading.Event()


def generate_for_ever(task: int) -> Record:
    """As a model's generation does: at each forward it looks whether it is to end."""
    GENERATES.set()
    while True:
        check_interrupted()
        time.sleep(0.01)


def start_full_disk(work: StubWork, n_threads: int, device: str | None) -> Callable[[int], Record]:
    """A worker whose first task ends with a full disk while the second is generated."""

    def do(task: int) -> Record:
        if task:
            return generate_for_ever(task)
        assert GENERATES.wait(60)
        raise StorageError("No space left on device")

    return do


def start_endless(work: StubWork, n_threads: int, device: str | None) -> Callable[[int], Record]:
    return generate_for_ever


def start_none(work: StubWork, n_threads: int, device: str | None) -> Callable[[int], Record]:
    raise InputError("there is no model 'nothing'")


@pytest.fixture
def work(tmp_path: Path) -> StubWork:
    GENERATES.clear()
    return StubWork(str(tmp_path), 3)


def test_a_task_that_ends_all_ends_the_generation_beside_it_at_its_next_forward(work: StubWork) -> None:
    before = threading.active_count()
    with closing(here.outcomes(work, start_full_disk, [0, 1, 2], ALONE)) as outcomes:
        first = next(outcomes)
    assert (first["task"], first["fatal"], first["error"]) == (0, "StorageError", "No space left on device")
    assert threading.active_count() == before
    check_interrupted()  # what is generated from now on is not


def test_what_the_driver_raises_at_a_turn_ends_the_generation(work: StubWork) -> None:
    def on_turn(state: State) -> None:
        if state.n_actors and GENERATES.is_set():
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        list(here.outcomes(work, start_endless, [0, 1, 2], ALONE, on_turn))
    assert threading.active_count() == before


def test_a_worker_that_cannot_start_ends_all_with_its_reason(work: StubWork) -> None:
    states: list[State] = []
    (first, *_) = outcomes = list(here.outcomes(work, start_none, [0, 1, 2], ALONE, states.append))
    assert first == {"task": first["task"], "error": "there is no model 'nothing'", "fatal": "InputError"} | rest(first)
    assert [each["fatal"] for each in outcomes] == ["InputError"] * 3
    assert states[-1] == State()


def rest(outcome: dict[str, Any]) -> dict[str, Any]:
    return {key: outcome[key] for key in ("n_bytes", "notes")}


@pytest.mark.parametrize(
    ("pool", "n_tasks", "is_here"),
    [
        (Pool(1, 0, 1), 9, True),
        (Pool(4, 0, 1), 1, True),
        (Pool(2, 0, 1), 2, False),
        (Pool(1, 1, 1), 9, True),
        (Pool(1, 2, 1), 9, False),  # Ray shows an actor so many GPUs and no more
        (Pool(1, 0, 1, "auto"), 9, False),
    ],
)
def test_one_worker_without_a_cluster_is_this_process(pool: Pool, n_tasks: int, is_here: bool) -> None:
    assert pool.is_here(n_tasks) is is_here
