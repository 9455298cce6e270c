"""Means and contrasts of a sweep, against arithmetic by hand, SciPy, and effects that were planted."""

import json
import math
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sweep import make_sweep
from planted_edits import condition, edits_of, picture, planted
from scipy import stats

from fewchannels.interventions.effects.contrasts import (
    DOSES,
    as_columns,
    contrasts,
    means,
    metrics,
    signed_rank,
    standardised,
)
from fewchannels.interventions.effects.findings import verdict
from fewchannels.interventions.effects.measure import end_sweep
from fewchannels.interventions.effects.summary import summarize
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.parts import part
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.storage import open_storage
from fewchannels.tables import from_parquet, join, to_parquet

pytestmark = pytest.mark.usefixtures("undrawn")

SHIFT = {"top": 0.01, "bottom": 0.0, "random": 0.002, "matched": 0.004, "all": 0.02}


def sweep(*conditions: dict[str, Any], values: dict[tuple[int, int], float], prompts: str = "abcdefgh") -> pd.DataFrame:
    """Edited images whose mse is given by (item, condition)."""
    return edits_of(
        [
            picture(item, prompt=prompts[item], **condition(place, **conditions[place]), mse=value)
            for (item, place), value in values.items()
        ]
    )


def row(table: pd.DataFrame, **where: Any) -> pd.Series:
    """The one row where columns have these values."""
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1, table
    return table.iloc[0]


def test_an_items_trials_are_averaged_before_items_are() -> None:
    values = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 10.0}  # item 1 has one trial only
    edits = sweep({"selection": "random"}, {"selection": "random", "trial": 1}, values=values)
    found = row(means(edits), metric="mse")
    assert found["mean"] == (2.0 + 10.0) / 2
    assert (found["n_items"], found["n_prompts"], found["condition"]) == (2, 2, 0)


def test_failed_images_and_those_with_broken_latents_are_counted_and_left_out() -> None:
    rows = [
        picture(0, **condition(0), mse=0.5),
        picture(1, **condition(0), mse=0.7, nonfinite_steps=2),
        picture(2, **condition(0), status="failed", error="it broke"),
    ]
    found = row(means(edits_of(rows)), metric="mse")
    assert found["mean"] == pytest.approx(0.5)
    assert (found["n_items"], found["n_failed"], found["n_nonfinite"]) == (1, 1, 1)


def test_a_prompts_items_are_averaged_before_prompts_are_and_intervals_are_students_t_of_prompts() -> None:
    prompts = "aaaabbccccdde"
    values = np.random.default_rng(3).random(len(prompts)).astype(np.float32).astype(float)
    edits = sweep({}, values={(i, 0): value for i, value in enumerate(values)}, prompts=prompts)
    found = row(means(edits.rename(columns={"mse": "psnr", "psnr": "mse"})), metric="psnr")  # has no range
    of_prompts = pd.Series(values).groupby(list(prompts)).mean()
    assert found["mean"] == pytest.approx(of_prompts.mean())
    assert (found["low"], found["high"]) == pytest.approx(
        stats.t.interval(0.95, 4, of_prompts.mean(), of_prompts.sem())
    )
    assert (found["n_items"], found["n_prompts"]) == (13, 5)
    found = row(means(edits), metric="mse")
    assert 0 < found["low"] < of_prompts.mean() < found["high"] < 1


def test_mean_interval_and_effect_size_of_a_contrast_are_of_one_thing() -> None:
    # Prompt a has many items that rise a little, prompts b to f one each that falls a lot.
    prompts = "a" * 20 + "bcdef"
    change = [0.02] * 20 + [-0.3, -0.2, -0.25, -0.35, -0.1]
    values = {(i, place): 0.5 + (place == 0) * each for i, each in enumerate(change) for place in (0, 1)}
    found = row(contrasts(sweep({}, {"selection": "bottom"}, values=values, prompts=prompts)), metric="mse")
    of_prompts = np.array([0.02, *change[20:]])
    assert found["mean"] == pytest.approx(of_prompts.mean(), abs=1e-6)
    assert found["effect_mean"] - found["control_mean"] == pytest.approx(found["mean"])
    assert found["d_z"] == pytest.approx(of_prompts.mean() / of_prompts.std(ddof=1), rel=1e-5)
    assert np.sign(found["d_z"]) == np.sign(found["mean"])
    assert found["low"] < found["mean"] < found["high"]


