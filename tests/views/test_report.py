"""``fewchannels report``: what it says is what was measured, and every command below a number gives that number."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_sweep import make_sweep
from metric_models import clip
from planted_edits import planted
from report_commands import ran
from typer.testing import CliRunner

from fewchannels import manifest, open_run
from fewchannels.analyses.alignment.units import Alignment
from fewchannels.analyses.analysis import analyze
from fewchannels.analyses.concentration.units import Concentration
from fewchannels.analyses.document import Document, Facts, Finding, Gallery, Missing, Warnings, shell
from fewchannels.analyses.masks.units import SubjectMasks
from fewchannels.analyses.selection import select
from fewchannels.analyses.stability.units import Stability
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cli import app
from fewchannels.cluster.shares import Pool
from fewchannels.errors import InputError, StorageError
from fewchannels.views.report import landscape
from fewchannels.views.report.build import build
from fewchannels.views.report.landscape import binned

pytestmark = pytest.mark.usefixtures("undrawn")

K, N_CHANNELS = 4, 32
SETTINGS = [{"selection": word, "k": k} for k in (4, 8) for word in ("top", "random", "matched")]
SHIFT = {"top": 0.01, "random": 0.0, "matched": 0.02}


def captured(folder: Path, model: Path, **more: object) -> tuple[Path, Job]:
    """A run of 3 prompts with 2 seeds each that was begun, and of which nothing is done."""
    source = folder / "prompts.csv"
    source.write_text("prompt\na red circle\na blue square\na small star\n")
    manifest.ingest([str(source)], folder / "manifest.parquet", seeds=[0, 1])
    settings = {"num_inference_steps": 3, "steps": "0,2", "top_k": N_CHANNELS, "shard_samples": 2} | more
    job = prepare(folder / "manifest.parquet", folder / "run", CaptureConfig(model=str(model), **settings))
    begin(job, folder / "manifest.parquet")
    return folder / "run", job


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    path, job = captured(tmp_path_factory.mktemp("report"), tiny_model)
    worker = CaptureWorker(job, 1)
    for task in range(job.n_tasks):
        worker(task)
    selected, alone = select(str(path)), Pool(1, 0, 1)
    analyze(SubjectMasks("saliency"), selected, "masks", alone)
    analyze(Alignment(k=K, trials=2), selected, "alignment", alone)
    analyze(Stability(ks=(2, K), rank_pairs=4), selected, "stability", alone)
    analyze(Concentration(ks=(1, K), k=K), selected, "concentration", alone)
    return path


@pytest.fixture(scope="module")
def edits() -> pd.DataFrame:
    return planted(SETTINGS, SHIFT, n_prompts=8, with_images=True)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, edits: pd.DataFrame) -> Path:
    return make_sweep(tmp_path_factory.mktemp("made") / "sweep", edits)


@pytest.fixture(scope="module")
def document(run: Path, sweep: Path) -> Document:
    return build([str(run), str(sweep)], None)


def found(document: Document, part: int) -> dict[str, Finding]:
    return {each.name: each for each in document.parts[part].findings()}


def scores(run: Path, step: int = 2) -> np.ndarray:
    """``(sample, layer, channel)``, by xarray."""
    return open_run(run).activations["mean_abs"].sel(step=step).values.astype(np.float64)


def test_the_ratio_is_that_of_the_layer_where_it_is_largest(document: Document, run: Path) -> None:
    ranked = np.sort(scores(run), axis=-1)
    ratio = (ranked[..., -1] / ranked[..., (N_CHANNELS - 1) // 2]).mean(axis=0)  # over the lower median
    numbers = found(document, 0)["ratio"].numbers
    assert numbers["layer"] == ratio.argmax()
    assert numbers["mean"] == pytest.approx(ratio.max(), rel=1e-5)
    assert numbers["least"]["mean"] == pytest.approx(ratio.min(), rel=1e-5)
    assert numbers["low"] is numbers["high"] is None
    assert "(3 prompts: too few for an interval)" in found(document, 0)["ratio"].text
    text = found(document, 0)["ratio"].text
    assert f"{ratio.max():.3g}" in text
    assert "n = 6 samples" in text
    assert "selected post hoc" in text


def test_the_most_frequent_channels_are_listed_by_their_ratio_without_an_interval(
    document: Document, run: Path
) -> None:
    layer = found(document, 0)["ratio"].numbers["layer"]
    here = scores(run)[:, layer]
    tops = np.argsort(-here, axis=-1, kind="stable")[:, :K]
    counts = np.bincount(tops.ravel(), minlength=N_CHANNELS)
    ratios = here / np.sort(here, axis=-1)[:, [(N_CHANNELS - 1) // 2]]
    # All channels are kept, so that a ratio is known of those too that are not in a sample's top ones.
    alike = sorted(np.flatnonzero(counts == counts.max()).tolist(), key=lambda channel: -ratios[:, channel].mean())
    finding = found(document, 0)["most_frequent_channel"]
    numbers = finding.numbers
    assert numbers["channels"] == alike
    assert (numbers["channel"], numbers["n_selected"]) == (alike[0], counts.max())
    assert numbers["ratio"] == pytest.approx(ratios[:, alike[0]].mean(), rel=1e-5)
    assert numbers["massive"] == [c for c in alike if ratios[:, c].mean() > 10]
    assert {"low", "high"}.isdisjoint(numbers)
    assert numbers["chance"] == K / N_CHANNELS
    assert numbers["n_channels_seen"] == (counts > 0).sum()
    assert "no interval" in finding.text


def test_overlap_is_of_all_pairs_beside_chance(document: Document, run: Path) -> None:
    numbers = found(document, 0)["overlap"].numbers
    tops = np.argsort(-scores(run)[:, numbers["layer"]], axis=-1, kind="stable")[:, :K]
    prompts = open_run(run).sql("select prompt from samples order by sample").df()["prompt"]
    by: dict[str, list[float]] = {"within": [], "across": []}
    for a, b in itertools.combinations(range(6), 2):
        shared = len(set(tops[a]) & set(tops[b]))
        by["within" if prompts[a] == prompts[b] else "across"].append(shared / (2 * K - shared))
    for kind, values in by.items():
        assert numbers[kind]["mean"] == pytest.approx(np.mean(values), abs=1e-6)
        assert numbers[kind]["n_pairs"] == len(values)
    chance = sum(
        math.comb(K, i) * math.comb(N_CHANNELS - K, K - i) / math.comb(N_CHANNELS, K) * i / (2 * K - i)
        for i in range(K + 1)
    )
    assert numbers["chance"] == pytest.approx(chance, rel=1e-5)


def test_energy_is_the_top_channels_share_beside_an_even_spread(document: Document, run: Path) -> None:
    numbers = found(document, 0)["energy_share"].numbers
    rms = open_run(run).activations["rms"].sel(step=2, layer=numbers["layer"]).values.astype(np.float64)
    tops = np.argsort(-scores(run)[:, numbers["layer"]], axis=-1, kind="stable")[:, :K]
    share = np.take_along_axis(rms**2, tops, axis=-1).sum(axis=-1) / (rms**2).sum(axis=-1)
    assert numbers["mean"] == pytest.approx(share.mean(), rel=1e-5)
    assert numbers["chance"] == K / N_CHANNELS


def test_iou_of_few_prompts_stands_beside_every_control_without_a_verdict(document: Document, run: Path) -> None:
    """Of 3 prompts none can be held out: the cell is that of the largest IoU in all of them."""
    finding = found(document, 0)["alignment"]
    numbers = finding.numbers
    rows = open_run(run).sql("select * from alignment_samples").df()
    means = rows[rows["selection"] == "top"].groupby(["layer", "step"])["iou"].mean()
    assert (numbers["layer"], numbers["step"]) == means.idxmax()
    here = rows[(rows["layer"] == numbers["layer"]) & (rows["step"] == numbers["step"])]
    wide = here.groupby(["sample", "selection"])["iou"].mean().unstack()
    assert set(numbers["top_minus"]) == {"random", "matched", "bottom", "all", "pca"}
    for name, each in numbers["top_minus"].items():
        assert each["mean"] == pytest.approx((wide["top"] - wide[name]).mean(), abs=1e-6), name
        assert each["low"] is each["high"] is None, "three prompts"
    assert numbers["selections"]["top"]["chance"] == pytest.approx(
        here[here["selection"] == "top"]["chance_iou"].mean(), abs=1e-6
    )
    assert numbers["selected_on"] == "the same prompts"
    assert "selected post hoc as those with the largest mean IoU in the same prompts" in finding.text
    assert not any(verdict in finding.text for verdict in ("exceed", "fall below", "do not differ"))


def test_a_summary_says_the_sentences_of_the_report(document: Document, run: Path, sweep: Path) -> None:
    said = {
        "stability": ("most_frequent_channel", "overlap", "stability_by_layer"),
        "concentration": ("ratio", "energy_share", "registers", "concentration_by_layer"),
        "alignment": ("alignment", "alignment_cells", "kmeans"),
    }
    for label, names in said.items():
        page = (run / "results" / label / "summary.md").read_text(encoding="utf-8")
        for name in names:
            assert f"\n{found(document, 0)[name].text}\n" in page, (label, name)
    page = (sweep / "results" / "effects" / "summary.md").read_text(encoding="utf-8")
    for name in ("setting", "against_random", "against_matched"):
        assert f"\n{found(document, 1)[name].text}\n" in page, name


def test_a_result_has_the_figures_of_the_report(document: Document, run: Path) -> None:
    figures = {each.name for each in document.parts[0].figures()} - {"landscape", "landscape_surface"}
    kept = {
        path.stem
        for label in ("stability", "concentration", "alignment")
        for path in (run / "results" / label / "figures").glob("*.svg")
    }
    assert kept == figures | {"contact_sheet"}


def test_layers_stand_beside_chance_in_a_table_of_what_sql_answers(document: Document, run: Path) -> None:
    finding = found(document, 0)["stability_by_layer"]
    assert finding.table is not None
    rows = (
        open_run(run)
        .sql(
            "select layer, jaccard, chance from stability_pairs where step = 2 and kind = 'across' and "
            f"k = {K} order by layer"
        )
        .fetchall()
    )
    assert len(rows) == len(finding.table.rows) == len(finding.numbers["layers"])
    for (layer, jaccard, chance), numbers, shown in zip(
        rows, finding.numbers["layers"], finding.table.rows, strict=True
    ):
        assert (numbers["layer"], shown[0]) == (layer, str(layer))
        assert (numbers["across"][0], numbers["chance"]) == pytest.approx((jaccard, chance), abs=5e-5)
        assert shown[2].startswith(f"{numbers['across'][0]:.3g} (")
    tops = np.argsort(-scores(run), axis=-1, kind="stable")[..., :K]
    for numbers in finding.numbers["layers"]:
        counts = np.bincount(tops[:, numbers["layer"]].ravel(), minlength=N_CHANNELS)
        assert numbers["core"] == np.flatnonzero(counts == 6).tolist()
        assert numbers["n_channels_seen"] == (counts > 0).sum()


def test_a_sweep_says_which_controls_are_exceeded_and_which_are_not(document: Document, edits: pd.DataFrame) -> None:
    findings = found(document, 1)
    rows = edits[(edits["role"] == "edited") & (edits["k"] == 8)]  # the headline is of the largest k
    wide = rows.pivot(index="item", columns="selection", values="mse").astype(float)
    for control, verdict in (("random", "more"), ("matched", "less")):
        numbers = findings[f"against_{control}"].numbers["metrics"]["mse"]
        assert numbers["mean"] == pytest.approx((wide["top"] - wide[control]).mean(), rel=1e-4)
        assert numbers["effect_mean"] == pytest.approx(wide["top"].mean(), rel=1e-4)
        assert numbers["control_mean"] == pytest.approx(wide[control].mean(), rel=1e-4)
        assert numbers["verdict"] == verdict
        assert numbers["q"] < 0.05
    assert "do NOT exceed" not in findings["against_random"].text
    assert "SMALLER effect by mse" in findings["against_matched"].text
    assert findings["all_settings"].numbers["random"]["mse"] == {"more": 2, "less": 0, "open": 0, "alike": 0}
    undisturbed = findings["setting"].numbers["metrics"]["n_shown"]["undisturbed"]
    assert undisturbed["mean"] == 5


def test_a_sweep_without_a_protocol_says_nothing_of_one(document: Document, tmp_path: Path) -> None:
    part = document.parts[1]
    facts = dict(row for block in part.blocks() if isinstance(block, Facts) for row in block.rows)
    assert facts["sweep"] == "text"
    assert part.numbers["protocol"] is None
    place = make_sweep(tmp_path / "sweep", planted(SETTINGS, SHIFT, n_prompts=3), protocol="gan2025")
    (part,) = build([str(place)], None).parts
    facts = dict(row for block in part.blocks() if isinstance(block, Facts) for row in block.rows)
    assert facts["sweep"] == "text, protocol gan2025"


def test_with_few_prompts_nothing_is_claimed(tmp_path: Path) -> None:
    place = make_sweep(tmp_path / "sweep", planted(SETTINGS, SHIFT, n_prompts=5))
    findings = found(build([str(place)], None), 0)
    assert {each["verdict"] for each in findings["against_random"].numbers["metrics"].values()} == {"few"}
    assert "too few prompts for the test, which needs at least 6" in findings["against_random"].text
    assert "do not differ" not in findings["against_random"].text


def test_distances_of_sets_stand_beside_those_of_the_controls(tmp_path: Path) -> None:
    edits = planted(SETTINGS, SHIFT, n_prompts=8, with_images=True)
    place = make_sweep(tmp_path / "sweep", edits, [f"clip={clip(tmp_path / 'clip')}"])
    finding = found(build([str(place)], None), 0)["sets"]
    stored = pd.read_parquet(place / "results" / "effects" / "sets" / "all.parquet").set_index("condition")
    measured = {each["condition"]: each for each in finding.numbers["sets"]}
    assert [stored.loc[condition, "selection"] for condition in measured] == ["top", "random", "matched"]
    for condition, each in measured.items():
        assert (each["kernel"], each["cmmd"]) == tuple(stored.loc[condition, ["kernel", "cmmd"]])
        assert each["n_edited"] == each["n_undisturbed"] == 16
    assert f"CMMD {stored.loc[next(iter(measured)), 'cmmd']:.3g}" in finding.text
    assert finding.table is not None
    assert [row[1] for row in finding.table.rows] == ["top", "random", "matched"]
    assert ran(finding.how[0]) == 3


def test_effects_that_were_not_measured_are_and_the_command_is_named(tmp_path: Path) -> None:
    place = make_sweep(tmp_path / "sweep", planted(SETTINGS, SHIFT, n_prompts=8))
    (place / "results" / "effects" / "result.json").unlink()
    finding = found(build([str(place)], None), 0)["against_random"]
    assert finding.numbers["metrics"]["mse"]["verdict"] == "more"
    assert finding.how[0] == shell("fewchannels", "plot", str(place))


def test_every_command_of_a_report_gives_its_numbers(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = document.commands()
    assert len(commands) > 30
    for part in document.parts:
        assert all(figure.how for figure in part.figures())
        assert all(finding.how for finding in part.findings())
    for how in commands:
        assert ran(how) > 0, how.text


def test_commands_of_a_run_without_analyses_work_too(tiny_model: Path, tmp_path: Path) -> None:
    path, job = captured(tmp_path, tiny_model, top_k=0, shard_samples=6)
    CaptureWorker(job, 1)(0)
    document = build([str(path)], None)
    assert [each.name for each in document.parts[0].findings()] == ["ratio", "most_frequent_channel", "energy_share"]
    for how in document.commands():
        assert ran(how) > 0, how.text
    missing = {
        block.what.partition(":")[0]: block for block in document.parts[0].blocks() if isinstance(block, Missing)
    }
    assert missing["Stability"].how == [shell("fewchannels", "analyze", "stability", str(path))]
    assert not missing["Alignment"].how
    assert "--top-k" in missing["Alignment"].why


def test_the_program_below_the_landscape_gives_its_values(document: Document) -> None:
    figure = next(each for each in document.parts[0].figures() if each.name == "landscape")
    program = figure.how[0].text.replace("print(", "found = (").partition("  #")[0]
    values: dict = {}
    exec(program, values)
    np.testing.assert_allclose(values["found"].values, figure.drawing.values, rtol=1e-6)


def test_of_many_samples_whole_tasks_are_read_evenly_spread(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landscape, "MOST_SAMPLES", 4)
    figure = next(each for each in build([str(run)], None).parts[0].figures() if each.name == "landscape")
    np.testing.assert_allclose(figure.drawing.values, scores(run)[[0, 1, 4, 5]].mean(axis=0), rtol=1e-6)
    assert "n = 4 of 6 samples" in figure.drawing.title
    assert ran(figure.how[0]) > 0


def test_no_channel_vanishes_from_a_landscape_of_many() -> None:
    values = np.ones((3, 1001))
    values[1, 777] = 50
    values[2, 1000] = np.nan
    drawn, width = binned(values)
    assert (drawn.shape, width) == ((3, 334), 3)
    assert drawn[1, 777 // 3] == 50
    assert drawn.sum(where=np.isfinite(drawn)) == 3 * 334 - 1 + 50
    assert drawn[2, -1] == 1


def test_a_gallery_is_ordered_by_its_column(run: Path, document: Document) -> None:
    gallery = next(block for block in document.parts[0].blocks() if isinstance(block, Gallery))
    values = [each.value for each in gallery.shown]
    assert values == sorted(values, reverse=True)
    assert [each.rank for each in gallery.shown] == ["highest"] * 2 + ["median"] * 2 + ["lowest"] * 2
    other = build([str(run)], "token_norm_ratio").parts[0]
    gallery = next(block for block in other.blocks() if isinstance(block, Gallery))
    rows = open_run(run).sql(
        f"select token_norm_ratio as v from cells where step = 2 and layer = "
        f"{found(document, 0)['ratio'].numbers['layer']}"
    )
    assert gallery.shown[0].value == pytest.approx(rows.df()["v"].max())
    with pytest.raises(InputError, match=r"'depth'.*Valid: iou"):
        build([str(run)], "depth")


def test_an_unfinished_run_and_an_empty_one_say_so(tiny_model: Path, tmp_path: Path) -> None:
    path, job = captured(tmp_path, tiny_model)
    empty = build([str(path)], None).parts[0]
    (warning,) = (block for block in empty.blocks() if isinstance(block, Warnings))
    assert "No sample of this run is finished (0 of 6)" in warning.texts[0]
    assert not empty.findings()
    assert not empty.figures()
    CaptureWorker(job, 1)(1)
    part = build([str(path)], None).parts[0]
    (warning,) = (block for block in part.blocks() if isinstance(block, Warnings))
    assert "unfinished: 4 of 6 samples" in warning.texts[0]
    assert part.findings()[0].numbers["n_samples"] == 2


def test_a_damaged_store_is_refused_with_the_remedy(tiny_model: Path, tmp_path: Path) -> None:
    path, job = captured(tmp_path, tiny_model)
    CaptureWorker(job, 1)(0)
    (shard,) = (path / "activations.zarr" / "mean_abs").glob("c*")
    data = bytearray(shard.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    shard.write_bytes(data)
    with pytest.raises(StorageError, match="runs verify"):
        build([str(path)], None)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["-o", "report.txt"], "'report.txt'; its suffix must be"),
        (["-o", "nowhere/report.html"], "no folder 'nowhere'"),
        ([], "--out is missing"),
        (["-o", "report.md", "--pdf"], "--pdf prints an HTML report"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused(
    asked: list[str], says: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, ["report", str(run), *asked])
    assert isinstance(answer.exception, InputError)
    assert says in str(answer.exception)
    assert not list(tmp_path.iterdir())


def test_without_a_browser_a_pdf_is_refused_with_the_remedy(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = CliRunner().invoke(app, ["report", str(run), "-o", str(tmp_path / "a.pdf")])
    assert isinstance(answer.exception, InputError)
    assert "Install one" in str(answer.exception)


def test_findings_are_printed_for_programs(run: Path, sweep: Path) -> None:
    answer = CliRunner().invoke(app, ["report", str(run), str(sweep), "--json"])
    assert answer.exit_code == 0
    parts = json.loads(answer.stdout)["parts"]
    assert [(part["of"], part["kind"]) for part in parts] == [(str(run), "run"), (str(sweep), "sweep")]
    assert parts[0]["what_was_run"]["n_prompts"] == 3
    assert {each["name"] for each in parts[0]["findings"]} >= {"ratio", "overlap", "alignment"}
