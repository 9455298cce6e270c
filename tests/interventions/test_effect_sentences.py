"""What a sweep's sentences and tables say: no more than its prompts can show."""

import re
from itertools import product

import numpy as np
import pandas as pd
from planted_edits import condition, edits_of, picture, planted

from fewchannels.interventions.effects.contrasts import contrasts, means
from fewchannels.interventions.effects.findings import headline, of_sweep, verdict
from fewchannels.interventions.effects.summary import summarize

SHIFT = {"top": 0.01, "bottom": 0.0}


def test_with_too_few_prompts_for_the_test_only_that_is_said() -> None:
    conditions = [{"selection": name, "amount": amount} for amount in (0.5, 1.0) for name in ("top", "bottom")]
    edits = planted(conditions, SHIFT, n_prompts=5)
    found = summarize(edits)
    assert "n = 10 items of 5 prompts: too few prompts for the test, which needs at least 6." in found.text
    assert "5 prompts: too few for the test, which needs at least 6." in found.text
    assert "channels minus the same number of lowest-scoring channels (bottom): mse 0.0796 (95 %:" in found.text
    tables = means(edits), contrasts(edits)
    each = of_sweep(*tables, ["mse"], headline(*tables), lambda text: [])
    for text in (found.text, *(finding.text for finding in each)):
        assert not re.search(r"exceed|do not differ|no significant difference", text, re.IGNORECASE)
    assert "the channels cannot be compared with their controls" in each[-2].text


def test_an_interval_without_zero_beside_a_test_that_does_not_pass_is_open() -> None:
    of = {"metric": "mse", "mean": 0.4, "low": 0.1, "high": 0.7, "q": 0.2, "n_prompts": 6}
    assert verdict(pd.Series(of)) == "open"
    assert verdict(pd.Series(of | {"low": -0.1})) == "alike"
    assert verdict(pd.Series(of | {"low": -0.1, "q": 0.01})) == "open"
    assert verdict(pd.Series(of | {"q": 0.01})) == "more"
    assert verdict(pd.Series(of | {"mean": -0.4, "low": -0.7, "high": -0.1, "q": 0.01})) == "less"
    # Six prompts that differ alike among many tests that do not: the interval is clear of zero, q is not below 0.05.
    conditions = [{"selection": name, "k": k} for k in range(1, 9) for name in ("top", "bottom")]
    random = np.random.default_rng(5)
    edits = edits_of(
        [
            picture(i, prompt="abcdef"[i], **condition(place, **conditions[place]), mse=mse)
            for i, place in product(range(6), range(16))
            for mse in [0.5 + (0.1 + 0.01 * i if place == 14 else random.normal(0, 0.05))]
        ]
    )
    tables = means(edits), contrasts(edits)
    found = {each.name: each for each in of_sweep(*tables, ["mse"], headline(*tables), lambda text: [])}
    assert "are not shown to exceed" in found["against_bottom"].text
    assert "inconclusive (only one of interval and test is significant): mse" in found["against_bottom"].text
    assert found["all_settings"].numbers["bottom"]["mse"]["open"] == 1
    assert "(q over the sweep's 8 tests)" in found["all_settings"].text


def test_the_headline_is_of_the_largest_amount_and_k_and_the_others_are_in_one_table() -> None:
    conditions = [
        {"selection": name, "amount": amount, "k": k}
        for amount in (0.5, 1.0)
        for k in (4, 8)
        for name in ("top", "bottom")
    ]
    edits = planted(conditions, SHIFT, n_prompts=8)
    tables = means(edits), contrasts(edits)
    chosen = headline(*tables)
    assert chosen is not None
    assert chosen.words.startswith("top channels: zero, amount 1, k 8")
    found = {each.name: each for each in of_sweep(*tables, ["mse"], chosen, lambda text: [])}
    others = found["other_settings"].table
    assert others is not None
    assert [cells[0] for cells in others.rows] == [
        "top, amount 0.5, k 4, minus bottom",
        "top, amount 0.5, k 8, minus bottom",
        "top, amount 1, k 4, minus bottom",
    ]
    (expected,) = (each for _, each in tables[1].query("metric == 'mse' and amount == 0.5 and k == 4").iterrows())
    assert others.rows[0][1] == f"{expected['mean']:.3g} ({expected['low']:.3g} to {expected['high']:.3g})"


