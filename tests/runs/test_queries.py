"""The named queries: cases of data in ``tests/data/queries/<query>/<case>/``, and brute force over Python sets."""

import csv
import hashlib
import json
import math
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_run import RESULTS, make_run, read_csv, replace_part
from scipy import stats
from typer.testing import CliRunner

from fewchannels.cli import query as cli
from fewchannels.errors import InputError
from fewchannels.runs.sql import confined
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.sql.named_queries import parse_query, queries

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "data" / "queries"
OF_RUNS = [
    name for name, query in queries().items() if query.of == "run"
]  # tests/runs/test_sweep_queries.py has the others
FOLDERS = sorted(path.parent for path in CASES.glob("*/*/case.yaml"))
NO_ROWS: dict[str, Any] = {label: {} for label in RESULTS}

once_built = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


def agrees(value: object, text: str) -> bool:
    """Whether a result's value is what an expected file says: empty is null, numbers agree to 6 digits."""
    if text == "" or value is None:
        return text == "" and value is None
    if isinstance(value, str | bool):
        return str(value).lower() == text.lower()
    return math.isclose(value, float(text), rel_tol=5e-6, abs_tol=1e-9)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_query_answers_as_the_case_expects(folder: Path, tmp_path: Path) -> None:
    case = yaml.safe_load((folder / "case.yaml").read_text(encoding="utf-8"))
    cells, samples = read_csv(folder / "cells.csv", "cells"), read_csv(folder / "samples.csv", "samples")
    results = {
        label: {table: read_csv(folder / f"{label}_{table}.csv", kind) for table, kind in RESULTS[label].items()}
        for label in queries()[folder.parent.name].needs
    }
    run = make_run(tmp_path / "run", cells, samples, results=results, **case.get("run", {}))
    with Catalog(run) as catalog:
        answer = catalog.query(folder.parent.name, **case.get("params", {}))
    expected = read_csv(folder / "expected.csv")
    rows = [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]
    assert len(rows) == len(expected), rows
    for row, wanted in zip(rows, expected, strict=True):
        wrong = {name: (row[name], text) for name, text in wanted.items() if not agrees(row[name], text)}
        assert not wrong, f"(got, expected) {wrong}"


def test_older_results_have_nan_where_newer_ones_have_null(tmp_path: Path) -> None:
    measured = {"iou": float("nan"), "iou_low": 0.25}
    run = make_run(tmp_path / "run", [{"top_channels": [1]}], results={"alignment": {"means": [measured]}})
    with Catalog(run) as catalog:
        assert catalog.sql("select iou, iou_low from alignment_means").fetchall() == [(None, 0.25)]
        answer = catalog.query("alignment_by_layer").arrow().to_pylist()
    part = run / "results" / "alignment" / "means" / "00000.parquet"
    table = pq.read_table(part)
    i = table.column_names.index("iou")
    replace_part(part, table.set_column(i, table.schema.field(i), pa.array([math.nan], pa.float32())))
    with Catalog(run) as older:
        assert older.sql("select isnan(iou) from alignment_means").fetchall() == [(True,)]
        assert older.query("alignment_by_layer").arrow().to_pylist() == answer
    assert (answer[0]["top"], answer[0]["top_low"]) == (None, 0.25)


def test_every_query_has_a_case_and_every_case_says_why() -> None:
    assert {folder.parent.name for folder in FOLDERS} == set(OF_RUNS)
    for folder in FOLDERS:
        case = yaml.safe_load((folder / "case.yaml").read_text(encoding="utf-8"))
        assert case["why"].strip()
        assert set(case) <= {"why", "params", "run"}


@pytest.fixture(scope="module")
def three_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cells = [{"sample": i, "top_channels": [1, 2]} for i in range(3)]
    return make_run(tmp_path_factory.mktemp("three") / "run", cells, results=NO_ROWS)


@pytest.fixture(scope="module")
def nothing_recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cells, results = [{"sample": 0, "top_channels": [1]}], NO_ROWS
    return make_run(tmp_path_factory.mktemp("nothing") / "run", cells, unrecorded=[0], results=results)


