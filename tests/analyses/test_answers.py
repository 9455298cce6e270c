"""What the rows of a named query are said to show, on rows that were made by hand."""

from pathlib import Path
from typing import Any

import pytest
from made_run import RESULTS, make_run

from fewchannels.analyses.answers import WHOLE, channels_of_run, has_sentences, sentences
from fewchannels.errors import InputError
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.sql.named_queries import MOST_SHOWN, queries


def listed(channel: int, layer: int, ratio: float, frequency: float = 1.0, **more: Any) -> dict[str, Any]:
    """A row of ``massive_channels``."""
    about = {"channel": channel, "layer": layer, "step": 0, "mean_ratio": ratio, "frequency": frequency}
    return about | {"n_samples": 24, "n_prompts": 12, "mean_rank": 1.0, "ratio_low": None, "ratio_high": None} | more


def test_the_channel_named_first_is_the_one_that_stands_out_and_its_ties_are_named() -> None:
    """Channels 38 and 46 are in both cells of every sample; 46 stands out twenty times as much, 70 is in one cell."""
    rows = [listed(38, 0, 1.5), listed(46, 0, 20.0), listed(38, 1, 1.1), listed(46, 1, 30.0), listed(70, 1, 90.0)]
    first, second = sentences("massive_channels", rows)
    assert first == (
        "Channel 46 is a top channel in all 2 cells (one per layer and step) (of channels 46 and 38, which are as "
        "frequent, it stands out most), of 100 % of the samples there, and scores 30 times the median channel at layer "
        "1, step 0, where it stands out most (selected post hoc, n = 24 samples of 12 prompts)."
    )
    assert second == (
        "Massive by the channel test (a mean of at least 10 times the median): channel 46 in all 2 cells (one per "
        "layer "
        "and step) and channel 70 in 1 of 2 cells."
    )


def test_channels_of_random_weights_are_not_called_massive() -> None:
    rows = [listed(38, 0, 1.6, ratio_low=1.5, ratio_high=1.7), listed(46, 0, 1.2, 0.5)]
    first, second = sentences("massive_channels", rows)
    assert "scores 1.6 (95 %: 1.5 to 1.7) times the median channel" in first
    assert "massive" not in first
    assert second == (
        "No channel is massive by the channel test (a mean of at least 10 times the median): the largest mean is 1.6, "
        "of "
        "channel 38."
    )
    assert "Massive by" in sentences("massive_channels", [listed(1, 0, 10.0)])[1]


def test_cells_that_are_left_out_are_counted_once_for_all_channels_of_a_place() -> None:
    rows = [listed(c, layer, 2.0, n_nonfinite=lost) for layer, lost in ((0, 3), (1, 4)) for c in (5, 6)]
    assert sentences("massive_channels", rows)[2] == "Excluded: 7 cells whose values are not finite."


def test_channels_of_a_run_are_means_over_cells_with_the_largest_one() -> None:
    rows = [listed(3, 0, 2.0, 0.5), listed(3, 4, 6.0, 1.0), listed(5, 4, 9.0, 1.0, mean_rank=3.0)]
    found = channels_of_run(rows)
    assert found == [
        {"channel": 3, "n_cells": 2, "frequency": 0.75, "mean_ratio": 4.0, "largest_ratio": 6.0}
        | {"layer": 4, "step": 0, "mean_rank": 1.0},
        {"channel": 5, "n_cells": 1, "frequency": 1.0, "mean_ratio": 9.0, "largest_ratio": 9.0}
        | {"layer": 4, "step": 0, "mean_rank": 3.0},
    ]
    assert set(found[0]) == set(WHOLE)


