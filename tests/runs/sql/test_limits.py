"""A question cannot take the machine: limits, interruption, spilling, and who cleans up."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from made_run import make_run

from fewchannels import machine
from fewchannels.errors import FewchannelsError, InputError
from fewchannels.runs.sql import confined, spill
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.sql.limits import Limits

CELLS = [{"sample": i, "layer": layer, "top_channels": [3, 1]} for i in range(3) for layer in (0, 1)]
ENDLESS = "select a.range from range(1000000) a, range(1000000) b where a.range * b.range = -1"
SPILLS = "select a.range, b.range from range(100000) a, range(100000) b order by 2, 1 desc"
SMALL = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (800 * 2**20,) * 2); "


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", CELLS)


def command(*arguments: str, tmp: Path, before: str = "") -> "subprocess.Popen[str]":
    """The command line in a process of its own, whose temporary folder is ``tmp``."""
    code = f"{before}import sys; from fewchannels.cli import main; sys.argv[1:] = {list(arguments)!r}; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"TMPDIR": str(tmp)},
        cwd=tmp,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def spilled(tmp: Path) -> int:
    return sum(path.stat().st_size for path in tmp.glob(f"{spill.PREFIX}*/*/*"))


def wait_for_spill(tmp: Path) -> None:
    end = time.monotonic() + 60
    while spilled(tmp) < 10**7:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_answer_is_kept_within_its_limits(run: Path) -> None:
    with Catalog(run) as catalog:
        assert len(catalog.sql("from range(5)", limits=Limits(rows=5))) == 5
        with pytest.raises(InputError, match=r"more than 4 rows.*-o FILE"):
            catalog.sql("from range(5)", limits=Limits(rows=4))
        with pytest.raises(InputError, match=r"more than 10 MB of memory.*-o FILE"):
            catalog.sql("from range(1000000000000::bigint)", limits=Limits(n_bytes=10_000_000))
        assert catalog.query("failures", Limits(rows=5)).columns


def test_a_question_ends_when_its_time_is_over(run: Path) -> None:
    with Catalog(run) as catalog:
        began = time.monotonic()
        with pytest.raises(InputError, match=r"longer than 0\.5 s"):
            catalog.sql(ENDLESS, limits=Limits(seconds=0.5))
        assert time.monotonic() - began < 5
        assert catalog.sql("select 1").fetchall() == [(1,)]


def test_a_question_is_stopped_from_another_thread(run: Path) -> None:
    with Catalog(run) as catalog:
        question = catalog.ask(ENDLESS)
        threading.Timer(0.5, question.stop).start()
        with pytest.raises(FewchannelsError, match="was stopped"):
            question.answer()
        threading.Timer(0.5, catalog.stop).start()
        with pytest.raises(FewchannelsError, match="was stopped"):
            catalog.sql(ENDLESS)
        question = catalog.ask("select 1")
        question.stop()
        with pytest.raises(FewchannelsError, match="was stopped"):
            question.answer()


def test_an_answer_of_any_size_comes_in_batches(run: Path) -> None:
    with Catalog(run) as catalog:
        total = n = 0
        for batch in catalog.ask("from range(1000000)", limits=Limits()).batches():
            total, n = total + sum(batch.column(0).to_pylist()), n + 1
        assert total == 999_999 * 1_000_000 // 2
        assert n > 100
        assert [batch.num_rows for batch in catalog.ask("from range(0)").batches()] == [0]
        assert sum(batch.num_rows for batch in catalog.ask("from range(100000)").batches(5000)) == 5000


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_a_number_above_zero(value: float) -> None:
    with pytest.raises(InputError, match="a positive number"):
        Limits(seconds=value)


def test_what_a_process_may_use_follows_its_limits() -> None:
    code = SMALL + "from fewchannels import machine; print(machine.free_bytes(), machine.processors())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert 10**8 < int(found[0]) < 800 * 2**20
    assert int(found[1]) <= len(os.sched_getaffinity(0))
    one = next(iter(os.sched_getaffinity(0)))
    code = f"import os; os.sched_setaffinity(0, [{one}]); " + code
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(found[1]) == 1
    assert machine.free_bytes() > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("select repeat('x', 100000000) || range::varchar as s from range(20)", "needs more memory"),
        ("select list(range) as s from range(500000000)", "needs more memory"),
        ("select range(300000000)", "needs more memory|one row takes|does not fit"),
    ],
)
def test_a_question_that_is_too_large_is_told_so(text: str, said: str, run: Path, tmp_path: Path) -> None:
    ended = command("sql", str(run), text, tmp=tmp_path, before=SMALL)
    _, errors = ended.communicate(timeout=120)
    assert "Traceback" not in errors
    assert ended.returncode in (1, 2)

    assert re.search(said, errors)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_question_quietly_and_removes_what_it_spilled(
    number: int, code: int, run: Path, tmp_path: Path
) -> None:
    asked = command("sql", str(run), SPILLS, "-o", "x.csv", tmp=tmp_path, before=SMALL)
    wait_for_spill(tmp_path)
    asked.send_signal(number)
    _, errors = asked.communicate(timeout=60)
    assert asked.returncode == code
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_a_killed_process_spilled_is_removed_and_no_link_is_followed(run: Path, tmp_path: Path) -> None:
    asked = command("sql", str(run), SPILLS, tmp=tmp_path, before=SMALL)
    wait_for_spill(tmp_path)
    other = command("sql", str(run), "select 1", tmp=tmp_path)
    assert other.wait(60) == 0
    assert spilled(tmp_path), "the folder of a process that lives stays"
    asked.kill()
    asked.communicate()
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    (tmp_path / f"{spill.PREFIX}link").symlink_to(kept)
    left = next(path for path in tmp_path.glob(f"{spill.PREFIX}*") if not path.is_symlink())
    (left / "link").symlink_to(kept)
    assert command("sql", str(run), "select 1", tmp=tmp_path).wait(60) == 0
    assert not left.exists()
    assert (kept / "file").read_text() == "mine"


def test_a_time_limit_and_a_row_limit_of_the_command_line(run: Path, tmp_path: Path) -> None:
    for options, said in (
        (["--timeout", "0.5"], "longer than 0.5 s"),
        (["--timeout", "nan"], "--timeout is nan"),
        (["--limit", str(2**63)], str(2**63 - 1)),
    ):
        asked = command("sql", str(run), ENDLESS, *options, tmp=tmp_path)
        _, errors = asked.communicate(timeout=60)
        assert (asked.returncode, "Traceback" in errors, said in errors) == (2, False, True), errors


LARGE = (
    "select count(*), max(x) from (select hash(i)::varchar || repeat('x', 40) as x from range(1000000) t(i) order by x "
    "limit 900000 offset 10)"
)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database has so little memory that a large question must use the disk."""
    monkeypatch.setattr(confined, "_LEAST_BYTES", 40 * 2**20)
    monkeypatch.setattr(confined.machine, "free_bytes", lambda: 40 * 2**20)