@pytest.mark.parametrize("name", OF_RUNS)
def test_a_header_describes_the_result(name: str, three_samples: Path) -> None:
    query = queries()[name]
    with Catalog(three_samples) as catalog:
        assert catalog.query(name).columns == [column.name for column in query.columns]
    (statement,) = duckdb.connect().extract_statements(query.sql)
    assert statement.named_parameters == {parameter.name for parameter in query.parameters}
    assert query.grain.startswith("one row per ")
    assert all(len(text) > 5 for text in [query.purpose, *(part.doc for part in (*query.parameters, *query.columns))])


@pytest.mark.parametrize("name", OF_RUNS)
def test_every_interval_has_both_ends_and_every_mean_an_interval(name: str) -> None:
    columns = [column.name for column in queries()[name].columns]
    means = {"mean", "frequency", "within", "across", *(f"mean_{what}" for what in ("ratio", "rank"))} & set(columns)
    if name.endswith("_by_layer"):
        plain = {"layer", "step", "n_samples", "n_prompts", "chance", "area", "mask_area"}  # of areas, not measured
        means = {column for column in columns if not column.endswith(("_low", "_high"))} - plain
    for column in means:
        stem = column if column == "mean" else column.removeprefix("mean_")
        assert {f"{stem}_low", f"{stem}_high"} <= set(columns)
    assert not means or any(column.startswith("n_") for column in columns)


@pytest.mark.parametrize("name", OF_RUNS)
def test_the_sql_keeps_the_house_style(name: str) -> None:
    sql = queries()[name].sql
    code = "\n".join(line for line in sql.splitlines() if not line.startswith("--"))
    assert code == code.lower()
    assert re.search(r"^order by ", code, re.MULTILINE)
    assert not re.search(r"^select \*", code, re.MULTILINE)
    assert max(map(len, sql.splitlines())) <= 120


@pytest.mark.parametrize("name", OF_RUNS)
def test_a_query_of_a_run_without_records_has_no_rows(name: str, nothing_recorded: Path) -> None:
    with Catalog(nothing_recorded) as catalog:
        answer = catalog.query(name)
    assert len(answer) == 0
    assert answer.columns == [column.name for column in queries()[name].columns]


OVER_CELLS = ("massive_channels", "channel_history", "channel_stability", "layer_profile", "step_profile")


@pytest.mark.parametrize("name", OVER_CELLS)
def test_a_nan_beside_equal_values_is_left_out_and_counted(name: str, tmp_path: Path) -> None:
    # Parquet's statistics leave NaN out: they say that every ratio is 20, and a filter of DuckDB's believes them.
    cells = [{"sample": i, "top_channels": [1, 2]} for i in range(2)]
    cells += [{"sample": i, "top_channels": [3, 4], "ratio": math.nan} for i in range(2, 5)]
    with Catalog(make_run(tmp_path / "run", cells)) as catalog:
        answer = catalog.query(name).df()
    assert set(answer["n_samples"]) == {2}
    assert set(answer["n_nonfinite"]) == {3}
    assert set(answer.get("channel", [1])) <= {1, 2}


@pytest.mark.parametrize("name", ["layer_profile", "step_profile"])
@pytest.mark.parametrize("measure", ["energy_share", "gini", "token_norm_ratio"])
def test_a_measure_that_is_nan_is_left_out_by_itself(name: str, measure: str, tmp_path: Path) -> None:
    cells = [{"sample": i, "top_channels": [1], measure: value} for i, value in enumerate((math.nan, 0.25, 0.75))]
    with Catalog(make_run(tmp_path / "run", cells)) as catalog:
        rows = catalog.query(name).df().set_index("measure")
    assert rows.loc[measure, ["n_samples", "n_nonfinite", "mean"]].tolist() == [2, 1, 0.5]
    assert set(rows.drop(measure)["n_samples"]) == {3}
    assert set(rows.drop(measure)["n_nonfinite"]) == {0}


