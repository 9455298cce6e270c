"""What a machine does to a capture: disks that fill up or refuse, clocks that go back, captures that meet."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import ray
from dead_process import left_by_a_dead_process
from kill_harness import CLEAN, N_SAMPLES, N_TASKS, WAITS, Stage, Victim, records_of, until

from fewchannels.captures import run, worker
from fewchannels.captures.job import Job
from fewchannels.captures.run import start_capture
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cli.capture import run_job
from fewchannels.cluster import tasks
from fewchannels.cluster.notes import Notes
from fewchannels.cluster.outcome import Start
from fewchannels.cluster.pool import Actor
from fewchannels.cluster.shares import Pool
from fewchannels.cluster.sizing import choose_pool
from fewchannels.cluster.tasks import Outcome
from fewchannels.errors import RunConflictError, StorageError
from fewchannels.runs import lease
from fewchannels.runs.arrays import Store
from fewchannels.runs.lease import DRIVER_LOCK, hold
from fewchannels.runs.storage import open_storage

HALF = N_TASKS // 2
# Holds a worker's share of a run, as a worker that outlives its driver does, until its standard input ends.
ORPHAN = """
import sys
from fewchannels.runs.lease import Membership
from fewchannels.runs.storage import open_storage
share = Membership(open_storage(sys.argv[1]), sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"), tiny_model)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a small disk, or mounts it anew with other options."""
    path = tmp_path / "disk"
    path.mkdir()

    def mount(options: str) -> Path:
        what = [path] if path.is_mount() else ["-t", "tmpfs", "tmpfs", path]
        options = f"remount,{options}" if path.is_mount() else options
        done = subprocess.run(["mount", "-o", options, *what], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a disk of its own cannot be mounted here: {done.stderr.strip()}")
        return path

    if os.geteuid():
        pytest.skip("mounting a disk of its own needs root")
    yield mount
    if path.is_mount():
        subprocess.run(["umount", "--lazy", path], check=True)


def capture(stage: Stage, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        stage.command(out, "--json"), capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL
    )


def capture_here(stage: Stage, job: Job, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """All that the command does, with an actor in this process in place of Ray's."""

    def outcomes(job: Job, start: Start, tasks: list[int], pool: Pool, on_turn: Any) -> Iterator[dict[str, Any]]:
        actor = Actor(job, start, pool.cpus_per_actor)
        for task in tasks:
            yield actor.do(task)

    monkeypatch.setattr(tasks, "_workers", lambda pool, is_here: nullcontext(outcomes))
    return run_job(job, stage.manifest, choose_pool(2, None))


def state(out: Path) -> dict[str, tuple[int, int]]:
    """Every file of a run, with what changes when it is written again; the locks do not count."""
    files = [path for path in out.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    return {str(path.relative_to(out)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_a_disk_that_fills_up_ends_the_capture_with_the_remedy_and_more_space_lets_it_go_on(
    stage: Stage, disk: Callable[[str], Path]
) -> None:
    out = disk("size=512k") / "run"  # enough for the arrays' own bytes, too little for them in whole pages, and tables
    done = capture(stage, out)
    assert done.returncode == 4, done.stderr
    assert "No space left on device" in done.stderr
    assert "run again to resume" in done.stderr
    assert "Traceback" not in done.stderr
    finished = records_of(out)
    assert 0 < len(finished) < N_TASKS
    disk("size=8m")
    done = capture(stage, out)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_resumed"] == 2 * len(finished)
    assert stage.check(out) == CLEAN
    assert finished.items() <= records_of(out).items()


def test_a_disk_that_is_full_before_the_capture_begins_is_named(
    stage: Stage, disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = disk("size=128k")
    job = stage.prepared(folder / "run")
    with suppress(OSError), (folder / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(2**12))
    with pytest.raises(StorageError, match=r"No space left on device.*then rerun"):
        capture_here(stage, job, monkeypatch)


def test_a_disk_that_was_made_read_only_ends_the_capture_with_the_remedy(
    stage: Stage, disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = disk("size=8m") / "run"
    job = stage.begun(out)
    stage.work(job, range(HALF))
    before = state(out)
    disk("ro")
    done = capture(stage, out)
    assert done.returncode == 4, done.stderr
    assert "Read-only file system" in done.stderr
    assert "then rerun" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(StorageError, match="Read-only file system"):
        CaptureWorker(job, 1)(HALF)
    with pytest.raises(StorageError, match=r"Read-only file system.*then rerun"):
        capture_here(stage, stage.prepared(out.with_name("new") / "run"), monkeypatch)
    assert state(out) == before
    disk("rw")
    assert capture_here(stage, job, monkeypatch).n_resumed == 2 * HALF
    assert stage.check(out) == CLEAN


def test_a_clock_that_goes_back_changes_nothing(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    job = stage.begun(out)
    stage.work(job, range(HALF))
    future = time.time() + 365 * 86400
    for path in [out, *out.rglob("*")]:
        os.utime(path, (future, future))
    before = records_of(out)

    class YearAgo(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) - timedelta(days=365)

    monkeypatch.setattr("fewchannels.cluster.attempts.datetime", YearAgo)
    monkeypatch.setattr("fewchannels.captures.begin.datetime", YearAgo)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 365 * 86400)
    assert capture_here(stage, job, monkeypatch).n_resumed == 2 * HALF
    finished = json.loads((out / "ledger" / f"{HALF:05d}.json").read_bytes())["finished"]
    assert finished < (datetime.now(UTC) - timedelta(days=360)).isoformat()
    assert before.items() <= records_of(out).items()
    assert stage.check(out) == CLEAN


def test_of_two_captures_of_one_run_the_later_is_refused_and_told_of_the_other(stage: Stage, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with (
        started(stage, out, tmp_path / "a.log") as one,
        started(stage, out, tmp_path / "b.log") as two,
    ):
        until(lambda: one.code() is not None or two.code() is not None, 120)
        winner, loser = (one, two) if two.code() is not None else (two, one)
        assert loser.code() == 3
        assert loser.said(f"(process {winner.driver} on ")
        winner.wait_for(lambda: records_of(out))
        os.kill(winner.driver, signal.SIGSTOP)  # so that the next one comes in its middle
        try:
            third = capture(stage, out)
        finally:
            os.kill(winner.driver, signal.SIGCONT)
        assert third.returncode == 3, third.stderr
        assert f"(process {winner.driver} on " in third.stderr
        assert "Traceback" not in third.stderr
        assert winner.end() == 0
    assert stage.check(out) == CLEAN
    before = state(out)
    again = capture(stage, out)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["n_resumed"] == N_SAMPLES
    assert state(out) == before


@contextmanager
def started(stage: Stage, out: Path, log: Path) -> Iterator[Victim]:
    victim = Victim(stage.command(out), log)
    try:
        yield victim
    finally:
        victim.end(0)


def lose_share(worker: CaptureWorker) -> None:
    """What happens on a file system whose locks do not reach other machines."""
    assert worker._membership
    assert worker._membership._lock
    os.close(worker._membership._lock)


def test_a_worker_whose_capture_has_been_followed_by_another_writes_nothing(stage: Stage, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = stage.begun(out)
    with hold(job.storage) as token:
        old = CaptureWorker(job.leased(token), 1)
        old(0)
    lose_share(old)
    with hold(job.storage):
        before = state(out)
        with pytest.raises(RunConflictError, match="took over writing to"):
            old(1)
        with pytest.raises(RunConflictError, match="took over writing to"):
            CaptureWorker(job.leased(token), 1)
    assert state(out) == before
    assert len(records_of(out)) == 1


def test_a_worker_that_is_overtaken_while_it_writes_leaves_no_record(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    job = stage.begun(out)
    with hold(job.storage) as token:
        old = CaptureWorker(job.leased(token), 1)
    write = Store.write

    def overtaken(*arguments: Any) -> Any:
        stored = write(*arguments)
        lose_share(old)
        with hold(job.storage):
            return stored

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", overtaken)
        with pytest.raises(RunConflictError, match="took over writing to"):
            old(0)
    assert not records_of(out)
    stage.work(job, range(N_TASKS))
    assert stage.check(out) == CLEAN


def test_a_task_whose_answer_was_lost_is_not_written_again(stage: Stage, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = stage.begun(out)
    actor = Actor(job, start_capture, 1)
    assert actor.do(0)["n_bytes"] > 0
    before = state(out)
    assert actor.do(0) == {"task": 0, "error": None, "fatal": None, "n_bytes": 0, "notes": Notes()}
    assert state(out) == before


def test_a_capture_waits_for_workers_that_still_write_and_says_so(stage: Stage, tmp_path: Path) -> None:
    out = tmp_path / "run"
    storage = open_storage(out)
    said: list[str] = []
    held = threading.Event()

    def next_capture() -> None:
        with hold(storage, said.append):
            held.set()

    with hold(storage) as token:
        orphan = subprocess.Popen(
            [sys.executable, "-c", ORPHAN, str(out), token], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert orphan.stdout
        assert orphan.stdout.readline() == b"held\n"
    earlier = json.loads((out / DRIVER_LOCK).read_bytes())
    (out / DRIVER_LOCK).write_text(json.dumps(earlier | {"pid": 4194305}))  # more than any process has
    waiting = threading.Thread(target=next_capture)
    try:
        waiting.start()
        until(lambda: said, 30)
        assert [WAITS in text for text in said] == [True]
        assert not held.is_set()
        # One that comes meanwhile is told of the capture that waits, not of the one that has ended.
        with pytest.raises(RunConflictError, match=f"process {os.getpid()} on "), hold(storage):
            pass
    finally:
        orphan.communicate(timeout=300)
        waiting.join(timeout=300)
    assert held.is_set()
    assert len(said) == 1


def test_workers_that_never_end_are_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(tmp_path / "run")
    monkeypatch.setattr(lease, "_ORPHANS_TIMEOUT_S", 0.0)
    with hold(storage) as token:
        lease.Membership(storage, token)
    with pytest.raises(RunConflictError, match=rf"process {os.getpid()} on .*Stop them, then rerun"), hold(storage):
        pass


def test_a_capture_that_is_interrupted_while_ray_starts_its_work_does_not_start_ray_again(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "wait", interrupted)
    job = stage.begun(tmp_path / "run")
    # No pytest.raises: it would keep the traceback, and with it what must end here.
    with suppress(KeyboardInterrupt):
        run.finish(job, choose_pool(2, None))
    try:
        assert not ray.is_initialized()
    finally:
        ray.shutdown()


@pytest.mark.parametrize("refusal", [StorageError("out of reach"), RunConflictError("another capture")])
def test_an_actor_that_cannot_start_ends_the_capture_with_the_reason(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    job = stage.begun(tmp_path / "run")

    def refuse(*arguments: object) -> None:
        raise refusal

    monkeypatch.setattr(worker, "CaptureWorker", refuse)
    with pytest.raises(type(refusal), match=f"{refusal}\nFinished work is kept; run again to resume"):
        capture_here(stage, job, monkeypatch)


def test_half_a_file_that_a_killed_actor_left_is_gone_when_the_capture_ends(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray starts the actor again within the capture, so that no later one begins by clearing up."""
    out, do, left = tmp_path / "run", Actor.do, left_by_a_dead_process("00003.json")

    def killed_amid_a_put_before(self: Actor, task: int) -> dict[str, Any]:
        (out / left).write_bytes(b"half")
        return do(self, task)

    monkeypatch.setattr(Actor, "do", killed_amid_a_put_before)
    assert capture_here(stage, stage.prepared(out), monkeypatch).n_done == N_SAMPLES
    assert stage.check(out) == CLEAN


def test_an_interrupt_that_gets_lost_in_rays_own_code_ends_the_capture_all_the_same(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = stage.begun(tmp_path / "run")

    def outcomes(job: Job, start: Start, tasks: list[int], pool: Pool, on_turn: Any) -> Iterator[dict[str, Any]]:
        for task in tasks:
            with suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            yield {"task": task, "error": None, "fatal": None, "n_bytes": 0}

    monkeypatch.setattr(tasks, "_workers", lambda pool, is_here: nullcontext(outcomes))
    earlier = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.finish(job, choose_pool(1, None))
    assert signal.getsignal(signal.SIGINT) is earlier


def test_a_cluster_that_died_on_this_machine_is_not_joined() -> None:
    """Ray keeps the address of the cluster that it last saw start, and leaves it there when that is killed."""
    ask = (
        "from fewchannels.cluster.session import *\n"
        "with ray_session(Pool(1, 0, 1)): print(int(ray.cluster_resources()['CPU']))"
    )
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:  # short, as sockets' paths are
        left = Path(folder, "ray", "ray_current_cluster")
        left.parent.mkdir()
        left.write_text("127.0.0.1:1", encoding="utf-8")
        asked = subprocess.run(
            [sys.executable, "-c", ask], env=os.environ | {"RAY_TMPDIR": folder}, capture_output=True, text=True
        )
    assert asked.stdout == "1\n", asked.stderr
