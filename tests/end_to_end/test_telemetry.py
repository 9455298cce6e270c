"""What actors tell, read where others would: at the nodes' Prometheus endpoints, and in Ray's log files."""

import json
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray.cluster_utils import Cluster
from stub_work import StubWork

from fewchannels.cluster import telemetry
from fewchannels.cluster.outcome import State
from fewchannels.cluster.pool import Actor, outcomes
from fewchannels.cluster.shares import Pool
from fewchannels.errors import InputError
from fewchannels.models.timings import took
from fewchannels.runs.ledger import Ledger, Record

TESTS = f"{Path(__file__).parent}:{Path(__file__).parents[1] / 'helpers'}"
DASHBOARD = Path(__file__).parents[2] / "docs" / "cluster" / "grafana.json"
PREFIX = "ray_fewchannels_"
N_TASKS, ROWS, FAULTY, PARTLY = 8, 3, 5, 2
N_DONE = N_TASKS - 1
MODEL_S = 0.125
N_BYTES = N_DONE * 8


@dataclass(frozen=True)
class Work(StubWork):
    """Tasks of three rows each; one fails, and of one a sample does."""

    def rows(self, task: int) -> range:
        return range(ROWS * task, ROWS * (task + 1))


def start_told(work: Work, n_threads: int, device: str | None) -> Callable[[int], Record]:
    """A sleeping worker, of an actor whose GPU has 7 bytes in use; it has started when there are two."""
    telemetry._gpu_bytes = lambda: 7
    Path(work.folder, f"{os.getpid()}.started").touch()
    while len(list(Path(work.folder).glob("*.started"))) < 2:
        time.sleep(0.1)
    time.sleep(2.5)  # reports are a second apart, and one of them is to see both actors starting
    return start_sleeping(work, n_threads, device)


def start_sleeping(work: Work, n_threads: int, device: str | None) -> Callable[[int], Record]:
    """A worker that sleeps."""

    def do(task: int) -> Record:
        time.sleep(work.seconds)
        took("model", MODEL_S)
        took("wait", 0.25)
        took("wait", 0.25)
        if task == FAULTY:
            raise ValueError(f"task {task} went\nwrong")
        n_failed, rows = int(task == PARTLY), work.rows(task)
        key = f"data/{task:05d}.bin"
        objects = {key: work.storage.put(key, [task.to_bytes(8, "little")])}
        counts = {"attempt": 1, "n_done": ROWS - n_failed, "n_failed": n_failed, "seconds": work.seconds}
        about = {"finished": "", "host": "", "device": "cpu", "objects": objects}
        record = Record(task, rows.start, rows.stop, work.fingerprint, **counts, **about)
        Ledger(work.storage).write(record)
        return record

    return do


def start_refused(work: Work, n_threads: int, device: str | None) -> Callable[[int], Record]:
    """A worker that cannot be made."""
    raise InputError("no such model")


