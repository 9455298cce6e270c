"""Checks of what analyses write, in ``tests/data/queries/checks/``: queries that return the rows that offend."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from made_run import RESULTS, make_run

from fewchannels import manifest
from fewchannels.analyses.alignment.units import Alignment
from fewchannels.analyses.analysis import analyze
from fewchannels.analyses.concentration.units import Concentration
from fewchannels.analyses.masks.units import SubjectMasks
from fewchannels.analyses.selection import select
from fewchannels.analyses.stability.units import Stability
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.shares import Pool
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.sql.named_queries import queries

pytestmark = pytest.mark.usefixtures("undrawn")

HERE = Path(__file__).parents[1] / "data" / "queries"
SCHEMAS = Path(__file__).parents[2] / "schemas"
CHECKS = sorted(HERE.glob("checks/*.sql"))


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of the bundled model with all results: 3 prompts with 2 seeds, 2 layers, 2 steps."""
    folder = tmp_path_factory.mktemp("analyzed")
    manifest.ingest(["demo:3"], folder / "manifest.parquet", seeds=[0, 1])
    settings = {"num_inference_steps": 4, "steps": "2,3", "layers": "0,5", "top_k": 128, "shard_samples": 4}
    job = prepare(folder / "manifest.parquet", folder / "run", CaptureConfig(**settings))
    begin(job, folder / "manifest.parquet")
    worker = CaptureWorker(job, 1)
    for task in range(job.layout.n_tasks):
        worker(task)
    selected, alone = select(str(folder / "run")), Pool(1, 0, 1)
    analyze(SubjectMasks("demo"), selected, "masks", alone)
    analyze(Alignment(k=6, trials=2, n_clusters=(2, 3)), selected, "alignment", alone)
    analyze(Stability(ks=(3, 6), rank_pairs=4), selected, "stability", alone)
    analyze(Concentration(ks=(1, 6), k=6, register_threshold=1.2), selected, "concentration", alone)
    return folder / "run"


@pytest.mark.parametrize("check", CHECKS, ids=lambda path: path.stem)
def test_no_row_of_a_real_runs_results_offends(check: Path, analyzed: Path) -> None:
    with Catalog(analyzed) as catalog:
        assert catalog.sql(check.read_text(encoding="utf-8")).fetchall() == []


PLANTED: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {
    "alignment_means_are_of_samples": {
        "alignment": {"samples": [{"iou": 0.5}], "means": [{"n_samples": 1, "iou": 0.4, "area": 0.0}]}
    },
    "best_iou_is_the_best": {"alignment": {"samples": [{"iou": 0.2, "complement_iou": 0.5, "best_iou": 0.2}]}},
    "concentration_means_are_of_cells": {
        "concentration": {"cells": [{"ratio": 2.0}], "means": [{"metric": "ratio", "n_samples": 1, "mean": 3.0}]}
    },
    "intervals_hold_their_means": {"stability": {"pairs": [{"jaccard": 0.5, "jaccard_low": 0.6, "jaccard_high": 0.7}]}},
    "rows_belong_to_samples": {"masks": {"samples": [{"sample": 7}]}},
    "shares_are_of_0_to_1": {"stability": {"channels": [{"frequency": 1.5}]}},
    "stability_counts_add_up": {
        "stability": {"channels": [{"k": 2, "n_selected": 1, "n_samples": 1, "frequency": 1.0}]}
    },
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda path: path.stem)
def test_a_check_finds_the_row_that_offends(check: Path, tmp_path: Path) -> None:
    results = {label: {} for label in RESULTS} | PLANTED[check.stem]
    with Catalog(make_run(tmp_path / "run", [{"top_channels": [1]}], results=results)) as catalog:
        assert len(catalog.sql(check.read_text(encoding="utf-8"))) > 0


def test_keys_of_results_are_unique(analyzed: Path) -> None:
    with Catalog(analyzed) as catalog:
        for label, kinds in RESULTS.items():
            for table, kind in kinds.items():
                key = yaml.safe_load((SCHEMAS / f"{kind}.yaml").read_text(encoding="utf-8"))["key"]
                view = f"{label}_{table}"
                n = len(catalog.sql(f"select {', '.join(key)} from {view}"))
                assert n == len(catalog.sql(f"select distinct {', '.join(key)} from {view}")) > 0, view


@pytest.mark.parametrize("name", [name for name, query in queries().items() if query.needs and query.of == "run"])
def test_a_query_of_a_real_result_has_rows(name: str, analyzed: Path) -> None:
    lenient = {"stability_core": {"min_frequency": 0.1}, "misaligned_samples": {"max_iou": 1.1}}
    with Catalog(analyzed) as catalog:
        assert len(catalog.query(name, **lenient.get(name, {})))
