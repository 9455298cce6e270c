"""What a process may use, under real control groups of the kernel; left out where none can be made."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from two_runs import ROWS, captured

ROOT = Path("/sys/fs/cgroup")
BYTES = 400 * 2**20


def own(controller: str) -> Path:
    """The folder of the control group that this process is in."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return ROOT / controller / path.lstrip("/")
    return ROOT


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A control group of its own below that of this process."""
    folder = own(request.param) / f"fewchannels-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    with suppress(OSError):
        folder.rmdir()


def limit(group: Path, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        try:
            (group / name).write_text(value, encoding="utf-8")
        except OSError as error:
            pytest.skip(f"the limits of a control group cannot be set here: {error}")


def within(group: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a control group."""
    joined = 'echo $$ > "$0" && exec "$@"'
    command = ["sh", "-c", joined, str(group / "cgroup.procs"), sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def is_version_1(group: Path) -> bool:
    return group.parent != ROOT and not (group / "cgroup.controllers").exists()


@pytest.mark.parametrize("group", ["memory"], indirect=True)
def test_memory_is_what_the_control_group_has(group: Path) -> None:
    limit(group, {"memory.limit_in_bytes" if is_version_1(group) else "memory.max": str(BYTES)})
    code = "from fewchannels import machine; print(machine.most_bytes(), machine.free_bytes())"
    most, free = map(int, within(group, "-c", code).stdout.split())
    assert most == BYTES
    assert BYTES / 2 < free < BYTES


@pytest.mark.parametrize("group", ["memory"], indirect=True)
def test_a_question_that_needs_more_ends_in_words_and_not_by_the_kernel(
    group: Path, tmp_path: Path, tiny_model: Path
) -> None:
    run = captured(tmp_path, "RUN", tiny_model, ROWS)
    limit(group, {"memory.limit_in_bytes" if is_version_1(group) else "memory.max": str(BYTES)})
    text = "select repeat('x', 100000000) || range::varchar as s from range(20)"
    ended = within(group, "-m", "fewchannels", "sql", run, text)
    assert (ended.returncode, "Traceback" in ended.stderr) in [(1, False), (2, False)], ended.stderr
    assert ended.stderr.strip()


@pytest.mark.parametrize("group", ["cpu"], indirect=True)
def test_processors_are_those_that_the_control_group_pays_for(group: Path) -> None:
    if is_version_1(group):
        limit(group, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "90000"})
    else:
        limit(group, {"cpu.max": "90000 100000"})
    found = within(group, "-c", "from fewchannels import machine; print(machine.processors())")
    assert found.stdout.strip() == "1"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux has it")
def test_actors_are_counted_from_the_processors_that_a_process_is_bound_to() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from fewchannels import machine; machine.has_gpus = lambda: False\n"
        "from fewchannels.cluster.sizing import choose_pool\n"
        "pool = choose_pool(); print(pool.n_actors, pool.cpus_per_actor)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["1", "1"]
