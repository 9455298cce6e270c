"""The named queries of a sweep, over planted tables whose answers are worked out by hand."""

from typing import Any

import duckdb
import pytest
from planted_edits import condition, picture

from fewchannels.runs.sql.named_queries import queries
from fewchannels.tables import as_columns, from_parquet, to_parquet

NAMES = ("best_settings", "top_over_matched", "flipped_prompts", "set_distances")
TABLES = ("edits", "effects_means", "effects_contrasts", "effects_sets")
SETTINGS = {name: value for name, value in condition(0).items() if name not in ("trial", "condition_id", "is_control")}


def ask(name: str, tables: dict[str, list[dict[str, Any]]], **parameters: object) -> list[dict[str, Any]]:
    """A query's rows over tables of these rows, in the schemas' types."""
    query = queries()[name]
    with duckdb.connect() as connection:
        for table in TABLES:
            rows = from_parquet(to_parquet(table, as_columns(table, tables.get(table, []))))
            connection.register(table, rows)
        answer = connection.sql(query.sql, params=query.bind(parameters)).to_arrow_table()
    return answer.to_pylist()


def mean_row(place: int | None, metric: str, mean: float, **more: Any) -> dict[str, Any]:
    """A row of ``effects_means``."""
    settings = SETTINGS if place is not None else {"action": "undisturbed"}
    counts = {"n_items": 6, "n_prompts": 3, "n_failed": 0, "n_nonfinite": 0, "n_not_edited": 0}
    ends = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
    return settings | counts | ends | {"condition": place, "metric": metric} | more


def contrast_row(control: int, top: int, metric: str = "mse", **more: Any) -> dict[str, Any]:
    """A row of ``effects_contrasts``, of a matched control whose top does clearly more."""
    found = {"mean": 0.3, "low": 0.2, "high": 0.4, "d_z": 1.5, "p": 0.01, "q": 0.02, "n_items": 6, "n_prompts": 3}
    names = {"condition": control, "counterpart_condition": top, "counterpart": "top", "metric": metric}
    return SETTINGS | found | {"effect_mean": 0.5, "control_mean": 0.2, "selection": "matched"} | names | more


@pytest.mark.parametrize("name", NAMES)
def test_a_header_describes_what_is_answered(name: str) -> None:
    query = queries()[name]
    assert query.of == "sweep"
    with duckdb.connect() as connection:
        for table in TABLES:
            connection.register(table, from_parquet(to_parquet(table, as_columns(table, []))))
        answer = connection.sql(query.sql, params=query.bind({}))
        assert answer.columns == [column.name for column in query.columns]
        assert answer.fetchall() == []


MEANS = [
    mean_row(0, "mse", 0.3, k=4),
    mean_row(1, "mse", 0.9, selection="random", k=4),
    mean_row(2, "mse", 0.5, k=8),
    mean_row(3, "mse", 0.1, action="pixels", selection="none", k=0),
    mean_row(0, "change", 0.25),
    mean_row(2, "clip_score", 20.0),
    mean_row(None, "clip_score", 30.0),
]


def test_best_settings_are_those_that_move_a_metric_most() -> None:
    found = ask("best_settings", {"effects_means": MEANS})
    assert [row["condition"] for row in found] == [1, 2, 0, 3]
    assert [row["mean"] for row in found] == pytest.approx([0.9, 0.5, 0.3, 0.1])
    assert [row["change"] for row in found] == [None, None, 0.25, None]
    assert {row["undisturbed"] for row in found} == {None}
    assert {row["on_front"] for row in found} == {None}


def test_best_settings_may_be_the_lowest_without_controls_and_few() -> None:
    found = ask("best_settings", {"effects_means": MEANS}, direction="lowest", controls=False)
    assert [row["condition"] for row in found] == [0, 2]
    assert [row["condition"] for row in ask("best_settings", {"effects_means": MEANS}, top=2)] == [1, 2]
    assert len(ask("best_settings", {"effects_means": MEANS}, top=0)) == 4


