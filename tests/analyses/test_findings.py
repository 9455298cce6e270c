"""What findings say of rows that were made by hand: ties, results of older versions, and verdicts under the null."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from made_run import RESULTS, make_run, replace_part, result_row

from fewchannels.analyses.alignment.findings import at_best, best_cells, converged, over_cells, paired, verdicts
from fewchannels.analyses.evidence import Evidence, open_evidence
from fewchannels.analyses.ratio import extreme
from fewchannels.analyses.stability.findings import by_layer, most_frequent
from fewchannels.runs.results import Results
from fewchannels.runs.storage import open_storage
from fewchannels.tables import as_columns, schema


@contextmanager
def evidence_of(path: Path) -> Iterator[Evidence]:
    evidence = open_evidence(str(path))
    with evidence.catalog:
        yield evidence


@pytest.mark.parametrize(
    ("scores", "channels", "massive", "said"),
    [
        # Channel 2 scores 12 and 4 times the median, 8 on average; 5 scores 4 and 18 times, 11 on average.
        ([(12.0, 4.0), (18.0, 4.0)], [5, 2], [5], "Channel 5 scores highest, 11 times the median channel on average; "
         "channel 5 is massive by the channel test (at least 10 times the median)"),
        # As much as the threshold is enough.
        ([(12.0, 4.0), (16.0, 4.0)], [5, 2], [5], "Channel 5 scores highest, 10 times the median channel on average; "
         "channel 5 is massive by the channel test"),
        ([(1.5, 1.0), (1.75, 1.0)], [5, 2], [], "none of them is massive by the channel test"),
    ],
)  # fmt: skip
def test_top_channels_that_tie_are_all_named_the_largest_first_and_massive_only_by_the_test(
    tmp_path: Path, scores: list[tuple[float, float]], channels: list[int], massive: list[int], said: str
) -> None:
    tops = [[2, 5, 7], [5, 2, 9]]
    cells = [
        {"sample": i, "top_channels": tops[i], "top_scores": [*scores[i], 0.5], "median_score": 1.0} for i in range(2)
    ]
    with evidence_of(make_run(tmp_path / "run", cells)) as evidence:
        found = extreme(evidence)
        assert found is not None
        finding = most_frequent(evidence, found)
    assert finding is not None
    assert finding.numbers["channels"] == channels
    assert finding.numbers["massive"] == massive
    assert "Channels 5 and 2 are most often among the top 3 by mean_abs: each in 2 of 2 samples, 100 %" in finding.text
    assert said in finding.text
    assert "no interval" in finding.text


def test_one_most_frequent_channel_is_named_with_its_ratio(tmp_path: Path) -> None:
    cells = [{"sample": i, "top_channels": [3, 4 + i], "top_scores": [6.0, 1.0], "median_score": 2.0} for i in range(3)]
    with evidence_of(make_run(tmp_path / "run", cells)) as evidence:
        found = extreme(evidence)
        assert found is not None
        finding = most_frequent(evidence, found)
    assert finding is not None
    assert finding.text.startswith("Channel 3 is most often among the top 2 by mean_abs: in 3 of 3 samples, 100 %")
    assert "It scores 3 times the median channel on average; it is not massive by the channel test" in finding.text


def aligned(path: Path, iou: dict[str, np.ndarray]) -> None:
    """Write a result ``alignment`` of IoUs ``(prompt, layer)`` by selection, a sample for each prompt."""
    (n_prompts, n_layers), n = next(iter(iou.values())).shape, len(iou)
    at = np.indices((n_prompts, n_layers)).reshape(2, -1)
    samples = {
        "sample": np.tile(at[0], n),
        "layer": np.tile(at[1], n),
        "iou": np.concatenate([values.ravel() for values in iou.values()]),
        "selection": np.repeat(np.array(list(iou), object), at.shape[1]),
    }
    samples["sample_id"] = np.array([f"{i:016x}" for i in samples["sample"]], object)
    means = {
        "layer": np.tile(np.arange(n_layers), n),
        "iou": np.concatenate([values.mean(axis=0) for values in iou.values()]),
        "selection": np.repeat(np.array(list(iou), object), n_layers),
    }
    means |= {name: np.full(n * n_layers, n_prompts) for name in ("n_samples", "n_prompts")}
    tables = {}
    for table, own in (("samples", samples), ("means", means)):
        fields, length = schema(RESULTS["alignment"][table]), len(own["iou"])
        own["n_clusters"] = np.full(length, 2)
        tables[table] = {
            field.name: own.get(field.name, np.full(length, np.nan if field.nullable else 0)) for field in fields
        }
    result = Results(open_storage(path), "alignment")
    result.begin({}, replace=True)
    result.write_unit(0, tables, RESULTS["alignment"])
    about = {
        "analysis": "alignment",
        "settings": {"k": 12, "starts": 4},
        "selected": {"stream": "image", "branch": "cond"},
    }
    result.end(about, RESULTS["alignment"], {})


def test_without_any_difference_a_selected_cell_is_rarely_said_to_differ(tmp_path: Path) -> None:
    """Of 40 cells, 24 prompts and no difference, one on the same prompts is above 0 in a third of all trials."""
    n_prompts, n_layers, n_trials = 24, 40, 60
    path = make_run(tmp_path / "run", [{"sample": i, "top_channels": [1]} for i in range(n_prompts)])
    random = np.random.default_rng(0)
    n_told, n_post_hoc = 0, 0
    for _ in range(n_trials):
        prompts = random.normal(0.3, 0.1, (n_prompts, 1))
        iou = {name: prompts + random.normal(0, 0.1, (n_prompts, n_layers)) for name in ("top", "random")}
        aligned(path, iou)
        with evidence_of(path) as evidence:
            finding = at_best(evidence, best_cells(evidence)[0])
        difference = finding.numbers["top_minus"]["random"]
        is_told = difference["low"] > 0 or difference["high"] < 0
        assert is_told == ("they exceed" in finding.text or "they fall below" in finding.text)
        assert is_told != ("do not differ significantly from" in finding.text)
        n_told += is_told
        best = iou["top"].mean(axis=0).argmax()
        change = (iou["top"] - iou["random"])[:, best]
        n_post_hoc += change.mean() > 2.07 * change.std(ddof=1) / np.sqrt(n_prompts)  # Student's t of 23 degrees
    assert n_told <= 10, "5 % are 3; the interval of 12 prompts covers 92 %"
    assert n_post_hoc >= 15, "selection and test on the same prompts"


def test_a_planted_difference_is_found_at_the_selected_cell(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    path = make_run(tmp_path / "run", [{"sample": i, "top_channels": [1]} for i in range(24)])
    iou = {name: random.normal(0.3, 0.05, (24, 10)) for name in ("top", "random", "bottom")}
    iou["top"][:, 7] += 0.2
    iou["bottom"][:, 7] += 0.4
    aligned(path, iou)
    with evidence_of(path) as evidence:
        (best,) = best_cells(evidence)
        finding = at_best(evidence, best)
    assert best.layer == 7
    assert "In paired comparison, they exceed the same number of random channels (random) by 0.1" in finding.text
    assert "fall below the same number of lowest-scoring channels (bottom) by -0.2" in finding.text
    assert "n = 12 samples of 12 prompts" in finding.text


def test_differences_without_an_interval_are_no_verdict() -> None:
    rows = pd.DataFrame({"sample": [0, 0], "prompt": ["a", "a"], "selection": ["top", "random"], "iou": [0.5, 0.25]})
    differences = paired(rows)
    assert differences["random"][0] == 0.25
    assert verdicts(differences) == (
        "In paired comparison, they differ by 0.25 from the same number of random channels (random): too few prompts "
        "for an interval."
    )


def test_a_result_of_an_older_version_still_says_what_it_knows(tmp_path: Path) -> None:
    """Its tables have neither the counts of starts nor the differences from each control."""
    path = make_run(tmp_path / "run", [{"sample": i, "top_channels": [1]} for i in range(8)])
    aligned(path, {name: np.full((8, 3), value) for name, value in (("top", 0.4), ("random", 0.3))})
    lacking = ("n_best_starts", "found_twice", "top_over", "top_over_low", "top_over_high")
    (samples,) = (path / "results" / "alignment" / "samples").iterdir()
    (means,) = (path / "results" / "alignment" / "means").iterdir()
    for part in (samples, means):
        table = pq.read_table(part)
        kept = table.drop_columns([name for name in lacking if name in table.column_names])
        if part == means:
            values = {
                "over_random": [0.1] * 6,
                "over_random_low": [0.05, 0.05, -0.1] * 2,
                "over_random_high": [0.2] * 6,
            }
            for name, each in values.items():
                kept = kept.set_column(kept.column_names.index(name), name, [each])
        replace_part(part, kept)
    with evidence_of(path) as evidence:
        (best,) = best_cells(evidence)
        finding, cells = at_best(evidence, best), over_cells(evidence, best)
        assert converged(evidence, best) is None
    assert finding.numbers["top_minus"]["random"]["mean"] == pytest.approx(0.1)
    assert cells is not None
    assert cells.numbers["controls"] == {"random": {"n_above": 2, "n_below": 0}}


def test_of_many_channels_that_are_always_in_the_top_the_ones_that_stand_out_are_shown(tmp_path: Path) -> None:
    """Ten channels are in every top set; channel 9 stands out most, 20 and 40 times the median, then 8, 7, ..."""
    order, scores = list(range(9, -1, -1)), [float(2**i) for i in range(10, 0, -1)]
    cells = [{"sample": i, "top_channels": order, "top_scores": scores, "median_score": 1.0 + i} for i in range(2)]
    path = make_run(tmp_path / "run", cells)
    channels = [{"channel": c, "k": 10, "n_selected": 2, "n_samples": 2, "layer": 0, "step": 0} for c in range(10)]
    columns = {
        table: as_columns(kind, [result_row(row, kind) for row in channels if table == "channels"])
        for table, kind in RESULTS["stability"].items()
    }
    result = Results(open_storage(path), "stability")
    result.begin({})
    result.write_unit(0, columns, RESULTS["stability"])
    settings = {"ks": [10], "score": "mean_abs", "by": None}
    selected = {"stream": "image", "branch": "cond", "layers": [0], "steps": [0], "n_samples": 2}
    result.end({"analysis": "stability", "settings": settings, "selected": selected}, RESULTS["stability"], {})
    with evidence_of(path) as evidence:
        finding = by_layer(evidence)
    assert finding.table is not None
    at = finding.table.heads.index("always in top k")
    assert finding.table.rows[0][at] == "10: 9, 8, 7, 6, 5, 4, 3, 2 ..."
    assert finding.numbers["layers"][0]["core"] == list(range(10))
