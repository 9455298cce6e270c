"""Figures of a sweep: what is drawn where, and that files are images."""

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from planted_edits import condition, edits_of, picture, planted, png_of

from fewchannels.analyses.figures.drawings import Dots, Images, Panels, Series
from fewchannels.analyses.figures.still import as_files, still
from fewchannels.errors import InputError
from fewchannels.interventions.effects.contrasts import means
from fewchannels.interventions.effects.figures import (
    default_figures,
    dose_response,
    named_places,
    overview,
    shown_items,
    strip,
    varying,
)
from fewchannels.views.explore.sweep import in_order

SHIFT = {"top": 0.01, "bottom": 0.001, "all": 0.02, "none": 0.005}


def mean_of(table: pd.DataFrame, metric: str = "mse", **where: Any) -> float:
    rows = table[table["metric"] == metric]
    for name, value in where.items():
        rows = rows[rows[name] == value]
    (value,) = rows["mean"]
    return float(value)


def grid(*names: str, **values: list[Any]) -> list[dict[str, Any]]:
    (axis, places), *_ = values.items()
    return [{"selection": name, axis: place} for place in places for name in names]


def test_axes_are_what_varies_of_edits_and_not_what_a_control_lacks() -> None:
    every, pixels = (
        {"selection": "all", "k": 0},
        {"selection": "none", "action": "pixels", "k": 0, "layers_name": "none"},
    )
    for conditions, expected in (
        ([{}, {"selection": "bottom"}, every, pixels, pixels | {"amount": 0.5}], []),
        ([{"k": 4}, {"k": 8}, every], ["k"]),
        ([{"amount": 0.5}, {"amount": 1.0}], ["amount"]),
        ([{"layers_name": "0", "steps_name": "1"}, {"layers_name": "1", "steps_name": "2"}], ["layer", "step"]),
        ([pixels, pixels | {"amount": 0.5}], ["amount"]),
    ):
        edits = edits_of([picture(0, **condition(i, **each), mse=0.5) for i, each in enumerate(conditions)])
        assert varying(edits) == expected
        assert varying(means(edits)) == expected


def test_every_selection_is_a_line_of_its_means_with_their_band() -> None:
    table = means(planted(grid("bottom", "top", k=[8, 2, 4]), SHIFT, n_prompts=6))
    drawn = dose_response(table, "mse", "k")
    (lines,) = drawn.drawn.values()
    assert set(lines) == {"top", "bottom"}
    assert lines["top"].x.tolist() == [2, 4, 8]
    assert lines["top"].y.tolist() == [mean_of(table, selection="top", k=k) for k in (2, 4, 8)]
    assert (lines["top"].low < lines["top"].y).all()
    assert (lines["top"].high > lines["top"].y).all()
    assert "n = 12 items of 6 prompts, bands: 95 %" in drawn.title
    assert "layers 0-5" in drawn.title
    assert not drawn.log


def test_remaining_settings_are_panels_and_selections_have_the_same_colour_in_all() -> None:
    conditions = [
        {"k": k, "layers_name": at, "selection": name} for at in "01" for k in (1, 64) for name in ("bottom", "top")
    ]
    table = means(planted(conditions, SHIFT, n_prompts=3))
    drawn = dose_response(table, "mse", "k")
    assert list(drawn.drawn) == ["layers 0", "layers 1"]
    assert drawn.drawn["layers 1"]["top"].y[1] == mean_of(table, selection="top", k=64, layers_name="1")
    assert list(drawn.names).index("top") == 0
    assert drawn.log


def test_the_undisturbed_level_is_a_thin_line_where_there_is_one() -> None:
    table = means(planted(grid("top", k=[2, 4]), SHIFT, n_prompts=3))
    drawn = dose_response(table, "clip_score", "k")
    other = dose_response(table, "mse", "k")
    (level,) = (lines["unedited"] for lines in drawn.drawn.values())
    assert level.reference
    assert (level.x.tolist(), level.y.tolist()) == ([2, 4], [30, 30])
    assert all("unedited" not in lines for lines in other.drawn.values())


def test_controls_that_lack_a_setting_are_drawn_along_all_of_it() -> None:
    conditions = [*grid("top", k=[2, 4]), {"selection": "all", "k": 0}]
    conditions += [
        {"selection": "none", "action": "pixels", "k": 0, "amount": a, "layers_name": "none"} for a in (0.5, 1.0)
    ]
    table = means(planted(conditions, SHIFT, n_prompts=3))
    drawn = dose_response(table, "mse", "k")
    (lines,) = drawn.drawn.values()
    assert lines["all"].x.tolist() == [2, 4]
    assert lines["all"].y.tolist() == [mean_of(table, selection="all")] * 2
    assert lines["pixels"].y.tolist() == [mean_of(table, action="pixels", amount=1.0)] * 2


