"""Commands as jobs of a real Ray: sent with their files, followed, looked at, stopped; and plain Ray jobs."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from job_server import BIN, job_server
from typer.testing import CliRunner

from fewchannels import manifest, open_run
from fewchannels.cli import app
from fewchannels.cli.jobs import checked
from fewchannels.cluster import jobs as jobs_module
from fewchannels.cluster.jobs import Jobs, ship
from fewchannels.errors import FewchannelsError, InputError


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the dashboard of a Ray whose nodes find this environment's commands."""
    with job_server() as made:
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("jobs")
    manifest.ingest(["demo:4"], made / "manifest.parquet", seeds=[0])
    (made / "settings.yaml").write_text("num_inference_steps: 2\ntop_k: 4\n")
    return made


def fewchannels(line: str, folder: Path, address: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "fewchannels"), *shlex.split(line)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"RAY_ADDRESS": address},
    )


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
LINES = [
    line.strip() for line in README.split("## On a cluster")[1].splitlines() if line.startswith("    fewchannels ")
]


def test_the_readmes_jobs_run_with_the_files_they_were_sent_and_are_resumed(
    folder: Path, address: str, tiny_model: Path
) -> None:
    submit, status, logs, stop = (
        line.replace("http://localhost:8265", address).replace("/mnt/runs", str(folder)).removeprefix("fewchannels ")
        for line in LINES
    )
    submit += f" --model {tiny_model} --config=settings.yaml"
    done = fewchannels(submit, folder, address)
    assert done.returncode == 0, done.stderr
    assert "with manifest.parquet, settings.yaml" in done.stderr
    assert "4 of 4 samples" in done.stderr
    assert open_run(folder / "RUN").sql("select count(*) from samples").fetchone() == (4,)
    states = {each["job_id"]: each for each in json.loads(fewchannels(f"{status} --json", folder, address).stdout)}
    assert (states["first"]["status"], states["first"]["exit_code"]) == ("SUCCEEDED", 0)
    assert "SUCCEEDED" in fewchannels(status, folder, address).stdout
    assert "4 of 4 samples" in fewchannels(logs, folder, address).stdout
    assert "had ended before" in fewchannels(stop, folder, address).stderr
    refused = fewchannels(submit.replace("--id first ", "") + " --top-k 5", folder, address)
    assert refused.returncode == 3, "the exit code is the command's"
    assert "config.top_k: 4 -> 5" in refused.stderr


def test_jobs_are_listed_read_and_stopped(folder: Path, address: str, tiny_model: Path) -> None:
    given = f"--model {tiny_model} --manifest manifest.parquet"
    long = f"capture {given} --out {folder}/LONG --num-inference-steps 5000"
    assert fewchannels(f"submit --id long -- {long}", folder, address).stdout.strip() == "long"
    jobs = Jobs(address)
    until = time.monotonic() + 60
    while "capturing" not in jobs.log("long"):
        assert time.monotonic() < until
        time.sleep(0.5)
    assert fewchannels("stop long", folder, address).returncode == 0
    followed = fewchannels("logs long --follow", folder, address)
    assert followed.returncode == 1
    assert "job long: STOPPED" in followed.stderr
    states = {
        each["job_id"]: each["status"] for each in json.loads(fewchannels("status --json", folder, address).stdout)
    }
    assert states["long"] == "STOPPED"
    assert "capturing" in fewchannels("logs long", folder, address).stdout


def test_analyses_and_sweeps_are_jobs_too(folder: Path, address: str, tiny_model: Path) -> None:
    capture = f"capture --model {tiny_model} --manifest manifest.parquet --config settings.yaml --out {folder}/SEEN"
    sweep = (
        f"probe disruption --model {tiny_model} --manifest manifest.parquet --num-inference-steps 2 --out {folder}/ZERO"
    )
    for line in (capture, f"analyze stability {folder}/SEEN --workers 2", sweep):
        done = fewchannels(f"submit --follow -- {line}", folder, address)
        assert done.returncode == 0, (line, done.stderr)
    assert (folder / "SEEN" / "results" / "stability" / "summary.md").exists()
    assert (folder / "ZERO" / "results" / "effects" / "summary.md").exists()


