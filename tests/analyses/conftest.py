"""A run with all results, made once for each file of tests."""

from pathlib import Path

import pytest
from analyzed import ALONE, CONCENTRATION, K

from fewchannels import Run, manifest, open_run
from fewchannels.analyses.alignment.units import Alignment
from fewchannels.analyses.analysis import analyze
from fewchannels.analyses.masks.units import SubjectMasks
from fewchannels.analyses.selection import select
from fewchannels.analyses.stability.units import Stability
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 5 prompts with 2 seeds each: 128 channels of 6 layers at 2 steps, in 3 tasks; with all results."""
    folder = tmp_path_factory.mktemp("analyses")
    manifest.ingest(["demo:5"], folder / "manifest.parquet", seeds=[0, 1])
    settings = {"num_inference_steps": 6, "steps": "3,5", "top_k": 128, "shard_samples": 4}
    job = prepare(folder / "manifest.parquet", folder / "run", CaptureConfig(**settings))
    begin(job, folder / "manifest.parquet")
    worker = CaptureWorker(job, 1)
    for task in range(job.layout.n_tasks):
        worker(task)
    selected = select(str(folder / "run"))
    analyze(SubjectMasks("demo"), selected, "masks", ALONE)
    analyze(Alignment(k=K, trials=2, starts=20), selected, "alignment", ALONE)
    analyze(Stability(ks=(3, K), rank_pairs=8), selected, "stability", ALONE)
    analyze(CONCENTRATION, selected, "concentration", ALONE)
    return folder / "run"


@pytest.fixture(scope="module")
def run(path: Path) -> Run:
    return open_run(path)
