"""docs/cluster/slurm.sh as SLURM would run it, whose commands are replaced by ones that do the same on this machine."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fewchannels import manifest, open_run

SCRIPT = Path(__file__).parents[2] / "docs" / "cluster" / "slurm.sh"
BIN = Path(sys.executable).parent

# A step runs its command here: options are up to the first word that is none.
SRUN = """#!/bin/bash
echo "srun $*" >> "$SAID"
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$SAID"
if [ "$1" = show ]; then echo 127.0.0.1; echo other; fi
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two nodes, each of which is this machine."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    own = {
        "PATH": f"{tmp_path / 'bin'}:{BIN}:{os.environ['PATH']}",
        "SAID": str(tmp_path / "said"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "RAY_TMPDIR": f"/tmp/fewchannels-slurm-{os.getpid()}",
    }
    return os.environ | own


def ended(job: subprocess.Popen[bytes], slurm: dict[str, str]) -> int:
    """The exit code of a job; afterwards all that it has started is ended, as SLURM does."""
    try:
        return job.wait(timeout=300)
    finally:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SAID") == slurm["SAID"]:
                    process.kill()
        shutil.rmtree(slurm["RAY_TMPDIR"], ignore_errors=True)


@pytest.mark.exhaustive
def test_a_capture_is_interrupted_near_the_time_limit_requeued_and_resumed(
    slurm: dict[str, str], tmp_path: Path, tiny_model: Path
) -> None:
    table, run = tmp_path / "m.parquet", tmp_path / "RUN"
    manifest.ingest(["demo:6"], table, seeds=[0])
    words = ["capture", "--model", tiny_model, "--manifest", table, "--out", run, "--actors", "2"]
    words += ["--num-inference-steps", "40", "--shard-samples", "1"]
    command = ["bash", str(SCRIPT), *map(str, words)]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=slurm, start_new_session=True)

    job, until = start(), time.monotonic() + 240
    while not list(run.glob("ledger/*.json")):
        assert job.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert ended(job, slurm) == 130
    said = Path(slurm["SAID"]).read_text()
    assert f"scontrol requeue {os.getpid()}" in said
    assert "ray start --head --node-ip-address=127.0.0.1" in said
    assert "--exclude=127.0.0.1 ray start --address=127.0.0.1:" in said
    n_done = len(list(run.glob("ledger/*.json")))
    assert 0 < n_done < 6
    Path(slurm["SAID"]).unlink()
    assert ended(start(), slurm) == 0
    assert open_run(run).sql("select count(*) from samples where status = 'done'").fetchone() == (6,)
    assert "requeue" not in Path(slurm["SAID"]).read_text()


def test_without_a_command_it_says_how_it_is_used() -> None:
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch ")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
@pytest.mark.parametrize("script", [SCRIPT, Path(__file__).parents[2] / ".ci" / "run"], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