def test_windows_are_behind_single_layers_and_not_joined_to_them() -> None:
    table = means(planted(grid("top", layers_name=["0-5", "10", "2", "0-2", "3-5"]), SHIFT, n_prompts=3))
    drawn = dose_response(table, "mse", "layer")
    (lines,) = drawn.drawn.values()
    assert drawn.ticks == ["2", "10", "0-2", "3-5", "0-5"]
    assert np.isnan(lines["top"].y).tolist() == [False, False, True, False, False, True, False]
    assert lines["top"].y[3] == mean_of(table, layers_name="0-2")
    other = dose_response(means(planted(grid("top", layers_name=["10", "2"]), SHIFT, n_prompts=3)), "mse", "layer")
    assert other.ticks is None
    assert next(iter(other.drawn.values()))["top"].x.tolist() == [2, 10]


def test_windows_of_steps_are_in_the_order_of_time_however_long_they_are() -> None:
    table = means(planted(grid("top", steps_name=["0-7", "5-7", "3-4", "0-2"]), SHIFT, n_prompts=3))
    drawn = dose_response(table, "mse", "step")
    (lines,) = drawn.drawn.values()
    assert drawn.ticks == ["0-2", "3-4", "5-7", "0-7"]
    joined = lines["top"].x[~np.isnan(lines["top"].y)], np.isnan(lines["top"].y).tolist()
    assert joined[0].tolist() == [0, 1, 2, 3]
    assert joined[1] == [False, False, False, True, False]  # all steps at once stand apart
    table = means(planted(grid("top", steps_name=["3", "2", "0-1", "0-3"]), SHIFT, n_prompts=3))
    assert dose_response(table, "mse", "step").ticks == ["0-1", "2", "3", "0-3"]


def test_of_many_panels_some_are_drawn_and_the_title_says_so() -> None:
    conditions = [{"k": k, "layers_name": str(layer)} for layer in range(20) for k in (2, 4)]
    drawn = dose_response(means(planted(conditions, SHIFT, n_prompts=2)), "mse", "k")
    headings = list(drawn.drawn)
    assert (len(headings), headings[0], headings[-1]) == (9, "layers 0", "layers 19")
    assert "9 of 20 settings" in drawn.title


def test_an_axis_or_metric_that_is_not_there_is_refused() -> None:
    table = means(planted(grid("top", k=[2, 4]), SHIFT, n_prompts=2))
    with pytest.raises(InputError, match="axis"):
        dose_response(table, "mse", "depth")
    with pytest.raises(InputError, match="metric"):
        dose_response(table, "dino", "k")


def test_the_overview_has_every_setting_once() -> None:
    table = means(planted([*grid("top", "bottom", k=[2, 4]), {"selection": "all", "k": 0}], SHIFT, n_prompts=3))
    drawn = overview(table, ["mse", "n_shown"])
    assert drawn.labels == ["top, k 2", "bottom, k 2", "top, k 4", "bottom, k 4", "all"]
    shown = drawn.drawn["n_shown (of 5)"]
    assert shown.y[shown.x == 2].tolist() == [mean_of(table, "n_shown", selection="top", k=4)]
    assert drawn.levels == {"n_shown (of 5)": 5.0}