def test_what_is_not_edited_is_a_group_of_its_own() -> None:
    rows = [picture(0, role=role, shows_shape=role == "source", n_shown=4) for role in ("undisturbed", "source")]
    rows += [picture(1, role="undisturbed", shows_shape=True), picture(0, **condition(0), shows_shape=False)]
    found = means(edits_of(rows))
    assert row(found, action="undisturbed", metric="shows_shape")["mean"] == 0.5
    assert row(found, action="source", metric="shows_shape")["mean"] == 1.0
    assert row(found, action="zero", metric="shows_shape")["mean"] == 0.0
    assert found.loc[found["condition"].isna(), "selection"].isna().all()
    assert not (found["metric"] == "mse").any()


def test_planted_effects_are_found_and_their_signs_are_of_counterpart_less_control() -> None:
    conditions = [
        {"selection": name, "trial": t} for name, n in (("top", 1), ("bottom", 1), ("random", 3)) for t in range(n)
    ]
    found = contrasts(planted(conditions, SHIFT))
    for control, planted_difference in (("bottom", 0.08), ("random", 0.064)):
        each = row(found, selection=control, metric="mse")
        assert each["low"] < planted_difference < each["high"]
        assert each["mean"] == pytest.approx(planted_difference, abs=0.002)
        assert each["effect_mean"] - each["control_mean"] == pytest.approx(each["mean"])
        assert each["q"] < 0.01
        assert row(found, selection=control, metric="shows_shape")["mean"] == -0.75
    assert set(found["counterpart"]) == {"top"}


def test_a_contrast_is_paired_by_item_and_counts_a_prompt_once() -> None:
    prompts = "aaabbcd"
    random = np.random.default_rng(11)
    edits = sweep(
        {},
        {"selection": "random"},
        {"selection": "random", "trial": 1},
        values={(i, place): random.random() for i, place in product(range(7), range(3))},
        prompts=prompts,
    )
    lacking = (edits["item"] == 6) & (edits["condition"] == 0)  # the only item of prompt d has no edit of the top
    found = row(contrasts(edits[~lacking]), metric="mse")
    wide = edits.pivot(index="item", columns="condition", values="mse").astype(float).drop(6)
    differences = wide[0] - (wide[1] + wide[2]) / 2
    by_prompt = differences.groupby(list("aaabbc")).mean()
    assert found["mean"] == pytest.approx(by_prompt.mean())
    assert found["control_mean"] == pytest.approx(((wide[1] + wide[2]) / 2).groupby(list("aaabbc")).mean().mean())
    assert found["d_z"] == pytest.approx(by_prompt.mean() / by_prompt.std())
    assert found["p"] == pytest.approx(stats.wilcoxon(by_prompt).pvalue)
    assert (found["n_items"], found["n_prompts"]) == (6, 3)


def test_q_is_the_step_up_procedure_over_all_tests_of_the_sweep() -> None:
    random = np.random.default_rng(4)
    conditions = [{"selection": name, "k": k} for k in (1, 8) for name in ("top", "bottom", "random", "redrawn")]
    values = {(i, place): random.normal(0.5 * (place % 4)) for i, place in product(range(8), range(8))}
    found = contrasts(sweep(*conditions, values=values))
    tested = found[found["p"].notna()].sort_values("p")
    assert tested["p"].nunique() > 3
    m, least, expected = len(tested), 1.0, []
    for rank, p in zip(range(m, 0, -1), reversed(tested["p"].tolist()), strict=True):
        least = min(least, p * m / rank)
        expected.append(least)
    assert tested["q"].tolist() == pytest.approx(expected[::-1])


def test_how_large_an_edit_was_is_compared_and_not_tested() -> None:
    found = contrasts(planted([{"selection": "top"}, {"selection": "matched"}], SHIFT))
    doses = found[found["metric"].isin(DOSES)]
    assert set(doses["metric"]) == {"n_channels", "energy_share", "change"}
    assert doses[["p", "q"]].isna().all(axis=None)
    tested = found[~found["metric"].isin([*DOSES, "nonfinite_steps"]) & (found["mean"] != 0)]
    assert tested[["p", "q"]].notna().all(axis=None)
    assert row(doses, metric="change")["mean"] == pytest.approx(8 * (0.01 - 0.004))


def pairs_of(*conditions: dict[str, Any]) -> set[tuple[int, int, str, int]]:
    """(control, counterpart, the counterpart's selection, k) of every contrast of mse."""
    values = {(item, place): item + place / 7 for item in range(3) for place in range(len(conditions))}
    found = contrasts(sweep(*conditions, values=values))
    names = ["condition", "counterpart_condition", "counterpart", "k"]
    return {tuple(each) for each in found[names].itertuples(index=False)}