@dataclass
class Told:
    """What was read of a run: its lines, and the newest and the largest value of each metric by name and labels."""

    name: str
    nodes: set[str]
    events: list[dict[str, Any]]
    newest: dict[tuple[str, ...], float] = field(default_factory=dict)
    largest: dict[tuple[str, ...], float] = field(default_factory=dict)

    def scrape(self) -> None:
        for port in {node["MetricsExportPort"] for node in ray.nodes()}:
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            for family in text_string_to_metric_families(text):
                for name, labels, value, *_ in family.samples if family.name.startswith(PREFIX) else ():
                    assert (labels["kind"], labels["run"]) == ("told", self.name)
                    of = (name, labels["WorkerId"], labels.get("stage", ""), labels.get("le", ""))
                    self.newest[of] = value
                    self.largest[of] = max(value, self.largest.get(of, 0))

    def total(self, name: str, stage: str = "") -> float:
        """Of all workers; of a gauge, as it was set last."""
        return sum(v for (n, _, s, le), v in self.newest.items() if (n, s) == (PREFIX + name, stage))

    def most(self, name: str) -> float:
        return max(v for (n, *_), v in self.largest.items() if n == PREFIX + name)

    def names(self) -> set[str]:
        return {name for name, *_ in self.newest}

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.events if line["event"] == event]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """Eight tasks on two nodes, and at last the first of them again, as where its answer was lost."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": {"metrics_report_interval_ms": 1000}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = {cluster.add_node(num_cpus=1).node_id for _ in range(2)}
        ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": TESTS}})
        work = Work(str(tmp_path_factory.mktemp("told")), N_TASKS, 1.0)
        read, looked = Told(Path(work.folder).name, nodes, []), time.monotonic()

        def on_turn(state: State) -> None:
            nonlocal looked
            if time.monotonic() > looked + 0.5:
                read.scrape()
                looked = time.monotonic()

        list(outcomes(work, start_told, [*range(N_TASKS), 0], Pool(2, 0, 1, "auto"), on_turn))
        ends = time.monotonic() + 15
        while time.monotonic() < ends and not (
            read.total("tasks_done_total") >= N_DONE and read.total("task_seconds_count", "load") >= 2
        ):
            time.sleep(0.5)
            read.scrape()
        time.sleep(1.5)  # the driver's next report
        read.scrape()
        for path in Path(cluster.head_node.get_logs_dir_path()).glob("worker-*.err"):
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
            read.events += [json.loads(line) for line in lines]
        yield read
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_counters_say_what_was_done(told: Told) -> None:
    assert told.total("tasks_done_total") == N_DONE, "the one that was asked for again is not counted again"
    assert told.total("tasks_failed_total") == 1
    assert told.total("samples_done_total") == N_DONE * ROWS - 1
    assert told.total("samples_failed_total") == 1
    assert told.total("written_bytes_total") == N_BYTES


def test_seconds_are_counted_by_stage(told: Told) -> None:
    assert told.total("task_seconds_count", "task") == N_DONE
    assert told.total("task_seconds_count", "load") == 2

    def within(stage: str, le: str) -> float:
        """How many took at most so long; Ray makes sums of these."""
        return sum(
            v for (name, _, s, bound), v in told.newest.items() if (s, bound) == (stage, le) and "bucket" in name
        )

    assert within("task", "0.5") == 0, "each takes a second"
    assert (within("wait", "0.25"), within("wait", "0.5")) == (0, N_DONE)
    assert within("model", "0.125") == N_DONE
    assert told.total("task_seconds_count", "store") == N_DONE


def test_the_driver_tells_how_the_pool_stands(told: Told) -> None:
    assert 0 < told.most("tasks_waiting") <= N_TASKS + 1
    assert 0 < told.most("tasks_running") <= 4
    assert (told.most("actors_live"), told.most("actors_starting")) == (2, 2)
    assert (told.most("actors_lost"), told.most("tasks_handed_out_again")) == (0, 0)
    ended = {name: told.total(name) for name in telemetry._POOL}
    assert set(ended.values()) == {0}, ended


def test_an_actors_memory_is_told(told: Told) -> None:
    assert 2**24 < told.most("resident_bytes") < 2**34
    assert told.most("gpu_memory_bytes") == 7


def test_every_metric_of_the_dashboard_is_served_and_every_served_one_is_drawn(told: Told) -> None:
    content = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in content["panels"] for target in panel["targets"]]
    drawn = {name for query in queries for name in re.findall(r"\b(\w+)\{", query)}
    of_variables = re.findall(r"\bray_\w+", str(content["templating"]))
    assert of_variables
    assert (drawn | set(of_variables)) - told.names() == set()
    served = {name.replace("_count", "_bucket").replace("_sum", "_bucket") for name in told.names()}
    assert served - drawn == set()


def test_the_dashboard_can_be_imported() -> None:
    content = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    variables = {each["name"]: each for each in content["templating"]["list"]}
    assert {name: each["type"] for name, each in variables.items()} == {
        "datasource": "datasource",
        "kind": "query",
        "run": "query",
    }
    panels = content["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 9
    for panel in panels:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            assert '{kind=~"$kind", run=~"$run"}' in target["expr"]


def test_every_event_is_a_line_of_json_with_its_ids(told: Told) -> None:
    assert Counter(line["event"] for line in told.events) == {
        "actor_started": 2,
        "task_started": N_TASKS + 1,
        "task_done": N_DONE + 1,
        "task_failed": 1,
    }
    for line in told.events:
        assert (line["kind"], line["run"]) == ("told", told.name)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])
    assert {line["node"] for line in told.events} == told.nodes
    assert all(line["seconds"] >= 0 for line in told.of("actor_started"))
    started = told.of("task_started")
    assert Counter(line["task"] for line in started) == Counter([*range(N_TASKS), 0])
    for line in started:
        assert line["samples"] == [f"{row:016x}" for row in range(ROWS * line["task"], ROWS * (line["task"] + 1))]


def test_a_done_task_tells_its_rows_and_sizes(told: Told) -> None:
    done = {line["task"]: line for line in told.of("task_done") if "attempt" in line}
    assert set(done) == set(range(N_TASKS)) - {FAULTY}
    for task, line in done.items():
        assert line["rows"] == [ROWS * task, ROWS * (task + 1)]
        assert (line["n_bytes"], line["attempt"]) == (8, 1)
        assert 0.9 < line["seconds"] < 50
        spent = line["stages"]
        assert (spent["wait"], spent["model"]) == (0.5, MODEL_S)
        assert sum(spent.values()) == pytest.approx(line["seconds"], abs=0.01)
        assert (line["n_failed"], line["level"]) == ((1, "WARNING") if task == PARTLY else (0, "INFO"))
    (again,) = (line for line in told.of("task_done") if "attempt" not in line)
    assert (again["task"], again["n_bytes"]) == (0, 0), "it was done already"


def test_a_failed_task_tells_its_error_and_rows(told: Told) -> None:
    (line,) = told.of("task_failed")
    assert (line["task"], line["level"], line["error"]) == (FAULTY, "ERROR", "ValueError: task 5 went\nwrong")
    assert line["rows"] == [ROWS * FAULTY, ROWS * (FAULTY + 1)]


class Heard(logging.Handler):
    """Keeps what it is handed. pytest's own handler listens to every logger that does not propagate as well."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def heard_at_root() -> Iterator[Heard]:
    heard = Heard()
    logging.getLogger().addHandler(heard)
    yield heard
    logging.getLogger().removeHandler(heard)


def test_an_actor_works_where_nobody_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], heard_at_root: Heard
) -> None:
    """In this process, without a word to the root logger, and once a line where there were two actors."""
    root = list(logging.getLogger().handlers)
    work = Work(str(tmp_path), 3, 0.0)
    assert Actor(work, start_sleeping, 1).do(0)["error"] is None
    capsys.readouterr()
    refused = Actor(work, start_refused, 1)
    assert refused.do(1)["fatal"] == "InputError"
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["level"], line.get("error")) for line in lines] == [
        ("actor_started", "ERROR", "no such model"),
        ("task_started", "INFO", None),
        ("task_failed", "ERROR", "no such model"),
    ]
    assert logging.getLogger().handlers == root
    assert not heard_at_root.records


def test_gpu_memory_is_asked_for_only_where_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    in_use = SimpleNamespace(is_initialized=lambda: True, memory_reserved=lambda: 7)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=in_use))
    assert telemetry._gpu_bytes() == 7
    in_use.is_initialized = lambda: False
    assert telemetry._gpu_bytes() is None
    monkeypatch.delitem(sys.modules, "torch")
    assert telemetry._gpu_bytes() is None
