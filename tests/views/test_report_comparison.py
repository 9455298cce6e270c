"""A report of two runs that were compared, and SQL over the comparison: against brute force over both stores."""

import json
import math
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from report_commands import ran
from tiny import TINY
from two_runs import ROWS, Arrays, captured, changed
from typer.testing import CliRunner

from fewchannels import open_run
from fewchannels.analyses.comparison.compare import compare
from fewchannels.analyses.comparison.pairing import Criteria, side_by_side
from fewchannels.analyses.document import Document, Finding, Gallery, Missing, Warnings
from fewchannels.cli import app
from fewchannels.cluster.shares import Pool
from fewchannels.demo.build import build_pipeline
from fewchannels.errors import InputError, StorageError
from fewchannels.runs import documents
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.storage import open_storage
from fewchannels.views.explore.opened import Opened
from fewchannels.views.report.build import build
from fewchannels.views.report.gallery import thumbnail
from fewchannels.views.report.page import as_html

K, N_CHANNELS, LAST = 3, 32, 1


def compared(a: Path, b: Path, out: Path) -> Path:
    compare(side_by_side(str(a), str(b)), Criteria(k=K), open_storage(out), Pool(1, 0, 1))
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Run A, run B of other weights, and their comparison."""
    folder = tmp_path_factory.mktemp("compared")
    captured(folder, "a", tiny_model, ROWS)
    build_pipeline(TINY, seed=2).save_pretrained(folder / "other")
    captured(folder, "b", folder / "other", ROWS[::-1], shard_samples=2)
    compared(folder / "a", folder / "b", folder / "comparison")
    return folder


@pytest.fixture(scope="module")
def document(folder: Path) -> Document:
    return build([str(folder / "comparison")], None)


def found(document: Document) -> dict[str, Finding]:
    return {each.name: each for each in document.parts[0].findings()}


def scores(run: Path) -> dict[str, np.ndarray]:
    """``(layer, channel)`` by sample_id, of the last step."""
    data = open_run(run).activations["mean_abs"].sel(step=LAST)
    return {str(sample_id): data.isel(sample=i).values for i, sample_id in enumerate(data.sample_id.values)}


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    one, other = (set(np.argsort(-each, kind="stable")[:K].tolist()) for each in (a, b))
    return len(one & other) / len(one | other)


def test_overlap_is_that_of_each_sample_in_both_runs_beside_seeds_and_chance(folder: Path, document: Document) -> None:
    a, b = scores(folder / "a"), scores(folder / "b")
    prompt = dict(open_run(folder / "a").sql("select sample_id, prompt from samples").fetchall())
    seeds = [pair for pair in combinations(a, 2) if prompt[pair[0]] == prompt[pair[1]]]
    assert (len(a), len(seeds)) == (8, 4)
    finding = found(document)["overlap"]
    matched = [np.mean([overlap(a[i][layer], b[i][layer]) for i in a]) for layer in range(4)]
    for layer in range(4):
        numbers = finding.numbers["layers"][str(layer)]
        assert numbers["matched"]["mean"] == pytest.approx(matched[layer], abs=1e-6)
        for side, run in (("a", a), ("b", b)):
            own = np.mean([overlap(run[i][layer], run[j][layer]) for i, j in seeds])
            assert numbers[f"within_{side}"]["mean"] == pytest.approx(own, abs=1e-6)
    chance = sum(
        math.comb(K, i) * math.comb(N_CHANNELS - K, K - i) / math.comb(N_CHANNELS, K) * i / (2 * K - i)
        for i in range(K + 1)
    )
    assert finding.numbers["chance"] == pytest.approx(chance, rel=1e-5)
    assert finding.numbers["most_layer"] == np.argmax(matched)
    assert finding.numbers["least_layer"] == np.argmin(matched)
    for text in (f": {max(matched):.3g}", f": {min(matched):.3g}", f"is {chance:.3g}", "n = 8 samples"):
        assert text in finding.text
    assert "95 %" not in finding.text, "its layers are selected post hoc: intervals are in the table"
    assert finding.table is not None
    assert finding.table.rows[int(np.argmax(matched))][1].startswith(f"{max(matched):.3g} (")
    assert [row[0] for row in finding.table.rows] == ["0", "1", "2", "3"]


def test_layers_where_runs_share_less_or_more_than_seeds_do_are_counted(folder: Path, tmp_path: Path) -> None:
    def level(arrays: Arrays) -> None:
        arrays["mean_abs"][:] = np.arange(1, N_CHANNELS + 1, dtype=np.float32)

    def roll(arrays: Arrays) -> None:
        arrays["mean_abs"][:, :, :2] = np.roll(arrays["mean_abs"][:, :, :2], N_CHANNELS // 2, axis=-1)

    steady = changed(folder / "a", tmp_path / "steady", level)
    rolled = changed(steady, tmp_path / "rolled", roll)
    less = found(build([str(compared(steady, rolled, tmp_path / "less"))], None))["overlap"]
    assert (less.numbers["below_seeds"], less.numbers["above_seeds"]) == ([], [])
    assert "No layer has intervals of all of these" in less.text, "four prompts are too few"
    more = found(build([str(compared(folder / "a", folder / "a", tmp_path / "more"))], None))["overlap"]
    of_seeds = {each["within_a"]["mean"] for each in more.numbers["layers"].values()}
    assert of_seeds == {0}, "seeds of a model that was not trained share no top channel"
    assert (more.numbers["below_seeds"], more.numbers["above_seeds"]) == ([], [])
    assert "No layer has intervals of all of these" in more.text


def test_ratios_differ_by_what_the_arrays_say(folder: Path, document: Document) -> None:
    ratios = {}
    for side in "ab":
        ranked = {i: np.sort(each, axis=-1) for i, each in scores(folder / side).items()}
        ratios[side] = {i: each[:, -1] / each[:, (N_CHANNELS - 1) // 2] for i, each in ranked.items()}
    change = np.mean([ratios["b"][i] - ratios["a"][i] for i in ratios["a"]], axis=0)
    numbers, layer = found(document)["ratio"].numbers, int(np.abs(change).argmax())
    assert numbers["layer"] == layer
    assert numbers["mean"] == pytest.approx(change[layer], rel=1e-4)
    assert numbers["mean_a"] == pytest.approx(np.mean([each[layer] for each in ratios["a"].values()]), rel=1e-5)
    assert numbers["low"] is numbers["high"] is None
    assert numbers["n_layers"] == 4
    assert f"at layer {layer}, {change[layer]:.3g} (A" in found(document)["ratio"].text
    assert "selected post hoc, so without an interval" in found(document)["ratio"].text


def test_a_summary_says_the_sentences_of_the_report(folder: Path, document: Document) -> None:
    page = (folder / "comparison" / "summary.md").read_text(encoding="utf-8")
    assert all(f"\n{each.text}\n" in page for each in document.parts[0].findings())
    drawn = {path.stem for path in (folder / "comparison" / "figures").glob("*.png")}
    assert drawn == {each.name for each in document.parts[0].figures()}


def test_every_command_gives_rows_and_every_figure_has_one(document: Document) -> None:
    part = document.parts[0]
    assert [each.name for each in part.findings()] == [
        "overlap", "spearman", "ratio", "energy_share", "gini", "token_norm_ratio",
    ]  # fmt: skip
    assert len(part.figures()) == 10
    assert all(each.how for each in (*part.figures(), *part.findings()))
    for how in document.commands():
        assert ran(how) > 0, how.text


def test_samples_are_shown_as_both_runs_drew_them(folder: Path, document: Document) -> None:
    (gallery,) = (block for block in document.parts[0].blocks() if isinstance(block, Gallery))
    a, b = scores(folder / "a"), scores(folder / "b")
    values = {i: np.mean([overlap(a[i][layer], b[i][layer]) for layer in range(4)]) for i in a}
    assert gallery.shown[0].value == pytest.approx(max(values.values()), abs=1e-6)
    assert gallery.shown[-1].value == pytest.approx(min(values.values()), abs=1e-6)
    for each in gallery.shown:
        assert each.value == pytest.approx(values[each.sample_id], abs=1e-6)
        for (_, shown), side in zip(each.images, "ab", strict=True):
            with Catalog(folder / side) as catalog:
                np.testing.assert_array_equal(shown, thumbnail(catalog.image(each.sample_id)))


def test_runs_that_have_gone_or_changed_show_no_images_and_say_so(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "comparison", tmp_path / "comparison")
    path = tmp_path / "comparison" / "comparison.json"
    about = documents.from_bytes(path.read_bytes())
    for run, why in (("gone", "there is no folder"), ("b", "is now a different run")):
        path.write_bytes(documents.to_bytes(about | {"runs": {"a": str(folder / run), "b": str(folder / "b")}}))
        blocks = build([str(tmp_path / "comparison")], None).parts[0].blocks()
        (missing,) = (block for block in blocks if isinstance(block, Missing))
        assert why in missing.why
        assert not any(isinstance(block, Gallery) for block in blocks)


def test_models_of_other_width_have_no_overlap_and_a_warning(folder: Path, tmp_path: Path) -> None:
    build_pipeline(replace(TINY, n_heads=3), seed=5).save_pretrained(tmp_path / "wider")
    captured(tmp_path, "wide", tmp_path / "wider", ROWS[:4])
    document = build([str(compared(folder / "a", tmp_path / "wide", tmp_path / "comparison"))], None)
    assert [each.name for each in document.parts[0].findings()] == ["ratio", "energy_share", "gini", "token_norm_ratio"]
    (warnings,) = (block for block in document.parts[0].blocks() if isinstance(block, Warnings))
    assert "A has 32 of them and B 48" in warnings.texts[0]
    (gallery,) = (block for block in document.parts[0].blocks() if isinstance(block, Gallery))
    assert "ratio, B minus A" in gallery.title
    for how in document.commands():
        assert ran(how) > 0, how.text


def test_equal_runs_are_said_to_be_equal(folder: Path, tmp_path: Path) -> None:
    document = build([str(compared(folder / "a", folder / "a", tmp_path / "comparison"))], None)
    assert "A and B are equal at every layer" in found(document)["ratio"].text
    assert "at layer 0: 1 (two seeds of one prompt in A" in found(document)["overlap"].text


def test_the_page_and_the_command_take_a_comparison_beside_its_runs(folder: Path, tmp_path: Path) -> None:
    places = [str(folder / name) for name in ("a", "b", "comparison")]
    page = as_html(build(places, None), lambda what, done, total: None)
    assert "What was compared" in page
    answer = CliRunner().invoke(app, ["report", *places, "-o", str(tmp_path / "report.md"), "--json"])
    assert answer.exit_code == 0, answer.exception
    assert [part["kind"] for part in json.loads(answer.stdout)["parts"]] == ["run", "run", "comparison"]
    assert (tmp_path / "report_figures" / "part3_overlap.png").stat().st_size > 10_000


def test_a_comparison_answers_sql_about_itself_alone(folder: Path) -> None:
    with Catalog(folder / "comparison") as catalog:
        assert catalog.views == ["agreement", "comparison", "differences", "profiles", "samples"]
        assert catalog.sql("select run_a, n_samples, k from comparison").fetchall() == [(str(folder / "a"), 8, K)]
        assert catalog.sql("select count(*) from samples").fetchall() == [(8 * 4 * 2,)]
        with pytest.raises(InputError, match="can read only this comparison's tables"):
            catalog.sql(f"select * from read_parquet('{folder}/a/manifest.parquet')")
        with pytest.raises(InputError, match=r"reads a run, but .* is a comparison"):
            catalog.query("massive_channels")


def test_a_comparison_that_lacks_a_file_names_it_and_the_remedy(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "comparison", tmp_path / "comparison")
    (tmp_path / "comparison" / "agreement.parquet").unlink()
    with pytest.raises(StorageError, match=r"agreement.parquet is missing from .* fewchannels compare --replace"):
        Catalog(tmp_path / "comparison")


def test_what_takes_runs_says_what_takes_a_comparison(folder: Path) -> None:
    answer = CliRunner().invoke(app, ["runs", "show", str(folder / "comparison")])
    assert isinstance(answer.exception, InputError)
    assert "It holds a comparison of two runs: use fewchannels report" in str(answer.exception)


def test_the_explorer_asks_for_the_two_runs(folder: Path) -> None:
    with pytest.raises(InputError, match=r"is a comparison of two runs.*pass the two runs"):
        Opened("comparison", folder / "comparison")
