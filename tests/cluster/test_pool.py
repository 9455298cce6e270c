"""The pool of actors on a real Ray of several nodes: nodes that join, die, leave and are slow; tasks that kill."""

import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import s3_server as s3
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _internal_kv_get
from stub_work import StubWork, start_dead, start_stub, start_where_it_can

from fewchannels.cluster import nodes
from fewchannels.cluster.nodes import NoRoomWarning, lacking
from fewchannels.cluster.outcome import State
from fewchannels.cluster.parallel import mapped
from fewchannels.cluster.pool import outcomes
from fewchannels.cluster.shares import Pool
from fewchannels.cluster.sizing import choose_pool
from fewchannels.cluster.tasks import Progress, run_tasks
from fewchannels.errors import FewchannelsError, InputError

TESTS = str(Path(__file__).parents[1] / "helpers")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without a CPU, as cluster.yaml has it."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": TESTS}})
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def node(cluster: Cluster) -> Iterator[Callable[[], object]]:
    """A function that adds a node, of one CPU if nothing else is said; nodes are gone after the test."""
    added = []

    def add(num_cpus: int = 1, num_gpus: int = 0) -> object:
        added.append(cluster.add_node(num_cpus=num_cpus, num_gpus=num_gpus))
        return added[-1]

    yield add
    for each in added:
        if each in cluster.worker_nodes:
            cluster.remove_node(each)
    ends = time.monotonic() + 60
    while sum(each["Alive"] for each in ray.nodes()) > 1:  # a node that is gone may be counted for some seconds yet
        assert time.monotonic() < ends
        time.sleep(0.1)


def pool(n: int) -> Pool:
    return Pool(n, 0, 1, "auto")


def kinds(work: StubWork, what: str) -> Counter[int]:
    return Counter(line["task"] for line in work.diary() if line["what"] == what)


def nodes_of(work: StubWork) -> Counter[str]:
    return Counter(line["node"] for line in work.diary() if line["what"] == "done")


def is_at_a_long_task(work: StubWork, node: object) -> bool:
    """Whether a node has begun a task since it was made slow, which this does the first time.

    A node's end takes a moment, in which its actors work on: a short task may be done before, and is not lost then.
    """
    mark = Path(work.folder, f"slow-{node.node_id}")
    if not mark.exists():
        mark.touch()
    begun = (line["time"] for line in work.diary() if (line["what"], line["node"]) == ("begun", node.node_id))
    return max(begun) > mark.stat().st_mtime


def test_a_node_that_joins_is_used_and_one_that_dies_costs_the_tasks_it_was_at(
    cluster: Cluster, node: Callable, tmp_path: Path
) -> None:
    work, states = StubWork(str(tmp_path), 60, 0.4, n_actors=2), []
    first = node()
    running = outcomes(work, start_stub, list(range(60)), pool(2), lambda state: states.append(State(**vars(state))))
    done = [next(running)["task"] for _ in range(5)]
    assert max(state.n_actors for state in states) == 1
    assert states[-1].n_starting == 1, "the second waits for room"
    second = node()
    while len(nodes_of(work)) < 2 or not is_at_a_long_task(work, first):
        done.append(next(running)["task"])
    cluster.remove_node(first, allow_graceful=False)
    done += [outcome["task"] for outcome in running]
    assert sorted(done) == list(range(60)), "one outcome each"
    assert set(nodes_of(work)) == {first.node_id, second.node_id}
    again = sum(kinds(work, "begun").values()) - 60
    assert 0 < again <= 2, "what it was at, and no more"
    assert again <= states[-1].n_again <= 2, "one of them may not have begun"
    assert (len(states[-1].reassigned), states[-1].n_lost) == (states[-1].n_again, 1)


