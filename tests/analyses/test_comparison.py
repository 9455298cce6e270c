"""Two runs side by side: small models' runs against brute force, planted channels, another order, depth and width."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import spearmanr
from tiny import TINY
from two_runs import ROWS, Arrays, captured, changed
from typer.testing import CliRunner, Result

from fewchannels import open_run
from fewchannels.analyses.comparison import compare as comparing
from fewchannels.analyses.comparison.compare import TABLES, compare, tabulate
from fewchannels.analyses.comparison.pairing import (
    METRICS,
    Criteria,
    Pairing,
    Unit,
    batches,
    cells,
    side_by_side,
)
from fewchannels.cli import app
from fewchannels.cluster.shares import Pool
from fewchannels.demo.build import build_pipeline
from fewchannels.errors import InputError, RunConflictError
from fewchannels.runs.arrays import read
from fewchannels.runs.storage import open_storage

pytestmark = pytest.mark.usefixtures("undrawn")

K = 3
ALONE = Pool(1, 0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def run_a(folder: Path, tiny_model: Path) -> Path:
    """Eight samples: four prompts with two seeds each."""
    return captured(folder, "a", tiny_model, ROWS)


@pytest.fixture(scope="module")
def run_b(folder: Path) -> Path:
    """Other weights, the rows in another order, with one that A lacks and without A's last; tasks of two."""
    build_pipeline(TINY, seed=2).save_pretrained(folder / "other")
    rows = [*np.random.default_rng(3).permutation(ROWS[:-1]), "another,1"]
    return captured(folder, "b", folder / "other", rows, shard_samples=2, top_k=2, score="rms")


@pytest.fixture(scope="module")
def planted(folder: Path, run_a: Path) -> Callable[[str, Callable[[Arrays], None]], Path]:
    """A function that copies run A and changes its arrays ``(sample, step, layer, ...)``, task by task."""

    return lambda name, change: changed(run_a, folder / name, change)


def compared(a: Path, b: Path, score: str = "mean_abs", k: int = K, **choice: Any) -> dict[str, pd.DataFrame]:
    """The rows of two runs' comparison, by table."""
    pairing, criteria = side_by_side(str(a), str(b), **choice), Criteria(score, k)
    found = [tabulate(pairing, criteria, unit, cells(pairing, criteria, unit)) for unit in pairing.units()]
    tables = {name: pd.DataFrame([row for rows, _ in found for row in rows[name]]) for name in TABLES[:-1]}
    return tables | {"samples": pd.concat([pd.DataFrame(samples) for _, samples in found if samples is not None])}


def written(a: Path, b: Path, out: Path, **choice: Any) -> tuple[dict[str, Any], str]:
    """Numbers and text of two runs' comparison, as it is left in a folder."""
    compare(side_by_side(str(a), str(b), **choice), Criteria(k=K), open_storage(out), ALONE)
    numbers = json.loads((out / "comparison.json").read_text(encoding="utf-8"))["numbers"]
    return numbers, (out / "summary.md").read_text(encoding="utf-8")


def by_id(run: Path) -> dict[str, xr.Dataset]:
    data = open_run(run).activations.load()
    return {str(sample_id): data.isel(sample=i) for i, sample_id in enumerate(data.sample_id.values)}


def top(scores: np.ndarray, k: int = K) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda channel: (-scores[channel], channel))[:k])


def jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b)


def test_a_run_compared_with_itself_has_all_in_common(run_a: Path) -> None:
    found = compared(run_a, run_a)
    matched = found["agreement"][found["agreement"]["kind"] == "matched"]
    assert len(matched) == 2 * 4 * 2  # measures, layers, steps
    assert (matched["n"] == 8).all()
    assert matched.loc[matched["measure"] == "jaccard", "mean"].eq(1).all()
    np.testing.assert_allclose(matched["mean"], 1, rtol=1e-6)
    assert len(found["differences"]) == 4 * 2 * len(METRICS)
    assert found["differences"]["mean"].eq(0).all()
    for table in ("agreement", "differences"):
        assert found[table][["low", "high"]].isna().all(axis=None), "four prompts are too few for an interval"
    assert (found["samples"]["ratio_a"] == found["samples"]["ratio_b"]).all()