@pytest.mark.usefixtures("little_memory")
def test_a_question_spills_where_the_current_folder_is_gone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with Catalog(run) as catalog:
        assert catalog.sql(LARGE).fetchall()[0][0] == 900_000


@pytest.mark.usefixtures("little_memory")
def test_without_room_to_spill_a_question_says_so(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spill, "_own", tmp_path / f"{spill.PREFIX}test" / "file")
    monkeypatch.setattr(spill, "new_folder", lambda: spill._own / "0")
    monkeypatch.setattr(spill, "most_bytes", lambda folder: 2**30)
    spill._own.parent.mkdir()
    spill._own.touch()
    with Catalog(run) as catalog:
        assert catalog.sql("select 1").fetchall() == [(1,)]
        with pytest.raises(
            FewchannelsError, match="it needs space in the folder for temporary files, which TMPDIR"
        ) as one:
            catalog.sql(LARGE).fetchall()
        assert type(one.value) is FewchannelsError, "the run is not damaged"


@pytest.mark.usefixtures("little_memory")
def test_where_no_folder_can_be_made_only_large_questions_fail(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(spill, "_own", None)
    monkeypatch.setattr(spill.tempfile, "mkdtemp", refuse)
    with Catalog(run) as catalog:
        assert catalog.sql("select 1").fetchall() == [(1,)]
        with pytest.raises(FewchannelsError, match="free space in the folder that TMPDIR sets"):
            catalog.sql(LARGE).fetchall()
