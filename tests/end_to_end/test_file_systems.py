"""Commands on file systems as clusters have them: without locks, without fsync of folders, without advice or modes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import odd_disk
import pyarrow.parquet as pq
import pytest
from two_runs import ROWS, captured

COMMAND = [sys.executable, "-m", "fewchannels"]
NO_LOCKS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]


def called(words: list[object], folder: Path, scratch: Path, **failing: int) -> subprocess.CompletedProcess[str]:
    """Run a command where calls fail below a folder."""
    environment = odd_disk.environment(folder, scratch, **failing)
    if environment is None:
        pytest.skip("no library can be preloaded here")
    command = [*COMMAND, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180, check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The folder in which calls fail."""
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,seed\na red star,1\ntwo blue rings,2\n", encoding="utf-8")
    return path


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file but locks."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.mark.parametrize("number", NO_LOCKS, ids=os.strerror)
def test_a_place_without_locks_is_refused_in_words_by_whatever_writes(
    number: int, disk: Path, tmp_path: Path, tiny_model: Path, prompts: Path
) -> None:
    run = captured(disk, "RUN", tiny_model, ROWS)
    before = contents(disk)
    commands: list[list[object]] = [["runs", "compact", run]]
    if number == errno.ENOSYS:
        commands += [
            ["runs", "export", run, "--out", disk / "E"],
            ["capture", "--model", "demo", "--manifest", run / "manifest.parquet", "--out", disk / "NEW"],
            ["analyze", "stability", run],
            ["runs", "verify", run, "--repair"],
            ["runs", "merge", run, "--out", disk / "M"],
        ]
    for words in commands:
        done = called(words, disk, tmp_path, flock=number)
        assert done.returncode == 4, (words, done.stderr)
        assert "Traceback" not in done.stderr
        said = " ".join(done.stderr.split())
        for part in ("has no file locks", os.strerror(number), "Lustre: -o flock", "a bucket", os.uname().nodename):
            assert part in said, (words, said)
    assert contents(disk) == before


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP], ids=os.strerror)
def test_where_folders_cannot_be_made_durable_a_manifest_is_written_with_one_warning(
    number: int, disk: Path, tmp_path: Path, prompts: Path
) -> None:
    done = called(["manifest", "ingest", prompts, "-o", disk / "m.parquet"], disk, tmp_path, folder_sync=number)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning:") == 1, done.stderr
    assert "cannot make the names in a folder durable" in " ".join(done.stderr.split())
    assert pq.read_table(disk / "m.parquet").column("prompt").to_pylist() == ["a red star", "two blue rings"]


def test_where_folders_cannot_be_made_durable_a_run_is_compacted_with_one_warning(
    disk: Path, tmp_path: Path, tiny_model: Path
) -> None:
    run = captured(disk, "RUN", tiny_model, ROWS)
    done = called(["runs", "compact", run], disk, tmp_path, folder_sync=errno.EINVAL)
    assert (done.returncode, done.stderr.count("warning:")) == (0, 1), done.stderr
    assert subprocess.run([*COMMAND, "runs", "verify", run], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("calls", ["folder_sync", "file_sync"])
def test_a_disk_that_fails_is_still_an_error(calls: str, disk: Path, tmp_path: Path, prompts: Path) -> None:
    words: list[object] = ["manifest", "ingest", prompts, "-o", disk / "m.parquet"]
    done = called(words, disk, tmp_path, **{calls: errno.EIO})
    assert done.returncode == 4, done.stderr
    assert "Input/output error" in " ".join(done.stderr.split())


def test_a_file_that_cannot_be_synced_is_an_error(disk: Path, tmp_path: Path, prompts: Path) -> None:
    words: list[object] = ["manifest", "ingest", prompts, "-o", disk / "m.parquet"]
    done = called(words, disk, tmp_path, file_sync=errno.EINVAL)
    assert done.returncode == 4, done.stderr
    assert not list(disk.iterdir())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EIO], ids=os.strerror)
def test_advice_that_is_not_taken_changes_nothing(number: int, disk: Path, tmp_path: Path, tiny_model: Path) -> None:
    run = captured(disk, "RUN", tiny_model, ROWS)
    done = called(["runs", "compact", run], disk, tmp_path, advice=number)
    assert (done.returncode, "warning" in done.stderr) == (0, False), done.stderr


def test_a_file_system_without_modes_has_its_files_replaced(disk: Path, tmp_path: Path, prompts: Path) -> None:
    out = disk / "m.parquet"
    out.write_bytes(b"earlier")
    out.chmod(0o600)
    done = called(["manifest", "ingest", prompts, "-o", out], disk, tmp_path, mode=errno.EPERM)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(out).num_rows == 2


def test_a_temporary_folder_without_locks_does_for_what_spills(disk: Path, tmp_path: Path, tiny_model: Path) -> None:
    run = captured(tmp_path, "RUN", tiny_model, ROWS)
    scratch = tmp_path / "library"
    scratch.mkdir()
    environment = odd_disk.environment(disk, scratch, flock=errno.ENOSYS)
    if environment is None:
        pytest.skip("no library can be preloaded here")
    done = subprocess.run(
        [*COMMAND, "sql", str(run), "select count(*) as n from samples", "--csv"],
        capture_output=True,
        text=True,
        env=environment | {"TMPDIR": str(disk)},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["n", "8"]), done.stderr
    assert not list(disk.iterdir())