def test_a_control_is_compared_with_the_top_of_all_its_settings_and_no_other() -> None:
    top = {"selection": "top"}
    others = [
        {"k": 4},
        {"action": "mean"},
        {"layers_name": "0"},
        {"steps_name": "1"},
        {"amount": 0.5},
        {"tokens": "outside"},
    ]
    assert pairs_of(top, {"selection": "bottom"}, *others) == {(1, 0, "top", 8)}
    for other in others:
        assert pairs_of(top, {"selection": "bottom"} | other) == set()


def test_listed_channels_stand_in_where_there_is_no_top() -> None:
    listed, control = {"selection": "listed"}, {"selection": "random"}
    assert pairs_of(listed, control) == {(1, 0, "listed", 8)}
    assert pairs_of(listed, control, {"selection": "top"}) == {(1, 2, "top", 8)}


def test_lists_of_other_channels_are_not_averaged_as_if_they_were_trials() -> None:
    conditions = [
        {"selection": "listed"},
        {"selection": "random"},
        {"selection": "listed"},
        {"selection": "random", "trial": 1},
    ]
    assert pairs_of(*conditions) == {(1, 0, "listed", 8), (1, 2, "listed", 8)}
    edits = sweep(*conditions, values={(0, place): 1.0 + place for place in range(4)})
    found = means(edits)
    assert dict(zip(found["condition"], found["mean"], strict=True)) == {0: 1.0, 1: 3.0, 2: 3.0}


def test_all_channels_are_compared_with_the_top_of_every_k() -> None:
    every = {"selection": "all", "k": 0}
    assert pairs_of({"k": 4}, {"k": 8}, every) == {(2, 0, "top", 4), (2, 1, "top", 8)}


def test_baselines_are_compared_with_every_transport_of_their_amount() -> None:
    pixels = {"action": "pixels", "selection": "none", "k": 0, "amount": 0.5}
    moves = [{"action": "transport", "amount": amount, "k": k} for amount, k in ((0.5, 4), (0.5, 8), (1.0, 8))]
    assert pairs_of(*moves, pixels) == {(3, 0, "top", 4), (3, 1, "top", 8)}
    assert pairs_of({"action": "zero", "amount": 0.5}, pixels) == set()


def test_controls_that_nobodys_scores_choose_are_of_every_one() -> None:
    tops = [{"scores_from": whose} for whose in ("source", "union")]
    random, bottom = ({"selection": word, "scores_from": "source"} for word in ("random", "bottom"))
    assert pairs_of(*tops, random, bottom) == {(2, 0, "top", 8), (2, 1, "top", 8), (3, 0, "top", 8)}


def test_nothing_is_claimed_of_one_prompt_and_null_is_what_parquet_gets() -> None:
    edits = sweep({}, {"selection": "bottom"}, values={(0, 0): 0.5, (0, 1): 0.25})
    found = contrasts(edits)
    table = from_parquet(to_parquet("effects_contrasts", as_columns(found)))
    assert table.column("mean").to_pylist() == [0.25]
    for name in ("low", "high", "d_z", "p", "q"):
        assert table.column(name).to_pylist() == [None]
    averages = from_parquet(to_parquet("effects_means", as_columns(means(edits))))
    assert averages.column("low").null_count == 2
    assert averages.column("condition").to_pylist() == [0, 1]


def test_controls_that_do_just_the_same_are_not_tested_and_have_no_effect_size() -> None:
    values = {(i, c): i / 8 for i in range(8) for c in (0, 1)}
    found = row(contrasts(sweep({}, {"selection": "bottom"}, values=values)))
    assert found["mean"] == 0.0
    assert all(math.isnan(found[name]) for name in ("p", "q", "d_z", "low", "high"))


def test_contrasts_without_any_difference_and_broken_steps_are_not_in_the_family_of_tests() -> None:
    conditions = [{"selection": "top"}, {"selection": "bottom"}, {"selection": "random"}]
    random = np.random.default_rng(6)
    noise = random.normal(0, 0.01, 8)
    rows = [
        picture(i, prompt="abcdefgh"[i], **condition(place, **conditions[place]), mse=mse, nonfinite_steps=steps)
        for i in range(8)
        # Top and random do the same to every image; top breaks one step of half of them.
        for place, mse, steps in ((0, 0.5, i % 2), (1, 0.4 + noise[i], 0), (2, 0.5, 0))
    ]
    found = contrasts(edits_of(rows))
    assert set(found.loc[found["p"].notna(), "metric"]) == {"mse"}
    tested = row(found, metric="mse", selection="bottom")
    assert tested["q"] == tested["p"] == pytest.approx(2 / 2**4)  # of the images that did not break, in a family of one