def pair(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """An item of a transport: blue undisturbed, yellow source, and edited images."""
    first = [
        picture(0, role=role, image=png_of(*colour))
        for role, colour in (("source", (255, 255, 0)), ("undisturbed", (0, 0, 255)))
    ]
    return edits_of([{**row, "prompt": "a blue one", "source_prompt": "a yellow one"} for row in [*first, *rows]])


def colours(drawn: Images) -> list[list[tuple[int, ...]]]:
    return [[tuple(cell[0, 0].tolist()) for cell in line] for line in drawn.rows]


def test_a_strip_has_selections_as_rows_the_axis_as_columns_and_what_is_compared_first() -> None:
    rows = [
        picture(0, **condition(i, selection=name, amount=amount, trial=trial), image=png_of(i, 10, 20))
        for i, (name, amount, trial) in enumerate(
            [("top", 1.0, 0), ("random", 1.0, 0), ("random", 1.0, 1), ("top", 0.5, 0), ("random", 0.5, 0)]
        )
    ]
    drawn = strip(pair(rows), 0)
    assert drawn.labels == ["top", "random"]
    assert drawn.columns == ["unedited", "source", "amount 0.5", "amount 1"]
    blue, yellow = (0, 0, 255), (255, 255, 0)
    assert colours(drawn) == [[blue, yellow, (3, 10, 20), (0, 10, 20)], [blue, yellow, (4, 10, 20), (1, 10, 20)]]
    assert "item0: a blue one\nsource: a yellow one" in drawn.title


def test_a_strip_is_of_the_remaining_setting_with_most_conditions_the_last_of_such() -> None:
    places = [("0", 4), ("0", 8), ("1", 4), ("1", 8), ("2", 8), ("0", 16), ("1", 16), ("2", 16)]
    rows = [picture(0, **condition(i, k=k, layers_name=at), image=png_of(i, 0, 0)) for i, (at, k) in enumerate(places)]
    drawn = strip(pair(rows), 0, axis="layer")
    assert [line[2:] for line in colours(drawn)] == [[(5, 0, 0), (6, 0, 0), (7, 0, 0)]]
    assert "k 16" in drawn.title


def test_in_a_strip_grey_failed_and_white_is_not_there() -> None:
    rows = [
        picture(0, **condition(0, k=4), image=png_of(1, 1, 1)),
        picture(0, **condition(1, k=8), status="failed", error="it broke"),
        picture(0, **condition(2, k=4, selection="bottom"), image=png_of(2, 2, 2)),
    ]
    drawn = strip(pair(rows), 0)
    assert [line[2:] for line in colours(drawn)] == [[(1, 1, 1), (200, 200, 200)], [(2, 2, 2), (255, 255, 255)]]


def test_a_strip_of_named_conditions_has_just_those() -> None:
    rows = [picture(0, **condition(i, k=k, trial=i % 2), image=png_of(i, 0, 0)) for i, k in enumerate((2, 2, 4, 8))]
    drawn = strip(pair(rows), 0, conditions=[condition(i)["condition_id"] for i in (1, 3)], axis="k")
    assert colours(drawn)[0][2:] == [(1, 0, 0), (3, 0, 0)]
    assert drawn.columns[2:] == ["k 2", "k 8"]
    with pytest.raises(InputError, match="item 7"):
        strip(pair(rows), 7)


def test_large_images_are_made_smaller() -> None:
    drawn = strip(pair([picture(0, **condition(0), image=png_of(1, 2, 3, size=(600, 300)))]), 0)
    assert drawn.rows[0][2].shape == (96, 192, 3)


def test_shown_items_are_finished_and_spread() -> None:
    rows = [picture(i, role="undisturbed", status="failed" if i in (0, 5) else "done") for i in range(10)]
    first, middle, last = shown_items(edits_of(rows))
    assert (first, last) == (1, 9)
    assert middle in (4, 6)


def test_default_figures_are_images_by_axis_and_metric() -> None:
    edits = planted(grid("top", "bottom", k=[2, 4]), SHIFT, n_prompts=1, n_seeds=1, with_images=True)
    edits[["n_shown", "clip_score"]] = np.nan
    found = as_files(default_figures(edits, means(edits)))
    names = {"dose_k_mse", "effects", "strip_0"}
    assert set(found) == {f"figures/{name}.{kind}" for name in names for kind in ("png", "svg")}
    for name, data in found.items():
        if name.endswith("png"):
            assert min(Image.open(io.BytesIO(data)).size) > 200
        else:
            assert data.lstrip().startswith(b"<?xml")


def test_without_images_there_are_no_strips() -> None:
    edits = planted(grid("top", k=[2, 4]), SHIFT, n_prompts=2)
    found = default_figures(edits.drop(columns="image"), means(edits))
    assert set(found) == {"dose_k_n_shown", "dose_k_mse", "dose_k_clip_score", "effects"}


def test_panels_and_dots_draw_gaps_lone_points_and_references() -> None:
    x = np.array([1.0, 2.0, 4.0])
    line = Series(x, np.array([1.0, np.nan, 2.0]), np.array([0.5, np.nan, np.nan]), np.array([1.5, np.nan, np.nan]))
    level = Series(x[[0, 2]], np.array([1.0, 1.0]), reference=True)
    many = {name: {"a": line, "b": line, "level": level} for name in ("", "u")}
    for drawing in (
        Panels(drawn=many, names=["a", "b"], title="t", x="x", y="y", log=True),
        Panels(
            drawn={"": {"a": Series(np.arange(3.0), x)}}, names=["a"], title="t", x="x", y="y", ticks=["0", "1", "0-1"]
        ),
        Dots(drawn={"m": line, "n": Series(x, x)}, labels=["r", "s", "t", "u", "v"], title="t", levels={"m": 1.0}),
    ):
        assert np.asarray(Image.open(io.BytesIO(still(drawing)["png"])).convert("L")).std() > 5


def test_places_are_in_the_models_order_and_not_in_that_of_their_names() -> None:
    assert named_places(["10-12", "0-7", "3-4", "0-2", "5-9"]) == ["0-2", "3-4", "5-9", "10-12", "0-7"]
    assert named_places(["10", "2", "last"]) == ["last", "2", "10"]
    assert in_order(["10-12", "3-4"]) == ["3-4", "10-12"]
    assert in_order([0.5, 10, 2]) == [0.5, 2, 10]
    assert in_order(["top", "all", "bottom"]) == ["all", "bottom", "top"]
