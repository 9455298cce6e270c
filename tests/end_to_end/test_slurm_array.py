"""docs/cluster/slurm_array.sh as an array of SLURM jobs would run it, and the runs of its tasks merged."""

import os
import subprocess
import sys
from pathlib import Path

from command import command

from fewchannels import manifest, open_run

SCRIPT = Path(__file__).parents[2] / "docs" / "cluster" / "slurm_array.sh"
SETTINGS = ("--num-inference-steps", "2", "--batch-size", "2", "--shard-samples", "2")


def array_task(number: int | None, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "1"}
    own |= {"SLURM_JOB_ID": "7"} if number is None else {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(number)}
    line = ["bash", str(SCRIPT), *words]
    return subprocess.run(
        line, cwd=folder, env=os.environ | own, capture_output=True, text=True, timeout=300, check=False
    )


def test_an_array_of_jobs_captures_a_manifest_in_parts(tiny_model: Path, tmp_path: Path) -> None:
    manifest.ingest(["demo:5"], tmp_path / "m.parquet", seeds=[0])
    assert command("manifest", "split", tmp_path / "m.parquet", "--parts", 2, "-o", tmp_path / "PARTS").code == 0
    for number in range(2):
        done = array_task(number, tmp_path, "PARTS", "RUNS", "--model", str(tiny_model), *SETTINGS)
        assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "RUNS").iterdir())
    assert [run.name for run in runs] == ["0000", "0001"]
    assert command("runs", "merge", *runs, "--out", tmp_path / "RUN").code == 0
    with (tmp_path / "m.parquet").open("rb") as file:
        assert open_run(tmp_path / "RUN").samples.sample_id.tolist() == manifest.sample_ids(file)


def test_outside_an_array_it_says_how_it_is_used(tmp_path: Path) -> None:
    refused = array_task(None, tmp_path, "PARTS", "RUNS")
    assert (refused.returncode, "sbatch --array=0-15" in refused.stderr) == (2, True)
