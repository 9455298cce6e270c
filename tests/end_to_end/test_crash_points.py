"""Every command is killed, or refused, at points of its way: readers find the state before or the one after, and the
same command, run again, comes to the same bytes as if nothing had been.

Of all points a random part is tried, for as long as there is time; ``pytest -m exhaustive`` tries each of them in each
of the ways.
"""

import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_points import KILLS, How, Shim, build
from crash_points.stage import PLAYS, Act, Stage, stage

SECONDS = 20.0
HOWS = [how for how in How if how is not How.NOTHING]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    built = build(tmp_path_factory.mktemp("shim"))
    if built is None:
        pytest.skip("calls are counted by a library for Linux that is compiled here, and there is no C compiler")
    return built


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, shim: Shim) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("crash"), tiny_model, shim) as opened:
        yield opened


def seeded() -> random.Random:
    seed = random.randrange(2**32)
    print(f"drawn with seed {seed}")  # noqa: T201
    return random.Random(seed)


def test_commands_that_are_struck_at_random_points_lose_nothing(made: Stage) -> None:
    """As many commands and points as there is time for; growth, where most was lost before, is always among them."""
    chance, deadline, wrong = seeded(), time.monotonic() + SECONDS, list[str]()
    names = ["grow", *chance.sample(sorted(PLAYS.keys() - {"grow"}), len(PLAYS) - 1)]
    for name in names:
        act = Act(made, PLAYS[name])
        for _ in range(max(3, len(act.points) // 100)):
            if time.monotonic() > deadline:
                break
            wrong += [f"{name}: {each}" for each in act.strike(chance.randint(1, len(act.points)), chance.choice(HOWS))]
        if time.monotonic() > deadline:
            break
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("lock", [".capture.lock", ".workers.lock"])
def test_a_lock_that_cannot_be_opened_ends_the_command_in_words(made: Stage, lock: str) -> None:
    """Of the workers' lock it is the worker that cannot."""
    act = Act(made, PLAYS["capture"])
    last = max(i for i, call in enumerate(act.points, start=1) if call == f"open {lock}")
    assert act.strike(last, How.REFUSE) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", PLAYS)
def test_a_command_that_is_struck_at_each_of_its_points_loses_nothing(made: Stage, name: str) -> None:
    act = Act(made, PLAYS[name])
    wrong = [each for at in range(1, len(act.points) + 1) for how in HOWS for each in act.strike(at, how)]
    assert not wrong, f"{len(wrong)} of {len(HOWS) * len(act.points)}:\n" + "\n".join(wrong[:50])


# The actors write, or the driver does; the one that writes is killed, or the driver with all that it started.
@pytest.mark.parametrize(
    "whole_tree",
    [pytest.param(False, id="one process"), pytest.param(True, id="every process", marks=pytest.mark.exhaustive)],
)
def test_a_capture_by_real_actors_that_is_killed_at_a_call_of_any_process_ends_as_one_that_was_not(
    made: Stage, shim: Shim, tmp_path: Path, whole_tree: bool
) -> None:
    command = [str(Path(sys.executable).parent / "fewchannels"), *made.arguments(PLAYS["capture"].command)]
    act = Act(made, PLAYS["capture"])
    made.put("")
    chance = seeded()
    environment = {"RAY_TMPDIR": os.environ.get("RAY_TMPDIR", "/tmp"), "TMPDIR": str(tmp_path)}
    at, how = chance.randint(1, len(act.points) - 20), chance.choice(KILLS)
    crashed = shim.crash(command, [made.place], at, how, whole_tree=whole_tree, environment=environment)
    assert "Traceback" not in crashed.stdout, crashed.stdout
    assert not whole_tree or crashed.returncode == -9
    assert act.aftermath() == [], f"{how.name} at {at}, exit {crashed.returncode}: {crashed.stdout[-2000:]}"


def test_the_calls_of_a_real_command_are_counted_and_it_is_killed_at_the_right_one(
    made: Stage, shim: Shim, tmp_path: Path
) -> None:
    place = shutil.copytree(made.start("long"), tmp_path / "run")
    command = [sys.executable, "-m", "fewchannels", "runs", "compact", str(place)]
    points = shim.count(command, [place])
    first = next(i for i, call in enumerate(points, start=1) if call == "rename ledger/compact/00000-00001.json")
    assert points[-1] == "unlink samples/00001.parquet"
    for how, is_there in ((How.KILL_BEFORE, False), (How.KILL_AFTER, True)):
        shutil.rmtree(place)
        shutil.copytree(made.start("long"), place)
        assert shim.crash(command, [place], first, how).returncode == -9
        assert (place / "ledger" / "compact" / "00000-00001.json").exists() == is_there
        assert len(list((place / "ledger" / "compact").glob(".*.tmp"))) == (not is_there)


@pytest.mark.parametrize("call", ["write", "open", "mkdir", "rename", "fsync", "unlink", "cut", "link"])
def test_what_is_written_anywhere_else_or_only_read_is_no_point(shim: Shim, tmp_path: Path, call: str) -> None:
    """Every kind of call once, by path and by descriptor, inside and outside of the folder that is watched."""
    script = (
        "import os, sys\n"
        "for folder in sys.argv[1:]:\n"
        "    os.mkdir(folder + '/new'); open(folder + '/a', 'wb').write(b'12345678')\n"
        "    open(folder + '/a').read(); os.listdir(folder); here = os.open(folder, os.O_RDONLY)\n"
        "    file = os.open('b', os.O_RDWR | os.O_CREAT, dir_fd=here); os.pwrite(file, b'1', 5)\n"
        "    os.writev(file, [b'12', b'34']); os.ftruncate(file, 1); os.truncate(folder + '/a', 3)\n"
        "    os.fsync(file); os.fdatasync(file); os.fsync(here)\n"
        "    os.rename('b', 'c', src_dir_fd=here, dst_dir_fd=here)\n"
        "    os.link(folder + '/c', folder + '/d'); os.symlink('c', 'e', dir_fd=here); os.unlink('d', dir_fd=here)\n"
        "    os.remove(folder + '/e'); os.replace(folder + '/c', folder + '/f'); os.rmdir(folder + '/new')\n"
    )
    for name in ("inside", "outside"):
        (tmp_path / name).mkdir()
    command = [sys.executable, "-c", script, str(tmp_path / "inside"), str(tmp_path / "outside")]
    points = shim.count(command, [tmp_path / "inside"])
    names = [point.split()[0] for point in points]
    expected = {"write": 3, "open": 2, "mkdir": 1, "rename": 2, "fsync": 3, "unlink": 2, "cut": 2, "link": 2}
    assert names.count(call) == expected[call], points


def test_a_torn_write_leaves_half_and_a_full_disk_stays_full(shim: Shim, tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "for name in 'ab':\n"
        "    try:\n"
        "        file = os.open(sys.argv[1] + name, os.O_WRONLY | os.O_CREAT)\n"
        "        os.writev(file, [b'12345', b'678', b'9012'])\n"
        "    except OSError as error:\n"
        "        print(name, error.errno)\n"
    )
    command = [sys.executable, "-c", script, f"{tmp_path}/"]
    assert shim.crash(command, [tmp_path], 2, How.TORN).returncode == -9
    assert (tmp_path / "a").read_bytes() == b"123456"
    assert shim.crash(command, [tmp_path], 2, How.FULL).stdout == "a 28\nb 28\n"
    assert shim.crash(command, [tmp_path], 2, How.REFUSE).stdout == "a 5\n"
    assert (tmp_path / "b").read_bytes() == b"123456789012"