def test_every_column_of_a_table_says_its_own_n() -> None:
    rows = []
    for i, (place, name) in product(range(8), enumerate(("top", "bottom"))):
        about = {"prompt": "abcdefgh"[i], "mse": (i + 1) / 20 + place / 10}
        rows.append(picture(i, **condition(place, selection=name), **about, n_shown=3 + place if i < 6 else None))
    text = summarize(edits_of(rows)).text
    assert "| setting | n_shown (n = 6) | mse (n = 8) |" in text
    assert "|  | n_shown (n = 6) | mse (n = 8) |" in text
    assert "n_shown 3 (all 6 prompts equal), n = 6 items of 6 prompts; mse 0.225 (95 %: " in text
    assert "n = 6 to 8 items of 6 to 8 prompts." in text


def test_a_metric_that_few_prompts_have_is_judged_by_its_own_prompts_and_not_by_those_of_another() -> None:
    """Of eight prompts, all have mse, and four have n_shown, all of them the same difference."""
    rows = []
    for i, (place, name) in product(range(8), enumerate(("top", "bottom"))):
        values = {"mse": 0.5 + 0.1 * (place == 0) + 0.001 * i * place, "n_shown": 2 + place if i < 4 else None}
        rows.append(picture(i, **condition(place, selection=name), prompt="abcdefgh"[i], **values))
    edits = edits_of(rows)
    tables = means(edits), contrasts(edits)
    found = {each.name: each for each in of_sweep(*tables, ["n_shown", "mse"], headline(*tables), lambda text: [])}
    text = found["against_bottom"].text
    assert "too few prompts for the test, which needs at least 6: n_shown -1 (4 prompts: too few for an" in text
    assert "larger effect by mse" in text
    assert "no significant difference" not in text
    assert found["against_bottom"].numbers["metrics"]["n_shown"]["verdict"] == "few"
    assert "4 prompts that have n_shown: too few for the test, which needs at least 6." in summarize(edits).text


def test_a_sweep_of_several_settings_says_which_one_is_described_and_counts_the_others() -> None:
    """The effect is planted at k 2 only; the described setting, the largest k, has none."""
    conditions = [{"selection": name, "k": k} for k in (2, 4, 8) for name in ("top", "bottom")]
    random = np.random.default_rng(3)
    rows = [
        picture(
            i, prompt=f"p{i}", **condition(place, **conditions[place]), mse=0.5 + (0.2 if place == 0 else 0) + noise
        )
        for i, place in product(range(9), range(6))
        for noise in [random.normal(0, 0.01)]
    ]
    edits = edits_of(rows)
    tables = means(edits), contrasts(edits)
    found = {each.name: each for each in of_sweep(*tables, ["mse"], headline(*tables), lambda text: [])}
    assert found["setting"].numbers["condition"] == 4
    assert found["setting"].text.startswith("Top channels: zero, amount 1, k 8,")
    assert found["setting"].text.endswith(
        "One of 3 settings of these channels (the largest amount and k), not selected by its effect."
    )
    assert "do not differ significantly from" in found["against_bottom"].text
    assert (
        "Over all 3 settings, the channels have a significantly larger effect than bottom: mse in 1 of 3 (q over"
        in found["all_settings"].text
    )
    alone = edits_of([row for row in rows if row["k"] == 2])
    tables = means(alone), contrasts(alone)
    assert "One of" not in of_sweep(*tables, ["mse"], headline(*tables), lambda text: [])[0].text


def test_a_contrast_with_a_baseline_is_top_minus_the_baseline_in_value_and_label() -> None:
    """The prompt's blend changes the image by 0.6, the top channels by 0.2."""
    settings = [
        {"action": "transport", "selection": "top"},
        {"action": "prompt", "selection": "none", "k": 0},
    ]
    rows = [
        picture(i, prompt=f"p{i}", **condition(place, **settings[place]), mse=(0.2, 0.6)[place] + 0.001 * i * place)
        for i, place in product(range(8), range(2))
    ]
    edits = edits_of(rows)
    text = summarize(edits).text
    (line,) = (line for line in text.splitlines() if ", minus " in line)
    assert line.startswith("| top, minus prompt | -0.40")
    assert "The top channels do NOT exceed prompts blended at the same strength: SMALLER effect by mse -0.40" in text