@pytest.mark.parametrize("label", RESULTS)
def test_a_query_of_a_result_that_is_not_there_names_the_command(label: str, tmp_path: Path) -> None:
    others: dict[str, Any] = {other: {} for other in RESULTS if other != label}
    run = make_run(tmp_path / "run", [{"top_channels": [1]}], results=others)
    needing = [name for name, query in queries().items() if label in query.needs]
    assert needing
    with Catalog(run) as catalog:
        for name in needing:
            with pytest.raises(InputError, match=rf"'{name}' needs the result .*: fewchannels analyze {label} {run}\."):
                catalog.query(name)
        for name in set(OF_RUNS) - set(needing):
            catalog.query(name)


def test_a_result_that_lacks_a_file_is_one_that_is_not_there(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [{"top_channels": [1]}], results={"masks": {"samples": [{"area": 0.5}]}})
    with Catalog(run) as catalog:
        assert len(catalog.query("subject_masks")) == 1
    (run / "results" / "masks" / "samples" / "00000.parquet").unlink()
    with Catalog(run) as catalog, pytest.raises(InputError, match="fewchannels analyze masks"):
        catalog.query("subject_masks")


def test_a_header_may_name_several_analyses() -> None:
    header = "-- purpose: p\n-- needs: alignment, stability\n-- grain: one row per x"
    assert parse_query("q", f"{header}\nselect 1").needs == ("alignment", "stability")
    assert parse_query("q", "-- purpose: p\n-- grain: one row per x\nselect 1").needs == ()


def test_listings_say_which_result_a_query_needs() -> None:
    app = typer.Typer()
    cli.register(app)
    every = " ".join(CliRunner().invoke(app, ["query", "--list"]).stdout.split())
    one = CliRunner().invoke(app, ["query", "--list", "stability_core"]).stdout
    (described,) = json.loads(CliRunner().invoke(app, ["query", "--list", "stability_core", "--json"]).stdout)
    assert every.count("Needs ") == sum(bool(query.needs) for query in queries().values())
    assert "Needs: fewchannels analyze stability RUN." in one
    assert described["needs"] == ["stability"]


@pytest.mark.parametrize("name", OF_RUNS)
def test_a_query_needs_the_analyses_whose_tables_it_names(name: str) -> None:
    tables = {f"{label}_{table}": label for label, kinds in RESULTS.items() for table in kinds}
    named = set(re.findall(r"(?:from|join) (\w+)", queries()[name].sql))
    assert {tables[view] for view in named & set(tables)} == set(queries()[name].needs)


@pytest.mark.parametrize(
    "header",
    [
        "-- purpose: p\n-- grain: one row per x\n-- param layer int = 1 -- no colon",
        "-- purpose: p\n-- grain: one row per x\n-- column layer -- no unit",
        "-- purpose: p\n-- grain: one row per x\n-- remark: not a section",
    ],
)
def test_a_header_that_cannot_be_read_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match=r"queries/q\.sql: cannot read the header at"):
        parse_query("q", f"{header}\nselect 1")


def jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b)


@st.composite
def top_sets(draw: st.DrawFn) -> list[tuple[int, list[list[int]]]]:
    """``(prompt, top-k list per step)`` of 2 to 9 samples, k and the number of steps the same for all."""
    k, n_steps = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    channels = st.lists(st.integers(0, 9), min_size=k, max_size=k, unique=True)
    one = st.tuples(st.integers(0, 3), st.lists(channels, min_size=n_steps, max_size=n_steps))
    return draw(st.lists(one, min_size=2, max_size=9))


def cells_of(drawn: list[tuple[int, list[list[int]]]]) -> list[dict]:
    return [
        {"sample": i, "step": step, "layer": 2, "top_channels": channels}
        for i, (_, sets) in enumerate(drawn)
        for step, channels in enumerate(sets)
    ]


