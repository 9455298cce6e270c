"""The analyses on a real run of the bundled model, against arithmetic that shares no code with them."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from analyzed import ALONE, CONCENTRATION, K
from sklearn.cluster import KMeans
from typer.testing import CliRunner

from fewchannels import Run, open_run
from fewchannels.analyses.alignment import findings
from fewchannels.analyses.alignment.findings import Cell, at_best, best_cells, over_cells
from fewchannels.analyses.alignment.units import Alignment
from fewchannels.analyses.analysis import analyze
from fewchannels.analyses.evidence import open_evidence
from fewchannels.analyses.selection import select
from fewchannels.analyses.stability.units import Stability
from fewchannels.cli import app
from fewchannels.cluster.shares import Pool
from fewchannels.demo.judge import judge
from fewchannels.errors import InputError, RunConflictError
from fewchannels.runs.storage import open_storage


def test_masks_are_the_judges_of_the_generated_images(run: Run) -> None:
    rows = run.sql("select sample_id, area, error from masks_samples order by sample").fetchall()
    assert len(rows) == 10
    for sample_id, area, error in rows:
        image = torch.from_numpy(np.array(run.image(sample_id))).permute(2, 0, 1)[None] / 255
        assert error is None
        assert area == pytest.approx(judge(image)[1].float().mean().item())


@pytest.mark.parametrize("selection", ["top", "bottom", "all"])
def test_alignment_is_the_protocol_done_by_hand(run: Run, selection: str) -> None:
    data = run.activations
    rows = run.sql(
        f"select sample, step, layer, iou, complement_iou, area from alignment_samples where selection = '{selection}' "
        "and layer in (0, 5) order by all"
    ).fetchall()
    assert len(rows) == 10 * 2 * 2
    n_clear = 0
    for sample, step, layer, iou, complement, area in rows:
        values = data["massive_value"].sel(sample=sample, step=step, layer=layer).values.astype(np.float64)
        ranks = {"top": slice(K), "bottom": slice(-K, None), "all": slice(None)}[selection]
        low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
        scaled = ((values - low) / (high - low))[ranks]
        inits = ("k-means++", "random")
        found = [KMeans(2, init=inits[i % 2], n_init=1, random_state=i).fit(scaled.T) for i in range(40)]
        best = min(found, key=lambda each: each.inertia_)
        if any(best.inertia_ * (1 + 1e-6) < each.inertia_ < best.inertia_ * 1.02 for each in found):
            continue  # other clusters are nearly as good: of noise, any are
        labels, n_clear = best.labels_, n_clear + 1
        heat = scaled.sum(axis=0)
        front = labels == int(heat[labels == 1].mean() > heat[labels == 0].mean())
        image = np.array(run.image(str(data.sample_id.values[sample])))
        mask = judge(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[1][0].numpy()
        side = int(len(heat) ** 0.5)
        pixels = np.kron(front.reshape(side, side), np.ones((mask.shape[0] // side,) * 2)).astype(bool)
        expected = (pixels & mask).sum() / (pixels | mask).sum()
        opposite = (~pixels & mask).sum() / (~pixels | mask).sum()
        assert (iou, complement, area) == pytest.approx((expected, opposite, front.mean()), abs=1e-6)
    assert n_clear >= 3


def test_means_of_alignment_are_over_samples_after_their_trials(run: Run) -> None:
    rows = run.sql("select * from alignment_samples").df()
    each = rows.groupby(["step", "layer", "selection", "sample"])[["iou", "chance_iou"]].mean().reset_index()
    means = run.sql("select * from alignment_means").df().set_index(["step", "layer", "selection"])
    assert len(means) == 2 * 6 * 6
    for key, group in each.groupby(["step", "layer", "selection"]):
        assert means.loc[key, "iou"] == pytest.approx(group["iou"].mean(), rel=1e-5)
        assert means.loc[key, "over_chance"] == pytest.approx((group["iou"] - group["chance_iou"]).mean(), abs=1e-6)
        assert means.loc[key, "iou_low"] <= means.loc[key, "iou"] <= means.loc[key, "iou_high"]
        assert means.loc[key, "n_prompts"] == 5
    top, random = (
        each[each["selection"] == word].set_index(["step", "layer", "sample"])["iou"] for word in ("top", "random")
    )
    for key, difference in (top - random).groupby(["step", "layer"]):
        assert means.loc[(*key, "top"), "over_random"] == pytest.approx(difference.mean(), abs=1e-6)
        assert means.loc[(*key, "random"), "top_over"] == pytest.approx(difference.mean(), abs=1e-6)
        assert means.loc[(*key, "random"), "top_over_low"] <= means.loc[(*key, "random"), "top_over"]
    assert means.xs("top", level="selection")["top_over"].isna().all()


def test_the_share_of_clusterings_that_two_starts_confirm_is_kept_for_each_selection(path: Path, run: Run) -> None:
    rows = run.sql("select * from alignment_samples").df()
    assert rows["n_best_starts"].between(1, 20).all()
    rows["twice"] = rows["n_best_starts"] >= 2
    shares = rows.groupby(["step", "layer", "selection"])["twice"].mean()
    means = run.sql("select * from alignment_means").df().set_index(["step", "layer", "selection"])["found_twice"]
    np.testing.assert_allclose(means.to_numpy(), shares[means.index].to_numpy(), rtol=1e-6)
    assert 0.9 < shares.mean() < 1
    text = (path / "results" / "alignment" / "summary.md").read_text(encoding="utf-8")
    told = rows.groupby("selection")["twice"].mean()
    for selection in ("top", "random", "bottom"):
        (said,) = re.findall(rf"([\d.]+) % \({selection}\)", text)
        assert float(said) == pytest.approx(100 * told[selection], abs=0.06)


def test_published_clusters_are_an_option_and_say_that_no_second_start_confirms_them(path: Path) -> None:
    command = ["analyze", "alignment", str(path), "--k", str(K), "--selections", "top,bottom", "--workers", "1"]
    command += ["--kmeans", "sklearn", "--starts", "1", "--label", "published", "--json"]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0, answer.output
    numbers = json.loads(answer.stdout)
    assert numbers["kmeans"] == {"n_starts": 1, "found_twice": {}}
    published = open_run(path)
    rows = published.sql("select n_best_starts, iou from published_samples").df()
    assert (rows["n_best_starts"] == 1).all()
    assert published.sql("select count(found_twice) from published_means").fetchall() == [(0,)]
    text = (path / "results" / "published" / "summary.md").read_text()
    assert "K-means ran from one initialization (--starts 1)" in text
    refused = CliRunner().invoke(app, [*command[:-5], "--kmeans", "skleran", "--label", "no"])
    assert isinstance(refused.exception, InputError)
    assert "Did you mean 'sklearn'?" in str(refused.exception)


def test_the_best_cell_is_selected_in_half_of_the_prompts_and_tested_in_the_other(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "FEWEST", 4)
    rows = run.sql("select * from alignment_samples join samples using (sample, sample_id)").df()
    by_md5 = sorted(set(rows["prompt"]), key=lambda prompt: hashlib.md5(prompt.encode()).hexdigest())
    selects = rows["prompt"].isin(by_md5[::2])
    means = rows[selects & (rows["selection"] == "top")].groupby(["layer", "step"])["iou"].mean()
    evidence = open_evidence(str(path))
    with evidence.catalog:
        (best,) = best_cells(evidence)
        finding = at_best(evidence, best)
    assert best == Cell(*means.idxmax(), n_clusters=2, selection="top", is_held_out=True)
    here = rows[~selects & (rows["layer"] == best.layer) & (rows["step"] == best.step)]
    wide = here.groupby(["sample", "selection"])["iou"].mean().unstack()
    assert len(wide) == 4
    assert set(finding.numbers["top_minus"]) == {"random", "matched", "bottom", "all", "pca"}
    for name, each in finding.numbers["top_minus"].items():
        assert each["mean"] == pytest.approx((wide["top"] - wide[name]).mean(), abs=1e-6), name
    for name, each in finding.numbers["selections"].items():
        assert each["mean"] == pytest.approx(wide[name].mean(), abs=1e-6)
        assert (each["n_samples"], each["n_prompts"]) == (4, 2)
    assert "n = 4 samples of 2 prompts" in finding.text
    assert "other half of the prompts, which is held out from all numbers here" in finding.text
    assert finding.table is not None
    assert [row[0] for row in finding.table.rows][:2] == ["top", "the same number of random channels (random)"]
    assert finding.table.heads[-1] == "chance"


def test_cells_above_and_below_each_control_are_counted_beside_those_expected_by_chance(path: Path, run: Run) -> None:
    evidence = open_evidence(str(path))
    with evidence.catalog:
        finding = over_cells(evidence, best_cells(evidence)[0])
    assert finding is not None
    means = run.sql("select * from alignment_means").df()
    n_cells = len(means[["layer", "step"]].drop_duplicates())
    assert finding.numbers["n_cells"] == n_cells
    for control, counts in finding.numbers["controls"].items():
        own = means[means["selection"] == control]
        assert counts == {"n_above": (own["top_over_low"] > 0).sum(), "n_below": (own["top_over_high"] < 0).sum()}
        assert f"above {control} in {counts['n_above']} and below in {counts['n_below']}" in finding.text
    assert set(finding.numbers["controls"]) == {"random", "matched", "bottom", "all", "pca"}
    assert f"about {n_cells / 20:.3g} of {n_cells} would be above or below" in finding.text


def test_concentration_agrees_with_the_cells_that_the_capture_wrote(run: Run) -> None:
    rows = run.sql(
        "select a.ratio, c.ratio, a.gini, c.gini from concentration_cells a join cells c using (sample, step, layer)"
    ).fetchall()
    assert len(rows) == 10 * 2 * 6
    for ratio, ratio_then, gini, gini_then in rows:
        assert (ratio, gini) == (pytest.approx(ratio_then, rel=1e-6), pytest.approx(gini_then, rel=1e-6))


def test_concentration_is_arithmetic_on_the_hidden_state(run: Run) -> None:
    """All channels' maps are the hidden state itself."""

    def limit(state: np.ndarray) -> float:
        norms = np.sort(np.linalg.norm(state, axis=0))
        return 1.2 * norms[(len(norms) - 1) // 2]

    data = run.activations
    x = data["massive_value"].sel(step=5, layer=3).values.astype(np.float64)  # (sample, channel by rank, token)
    rows = run.sql("select * from concentration_cells where step = 5 and layer = 3 order by sample").df()
    for state, (_, row) in zip(x, rows.iterrows(), strict=True):
        energy = np.square(state).sum(axis=1)
        assert row["energy_shares"][1] == pytest.approx(energy[:K].sum() / energy.sum(), rel=1e-4)
        assert row["largest"] == pytest.approx(np.abs(state).max(), rel=1e-6)
        median = np.sort(np.abs(state).ravel())[(state.size - 1) // 2]
        assert row["median_low"] == row["median_high"] == pytest.approx(median, rel=1e-6)
        massive = (np.abs(state) > 100) & (np.abs(state) >= 1000 * median)
        assert row["is_massive"] == massive.any()
        assert row["registers"].tolist() == np.flatnonzero(np.linalg.norm(state, axis=0) > limit(state)).tolist()
        norm, rest = np.linalg.norm(state, axis=0), np.linalg.norm(state[K:], axis=0)
        for column, values in (("elevation", norm), ("elevation_excised", rest)):
            assert row[column] == pytest.approx(values.max() / np.sort(values)[(len(values) - 1) // 2], rel=1e-3)


def test_a_result_goes_on_where_it_stopped_and_ends_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selected, analysis = select(str(path)), Alignment(k=K, trials=2, starts=20)
    folder = path / "results" / "alignment"
    before = {file: file.read_bytes() for file in folder.rglob("*.parquet")}
    (folder / "result.json").unlink()
    (folder / "units" / "00001.json").unlink()
    done: list[int] = []
    own = Alignment.unit
    monkeypatch.setattr(Alignment, "unit", lambda self, s, r, unit, d: done.append(unit) or own(self, s, r, unit, d))
    assert "alignment_samples" not in open_run(path).catalog.views
    analyze(analysis, selected, "alignment", ALONE)
    assert done == [1]
    assert {file: file.read_bytes() for file in folder.rglob("*.parquet")} == before


def test_any_number_of_workers_finds_the_same(path: Path) -> None:
    selected = select(str(path), layers="0,5", steps="last")
    settings = Alignment(k=K, trials=1, selections=("top", "random"))
    analyze(settings, selected, "one", ALONE)
    analyze(settings, selected, "two", Pool(2, 0, 1))
    results = path / "results"
    tables = sorted(file.relative_to(results / "one") for file in (results / "one").rglob("*.parquet"))
    assert len(tables) == 4
    for table in tables:
        assert (results / "one" / table).read_bytes() == (results / "two" / table).read_bytes()


def test_a_result_of_other_settings_is_kept_until_it_is_to_be_replaced(path: Path) -> None:
    selected = select(str(path), where="seed = 0", steps="last")
    analyze(Stability(ks=(2,), rank_pairs=2), selected, "early", ALONE)
    with pytest.raises(RunConflictError, match=r"settings.ks: \[2\] -> \[4\](?s:.)*Give --replace"):
        analyze(Stability(ks=(4,), rank_pairs=2), selected, "early", ALONE)
    with pytest.raises(RunConflictError, match=r"selected.n_samples: 5 -> 10"):
        analyze(Stability(ks=(2,), rank_pairs=2), select(str(path), steps="last"), "early", ALONE)
    own = [path / "results/early" / name for name in ("notes.txt", "figures/for the talk.png", "pairs/mine.parquet")]
    for file in own:
        file.write_text("the user's own", encoding="utf-8")
    analyze(Stability(ks=(4,), rank_pairs=2), selected, "early", ALONE, replace=True)
    assert [file.read_text(encoding="utf-8") for file in own] == ["the user's own"] * 3
    run = open_run(path)
    assert run.sql("select distinct k from early_channels").fetchall() == [(4,)]
    assert run.sql("select distinct n_samples from early_channels").fetchall() == [(5,)]
    assert run.sql("select count(*) from early_pairs where kind = 'within'").fetchone() == (0,)


def test_a_column_of_the_manifest_makes_categories(path: Path) -> None:
    selected = select(str(path), by="shape")
    analyze(Stability(ks=(K,), rank_pairs=2, by="shape"), selected, "shapes", ALONE)
    run = open_run(path)
    shapes = run.sql("select prompt, shape from manifest").df()
    n = shapes.groupby("shape")["prompt"].nunique()
    pairs = int((n * (n - 1) / 2).sum()) * 4
    found = run.sql("select distinct n_pairs from shapes_pairs where kind = 'category'").fetchall()
    assert found == ([(pairs,)] if pairs else [])


def test_samples_without_a_category_are_in_no_pair_of_one_and_are_counted(path: Path) -> None:
    """Of 5 prompts with 2 seeds, two are of one category and three of none."""
    selected = select(str(path), by="shape")
    categories = np.where(selected.prompts < 2, 0, -1)
    analysis = Stability(ks=(K,), rank_pairs=2, by="shape")
    summary = analyze(analysis, replace(selected, categories=categories), "lacking", ALONE)
    found = open_run(path).sql("select distinct n_pairs, n_prompts from lacking_pairs where kind = 'category'")
    assert found.fetchall() == [(4, 2)]
    assert summary.numbers["n_without_category"] == 6
    assert "6 samples have no shape and are not in the pairs of one category." in summary.text
    (overlap,) = (each for each in summary.findings if each.name == "overlap")
    at = f"step = {overlap.numbers['step']} and layer = {overlap.numbers['layer']}"
    text = f"select kind, jaccard from lacking_pairs where kind in ('category', 'across') and {at} order by kind"
    (_, across), (_, category) = open_run(path).sql(text).fetchall()
    assert re.search(
        rf"{category:.3g} \([^)]*\) for two samples of different prompts with the same shape", overlap.text
    )
    assert re.search(rf"{across:.3g} \([^)]*\) for two samples of different prompts \(n = ", overlap.text)
    head = next(line for line in summary.text.splitlines() if line.startswith("| layer |"))
    assert "| different prompts, same category |" in head


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layers": "9"}, "layer 9 was not recorded by this run; it has 0, 1, 2, 3, 4, 5"),
        ({"steps": "4"}, "step 4 was not recorded by this run; it has 3, 5"),
        ({"steps": "-3"}, "step -3 was not recorded by this run; it has 3, 5"),
        ({"steps": "first"}, "steps is 'first'; it must be all, last or indices"),
        ({"stream": "text"}, "stream"),
        ({"where": "seed > 7"}, "no finished sample of .* meets --where 'seed > 7'"),
        ({"where": "sed > 7"}, "sed"),
        ({"by": "shap"}, "shap"),
    ],
)
def test_what_a_run_does_not_have_is_named(path: Path, choice: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(str(path), **choice)


def test_alignment_without_masks_or_without_all_channels_says_what_to_do(path: Path) -> None:
    with pytest.raises(InputError, match="has no finished result 'others'"):
        analyze(Alignment(k=K, masks="others"), select(str(path)), "x", ALONE)
    with pytest.raises(InputError, match=r"k is 129, but .* has the maps of only 128 channels"):
        analyze(Alignment(k=129), select(str(path)), "x", ALONE)


def test_the_command_prints_a_table_or_its_numbers(path: Path) -> None:
    command = ["analyze", "concentration", str(path), "--shares", f"1,{K}", "--k", str(K), "--workers", "1"]
    command += ["--register-threshold", "1.2"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "Concentration" in shown.stdout
    numbers = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert numbers["n_samples"] == 10
    assert len(numbers["layers"]) == 6
    result = json.loads((path / "results" / "concentration" / "result.json").read_text())
    assert result["numbers"] == numbers
    figures = path / "results" / "concentration" / "figures"
    assert (figures / "elevation.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (figures / "elevation.svg").read_bytes()
    assert "![elevation](figures/elevation.png)" in (path / "results" / "concentration" / "summary.md").read_text()
    foreseen = json.loads(CliRunner().invoke(app, [*command, "--dry-run", "--json", "--label", "new"]).stdout)
    cells = sum(file.stat().st_size for file in (path / "results" / "concentration" / "cells").iterdir())
    assert (foreseen["n_samples"], foreseen["n_units"]) == (10, 3)
    assert foreseen["table_bytes"] == pytest.approx(cells, rel=0.3)
    assert not (path / "results" / "new").exists()
    refused = CliRunner().invoke(app, ["analyze", "stability", str(path), "--k", "four"])
    assert isinstance(refused.exception, InputError)


def test_a_damaged_result_is_found_dropped_and_made_again(path: Path) -> None:
    from fewchannels.runs.upkeep.repair import plan, repair
    from fewchannels.runs.upkeep.verify import verify

    storage = open_storage(str(path))
    report = verify(storage)
    assert not report.problems
    assert not report.unrecorded
    part = path / "results" / "concentration" / "cells" / "00001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    report = verify(storage)
    assert {problem.key for problem in report.problems} == {
        "results/concentration/cells/00001.parquet",
        "results/concentration/units/00001.json",
        "results/concentration/result.json",
    }
    repair(storage, plan(report, "run"))
    assert "concentration_cells" not in open_run(path).catalog.views
    analyze(CONCENTRATION, select(str(path)), "concentration", ALONE)
    assert part.read_bytes() == whole
    assert not verify(storage).problems