def test_a_plain_ray_job_does_the_same(folder: Path, address: str, tiny_model: Path) -> None:
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", address, "--working-dir", "."]
    capture = [
        "capture",
        "--address",
        "auto",
        "--manifest",
        "manifest.parquet",
        "--num-inference-steps",
        "2",
        "--top-k",
        "4",
    ]
    line = ["fewchannels", *capture, "--model", str(tiny_model), "--out", str(folder / "PLAIN")]
    small = folder / "small"
    small.mkdir()
    (small / "more.txt").write_text("unlike what other jobs were sent")
    (small / "manifest.parquet").write_bytes((folder / "manifest.parquet").read_bytes())
    done = subprocess.run([*ray, "--", *line], cwd=small, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 samples" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("capture --manifest manifest.parquet --out RUN", "out is 'RUN', a path of this machine"),
        ("analyze stability RUN", "run is 'RUN', a path of this machine"),
        ("capture --manifest nowhere.parquet --out /mnt/RUN", "no such file here to be sent"),
        ("capture --manifest manifest.parquet --oout /mnt/RUN", "No such option: --oout"),
        ("captur --out /mnt/RUN", "unknown command 'captur'. Did you mean 'capture'"),
        ("capture --help", "only prints help"),
        ("status", "is not for a cluster"),
    ],
)
def test_what_would_fail_on_the_cluster_is_refused_here(
    line: str, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=says):
        checked(line.split())


def test_the_cluster_is_where_the_job_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    capture = ["capture", "--manifest", "manifest.parquet", "--out", "s3://bucket/RUN"]
    assert checked(["fewchannels", *capture]) == [*capture, "--address", "auto"]
    assert checked([*capture, "--address", "10.0.0.1:6379"])[-2:] == ["--address", "10.0.0.1:6379"]
    assert checked(["query", "s3://bucket/RUN", "failures"]) == ["query", "s3://bucket/RUN", "failures"]


def test_files_are_sent_once_each_and_two_of_one_name_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "p.csv").write_text("a")
    (tmp_path / "p.csv").write_text("b")
    (tmp_path / "sent").mkdir()
    monkeypatch.chdir(tmp_path)
    words, files = ship(["x", "--of=a/p.csv", "p.csv", "a", "nothing.csv"], tmp_path / "sent")
    assert (words, files) == (["x", "--of=p.csv", "1-p.csv", "a", "nothing.csv"], ["a/p.csv", "p.csv"])
    assert [(tmp_path / "sent" / name).read_text() for name in ("p.csv", "1-p.csv")] == ["a", "b"]
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(101 * 2**20)
    with pytest.raises(InputError, match=r"large\.bin and what else .* more than 100 MiB"):
        ship(["large.bin"], tmp_path / "sent")


def test_whoever_follows_a_job_learns_that_the_head_is_silent(
    folder: Path, address: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "_MOST_MISSED", 2)
    jobs = Jobs(address)
    command = f"capture --model {tiny_model} --manifest {folder}/manifest.parquet --out {folder}/SILENT"
    job_id, _ = jobs.submit([*shlex.split(command), "--num-inference-steps", "5000"])
    head = [each for each in psutil.Process().children(recursive=True) if each.name() == "gcs_server"]
    said: list[str] = []

    def stop_the_head(text: str) -> None:
        said.append(text)
        if "capturing" in text:
            for each in head:
                each.suspend()

    try:
        with pytest.raises(FewchannelsError, match=r"has not answered 2 times; it may have died.*the same command"):
            jobs.follow(job_id, stop_the_head)
    finally:
        for each in head:
            each.resume()
    assert head
    assert "capturing" in "".join(said)
    assert jobs.stop(job_id)


def test_a_cluster_that_does_not_answer_is_named() -> None:
    answer = CliRunner().invoke(app, ["status", "--address", "http://127.0.0.1:9"])
    assert isinstance(answer.exception, FewchannelsError)
    assert "'http://127.0.0.1:9' cannot be reached" in str(answer.exception)


def test_a_job_that_there_is_not_is_named(address: str) -> None:
    answer = CliRunner().invoke(app, ["logs", "nobody", "--address", address])
    assert isinstance(answer.exception, FewchannelsError)
    assert "nobody" in str(answer.exception)
