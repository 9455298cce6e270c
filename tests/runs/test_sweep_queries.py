"""Questions to sweeps, on planted edits whose answers are known by hand."""

import json
from pathlib import Path

import duckdb
import pytest
from made_sweep import make_sweep
from planted_edits import condition, edits_of, picture, planted

from fewchannels.errors import InputError
from fewchannels.runs import documents
from fewchannels.runs.ledger import Record
from fewchannels.runs.sql import progress
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.sql.named_queries import queries
from fewchannels.runs.storage import Stored

OF_SWEEPS = sorted(name for name, query in queries().items() if query.of == "sweep")


def transported(item: int, place: int, **about) -> dict:
    """An edited image of a transport; the world's attributes as they are given."""
    whose = {"action": "transport", "scores_from": "source"}
    return picture(item, **condition(place, **whose), prompt=f"prompt {item}", **about)


def undisturbed(item: int, **about) -> dict:
    return picture(item, role="undisturbed", prompt=f"prompt {item}", **about)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Top adds more than matched at k 8, less than scaled."""
    settings = [{"selection": word, "k": k} for k in (4, 8) for word in ("top", "matched", "scaled", "bottom")]
    shift = {"top": 0.012, "matched": 0.005, "scaled": 0.02, "bottom": 0.0}
    return make_sweep(tmp_path_factory.mktemp("made") / "sweep", planted(settings, shift))


@pytest.mark.parametrize("name", OF_SWEEPS)
def test_a_header_describes_the_result(name: str, sweep: Path) -> None:
    query = queries()[name]
    with Catalog(sweep) as catalog:
        assert catalog.query(name).columns == [column.name for column in query.columns]
    (statement,) = duckdb.connect().extract_statements(query.sql)
    assert statement.named_parameters == {parameter.name for parameter in query.parameters}
    assert query.grain.startswith("one row per ")
    assert all(len(text) > 5 for text in [query.purpose, *(part.doc for part in (*query.parameters, *query.columns))])


def test_where_the_top_channels_do_more_than_as_much_energy(sweep: Path) -> None:
    with Catalog(sweep) as catalog:
        found = catalog.query("top_over_matched").df()
        assert catalog.query("top_over_matched", each=True).df().empty  # scaled does more everywhere
        lower = catalog.query("top_over_matched", side="lower").df()
    # 0.007 a channel, beside a noise of at most 0.002.
    assert found[["k", "control"]].values.tolist() == [[8, "matched"], [4, "matched"]]
    assert found["mean"].tolist() == pytest.approx([0.056, 0.028], abs=2e-3)
    assert (found["n_controls"].tolist(), found["n_exceeded"].tolist()) == ([2, 2], [1, 1])
    assert set(lower["control"]) == {"scaled"}


def test_the_settings_that_move_a_metric_most_come_first(sweep: Path) -> None:
    with Catalog(sweep) as catalog:
        most = catalog.query("best_settings", metric="mse").df()
        least = catalog.query("best_settings", metric="n_shown", direction="lowest", controls=False).df()
    assert most[["selection", "k"]].values.tolist()[:3] == [["scaled", 8], ["top", 8], ["scaled", 4]]
    assert set(least["selection"]) == {"top"}
    # Of 24 items, 6 keep all five attributes and the others 2; undisturbed images have all.
    assert least["mean"].tolist() == pytest.approx([(6 * 5 + 18 * 2) / 24] * 2)
    assert least["undisturbed"].tolist() == [5, 5]
    assert (least["low"] < least["mean"]).all()
    assert (least["mean"] < least["high"]).all()


def test_which_prompts_flip_and_to_what(tmp_path: Path) -> None:
    all_shown = {f"shows_{name}": True for name in ("shape", "colour", "size", "position", "background")}
    rows = [
        undisturbed(0, **all_shown),
        undisturbed(1, **all_shown | {"shows_shape": False}),  # what is not there cannot flip
        transported(0, 0, **all_shown | {"shows_shape": False, "shows_colour": False}, source_colour=True),
        transported(1, 0, **all_shown | {"shows_shape": False}, source_shape=True),
        transported(0, 1, **all_shown),
        transported(1, 1, **all_shown | {"shows_size": False}, source_size=False),
    ]
    with Catalog(make_sweep(tmp_path / "sweep", edits_of(rows))) as catalog:
        names = ["item", "condition", "lost", "taken_from_source", "n_lost", "n_taken", "n_flipped", "n_pictures"]
        found = catalog.query("flipped_prompts").df()[names].astype(object)
        assert found.where(found.notna(), None).values.tolist() == [
            [0, 0, "colour, shape", "colour", 2, 1, 1, 2],
            [1, 1, "size", None, 1, 0, 1, 2],
        ]
        taken = catalog.query("flipped_prompts", taken=True).df()
        assert taken[["item", "condition", "lost"]].values.tolist() == [[0, 0, "colour"]]
        assert catalog.query("flipped_prompts", attribute="position").df().empty


def test_a_query_that_needs_effects_says_how_to_have_them(sweep: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "sweep"
    shutil.copytree(sweep, copy)
    (copy / "results" / "effects" / "result.json").unlink()
    with Catalog(copy) as catalog, pytest.raises(InputError, match=f"fewchannels plot {copy}"):
        catalog.query("best_settings")


def test_answers_say_of_how_many_items_they_are(tmp_path: Path) -> None:
    settings = [{"selection": word, "k": 8} for word in ("top", "random")]
    edits = planted(settings, {"top": 0.01, "random": 0.001}, n_prompts=6, n_seeds=1)
    whole = make_sweep(tmp_path / "sweep", edits)
    with Catalog(whole) as catalog:
        assert catalog.note is None
    description = json.loads((whole / "sweep.json").read_text(encoding="utf-8"))
    description["identity"]["n_items"] = 10
    del description[documents.CHECKSUM]
    (whole / "sweep.json").write_bytes(documents.to_bytes(description))
    with Catalog(whole) as catalog:
        assert catalog.note == "6 of 10 items are finished; rerun the sweep's command to resume."


def test_effects_of_fewer_tasks_than_are_finished_are_told() -> None:
    def record(task: int, checksum: str) -> Record:
        stored = {f"edits/{task:05d}.parquet": Stored(1, checksum)}
        return Record(task, 2 * task, 2 * task + 2, "f", 1, 2, 0, 1.0, "2026-01-01T00:00:00", "here", "cpu", stored)

    records = {task: record(task, f"{task:08x}") for task in range(3)}
    current = {"tasks": [0, 1, 2], "parts": progress.parts(records)}
    assert progress.note("S", 6, records, current) is None
    assert progress.note("S", 6, records, {"tasks": [0, 1, 2]}) is None  # of an older version
    told = "The tables effects_* cover 2 of 6 finished items; fewchannels plot S updates them."
    assert progress.note("S", 6, records, {"tasks": [0]}) == told
    assert progress.note("S", 8, records, {"tasks": [0]}) == (
        f"6 of 8 items are finished; rerun the sweep's command to resume. {told}"
    )
    again = records | {1: record(1, "ffffffff")}  # a task that was done again after the effects were measured
    assert progress.note("S", 6, again, current) == told.replace("2 of 6", "6 of 6")


def test_failures_of_a_sweep_are_listed_by_the_name_that_runs_have(tmp_path: Path) -> None:
    rows = [undisturbed(item) for item in range(5)]
    rows += [
        picture(0, **condition(0), mse=0.1, n_channels=8),
        picture(1, **condition(0), status="failed", error="out of memory"),
        picture(2, **condition(0), nonfinite_steps=3),
        picture(3, **condition(0), n_channels=0),
        picture(4, **condition(0), n_channels=8, token_share=0.0),
    ]
    rows += [picture(0, **condition(1, amount=0.0), mse=0.0, n_channels=0)]  # of no strength by its own settings
    with Catalog(make_sweep(tmp_path / "sweep", edits_of(rows))) as catalog:
        found = catalog.query("failures").df()
        assert found.equals(catalog.query("failed_edits").df())
    assert found[["item", "reason"]].values.tolist() == [
        [1, "failed"],
        [2, "not finite"],
        [3, "not edited"],
        [4, "not edited"],
    ]
    assert found["error"][0] == "out of memory"