def test_samples_are_matched_by_id_and_every_number_is_what_brute_force_finds(run_a: Path, run_b: Path) -> None:
    a, b = by_id(run_a), by_id(run_b)
    common = list(a.keys() & b.keys())
    assert len(common) == 7
    found = compared(run_a, run_b)
    samples = found["samples"].set_index(["sample_id", "layer_a", "step_a"])
    assert samples.index.is_unique
    assert len(samples) == 7 * 4 * 2
    assert (samples["layer_b"] == samples.index.get_level_values("layer_a")).all()
    for (sample_id, layer, step), row in samples.iterrows():
        one, other = (run[sample_id].isel(step=step, layer=layer) for run in (a, b))
        scores = [each["mean_abs"].values for each in (one, other)]
        assert row["jaccard"] == pytest.approx(jaccard(*map(top, scores)))
        assert row["spearman"] == pytest.approx(spearmanr(*scores).statistic, abs=1e-6)
        for side, data, score in zip("ab", (one, other), scores, strict=True):
            assert row[f"ratio_{side}"] == pytest.approx(score.max() / np.sort(score)[15], rel=1e-5)
            norms = data["token_norm"].values
            assert row[f"token_norm_ratio_{side}"] == pytest.approx(norms.max() / np.sort(norms)[7], rel=1e-5)
            energy = np.square(data["rms"].values.astype(float))
            assert row[f"energy_share_{side}"] == pytest.approx(energy[list(top(score))].sum() / energy.sum(), rel=1e-5)
    prompt = dict(open_run(run_a).sql("select sample_id, prompt from samples").fetchall())
    for layer, step in ((0, 0), (3, 1)):
        rows = found["agreement"].query("layer_a == @layer and step_a == @step and measure == 'jaccard'")
        means = rows.set_index("kind")["mean"]
        for side, run in (("a", a), ("b", b)):
            sets = {i: top(run[i]["mean_abs"].values[step, layer]) for i in common}
            for kind in ("within", "across"):
                pairs = [p for p in combinations(common, 2) if (prompt[p[0]] == prompt[p[1]]) == (kind == "within")]
                assert means[f"{kind}_{side}"] == pytest.approx(np.mean([jaccard(sets[i], sets[j]) for i, j in pairs]))
                assert rows.set_index("kind")["n"][f"{kind}_{side}"] == len(pairs)
        assert means["matched"] == pytest.approx(samples.xs((layer, step), level=(1, 2))["jaccard"].mean())


def test_channels_that_swap_their_places_change_the_overlap_and_nothing_else(run_a: Path, planted: Callable) -> None:
    def roll(arrays: Arrays) -> None:
        for name in ("mean_abs", "abs_mean", "max_abs", "rms"):
            arrays[name] = np.roll(arrays[name], 1, axis=-1)

    found = compared(run_a, planted("rolled", roll))
    data = by_id(run_a)
    for row in found["samples"].itertuples():
        own = top(data[row.sample_id]["mean_abs"].values[row.step_a, row.layer_a])
        assert row.jaccard == pytest.approx(jaccard(own, {(channel + 1) % 32 for channel in own}))
    np.testing.assert_allclose(found["differences"]["mean"], 0, atol=1e-6)
    assert found["samples"]["jaccard"].max() < 1


