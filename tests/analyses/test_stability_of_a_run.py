"""Stability of a real run of the bundled model, against arithmetic that shares no code with it."""

import itertools
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from analyzed import ALONE, K
from scipy import stats

from fewchannels import Run, open_run
from fewchannels.analyses.analysis import analyze
from fewchannels.analyses.selection import select
from fewchannels.analyses.stability import units
from fewchannels.analyses.stability.findings import spark
from fewchannels.analyses.stability.units import Stability
from fewchannels.measures import stopping
from fewchannels.measures.ranks import draw_pairs

pytestmark = pytest.mark.usefixtures("undrawn")


def test_stability_counts_sets_as_sets_are_counted(run: Run) -> None:
    data, prompts = (
        run.activations,
        [row[0] for row in run.sql("select prompt from samples order by sample").fetchall()],
    )
    scores = data["mean_abs"].sel(step=5, layer=2).values
    sets = [set(np.argsort(-row, kind="stable")[:K].tolist()) for row in scores]
    pairs = list(itertools.combinations(range(10), 2))
    for kind, same in (("within", True), ("across", False)):
        jaccard = [
            len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in pairs if (prompts[a] == prompts[b]) == same
        ]
        ((found, n_pairs),) = run.sql(
            f"select jaccard, n_pairs from stability_pairs where kind = '{kind}' and step = 5 and layer = 2 and k = {K}"
        ).fetchall()
        assert (found, n_pairs) == (pytest.approx(np.mean(jaccard), rel=1e-6), len(jaccard))
    found = dict(
        run.sql(
            f"select channel, n_selected from stability_channels where step = 5 and layer = 2 and k = {K}"
        ).fetchall()
    )
    assert found == {c: sum(c in each for each in sets) for c in set().union(*sets)}


def test_agreement_compares_a_samples_own_sets(run: Run) -> None:
    data = run.activations

    def sets(score: str, step: int, layer: int) -> list[set[int]]:
        scores = data[score].sel(step=step, layer=layer).values
        return [set(np.argsort(-row, kind="stable")[:3].tolist()) for row in scores]

    mine = sets("mean_abs", 3, 2)
    others = {
        ("next_step", "5"): sets("mean_abs", 5, 2),
        ("last_step", "5"): sets("mean_abs", 5, 2),
        ("layer_before", "1"): sets("mean_abs", 3, 1),
        ("definition", "max_abs"): sets("max_abs", 3, 2),
        ("definition", "rms"): sets("rms", 3, 2),
        ("definition", "abs_mean"): sets("abs_mean", 3, 2),
    }
    found = run.sql(
        "select kind, other, jaccard from stability_agreement where step = 3 and layer = 2 and k = 3"
    ).fetchall()
    assert {(kind, other) for kind, other, _ in found} == set(others)
    for kind, other, jaccard in found:
        expected = [len(a & b) / len(a | b) for a, b in zip(mine, others[kind, other], strict=True)]
        assert jaccard == pytest.approx(np.mean(expected), rel=1e-6)


def test_ranks_within_prompts_are_all_pairs_where_there_are_few(run: Run) -> None:
    scores = run.activations["mean_abs"].sel(step=5, layer=4).values
    expected = np.mean([stats.spearmanr(scores[2 * i], scores[2 * i + 1]).statistic for i in range(5)])
    ((found, n_pairs),) = run.sql(
        "select mean, n_pairs from stability_ranks "
        "where kind = 'within' and measure = 'spearman' and step = 5 and layer = 4"
    ).fetchall()
    assert (found, n_pairs) == (pytest.approx(expected, rel=1e-5), 5)


