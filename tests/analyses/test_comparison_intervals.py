"""Intervals of a comparison of two small models' runs, against the jackknife written out."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student_t
from tiny import TINY
from two_runs import ROWS, captured

from fewchannels import open_run
from fewchannels.analyses.comparison.compare import TABLES, tabulate
from fewchannels.analyses.comparison.pairing import Criteria, cells, side_by_side
from fewchannels.demo.build import build_pipeline


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    """Twelve samples of six prompts by the models of A and of B."""
    folder = tmp_path_factory.mktemp("many")
    build_pipeline(TINY, seed=2).save_pretrained(folder / "other")
    rows = [*ROWS, *(f"{prompt},{seed}" for prompt in ("a cone", "two moons") for seed in (1, 2))]
    models = {"many_a": tiny_model, "many_b": folder / "other"}
    a, b = (captured(folder, name, model, rows) for name, model in models.items())
    return a, b


def jackknife(of_prompt: pd.DataFrame) -> tuple[float, float, float]:
    """Mean and interval of sums and counts of prompts, leaving out one after the other."""
    mean = of_prompt["sum"].sum() / of_prompt["count"].sum()
    n, rest = len(of_prompt), of_prompt.sum() - of_prompt
    without = rest["sum"] / rest["count"]
    error = np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    reach = student_t.ppf(0.975, n - 1) * error
    return mean, mean - reach, mean + reach


def test_a_mean_difference_is_paired_and_its_interval_is_over_prompts(many: tuple[Path, Path]) -> None:
    pairing, criteria = side_by_side(*map(str, many)), Criteria(k=3)
    each = [tabulate(pairing, criteria, unit, cells(pairing, criteria, unit)) for unit in pairing.units()]
    found = {name: pd.DataFrame([row for rows, _ in each for row in rows[name]]) for name in TABLES[:-1]}
    prompt = dict(open_run(many[0]).sql("select sample_id, prompt from samples").fetchall())
    samples = pd.concat([pd.DataFrame(columns) for _, columns in each])
    own = samples[(samples["layer_a"] == 2) & (samples["step_a"] == 1)]
    for metric in ("ratio", "token_norm_ratio"):  # their difference has no range
        row = found["differences"].query("metric == @metric and layer_a == 2 and step_a == 1").iloc[0]
        change = (own[f"{metric}_b"] - own[f"{metric}_a"]).groupby(own["sample_id"].map(prompt), sort=False)
        expected = jackknife(change.agg(["sum", "count"]))
        np.testing.assert_allclose(row[["mean", "low", "high"]].astype(float), expected, rtol=1e-3, atol=1e-6)
        assert (row["n_samples"], row["n_prompts"]) == (12, 6)
    for table, least in (("agreement", -1.0), ("profiles", 0.0)):
        rows = found[table].dropna(subset=["low"])
        assert len(rows)
        assert (rows["low"] >= least).all()
        assert (
            rows.loc[~rows["metric"].isin(["ratio", "token_norm_ratio"]) if "metric" in rows else rows.index, "high"]
            .le(1)
            .all()
        )
    pairs = found["agreement"].query("kind == 'across_a' and measure == 'jaccard'")
    assert pairs["n_prompts"].eq(6).all()
