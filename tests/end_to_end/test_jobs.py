"""Commands as jobs of a real Ray: sent with their files, followed, looked at, stopped; and plain Ray jobs."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from job_server import BIN, job_server
from two_runs import ROWS, captured
from typer.testing import CliRunner

from fewchannels import manifest, open_run
from fewchannels.cli import app
from fewchannels.cluster import jobs as jobs_module
from fewchannels.cluster.jobs import Jobs
from fewchannels.errors import FewchannelsError


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
        env=os.environ | {"RAY_ADDRESS": address, "http_proxy": "http://127.0.0.1:9"},  # the job is here, not behind it
    )


PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
IN_SHORT = PAGE.split("\n## In short\n")[1].split("\n## ")[0]
LINES = [line.strip() for line in IN_SHORT.splitlines() if line.startswith("    fewchannels ")]


def test_the_pages_jobs_run_with_the_files_they_were_sent_and_are_resumed(
    folder: Path, address: str, tiny_model: Path
) -> None:
    submit, status, logs, stop = (
        line.replace("http://localhost:8265", address).replace("/mnt/runs", str(folder)).removeprefix("fewchannels ")
        for line in LINES
    )
    submit += f" --model {tiny_model} --config=settings.yaml"
    done = fewchannels(submit, folder, address)
    assert done.returncode == 0, done.stderr
    assert re.search(r"sending manifest\.parquet \(.* kB\), settings\.yaml \(32 bytes\)", done.stderr)
    assert "4 of 4 samples" in done.stderr
    assert open_run(folder / "RUN").sql("select count(*) from samples").fetchone() == (4,)
    states = {each["job_id"]: each for each in json.loads(fewchannels(f"{status} --json", folder, address).stdout)}
    assert (states["first"]["status"], states["first"]["exit_code"]) == ("SUCCEEDED", 0)
    assert "SUCCEEDED" in fewchannels(status, folder, address).stdout
    assert "4 of 4 samples" in fewchannels(logs, folder, address).stdout
    assert "had already ended" in fewchannels(stop, folder, address).stderr
    refused = fewchannels(submit.replace("--id first ", "") + " --top-k 5", folder, address)
    assert refused.returncode == 3, "the exit code is the command's"
    assert "config.top_k: 4 -> 5" in refused.stderr


def test_jobs_are_listed_read_and_stopped(folder: Path, address: str, tiny_model: Path) -> None:
    given = f"--model {tiny_model} --manifest manifest.parquet --actors 1"
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
    captured(folder, "SEEN", tiny_model, ROWS)
    given = f"--model {tiny_model} --manifest manifest.parquet --actors 1"
    sweep = f"probe disruption {given} --num-inference-steps 2 --out {folder}/ZERO"
    for line in (f"analyze stability {folder}/SEEN --workers 2 --k 2", sweep):
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
        "--actors",
        "1",
    ]
    line = ["fewchannels", *capture, "--model", str(tiny_model), "--out", str(folder / "PLAIN")]
    small = folder / "small"
    small.mkdir()
    (small / "more.txt").write_text("unlike what other jobs were sent")
    (small / "manifest.parquet").write_bytes((folder / "manifest.parquet").read_bytes())
    done = subprocess.run([*ray, "--", *line], cwd=small, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 samples" in done.stdout + done.stderr


def test_a_job_reads_each_file_that_it_names_and_no_other(folder: Path, address: str, tmp_path: Path) -> None:
    """Names that are each other's with a number, files that hide others from Ray, a file named as ours is."""
    given = {"2-m.txt": "two", "m.txt": "one", "sub/m.txt": "below", ".gitignore": "m.txt\n*", ".job": "mine"}
    for name, text in given.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / ".hidden.txt").write_text("hidden", encoding="utf-8")
    out = folder / "read.parquet"
    line = f"manifest ingest 2-m.txt m.txt sub/m.txt .hidden.txt --on-error skip -o {out}"
    done = fewchannels(f"submit --follow --json -- {line}", tmp_path, address)
    assert done.returncode == 0, done.stderr
    assert "sending 2-m.txt (3 bytes), m.txt (3 bytes), sub/m.txt (5 bytes), .hidden.txt (6 bytes)" in done.stderr
    prompts = [each.prompt for each in manifest.read_samples(out, 0, 4)]
    assert prompts == ["two", "one", "below", "hidden"]
    assert (tmp_path / ".job").read_text(encoding="utf-8") == "mine"


def test_whoever_follows_a_job_learns_that_the_head_is_silent(
    folder: Path, address: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "_MOST_MISSED", 2)
    jobs = Jobs(address)
    command = f"capture --model {tiny_model} --manifest {folder}/manifest.parquet --out {folder}/SILENT"
    job_id = jobs.submit([*shlex.split(command), "--num-inference-steps", "5000", "--actors", "1"], {})
    head = [each for each in psutil.Process().children(recursive=True) if each.name() == "gcs_server"]
    said: list[str] = []

    def stop_the_head(text: str) -> None:
        said.append(text)
        if "capturing" in text:
            for each in head:
                each.suspend()

    try:
        with pytest.raises(
            FewchannelsError, match=r"did not answer 2 times in a row; it may have died.*the same command"
        ):
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