@once_built
@given(drawn=top_sets())
def test_stability_is_the_mean_over_all_pairs_of_sets(drawn: list, tmp_path_factory: pytest.TempPathFactory) -> None:
    samples = [{"sample": i, "prompt": f"p{prompt}", "seed": i} for i, (prompt, _) in enumerate(drawn)]
    run = make_run(tmp_path_factory.mktemp("stability") / "run", cells_of(drawn), samples, n_channels=10)
    with Catalog(run) as catalog:
        answer = catalog.query("channel_stability")
    row = dict(zip(answer.columns, answer.fetchall()[0], strict=True))
    pairs: dict[bool, list[float]] = {True: [], False: []}
    for (prompt_a, sets_a), (prompt_b, sets_b) in combinations(drawn, 2):
        overlap = mean(jaccard(set(a), set(b)) for a, b in zip(sets_a, sets_b, strict=True))
        pairs[prompt_a == prompt_b].append(overlap)
    for same, name in ((True, "within"), (False, "across")):
        assert row[f"n_pairs_{name}"] == len(pairs[same])
        assert row[name] == (pytest.approx(mean(pairs[same])) if pairs[same] else None)
    counts = Counter(channel for _, sets in drawn for channels in sets for channel in channels)
    n_cells = sum(len(sets) for _, sets in drawn)
    assert row["core"] == sum(n == n_cells for n in counts.values())
    assert row["highest_frequency"] == pytest.approx(max(counts.values()) / n_cells)
    assert row["n_prompts"] == len({prompt for prompt, _ in drawn})


@pytest.mark.parametrize(("k", "n_channels"), [(1, 1), (2, 3), (12, 128), (12, 3072), (8, 20), (64, 3072)])
def test_the_chance_line_is_the_hypergeometric_expectation(k: int, n_channels: int, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [{"top_channels": list(range(k))}], n_channels=n_channels)
    with Catalog(run) as catalog:
        chance = catalog.query("channel_stability").df()["chance"][0]
    shared = np.arange(k + 1)
    expected = (stats.hypergeom(n_channels, k, k).pmf(shared) * shared / (2 * k - shared)).sum()
    assert chance == pytest.approx(expected, rel=1e-9)