def test_all_prompts_that_differ_by_the_same_have_a_test_and_no_interval() -> None:
    values = {(i, place): 1.5 - place for i in range(8) for place in (0, 1)}
    found = row(contrasts(sweep({}, {"selection": "bottom"}, values=values)), metric="mse")
    assert found["mean"] == 1.0
    assert math.isnan(found["low"])
    assert found["q"] == pytest.approx(2 / 2**8)
    assert verdict(found) == "more"


@settings(max_examples=40)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9))
def test_the_signed_rank_test_is_exact_with_ties_and_zeros(differences: list[int]) -> None:
    d = np.array(differences, float)
    size = np.abs(d)
    ranks = np.array([np.sum(size < each) + (np.sum(size == each) + 1) / 2 for each in size])[d != 0]
    sums = [np.dot(signs, ranks) for signs in product((0, 1), repeat=len(ranks))]
    seen = np.dot(d[d != 0] > 0, ranks)
    tails = np.mean([s <= seen for s in sums]), np.mean([s >= seen for s in sums])
    assert signed_rank(d) == pytest.approx(min(1, 2 * min(tails)))


@pytest.mark.parametrize("n", [5, 23, 50, 51, 300])
def test_the_signed_rank_test_is_scipys_exact_one_without_ties(n: int) -> None:
    d = np.random.default_rng(n).normal(0.05, size=n)
    assert signed_rank(d) == pytest.approx(stats.wilcoxon(d, method="exact").pvalue)


def test_the_signed_rank_test_of_many_differences_is_normal() -> None:
    d = np.random.default_rng(0).normal(0.05, size=301)
    assert signed_rank(d) == pytest.approx(stats.wilcoxon(d, method="asymptotic").pvalue)


def test_the_signed_rank_test_is_exact_with_many_zeros_among_many() -> None:
    d = np.array([0.0] * 80 + [1.0] * 9 + [-2.0] + [3.0] * 2)
    # The ranks of the 80 zeros are skipped: 9 and one tie at 81 to 89, 90 to 92 follow; signs are flipped in all ways.
    ranks = np.array([85.0] * 9 + [90] + [91.5] * 2)
    sums = np.array([np.dot(signs, ranks) for signs in product((0, 1), repeat=12)])
    seen = ranks.sum() - 90
    expected = 2 * np.mean(sums >= seen)
    assert signed_rank(d) == pytest.approx(expected)
    assert stats.wilcoxon(d, zero_method="pratt", method="asymptotic").pvalue < expected


def test_no_difference_among_many_is_no_evidence() -> None:
    assert signed_rank(np.zeros(60)) == 1.0


def test_the_effect_size_is_that_of_the_paired_t_test() -> None:
    d = np.random.default_rng(2).normal(1, size=9)
    assert standardised(d) * 3 == pytest.approx(stats.ttest_1samp(d, 0).statistic)


def test_metrics_are_the_measured_columns_of_edits() -> None:
    assert {"n_channels", "change", "mse", "shows_shape", "n_shown", "source_taken", "lpips"} <= set(metrics())
    assert not {"k", "amount", "trial", "seed", "image", "width", "seconds"} & set(metrics())


def test_a_summary_holds_its_tables_and_says_what_it_is_of() -> None:
    found = summarize(planted([{"selection": name} for name in ("top", "matched")], SHIFT, n_prompts=5))
    for table, columns in found.tables.items():
        to_parquet(f"effects_{table}", columns)
    assert json.loads(json.dumps(found.numbers, allow_nan=False)) == found.numbers
    assert found.numbers["n_items"] == 10
    assert found.numbers["metrics"] == ["n_shown", "mse", "clip_score"]
    assert "10 items of 5 prompts, 2 conditions: 20 edited images. 0 of them failed" in found.text
    (line,) = (line for line in found.text.splitlines() if line.startswith("| top, minus matched"))
    contrast = row(
        contrasts(planted([{"selection": name} for name in ("top", "matched")], SHIFT, n_prompts=5)), metric="mse"
    )
    assert (
        f"{contrast['mean']:.3g} ({contrast['low']:.3g} to {contrast['high']:.3g}), d_z {contrast['d_z']:.2f}" in line
    )
    assert "dino" in found.text.split("Not measured: ")[1]
    assert "mse" not in found.text.split("Not measured: ")[1].split(".\n")[0].split(", ")
    assert all(f"({name})" in found.text for name in found.files if name.endswith(".png"))


