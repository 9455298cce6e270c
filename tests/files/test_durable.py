"""Files that a user names: real processes that write one at a time and are ended, and places that are no files."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command import command
from made_run import make_run

from fewchannels.errors import InputError, StorageError
from fewchannels.files import durable as files
from fewchannels.files.durable import expanded

COMMAND = [sys.executable, "-m", "fewchannels"]


def ingesting(source: Path, out: Path) -> subprocess.Popen[str]:
    command = [*COMMAND, "manifest", "ingest", str(source), "-o", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def prompts(path: Path, n: int, word: str) -> Path:
    path.write_text("".join(f"{word} {i}\n" for i in range(n)), encoding="utf-8")
    return path


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.parametrize("is_ended_first", [True, False])
def test_two_ingests_of_one_name_leave_a_whole_file_of_one_of_them(tmp_path: Path, is_ended_first: bool) -> None:
    out = tmp_path / "m.parquet"
    large, small = prompts(tmp_path / "a.txt", 60_000, "a star"), prompts(tmp_path / "b.txt", 30_000, "a circle")
    first = ingesting(large, out)
    wait_for(lambda: list(tmp_path.glob(".*.tmp")), first)
    first.send_signal(signal.SIGSTOP)  # amid its writing, for as long as the other one takes, or half of it
    second = ingesting(small, out)
    if is_ended_first:
        second.wait(timeout=300)
    else:
        wait_for(lambda: len(list(tmp_path.glob(".*.tmp"))) == 2, second)
    first.send_signal(signal.SIGCONT)
    for process in (first, second):
        said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    kept = pq.read_table(out).column("prompt").to_pylist()
    assert kept in ([f"a star {i}" for i in range(60_000)], [f"a circle {i}" for i in range(30_000)])
    assert not is_ended_first or len(kept) == 60_000  # of whoever was the last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt", "m.parquet"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_ingest_that_is_ended_leaves_what_was_there(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "m.parquet"
    out.write_bytes(b"an earlier one")
    process = ingesting(prompts(tmp_path / "a.txt", 200_000, "a star"), out)
    wait_for(lambda: list(tmp_path.glob(".*.tmp")), process)
    process.send_signal(number)
    said = process.communicate(timeout=300)
    assert process.returncode in {128 + number, 1}, said  # 1: as typer ends after Ctrl+C
    assert "Traceback" not in said[1]
    assert out.read_bytes() == b"an earlier one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "m.parquet"]


def test_a_file_is_replaced_when_the_block_ends_well_and_hands_on_its_mode(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".txt")  # the longest name that most disks take
    with files.writing(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    assert files.write(path, b"newer") == 5
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"newer", 0o640)
    with pytest.raises(ZeroDivisionError), files.writing(path) as file:
        file.write(b"half" + bytes(1 // 0))
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]


def no_files(folder: Path) -> dict[str, Path]:
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "victim").write_bytes(b"victim")
    (folder / "link").symlink_to("victim")
    (folder / "dangling").symlink_to("nowhere")
    null = folder / "null"
    if os.geteuid() == 0:
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # a device that can be replaced: /dev is ours to keep
    else:
        null = Path(os.devnull)
    return {
        "a folder": folder / "folder",
        "a pipe": folder / "pipe",
        "a symbolic link": folder / "link",
        "a symbolic": folder / "dangling",
        "a device": null,
        "is a URL": Path("s3://bucket/m.parquet"),
        "'gs://bucket/a/m.parquet' is a URL": Path("gs://bucket/a/m.parquet"),
    }


def test_what_is_no_file_is_refused_and_stays(tmp_path: Path) -> None:
    places = no_files(tmp_path)
    before = {path: path.lstat() for path in tmp_path.iterdir()}
    for words, place in places.items():
        with pytest.raises(InputError, match=words), files.writing(place) as file:
            file.write(b"x")
    assert {path: path.lstat().st_ino for path in tmp_path.iterdir()} == {p: s.st_ino for p, s in before.items()}
    assert (tmp_path / "victim").read_bytes() == b"victim"
    with pytest.raises(StorageError, match="No such file or directory"), files.writing(tmp_path / "none" / "x"):
        pass


def test_a_place_that_becomes_a_link_in_the_meantime_is_refused(tmp_path: Path) -> None:
    path, victim = tmp_path / "x", tmp_path / "victim"
    victim.write_bytes(b"victim")
    with pytest.raises(InputError, match="a symbolic link"), files.writing(path):
        path.symlink_to(victim)
    assert victim.read_bytes() == b"victim"
    assert sorted(tmp_path.iterdir()) == [victim, path]


WRITERS = {
    "ingest": ["manifest", "ingest", "demo:4", "-o", "{}"],
    "report": ["report", "RUN", "-o", "{}.html"],
    "report.md": ["report", "RUN", "-o", "{}.md"],
    "sql csv": ["sql", "RUN", "select 1 as a", "-o", "{}.csv"],
    "sql parquet": ["sql", "RUN", "select 1 as a", "-o", "{}.parquet"],
    "query": ["query", "RUN", "massive_channels", "-o", "{}.json"],
    "probe": ["models", "inspect", "demo", "-o", "{}"],
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_command_writes_the_files_that_a_user_names_by_the_same_rules(writer: str, tmp_path: Path) -> None:
    make_run(tmp_path / "RUN")
    victim, ending = tmp_path / "victim", Path(WRITERS[writer][-1]).suffix
    victim.write_bytes(b"victim")
    (tmp_path / f"link{ending}").symlink_to(victim)
    for name in ("link", "s3://bucket/x"):
        command = [*COMMAND, *(word.format(name) for word in WRITERS[writer])]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done
        assert ("is a symbolic link" if name == "link" else "'s3://bucket/x") in done.stderr
    assert victim.read_bytes() == b"victim"
    assert not (tmp_path / "s3:").exists()


def test_a_home_folder_that_nobody_has_is_refused_and_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"'~nobody-at-all/run' starts with a home folder .* export HOME"):
        expanded("~nobody-at-all/run")
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/run") == Path("/somewhere/run")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(InputError, match="export HOME"):
        expanded("~/run")


def test_every_command_refuses_a_home_folder_that_nobody_has(tmp_path: Path) -> None:
    for words in (
        ("runs", "show", "~nobody-at-all/run"),
        ("sql", "~nobody-at-all/run", "select 1"),
        ("models", "show", "~nobody-at-all/model"),
        ("analyze", "masks", "~nobody-at-all/run"),
    ):
        answer = command(*words)
        assert (answer.code, "starts with a home folder" in answer.stderr) == (2, True), words