def test_the_interval_of_ranks_across_prompts_leaves_out_each_prompt_of_a_pair(run: Run) -> None:
    scores = run.activations["mean_abs"].sel(step=5, layer=4).values
    prompt = np.arange(10) // 2
    pairs = draw_pairs(prompt, 8, "across", 0)
    values = np.array([stats.spearmanr(scores[a], scores[b]).statistic for a, b in pairs])
    left_out = np.array([values[(prompt[pairs] != each).all(axis=1)].mean() for each in range(5)])
    error = np.sqrt(4 / 5 * np.square(left_out - left_out.mean()).sum())
    ((mean, low, high, n_prompts),) = run.sql(
        "select mean, low, high, n_prompts from stability_ranks "
        "where kind = 'across' and measure = 'spearman' and step = 5 and layer = 4"
    ).fetchall()
    assert (mean, n_prompts) == (pytest.approx(values.mean(), rel=1e-5), 5)
    # Inside -1 to 1, each end is as many standard errors away as they are large there.
    reach = stats.t.ppf(0.975, 4) * error
    for end in (low, high):
        assert (end - mean) ** 2 == pytest.approx(reach**2 * (1 - end**2) / (1 - mean**2), rel=1e-3)
    assert -1 < low < mean < high < 1


def test_sparks_rule_is_asked_of_all_layers_at_once_in_twenty_one_orders(path: Path, run: Run) -> None:
    assert run.sql("select count(*), count(distinct layer) from stability_transitions").fetchall() == [(21 * 6, 6)]
    found = run.sql("select permutation, n_samples, n_layers, n_needed from stability_spark order by all").fetchall()
    assert found == [(order, 10, 6, None) for order in range(21)]
    text = (path / "results" / "stability" / "summary.md").read_text(encoding="utf-8")
    assert "with 10 samples it cannot stop yet, because its first check is after 400 samples" in text
    result = json.loads((path / "results" / "stability" / "result.json").read_text(encoding="utf-8"))
    assert result["numbers"]["spark"]["n_orders_stop"] == 0


def test_sparks_orders_are_of_the_same_samples_in_every_layer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # With a rule that needs 3 samples, ten are enough to see it stop.
    short = {"minibatch": 1, "every": 1}
    monkeypatch.setattr(units, "transitions", partial(stopping.transitions, **short))
    monkeypatch.setattr(units, "joint_stop", partial(stopping.joint_stop, window=2, threshold=0.6, **short))
    label, selected = "short", select(str(path))
    analyze(Stability(ks=(3, K), rank_pairs=8), selected, label, ALONE)
    run = open_run(path)
    scores = run.activations["mean_abs"].mean("step").transpose("sample", "layer", "channel").values
    random = np.random.default_rng(0)
    some = random.permutation(10)
    orders = [np.arange(10), *(random.permutation(some) for _ in range(20))]
    rule = {"k": 8, "window": 2, "threshold": 0.6, **short}
    expected = [stopping.stopping_point(scores[each], **rule).n_samples for each in orders]
    assert len(set(expected)) > 1
    found = run.sql("select n_needed from short_spark order by permutation").fetchall()
    assert [n_needed for (n_needed,) in found] == expected
    text = (path / "results" / label / "summary.md").read_text(encoding="utf-8")
    stopped = [each for each in expected[1:] if each]
    assert f"in {len(stopped)} of 20 random orders, after a median of {np.median(stopped):,.0f}" in text
    shutil.rmtree(path / "results" / label)


@pytest.mark.parametrize(
    ("streams", "said"),
    [
        ("image", "SPARK tests both streams if a model has two"),
        ("image,text", "this run also has text tokens, with which"),
    ],
)
def test_sparks_sentence_says_which_stream_of_a_run_it_did_not_ask(streams: str, said: str) -> None:
    rows = {"permutation": [0, 1], "n_samples": [900, 900], "n_layers": [6, 6], "n_needed": [400, None]}
    stub: Any = SimpleNamespace(
        results={"stability": {"settings": {"score": "mean_abs"}}},
        description={"config": {"streams": streams}},
        stream="image",
        catalog=SimpleNamespace(views=["stability_spark"]),
        table="{}_{}".format,
        ask=lambda _: pd.DataFrame(rows | {"settled": [0.95, 0.8]}),
        sql=lambda text: text,
    )
    found = spark(stub)
    assert found is not None
    assert said in found.text
    assert "stops after 400 of 900 samples in their order, and in 0 of 1 random orders" in found.text
    assert found.numbers["streams_left_out"] == streams.split(",")[1:]