def test_a_summary_names_a_contrast_with_a_baseline_by_the_baseline() -> None:
    baseline = {"action": "prompt", "selection": "none", "k": 0}
    found = summarize(planted([{"action": "transport"}, baseline], SHIFT | {"none": 0.0}, n_prompts=6))
    rows = [line for line in found.text.splitlines() if line.startswith("| ") and ", minus " in line]
    assert [line.split(" | ")[0] for line in rows] == ["| top, minus prompt"]
    assert "channels exceed prompts blended at the same strength" in found.text


def test_a_summary_without_controls_says_that_there_are_none() -> None:
    found = summarize(planted([{"selection": "top"}], SHIFT, n_prompts=3))
    assert "No contrasts: no control" in found.text
    assert found.numbers["contrasts"] == []
    assert all(len(values) == 0 for values in found.tables["contrasts"].values())


def test_a_summary_of_many_settings_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewchannels.interventions.effects.summary.default_figures", lambda edits, means: {})
    conditions = [{"selection": name, "k": k} for k in range(1, 43) for name in ("top", "bottom")]
    found = summarize(planted(conditions, SHIFT, n_prompts=8, n_seeds=1))
    assert "| minus bottom | 0 higher, 42 lower, of 42 | 42 higher, 0 lower, of 42 |" in found.text
    assert "The means of 84 settings" in found.text


def test_a_sweep_that_is_older_than_a_metric_has_none_of_it(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "sweep", planted([{"selection": "top"}, {"selection": "random"}], SHIFT, n_prompts=4))
    storage, key = open_storage(path), part("edits", 0)
    (record,) = Ledger(storage).records("0" * 16).values()
    older = from_parquet(storage.get(key)).drop_columns(["ssim", "n_shown"])
    Ledger(storage).write(type(record)(**asdict(record) | {"objects": {key: storage.put(key, [join([older])])}}))
    effects = end_sweep(storage)
    assert {"ssim", "n_shown"} <= set(effects.numbers["not_measured"])
    n_mse = len(older) - older.column("mse").null_count
    with Catalog(path) as catalog:
        counts = catalog.sql("select count(ssim), count(n_shown), count(mse), any_value(typeof(ssim)) from edits")
        assert counts.fetchall() == [(0, 0, n_mse, "FLOAT")]


def test_a_sweep_that_a_newer_version_resumed_has_a_metric_of_the_newer_tasks_alone(tmp_path: Path) -> None:
    edits = planted([{"selection": "top"}, {"selection": "random"}], SHIFT, n_prompts=4)
    path = make_sweep(tmp_path / "sweep", edits)
    storage, keys = open_storage(path), [part("edits", task) for task in range(3)]
    ledger = Ledger(storage)
    (record,) = ledger.records("0" * 16).values()
    table = from_parquet(storage.get(keys[0]))
    item = table.column("item").to_numpy()
    for task, (start, stop) in enumerate(((0, 2), (2, 5), (5, record.stop))):
        own = table.filter((item >= start) & (item < stop))
        own = own.set_column(own.column_names.index("task"), "task", pa.array([task] * len(own), pa.int32()))
        own = own if task == 1 else own.drop_columns(["mse"])  # the second alone is of the newer version
        stored = storage.put(keys[task], [join([own])])
        about = {"task": task, "start": start, "stop": stop, "objects": {keys[task]: stored}}
        ledger.write(type(record)(**asdict(record) | about))
    newer = edits[edits["item"].isin([2, 3, 4])]
    effects = end_sweep(storage)
    assert effects.numbers["measured_in_part"]["mse"] == 3
    assert f"mse (3 of {record.stop})" in effects.text
    expected = newer.loc[newer["selection"] == "top", "mse"].astype("float32").mean()
    with Catalog(path) as catalog:
        asked = catalog.sql("select distinct item from edits where mse is not null order by item").fetchall()
        assert asked == [(2,), (3,), (4,)]
        ((found, n),) = catalog.sql("select avg(mse), count(*) from edits where selection = 'top'").fetchall()
        assert found == pytest.approx(expected, rel=1e-6)
        assert n == (edits["selection"] == "top").sum()
