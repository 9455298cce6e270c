"""Temporary files of writers that were killed: counted, and removed by whoever writes next, unless they may live."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_run import make_run
from typer.testing import CliRunner

from fewchannels.cli import app
from fewchannels.files.durable import unfinished, writing
from fewchannels.runs.lease import hold
from fewchannels.runs.results import ComparisonResults, Results
from fewchannels.runs.storage import FolderStorage, open_storage
from fewchannels.runs.upkeep.verify import verify

# Puts an object, and is killed by itself before the last part of it is there.
KILLED = """
import os, signal, sys
from pathlib import Path
from fewchannels.runs.storage import open_storage
def parts():
    yield b"half" * 500_000
    os.kill(os.getpid(), signal.SIGKILL)
open_storage(sys.argv[1]).put(sys.argv[2], parts())
"""
HOST = re.sub(r"[^\w-]", "_", platform.node())


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    """An empty run whose last writer of cells was killed."""
    make_run(tmp_path / "run", samples=[{"sample": 0}])
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "run", "cells/00007.parquet"], check=False)
    opened = open_storage(tmp_path / "run")
    assert isinstance(opened, FolderStorage)
    return opened


def temporary(run: Path) -> list[Path]:
    return [path for path in run.rglob(".*") if path.name.endswith(".tmp")]


@pytest.fixture
def zombie() -> Iterator[int]:
    """A process that has ended and is not waited for."""
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield process.pid
    process.wait()


def test_what_a_killed_writer_left_is_counted_and_not_taken_for_data(storage: FolderStorage) -> None:
    (path,) = temporary(storage.path)
    assert re.fullmatch(rf"\.00007\.parquet\.{re.escape(HOST)}-\d+-\w+\.tmp", path.name)
    key = path.relative_to(storage.path).as_posix()
    assert storage.left_over() == {key: 2_000_000}
    assert key not in storage.list()
    shown = json.loads(CliRunner().invoke(app, ["runs", "show", str(storage.path), "--json"]).stdout)
    assert shown["left_over"] == {key: 2_000_000}
    assert storage.left_over() == {key: 2_000_000}, "looking removes nothing"


def lease(storage: FolderStorage) -> None:
    with hold(storage):
        pass


@pytest.mark.parametrize(
    "writer",
    [
        lease,
        lambda storage: Results(storage, "stability").begin({"analysis": "stability"}),
        lambda storage: ComparisonResults(open_storage(storage.path / "cells")).begin({}),
    ],
    ids=["lease", "analysis", "comparison"],
)
def test_every_writer_of_a_folder_removes_what_is_left_over(
    storage: FolderStorage, writer: Callable[[FolderStorage], object]
) -> None:
    for path in (storage.path / "cells").glob("*.parquet"):
        path.unlink()  # the comparison wants an empty place
    assert temporary(storage.path)
    writer(storage)
    assert not temporary(storage.path)


def test_what_may_still_be_written_is_left_alone(storage: FolderStorage, zombie: int) -> None:
    (storage.path / "samples" / "x").mkdir()
    kept = [
        f"cells/.a.parquet.{HOST}-{os.getppid()}-0f.tmp",  # a process that lives
        f"cells/.a.parquet.{HOST}-1-0f.tmp",  # another user's, perhaps
        f"cells/.a.parquet.other{HOST}-999999999-0f.tmp",
        f"cells/.a.parquet.other.{HOST}x-999999999-0f.tmp",
        "cells/.a.parquet.tmp",  # nobody's, so anybody's
        f"cells/a.parquet.{HOST}-999999999-0f.tmp",  # a file like any other
    ]
    gone = [
        f"samples/x/.b.{HOST}-999999999-0f.tmp",  # there is no such process
        f".run.json.{HOST}-{os.getpid()}-0f.tmp",  # of one that had this number before
        f"cells/.c.{HOST}-{zombie}-0f.tmp",
        *(path.relative_to(storage.path).as_posix() for path in temporary(storage.path)),
    ]
    for name in (*kept, *gone):
        (storage.path / name).touch()
    with unfinished(storage.path / "cells" / "mine.parquet") as mine:
        mine.touch()
        assert storage.clean() == len(gone)
        assert mine.exists()
    left = {name for name in (*kept, *gone) if (storage.path / name).exists()}
    assert left == set(kept)


def test_verify_counts_what_is_left_over_and_repair_removes_it(tmp_path: Path, storage: FolderStorage) -> None:
    kept = Path(__file__).parent.parent / "data" / "kept_runs" / "format_2"
    run = tmp_path / "whole"
    subprocess.run(["cp", "-r", kept, run], check=True)
    for place_of in (temporary(storage.path)[0], Path(f".x.{HOST}-{os.getppid()}-0f.tmp")):
        target = run / "cells" / place_of.name
        target.write_bytes(place_of.read_bytes() if place_of.exists() else b"")
    report = verify(open_storage(run))
    assert (len(report.left_over), sum(report.left_over.values()), report.problems) == (2, 2_000_000, ())
    for command in ("verify", "show"):
        said = CliRunner().invoke(app, ["runs", command, str(run)])
        assert said.exit_code == 0
        assert "2 temporary files, 2 MB, such as" in " ".join(said.stdout.split())
    assert CliRunner().invoke(app, ["runs", "verify", str(run), "--repair"]).exit_code == 0
    assert [path.name for path in temporary(run)] == [f".x.{HOST}-{os.getppid()}-0f.tmp"]


def test_a_command_that_writes_where_the_user_says_removes_what_a_killed_one_left_there(tmp_path: Path) -> None:
    left, other = (tmp_path / f".{stem}.{HOST}-999999999-0f.tmp" for stem in ("fewchannels", "mine"))
    left.touch()
    other.touch()
    with writing(tmp_path / "answer.csv") as file:
        file.write(b"a\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other.name, "answer.csv"])