def test_actors_without_a_gpu_see_none_of_their_nodes(
    cluster: Cluster, node: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # as a node's environment has it
    node()
    work = StubWork(str(tmp_path), 4)
    list(outcomes(work, start_stub, [0, 1, 2, 3], pool(1)))
    assert {(line["gpus"], line["device"]) for line in work.diary()} == {("", "cpu")}


def test_threads_of_an_actor_sleep_while_they_wait_whoever_started_its_node(
    cluster: Cluster, node: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY")
    node()
    work = StubWork(str(tmp_path), 1)
    list(outcomes(work, start_stub, [0], pool(1)))
    assert {line["waits"] for line in work.diary()} == {"passive"}


def test_a_node_that_dies_costs_no_task_in_an_object_store(
    cluster: Cluster, node: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3.s3_server(seed=3) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)  # before there are nodes, whose actors have it from them
        work = StubWork(str(tmp_path), 30, 0.3, n_actors=2, place=f"s3://{s3.BUCKET}/RUN")
        first, second = node(), node()

        def on_progress(progress: Progress) -> None:
            if first in cluster.worker_nodes and len(nodes_of(work)) == 2 and is_at_a_long_task(work, first):
                cluster.remove_node(first, allow_graceful=False)

        with server.failing(0.05):
            outcome = run_tasks(work, start_stub, pool(2), on_progress)
        assert (outcome.n_done, outcome.failed_tasks) == (30, {})
        assert outcome.n_again in (1, 2)
        assert nodes_of(work)[second.node_id] > nodes_of(work)[first.node_id]
        assert all(work.storage.get(f"data/{task:05d}.bin")[0] == task for task in range(30))


def test_a_node_that_is_about_to_go_gets_no_more_tasks_and_nothing_is_done_twice(
    cluster: Cluster, node: Callable, tmp_path: Path
) -> None:
    work = StubWork(str(tmp_path), 50, 0.25, n_actors=2)
    leaving, staying = node(), node()
    running = outcomes(work, start_stub, list(range(50)), pool(2))
    done = []
    while len(nodes_of(work)) < 2:
        done.append(next(running)["task"])
    drain = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address, "--node-id"]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds"]
    subprocess.run([*drain, leaving.node_id, *reason, "600"], check=True, capture_output=True)
    noticed = time.time() + 2.5  # at the next look, and what it was handed before
    done += [outcome["task"] for outcome in running]
    late = [line for line in work.diary() if line["node"] == leaving.node_id and line["time"] > noticed]
    assert late == []
    assert sorted(done) == list(range(50))
    assert set(kinds(work, "begun").values()) == {1}
    assert nodes_of(work)[staying.node_id] > nodes_of(work)[leaving.node_id]


def test_a_slow_node_does_less_and_the_last_tasks_do_not_wait_for_it(node: Callable, tmp_path: Path) -> None:
    work = StubWork(str(tmp_path), 40, 0.15, n_actors=2)
    slow, _ = node(), node()
    (tmp_path / f"slow-{slow.node_id}").touch()
    list(outcomes(work, start_stub, list(range(40)), pool(2)))
    assert 0 < nodes_of(work)[slow.node_id] <= 12
    ends = {line["node"]: line["time"] for line in work.diary() if line["what"] == "done"}
    assert abs(ends[slow.node_id] - max(ends.values())) < 2 * 1.5 + 1, "at most what it was at is waited for"


def test_a_task_that_kills_its_actor_fails_alone(
    node: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewchannels.cluster.pool.MACHINE_FAULT_RETRIES", 1)
    node(), node()
    work = StubWork(str(tmp_path), 10, deadly=4)
    outcome = run_tasks(work, start_stub, pool(2))
    assert (outcome.n_done, list(outcome.failed_tasks)) == (9, [4])
    assert "its actor died 2 times" in outcome.failed_tasks[4]
    assert kinds(work, "begun")[4] == 2
    assert set(kinds(work, "done").values()) == {1}


def test_actors_that_die_at_once_end_the_run_with_the_reason(
    node: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewchannels.cluster.pool.MACHINE_FAULT_RETRIES", 1)
    node()
    with pytest.raises(FewchannelsError, match="2 actors died before any task was finished"):
        list(outcomes(StubWork(str(tmp_path), 3), start_dead, [0, 1, 2], pool(1)))


def test_a_node_on_which_no_actor_starts_does_not_end_the_work_of_the_others(
    node: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewchannels.cluster.pool.MACHINE_FAULT_RETRIES", 1)
    bad, good = node(), node()
    (tmp_path / f"bad-{bad.node_id}").touch()
    work, states = StubWork(str(tmp_path), 6), []
    running = outcomes(
        work, start_where_it_can, list(range(6)), pool(2), lambda state: states.append(State(**vars(state)))
    )
    assert sorted(outcome["task"] for outcome in running) == list(range(6))
    assert set(nodes_of(work)) == {good.node_id}
    assert set(kinds(work, "begun").values()) == {1}
    assert states[-1].n_lost >= 4


def test_what_a_cut_off_actor_wrote_after_its_successor_is_done_again(
    cluster: Cluster, node: Callable, tmp_path: Path
) -> None:
    """The successor's record names other bytes than the late writer's, which are there."""
    first = node()
    node()
    work, late = StubWork(str(tmp_path), 30, 0.3, n_actors=2), []

    def write_late() -> None:
        for path in (tmp_path / "data").glob("*.bin"):
            late.append(path.name)
            path.write_bytes(b"late")

    def on_progress(progress: Progress) -> None:
        if first in cluster.worker_nodes and len(nodes_of(work)) == 2 and is_at_a_long_task(work, first):
            cluster.remove_node(first, allow_graceful=False)
        if not late and work.diary() and sum(kinds(work, "done").values()) == 30:
            write_late()

    outcome = run_tasks(work, start_stub, pool(2), on_progress)
    assert outcome.n_done == 30
    assert outcome.n_again in (1, 2), "of the first round, though a second one has followed"
    assert late
    begun_twice = {task for task, n in kinds(work, "begun").items() if n > 1}
    assert begun_twice
    for task in begun_twice:
        assert (tmp_path / "data" / f"{task:05d}.bin").read_bytes() == task.to_bytes(8, "little")


def test_actors_share_a_gpu_or_own_several(cluster: Cluster, node: Callable, tmp_path: Path) -> None:
    """Ray's own count of GPUs, which a node may be given without having any; it says which are whose."""
    node(num_cpus=4, num_gpus=2)
    owners: dict[float, set[tuple[str, int]]] = {}
    for gpus, n_actors in ((0.5, 4), (2, 1)):
        (tmp_path / str(gpus)).mkdir()
        work = StubWork(str(tmp_path / str(gpus)), 12, 0.1, n_actors=n_actors)
        assert len(list(outcomes(work, start_stub, list(range(12)), Pool(n_actors, gpus, 1, "auto")))) == 12
        owners[gpus] = {(line["gpus"], line["pid"]) for line in work.diary()}
    assert sorted(gpus for gpus, _ in owners[0.5]) == ["0", "0", "1", "1"]
    assert [gpus for gpus, _ in owners[2]] == ["0,1"]


def test_a_cluster_is_counted_where_nothing_is_said(cluster: Cluster, node: Callable) -> None:
    with pytest.raises(InputError, match="Give --actors"):
        choose_pool(None, None, cluster.address)
    assert choose_pool(3, 1, cluster.address, 8) == Pool(3, 1, 8, cluster.address)
    node(), node()
    assert choose_pool(None, None, cluster.address) == Pool(2, 0.0, 1, cluster.address)


def test_a_share_that_no_node_has_is_refused_where_no_node_will_be_started(node: Callable, cluster: Cluster) -> None:
    """Its actors would wait for ever."""
    node(num_cpus=2, num_gpus=1)
    ends = time.monotonic() + 60
    while _internal_kv_get(DEBUG_AUTOSCALING_STATUS) is None:  # until then it is not known whether nodes will be
        assert time.monotonic() < ends
        time.sleep(0.2)
    for shares, says in (
        ((1, None, "auto", 64), "no node has 64 CPUs; the largest has 2 CPUs and 1 GPU"),
        ((1, 2.0, "auto", 1), "no node has 2 GPUs; the largest has 2 CPUs and 1 GPU"),
        ((None, 0, "auto", 3), "no node has 3 CPUs; the largest has 2 CPUs. Request fewer"),
    ):
        with pytest.raises(InputError, match=says):
            choose_pool(*shares)
    assert choose_pool(5, None, "auto", 2) == Pool(5, 1.0, 2, "auto")


def test_what_no_node_has_is_said(cluster: Cluster) -> None:
    nodes = [{"CPU": 2.0}, {"CPU": 64.0}, {"CPU": 4.0, "GPU": 1.0}]
    assert lacking(nodes, 0, 64) == ""
    assert lacking(nodes, 0.5, 4) == ""
    assert lacking(nodes, 0, 65) == "no node has 65 CPUs; the largest has 64 CPUs"
    assert lacking(nodes, 1, 8) == "no node has both 8 CPUs and 1 GPU; the most of each is 64 CPUs and 1 GPU"
    assert lacking([{"CPU": 2.0}], 1, 1) == "no node has 1 GPU; the largest has 2 CPUs and 0 GPUs"


def test_actors_that_wait_for_a_node_that_is_large_enough_say_so_once_and_begin_when_it_joins(
    cluster: Cluster, node: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_NO_ROOM_S", 2.0)
    node()
    work, joined = StubWork(str(tmp_path), 2), False

    def join_when_warned(state: State) -> None:
        nonlocal joined
        if found and not joined:
            joined = True
            node(num_cpus=3)

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        done = list(outcomes(work, start_stub, [0, 1], Pool(1, 0, 3, "auto"), join_when_warned))
    assert [outcome["error"] for outcome in done] == [None, None]
    own = [str(each.message) for each in found if issubclass(each.category, NoRoomWarning)]
    assert own == ["no node has 3 CPUs; the largest has 1 CPU. Waiting for such a node to join; press Ctrl+C to stop."]


def test_small_work_that_waits_for_a_node_says_so_too(
    cluster: Cluster, node: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_NO_ROOM_S", 2.0)
    node()
    with pytest.raises(NoRoomWarning, match="no node has 1 GPU; the largest has 1 CPU and 0 GPUs"):
        list(mapped(abs, [-1, -2], Pool(2, 1.0, 1, "auto")))