def test_a_largest_channel_twice_as_large_doubles_the_ratio_and_its_share_in_the_energy(
    run_a: Path, planted: Callable
) -> None:
    def double(arrays: Arrays) -> None:
        largest = arrays["mean_abs"].argmax(axis=-1)[..., None]
        for name in ("mean_abs", "rms"):
            np.put_along_axis(arrays[name], largest, 2 * np.take_along_axis(arrays[name], largest, -1), -1)

    found = compared(run_a, planted("doubled", double), k=1)
    samples = found["samples"]
    np.testing.assert_allclose(samples["ratio_b"], 2 * samples["ratio_a"], rtol=1e-6)
    share = samples["energy_share_a"]
    np.testing.assert_allclose(samples["energy_share_b"], 4 * share / (1 + 3 * share), rtol=1e-5)
    assert (samples["jaccard"] == 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_leaves_its_cell_out_and_is_counted(
    run_a: Path, planted: Callable, tmp_path: Path, value: float
) -> None:
    def spoil(arrays: Arrays) -> None:
        if len(arrays["mean_abs"]) == 2:  # the last task
            arrays["mean_abs"][1, 0, 2, 5] = value

    spoilt = planted(f"spoilt {value}", spoil)
    found = compared(run_a, spoilt)
    lacking = found["samples"][found["samples"]["jaccard"].isna()]
    assert lacking[["layer_a", "step_a"]].values.tolist() == [[2, 0]]
    assert not np.isfinite(lacking[["spearman", "ratio_b"]]).any(axis=None)
    assert lacking["ratio_a"].notna().all()
    n = found["agreement"].query("kind == 'matched'").set_index(["layer_a", "step_a", "measure"])["n"]
    assert n.pop((2, 0, "jaccard")) == n.pop((2, 0, "spearman")) == 7
    assert (n == 8).all()
    pairs = found["agreement"].query("layer_a == 2 and kind == 'within_a'").set_index("step_a")["n"]
    assert pairs.tolist() == [3, 4]
    ratio = found["differences"].query("layer_a == 2 and step_a == 0 and metric == 'ratio'")
    assert ratio["n_samples"].tolist() == [7]
    numbers, text = written(run_a, spoilt, tmp_path / "out")
    assert numbers["n_cells_left_out"] == 1
    assert "no such step: 1." in text


@pytest.mark.parametrize(("most_bytes", "n_batches"), [(1, 14), (2000, 6), (5000, 2)])
def test_batches_of_any_size_find_the_same(
    run_a: Path, run_b: Path, most_bytes: int, n_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compared(run_a, run_b)
    monkeypatch.setattr(batches, "__defaults__", (most_bytes,))
    monkeypatch.setattr("fewchannels.analyses.comparison.pairing._BLOCK_SCORES", 2 * 64)
    assert len(list(batches(7, 2, 512))) == n_batches  # 7 samples, 2 steps, 2 arrays of 2 x 32 channels
    for name, table in compared(run_a, run_b).items():
        pd.testing.assert_frame_equal(table, whole[name])


def test_each_task_is_read_once_by_a_batch_in_whatever_order_its_samples_come(
    run_a: Path, run_b: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairing = side_by_side(str(run_a), str(run_b))
    calls = []

    def counting(storage, names, start, stop, region):
        calls.append((start, stop))
        return read(storage, names, start, stop, region)

    monkeypatch.setattr("fewchannels.analyses.comparison.pairing.read", counting)
    pairing.b.read(["rms"], slice(0, 7), 0, [0])
    assert calls == [(0, 7)], "neighboring tasks in one call"
    del calls[:]
    pairing.b.read(["rms"], slice(0, 3), 0, [0])
    positions = {sample_id: i for i, sample_id in enumerate(by_id(run_b))}
    tasks = [task for start, stop in calls for task in range(start // 2, (stop + 1) // 2)]
    assert tasks == sorted({positions[sample_id] // 2 for sample_id in pairing.sample_ids[:3]})


@pytest.fixture(scope="module")
def deep(folder: Path) -> Path:
    """Seven layers, of the same width, and three steps."""
    build_pipeline(replace(TINY, n_single=5), seed=4).save_pretrained(folder / "deeper")
    return captured(folder, "deep", folder / "deeper", ROWS, num_inference_steps=3)


def test_models_of_other_depth_and_steps_are_compared_by_where_their_layers_and_steps_are(
    run_a: Path, deep: Path, tmp_path: Path
) -> None:
    found = compared(deep, run_a)
    places = [[0, 0], [2, 1], [4, 2], [6, 3]]
    for name in ("agreement", "differences", "samples"):
        assert found[name][["layer_a", "layer_b"]].drop_duplicates().sort_values("layer_a").values.tolist() == places
        steps = found[name][["step_a", "step_b"]].drop_duplicates().sort_values("step_a").values.tolist()
        assert steps == [[0, 0], [2, 1]]
    profiles = found["profiles"].query("metric == 'gini'").set_index(["run", "layer", "step"])
    assert len(profiles) == 7 * 3 + 4 * 2, "every layer and step of either run has its profile"
    assert profiles["n_samples"].eq(8).all()
    assert profiles.loc[("a", 2, 1), ["depth", "progress"]].tolist() == pytest.approx([1 / 3, 1 / 2])
    assert profiles.loc[("b", 2, 1), ["depth", "progress"]].tolist() == pytest.approx([2 / 3, 1])
    cells = open_run(deep).sql("select avg(gini) from cells where layer = 5 and step = 1").fetchone()
    assert profiles.loc[("a", 5, 1), "mean"] == pytest.approx(cells[0])
    a, b = by_id(deep), by_id(run_a)
    for row in found["samples"].query("layer_a == 4 and step_a == 2").itertuples():
        scores = a[row.sample_id]["mean_abs"].values[2, 4], b[row.sample_id]["mean_abs"].values[1, 2]
        assert row.jaccard == pytest.approx(jaccard(*map(top, scores)))
    _, text = written(deep, run_a, tmp_path / "out")
    assert "Layers are matched by relative depth, steps by relative step." in text
    assert "Step 2 of A and 1 of B" in text


def test_layers_go_by_number_where_a_run_shows_no_other_depth(
    folder: Path, run_a: Path, run_b: Path, deep: Path, tiny_model: Path
) -> None:
    same_model = captured(folder, "part", tiny_model, ROWS[:2], layers="0,1,2", steps="last")
    other_model = captured(folder, "some", folder / "deeper", ROWS[:2], layers="0,3,6")
    for one, other, layers in ((run_a, same_model, [(0, 0), (1, 1), (2, 2)]), (other_model, run_b, [(0, 0), (1, 3)])):
        pairing = side_by_side(str(one), str(other))
        assert pairing.layers_by == "number"
        assert [unit.layers for unit in pairing.units() if len(unit.sides) == 2] == layers
    assert side_by_side(str(run_a), str(same_model), match="depth").layers_by == "relative depth"


def test_models_of_other_width_have_profiles_and_no_overlap(folder: Path, run_a: Path, tmp_path: Path) -> None:
    build_pipeline(replace(TINY, n_heads=3), seed=5).save_pretrained(folder / "wider")
    wide = captured(folder, "wide", folder / "wider", ROWS[:4])
    found = compared(run_a, wide)
    assert found["agreement"].empty
    assert found["samples"][["jaccard", "spearman"]].isna().all(axis=None)
    assert (found["differences"]["n_samples"] == 4).all()
    _, text = written(run_a, wide, tmp_path / "out")
    assert "Channels are not compared: A has 32 of them and B 48" in text
    assert not (tmp_path / "out" / "figures" / "overlap.png").exists()
    assert (tmp_path / "out" / "figures" / "ratio.svg").exists()


def test_samples_with_their_own_numbers_of_steps_count_where_they_have_the_step(folder: Path, tiny_model: Path) -> None:
    rows = ["a red star,1,2", "a red star,2,3", "a heart,1,3"]
    run = captured(folder, "mixed", tiny_model, rows, "prompt,seed,steps")
    other = captured(folder, "mixed_reversed", tiny_model, rows[::-1], "prompt,seed,steps")
    assert side_by_side(str(run), str(other)).steps_by == "number"
    found = compared(run, other)
    n = found["agreement"].query("kind == 'matched' and measure == 'jaccard' and layer_a == 0").set_index("step_a")["n"]
    assert n.to_dict() == {0: 3, 1: 3, 2: 2}
    only = compared(run, run, where="n_steps = 2")
    assert sorted(only["profiles"]["step"].unique()) == [0, 1], "no sample of the comparison has a third step"


def test_another_stream_is_compared_by_its_own_arrays_as_the_capture_measured_them(
    folder: Path, tiny_model: Path
) -> None:
    run = captured(folder, "texts", tiny_model, ROWS[:3], streams="image,text")
    for stream in ("image", "text"):
        found = compared(run, run, stream=stream)["samples"]
        cells = open_run(run).sql(f"select * from cells where stream = '{stream}'").df()
        merged = found.merge(cells, left_on=["sample_id", "layer_a", "step_a"], right_on=["sample_id", "layer", "step"])
        assert len(merged) == len(found) == 3 * 4 * 2
        for metric in METRICS:
            np.testing.assert_allclose(merged[f"{metric}_b"], merged[metric], rtol=1e-6)


def test_runs_that_cannot_be_compared_are_refused_with_the_reason(folder: Path, run_a: Path, tiny_model: Path) -> None:
    a = str(run_a)
    other = captured(folder, "strangers", tiny_model, ["nobody else's,1"], steps="0")
    with pytest.raises(InputError, match=r"no finished sample in common, of 8 and 1 .* matched by sample_id"):
        side_by_side(a, str(other))
    with pytest.raises(InputError, match=r"a: unknown stream of this run 'text'. Valid: image"):
        side_by_side(a, a, stream="text")
    first = captured(folder, "first", tiny_model, ROWS[:2], steps="0", layers="0,1")
    last = captured(folder, "last", tiny_model, ROWS[:2], steps="1", layers="0,3")
    with pytest.raises(InputError, match=r"no step in common by number: A has 0 and B 1. .* --steps"):
        side_by_side(str(first), str(last)).units()
    apart = replace(side_by_side(a, a, layers="1"), b=side_by_side(a, a, layers="0").b)
    with pytest.raises(InputError, match=r"no layer in common by number: A has 1 and B 0. .* --layers"):
        apart.units()
    with pytest.raises(InputError, match="layer 3 was not recorded by this run"):
        side_by_side(a, str(first), layers="3")
    with pytest.raises(InputError, match="k is 33; the runs have 32 and 32 channels"):
        compare(side_by_side(a, a), Criteria(k=33), open_storage(folder / "never"), ALONE)
    assert not (folder / "never").exists()


def call(*arguments: object) -> Result:
    command = ["compare", *map(str, arguments), "--steps", "last", "--workers", "1"]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def test_the_command_leaves_tables_figures_text_and_numbers(
    run_a: Path, run_b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    numbers = json.loads(call(run_a, run_b, "--k", 2, "--json").stdout)
    out = tmp_path / "compare-a-b"
    document = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert document["numbers"] == numbers
    assert document["runs"] == {"a": str(run_a), "b": str(run_b)}
    counts = [numbers[name] for name in ("n_samples", "n_prompts", "n_only_a", "n_only_b", "k", "score", "step_a")]
    assert counts == [7, 4, 1, 1, 2, "mean_abs", 1]
    assert "config.score: 'mean_abs' -> 'rms'" in numbers["settings"]
    assert [row["layer_a"] for row in numbers["layers"]] == [0, 1, 2, 3]
    mean, low, high = numbers["layers"][0]["jaccard"]
    assert 0 <= mean <= 1
    assert low is high is None
    figures = {path.name for path in (out / "figures").iterdir()}
    assert {f"{name}.{kind}" for name in ("overlap", "ratio", "difference_ratio") for kind in ("png", "svg")} <= figures
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert "7 samples of 4 prompts" in text
    assert "4 prompts: too few for an interval" in text
    assert " pairs of 3 prompts; in B " in text
    assert "No layer has intervals of all of these, so A and B cannot be compared with two seeds of one prompt." in text
    assert "1 of A and 1 of B have no match" in text


def test_another_comparison_and_other_files_are_not_overwritten(run_a: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "A: a against B: a" in call(run_a, run_a, "--out", out).stdout
    stray = out / "samples" / "00009.parquet"
    stray.write_bytes(b"of an interrupted comparison")
    before = (out / "agreement.parquet").read_bytes()
    call(run_a, run_a, "--out", out)  # the same again
    assert (out / "agreement.parquet").read_bytes() == before
    assert not stray.exists()
    with pytest.raises(RunConflictError, match=r"a different comparison:\n  criteria.k: 12 -> 5\n.*--replace"):
        call(run_a, run_a, "--out", out, "--k", 5)
    assert (out / "agreement.parquet").read_bytes() == before
    call(run_a, run_a, "--out", out, "--k", 5, "--replace")
    assert json.loads((out / "comparison.json").read_text(encoding="utf-8"))["numbers"]["k"] == 5
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunConflictError, match=r"contains other files \(notes.txt\)"):
        call(run_a, run_a, "--out", out, "--replace")
    assert (out / "comparison.json").exists()
    for inside in (run_a, run_a / "results" / "here"):
        with pytest.raises(InputError, match="is in the run"):
            call(run_a, run_a, "--out", inside)


def test_an_interrupted_comparison_goes_on_with_the_layers_that_are_left(
    run_a: Path, run_b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out, done = tmp_path / "whole", tmp_path / "out", []
    pairing, criteria = side_by_side(str(run_a), str(run_b)), Criteria(k=K)
    compare(pairing, criteria, open_storage(whole), ALONE)

    def interrupt(n_done: int, total: int) -> None:
        if n_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(pairing, criteria, open_storage(out), ALONE, on_progress=interrupt)
    assert not (out / "comparison.json").exists()
    with pytest.raises(RunConflictError, match=r"a different comparison:\n  criteria.k: 3 -> 2"):
        compare(pairing, Criteria(k=2), open_storage(out), ALONE)
    record = out / "units" / "00001.json"
    record.write_bytes(record.read_bytes()[:-40])
    work = comparing._work

    def counting(pairing: Pairing, criteria: Criteria, units: list[Unit], number: int) -> Any:
        done.append(number)
        return work(pairing, criteria, units, number)

    monkeypatch.setattr(comparing, "_work", counting)
    compare(pairing, criteria, open_storage(out), ALONE)
    assert done == [1, 2, 3]
    names = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert names == {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    for name in names - {Path("comparison.json"), Path(".capture.lock")}:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