def test_best_settings_stand_beside_the_undisturbed_level() -> None:
    (found,) = ask("best_settings", {"effects_means": MEANS}, metric="clip_score")
    assert (found["condition"], found["mean"], found["undisturbed"]) == (2, 20.0, 30.0)


def transports(*shares: tuple[float, float]) -> list[dict[str, Any]]:
    return [
        mean_row(place, metric, value, selection="top" if place < 4 else "random")
        for place, both in enumerate(shares)
        for metric, value in zip(("source_taken", "target_kept"), both, strict=True)
    ]


def test_the_front_holds_the_transports_that_no_other_equals_in_both_shares() -> None:
    rows = transports((0.9, 0.05), (0.5, 0.5), (0.5, 0.4), (0.1, 0.7), (0.2, 0.75))
    found = {row["condition"]: row for row in ask("best_settings", {"effects_means": rows}, metric="source_taken")}
    assert [place for place, row in found.items() if row["on_front"]] == [0, 1, 4]
    assert list(found) == [0, 1, 2, 4, 3]
    kept = [found[1][f"target_kept{end}"] for end in ("_low", "", "_high")]
    assert kept == pytest.approx([0.4, 0.5, 0.6])
    few = ask("best_settings", {"effects_means": rows}, metric="source_taken", controls=False, front=True)
    assert [row["condition"] for row in few] == [0, 1, 3]  # the control that was better than 3 is left out


def test_settings_with_the_same_shares_are_on_the_front_together() -> None:
    rows = transports((0.5, 0.5), (0.5, 0.5))
    found = ask("best_settings", {"effects_means": rows}, metric="source_taken", front=True)
    assert [row["condition"] for row in found] == [0, 1]


CONTRASTS = [
    contrast_row(1, 0, mean=0.3),
    contrast_row(2, 0, selection="scaled", low=-0.1),  # the interval holds zero
    contrast_row(3, 0, selection="bottom", mean=0.9),  # holds less energy
    contrast_row(5, 4, mean=0.6),
    contrast_row(6, 4, selection="scaled", mean=0.4),
    contrast_row(8, 7, q=0.2),
    contrast_row(10, 9, mean=-0.3, low=-0.4, high=-0.2),
    contrast_row(11, 12, q=None, p=None),
    contrast_row(1, 0, "energy_share", effect_mean=0.7, control_mean=0.68),
    contrast_row(1, 0, "change", effect_mean=0.4, control_mean=0.35),
]


def test_the_top_is_over_matched_where_interval_and_q_say_so() -> None:
    found = ask("top_over_matched", {"effects_contrasts": CONTRASTS})
    assert [(row["condition"], row["control_condition"]) for row in found] == [(4, 5), (4, 6), (0, 1)]
    assert [row["control"] for row in found] == ["matched", "scaled", "matched"]
    assert [(row["n_exceeded"], row["n_controls"]) for row in found] == [(2, 2), (2, 2), (1, 2)]
    doses = ("top_energy_share", "control_energy_share", "top_change", "control_change")
    assert [found[2][name] for name in doses] == pytest.approx([0.7, 0.68, 0.4, 0.35])
    assert (found[2]["low"], found[2]["q"], found[2]["d_z"]) == pytest.approx((0.2, 0.02, 1.5))


def test_the_top_may_have_to_be_over_each_control_and_a_metric_may_fall() -> None:
    tables = {"effects_contrasts": CONTRASTS}
    assert {row["condition"] for row in ask("top_over_matched", tables, each=True)} == {4}
    assert [row["condition"] for row in ask("top_over_matched", tables, side="lower")] == [9]
    assert {row["condition"] for row in ask("top_over_matched", tables, max_q=0.3)} == {0, 4, 7}
    assert len(ask("top_over_matched", tables, top=1)) == 1
    assert ask("top_over_matched", tables, metric="dino") == []


def shows(shape: bool | None, colour: bool | None) -> dict[str, Any]:
    return {"shows_shape": shape, "shows_colour": colour}


