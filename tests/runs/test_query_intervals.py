"""Intervals of named queries, against the jackknife written out and ``measures.intervals``."""

import math
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
from made_run import make_run
from scipy import stats

from fewchannels.measures.intervals import cluster_interval
from fewchannels.runs.sql.catalog import Catalog


def jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b)


def test_stability_intervals_are_clustered_by_prompt(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    n_prompts, n_seeds = 7, 3
    sets = [set(rng.choice(12, 4, replace=False).tolist()) for _ in range(n_prompts * n_seeds)]
    cells = [{"sample": i, "top_channels": list(chosen)} for i, chosen in enumerate(sets)]
    samples = [{"sample": i, "prompt": f"p{i // n_seeds}", "seed": i} for i in range(len(sets))]
    with Catalog(make_run(tmp_path / "run", cells, samples)) as catalog:
        answer = catalog.query("channel_stability")
    row = dict(zip(answer.columns, answer.fetchall()[0], strict=True))
    prompts = [sets[i : i + n_seeds] for i in range(0, len(sets), n_seeds)]
    within = [mean(jaccard(a, b) for a, b in combinations(prompt, 2)) for prompt in prompts]
    across = [
        mean(jaccard(a, b) for a in prompt for other in prompts if other is not prompt for b in other)
        for prompt in prompts
    ]
    # Leaving out a prompt leaves out its pairs: 3 within, and 3 x 18 of 189 across.
    for name, means, n_own, n_all in (("within", within, 3, 21), ("across", across, 54, 189)):
        total = n_all * mean(means)
        left_out = [(total - n_own * each) / (n_all - n_own) for each in means]
        error = (n_prompts - 1) / math.sqrt(n_prompts) * stdev(left_out)
        reach, p = stats.t.ppf(0.975, n_prompts - 1) * error, mean(means)
        assert row[name] == pytest.approx(p)
        for end in (row[f"{name}_low"], row[f"{name}_high"]):
            assert (end - p) ** 2 == pytest.approx(reach**2 * end * (1 - end) / (p * (1 - p)), rel=1e-3)
        assert 0 < row[f"{name}_low"] < p < row[f"{name}_high"] < 1


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_intervals_of_queries_are_of_prompts_and_inside_the_range(n_seeds: int, tmp_path: Path) -> None:
    rng, n_prompts = np.random.default_rng(5), 9
    n = n_prompts * n_seeds
    drawn = [
        {
            "top_channels": rng.choice(8, 3, replace=False).tolist(),
            "top_scores": sorted(rng.uniform(2, 9, 3), reverse=True),
        }
        | {"ratio": 1 + rng.exponential(), "gini": rng.beta(1, 5), "token_norm_ratio": 1 + rng.exponential()}
        for _ in range(n)
    ]
    cells = [
        each
        | {
            "sample": i,
            "median_score": 1.0,
        }
        for i, each in enumerate(drawn)
    ]
    samples = [{"sample": i, "prompt": f"p{i // n_seeds}", "seed": i} for i in range(n)]
    with Catalog(make_run(tmp_path / "run", cells, samples)) as catalog:
        channels = catalog.query("massive_channels", min_frequency=0, top=0).df()
        history = catalog.query("channel_history", channel=2).df().iloc[0]
        profile = catalog.query("layer_profile").df().set_index("measure")
        steps = catalog.query("step_profile").df().set_index("measure")

    def expected(values: list[float], least: float, most: float) -> tuple[float, float]:
        known = np.isfinite(values).reshape(n_prompts, n_seeds)
        sums = np.where(known, np.reshape(values, known.shape), 0).sum(axis=1)[:, None]
        _, low, high = cluster_interval(sums, known.sum(axis=1)[:, None], least, most)
        return low[0], high[0]

    def ends(row: Any, name: str) -> tuple[float, float]:
        return tuple(np.nan if row[f"{name}_{end}"] is None else row[f"{name}_{end}"] for end in ("low", "high"))

    n_intervals = 0
    for _, row in channels.iterrows():
        ranks = [
            1 + c["top_channels"].index(row["channel"]) if row["channel"] in c["top_channels"] else np.nan
            for c in cells
        ]
        ratios = [c["top_scores"][int(rank) - 1] if rank > 0 else np.nan for c, rank in zip(cells, ranks, strict=True)]
        for name, values, *of in (
            ("frequency", np.isfinite(ranks).astype(float), 0, 1),
            ("rank", ranks, 1, np.inf),
            ("ratio", ratios, 0, np.inf),
        ):
            wanted = expected(values, *of)
            np.testing.assert_allclose(ends(row, name), wanted, rtol=1e-3, atol=1e-3)  # of Student's quantile
            n_intervals += np.isfinite(wanted).all()
    assert n_intervals >= 10
    (same,) = (row for _, row in channels.iterrows() if row["channel"] == 2)
    assert {name: history[name] for name in history.index} == pytest.approx(dict(same[history.index]), nan_ok=True)
    for measure, of in {"ratio": (1, np.inf), "gini": (0, 1), "token_norm_ratio": (1, np.inf)}.items():
        wanted = expected([c[measure] for c in cells], *of)
        for table in (profile, steps):
            np.testing.assert_allclose(ends(table.loc[measure], "mean"), wanted, rtol=1e-3)
            assert table.loc[measure, "n_prompts"] == n_prompts


def test_a_quantile_in_sql_is_students(tmp_path: Path) -> None:
    with Catalog(make_run(tmp_path / "run", [{"top_channels": [1]}])) as catalog:
        for df in (4, 5, 7, 11, 29, 199):
            low, high = catalog.sql(
                f"select interval_low(2, 0.5, {df + 1}, '-inf', 'inf'), interval_high(2, 0.5, {df + 1}, '-inf', 'inf')"
            ).fetchall()[0]
            assert (2 - low, high - 2) == pytest.approx([0.5 * stats.t.ppf(0.975, df)] * 2, rel=4e-4)
        ends = "interval_low(1, 0, 9, 0, 2), interval_high(1, 0.1, 4, 0, 2), interval_low(null, 0.1, 9, 0, 1)"
        assert catalog.sql(f"select {ends}").fetchall() == [(None, None, None)]