def test_stability_is_exact_beyond_the_126_most_frequent_channels_and_where_steps_lack(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    steps = [(0, 1, 2), (0, 2), (1, 2), (0,), (2,)]
    drawn = [{step: rng.choice(300, 20, replace=False).tolist() for step in steps[i % 5]} for i in range(40)]
    cells = [
        {"sample": i, "step": step, "top_channels": chosen}
        for i, sets in enumerate(drawn)
        for step, chosen in sets.items()
    ]
    with Catalog(make_run(tmp_path / "run", cells, n_channels=300)) as catalog:
        found = catalog.query("channel_stability").df().iloc[0]
    pairs = [
        mean(jaccard(set(a[step]), set(b[step])) for step in a.keys() & b.keys())
        for a, b in combinations(drawn, 2)
        if a.keys() & b.keys()
    ]
    assert found.n_pairs_across == len(pairs) < 40 * 39 / 2
    assert found.across == pytest.approx(mean(pairs))


def test_max_samples_keeps_seeds_together_and_ignores_the_manifests_order(tmp_path: Path) -> None:
    prompts = [f"p{i}" for i in (4, 1, 3, 0, 2)]
    samples = [{"sample": i, "prompt": prompts[i % 5], "seed": i // 5} for i in range(10)]
    sets = {(prompt, seed): [i, 12 + seed] for i, prompt in enumerate(sorted(prompts)) for seed in (0, 1)}
    cells = [{"sample": row["sample"], "top_channels": sets[row["prompt"], row["seed"]]} for row in samples]
    first_two = sorted(prompts, key=lambda prompt: hashlib.md5(prompt.encode()).hexdigest())[:2]
    assert first_two != prompts[:2]
    with Catalog(make_run(tmp_path / "run", cells, samples)) as catalog:
        some = catalog.query("channel_stability", max_samples=4).df().iloc[0]
        every = catalog.query("channel_stability", max_samples=0).df().iloc[0]
    taken = [(prompt, set(sets[prompt, seed])) for prompt in first_two for seed in (0, 1)]
    across = mean(jaccard(a, b) for (p, a), (q, b) in combinations(taken, 2) if p != q)
    assert (some.n_samples, some.n_prompts, some.n_pairs_within, some.n_pairs_across) == (4, 2, 2, 4)
    assert some.across == pytest.approx(across)
    assert (every.n_samples, every.n_prompts, every.n_pairs_within) == (10, 5, 5)


@once_built
@given(drawn=top_sets())
def test_frequencies_are_counts(drawn: list, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = make_run(tmp_path_factory.mktemp("frequencies") / "run", cells_of(drawn))
    with Catalog(run) as catalog:
        answer = catalog.query("massive_channels", min_frequency=0, top=0)
        step, channel = len(drawn[0][1]) - 1, drawn[0][1][-1][0]
        history = catalog.query("channel_history", channel=channel, step=step)
    rows = [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]
    counts = Counter((step, channel) for _, sets in drawn for step, chosen in enumerate(sets) for channel in chosen)
    assert {(row["step"], row["channel"]): row["n"] for row in rows} == dict(counts)
    for row in rows:
        assert row["frequency"] == pytest.approx(row["n"] / len(drawn))
        ranks = [
            sets[row["step"]].index(row["channel"]) + 1 for _, sets in drawn if row["channel"] in sets[row["step"]]
        ]
        assert row["mean_rank"] == pytest.approx(mean(ranks))
    (told,) = (row for row in rows if (row["step"], row["channel"]) == (step, channel))
    assert dict(zip(history.columns, history.fetchall()[0], strict=True)) == pytest.approx(told)


@once_built
@given(ratios=st.lists(st.floats(1, 1000, width=32), min_size=3, max_size=20))
def test_outliers_are_far_by_median_and_mad(ratios: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    run = make_run(
        tmp_path_factory.mktemp("outliers") / "run",
        [{"sample": i, "ratio": ratio, "top_channels": [1]} for i, ratio in enumerate(ratios)],
    )
    with Catalog(run) as catalog:
        found = {
            row[0]: row[1] for row in catalog.query("sample_outliers", top=0, min_z=2.0).df()[["sample", "z"]].values
        }
    deviations = [abs(ratio - median(ratios)) for ratio in ratios]
    scale = 1.4826 * median(deviations) or 1.2533 * mean(deviations)
    z = {i: (ratio - median(ratios)) / scale for i, ratio in enumerate(ratios) if scale}
    assert found == pytest.approx({i: value for i, value in z.items() if abs(value) >= 2.0})


def test_the_columns_of_expected_files_exist() -> None:
    for folder in FOLDERS:
        with (folder / "expected.csv").open(encoding="utf-8", newline="") as file:
            names = next(csv.reader(file))
        assert set(names) <= {column.name for column in queries()[folder.parent.name].columns}, folder


def test_the_benchmark_runs_small_and_agrees_with_pandas() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "queries.py"), "--samples", "20", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "31,920 cells of 20 samples" in done.stdout
    for name in ("massive_channels", "channel_stability", "misaligned_samples"):
        assert name in done.stdout


def test_the_number_of_threads_changes_no_digit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    cells = [
        {
            "sample": i,
            "layer": layer,
            "step": step,
            "top_channels": rng.choice(16, 4, replace=False).tolist(),
            "top_scores": sorted(rng.random(4).tolist(), reverse=True),
            **dict(
                zip(("median_score", "energy_share", "gini", "token_norm_ratio"), rng.random(4).tolist(), strict=True)
            ),
        }
        for i in range(60)
        for layer in range(3)
        for step in range(4)
    ]
    samples = [{"sample": i, "prompt": f"prompt {i // 3}", "seed": i % 3} for i in range(60)]
    run = make_run(tmp_path / "run", cells, samples, shard_samples=4)
    parameters = {"massive_channels": {"min_frequency": 0.0}, "sample_outliers": {"min_z": 1.0}}
    names = [name for name in OF_RUNS if not queries()[name].needs]
    answers = []
    for threads in (1, 2, 8):
        monkeypatch.setattr(confined.machine, "processors", lambda n=threads: n)
        with Catalog(run) as catalog:
            answers.append({name: catalog.query(name, **parameters.get(name, {})).as_json() for name in names})
    assert answers[1] == answers[0]
    assert answers[2] == answers[0]
    assert all(len(text) > 10 for name, text in answers[0].items() if name != "failures")