FLIPS = [
    picture(0, role="undisturbed", **shows(True, True)),
    picture(0, **condition(0), **shows(False, False), source_shape=True, source_colour=False),
    picture(0, **condition(1, selection="random"), **shows(True, False), source_colour=True),
    picture(1, role="undisturbed", **shows(False, True)),  # its shape was never right
    picture(1, **condition(0), **shows(False, True)),
    picture(1, **condition(1, selection="random"), **shows(True, False)),
    picture(2, role="undisturbed", **shows(False, False)),
    picture(2, **condition(0), **shows(False, False)),
    picture(3, role="undisturbed", **shows(True, True)),
    picture(3, **condition(0), status="failed", error="it broke"),
    picture(4, role="undisturbed"),  # not of the shapes world
    picture(4, **condition(0)),
]


def flips(**parameters: object) -> list[tuple[Any, ...]]:
    names = ("item", "condition", "lost", "taken_from_source", "n_lost", "n_taken", "n_flipped", "n_pictures")
    found = ask("flipped_prompts", {"edits": FLIPS}, **parameters)
    return [tuple(row[name] for name in names) for row in found]


def test_flipped_are_images_that_lost_what_was_there() -> None:
    assert flips() == [
        (0, 0, "colour, shape", "shape", 2, 1, 1, 2),
        (0, 1, "colour", "colour", 1, 1, 2, 2),
        (1, 1, "colour", None, 1, 0, 2, 2),
    ]


def test_flips_may_be_of_one_attribute_to_the_sources_or_of_one_condition() -> None:
    assert flips(attribute="shape") == [(0, 0, "shape", "shape", 1, 1, 1, 1)]
    assert flips(taken=True) == [(0, 0, "shape", "shape", 1, 1, 1, 2), (0, 1, "colour", "colour", 1, 1, 1, 2)]
    assert [row[:2] for row in flips(condition=1)] == [(0, 1), (1, 1)]
    assert [row[:2] for row in flips(top=1)] == [(0, 0)]


def test_a_flip_says_which_sample_and_which_settings() -> None:
    found = ask("flipped_prompts", {"edits": FLIPS}, condition=1)[0]
    wanted = {
        "item_id": "item0",
        "sample_id": "sample0",
        "prompt": "prompt 0",
        "selection": "random",
        "trial": 0,
        "k": 8,
    }
    assert {name: found[name] for name in wanted} == wanted


def set_row(place: int, selection: str, cmmd: float, **more: Any) -> dict[str, Any]:
    """A row of ``effects_sets``."""
    counts = {"n_edited": 6, "n_undisturbed": 6, "frechet": None, "kernel": 0.1}
    about = {name: SETTINGS[name] for name in ("action", "amount", "k", "layers_name", "steps_name", "tokens")}
    return (
        about | counts | {"condition": place, "selection": selection, "trial": 0, "model": "clip", "cmmd": cmmd} | more
    )


def test_set_distances_are_beside_those_of_the_controls_trials() -> None:
    rows = [
        set_row(0, "top", 6.0),
        set_row(1, "random", 1.0),
        set_row(2, "random", 2.0, trial=1),
        set_row(3, "top", 9.0, k=1024),
        set_row(0, "top", 8.0, model="dino"),
    ]
    found = ask("set_distances", {"effects_sets": rows})
    assert [(row["condition"], row["model"]) for row in found] == [
        (3, "clip"),
        (0, "dino"),
        (0, "clip"),
        (2, "clip"),
        (1, "clip"),
    ]
    assert [row["cmmd_over_control"] for row in found] == [None, None, 4.0, None, None]
    assert [row["condition"] for row in ask("set_distances", {"effects_sets": rows}, model="dino")] == [0]
    by_top = ask("set_distances", {"effects_sets": rows}, control="matched", top=1)
    assert [(row["condition"], row["cmmd_over_control"]) for row in by_top] == [(3, None)]