def test_a_profile_names_where_a_measure_is_largest_and_smallest_and_counts_what_is_excluded() -> None:
    rows = [
        {"layer": layer, "measure": "ratio", "mean": mean, "n_samples": n, "n_nonfinite": lost}
        | dict(zip(("mean_low", "mean_high"), (None, None) if mean is None else (mean - 1, mean + 1), strict=True))
        for layer, mean, n, lost in ((0, 5.0, 24, 0), (3, 19.4, 24, 0), (4, None, 0, 24), (5, 12.0, 22, 2))
    ]
    assert sentences("layer_profile", rows) == [
        "The largest score over the median channel's is largest at layer 3, 19.4 (95 %: 18.4 to 20.4), and smallest at "
        "layer 0, 5 (95 %: 4 to 6) (n = 22 to 24 samples).",
        "Excluded: 26 cells whose values are not finite.",
    ]


def test_alignment_stands_beside_chance_and_controls() -> None:
    blank = dict.fromkeys(("matched", "bottom", "top_low", "top_high"))
    rows = [
        {
            "layer": 0,
            "step": 9,
            "top": 0.3,
            "random": 0.2,
            "chance": 0.19,
            "over_random_low": -0.1,
            "over_random_high": 0.2,
        },
        {
            "layer": 2,
            "step": 9,
            "top": 0.5,
            "random": 0.25,
            "chance": 0.2,
            "over_random_low": 0.1,
            "over_random_high": 0.3,
        },
    ]
    first, second = sentences("alignment_by_layer", [blank | row | {"n_samples": 8, "n_prompts": 4} for row in rows])
    assert first == (
        "Clusters of tokens by the top channels fit the subject best at layer 2, step 9: mean IoU 0.5, by chance 0.2, "
        "0.25 for random channels (n = 8 samples of 4 prompts; selected post hoc)."
    )
    assert second.startswith("The interval of top minus random is above 0 in 1 and below 0 in 0 of 2 rows")


def test_no_rows_are_said_in_words() -> None:
    assert sentences("failures", []) == ["No sample failed, and all hidden states are finite."]
    assert sentences("best_settings", []) == ["Nothing found: the result has no rows."]
    assert sentences("a_query_of_somebodys_own", [{"x": 1}]) == []


def test_every_query_has_sentences_of_its_rows_and_at_most_eight_columns(tmp_path: Path) -> None:
    cells = [{"sample": i, "layer": layer, "top_channels": [3, 1], "ratio": 2.0} for i in range(3) for layer in (0, 1)]
    run = make_run(tmp_path / "run", cells, results={label: {} for label in RESULTS})
    with Catalog(run) as catalog:
        told_of = {name: query for name, query in queries().items() if has_sentences(name)}
        assert len(told_of) >= 18, "those that were there when they got sentences"
        for name, query in told_of.items():
            assert 1 <= len(query.shown) <= MOST_SHOWN
            assert sentences(name, [])
            if query.of == "run":
                told = sentences(name, catalog.query(name).arrow().to_pylist())
                assert 1 <= len(told) <= 3
                assert all(text.endswith((".", "it broke")) for text in told), told


def test_a_layer_that_the_run_has_not_recorded_is_refused_and_last_is_one_of_them(tmp_path: Path) -> None:
    cells = [{"sample": 0, "layer": layer, "step": s, "top_channels": [3]} for layer in range(6) for s in (0, 9)]
    config = {"model": "demo", "score": "mean_abs", "top_k": 1, "layers": list(range(6)), "steps": [0, 9]}
    with Catalog(make_run(tmp_path / "run", cells, config=config)) as catalog:
        with pytest.raises(InputError, match=r"parameter 'layer' is 33; this run has layers 0 to 5\. Give one of them"):
            catalog.query("massive_channels", layer=33)
        with pytest.raises(InputError, match=r"parameter 'step' is 4; this run has steps 0,9\."):
            catalog.query("massive_channels", step=4)
        last = catalog.query("massive_channels", layer="last", step="last").df()
        assert last[["layer", "step"]].values.tolist() == [[5, 9]]
        assert len(catalog.query("massive_channels", layer="all")) == 12
