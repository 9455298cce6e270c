"""Images that were not edited, or whose latents broke: each is counted, and is in no mean, no contrast and no test."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from made_sweep import make_sweep
from PIL import Image
from planted_edits import as_table, condition, edits_of, picture, png_of

from fewchannels import manifest
from fewchannels.captures.config import CaptureConfig
from fewchannels.errors import InputError
from fewchannels.interventions.begin import begin_sweep
from fewchannels.interventions.conditions import Grid, expand
from fewchannels.interventions.effects.contrasts import contrasts, means, metrics
from fewchannels.interventions.effects.measure import draw_dose, end_sweep
from fewchannels.interventions.effects.summary import summarize
from fewchannels.interventions.measure import Measured, Measures
from fewchannels.interventions.rows import Item, batches
from fewchannels.interventions.sweep import Prepared, SweepSettings, prepare_sweep
from fewchannels.interventions.worker import SweepWorker
from fewchannels.manifest import Sample
from fewchannels.models.family import Block
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.storage import open_storage
from fewchannels.tables import from_parquet

BLOCKS = tuple(Block(i, "blocks", "dual") for i in range(4))


def swept(source: str, folder: Path, model: Path, grid: Grid) -> tuple[Prepared, list[dict[str, Any]]]:
    """A finished sweep of a table of samples, and its rows."""
    folder.mkdir()
    (folder / "prompts.csv").write_text(source, encoding="utf-8")
    manifest.ingest([str(folder / "prompts.csv")], folder / "m.parquet")
    settings = SweepSettings("disruption", CaptureConfig(model=str(model), num_inference_steps=3), (grid,))
    prepared = prepare_sweep(folder / "m.parquet", folder / "sweep", settings)
    begin_sweep(prepared)
    worker, rows = SweepWorker(prepared.sweep, 1), []
    for task in range(prepared.sweep.n_tasks):
        worker(task)
        rows += from_parquet(prepared.sweep.storage.get(f"edits/{task:05d}.parquet")).to_pylist()
    return prepared, rows


def test_last_is_each_samples_own_last_step(tiny_model: Path, tmp_path: Path) -> None:
    grid = Grid(k=(8,), selections=("top",))
    both = swept(
        "prompt,seed,steps\na red star,1,2\na blue ring,2,4\n",
        tmp_path / "both",
        tiny_model,
        replace(grid, steps=("last",)),
    )[1]
    edited = [row for row in both if row["role"] == "edited"]
    assert [row["steps_name"] for row in edited] == ["last", "last"]
    for line, n_steps, row in (("a red star,1,2", 2, edited[0]), ("a blue ring,2,4", 4, edited[1])):
        alone = replace(grid, steps=(str(n_steps - 1),))
        rows = swept(f"prompt,seed,steps\n{line}\n", tmp_path / str(n_steps), tiny_model, alone)[1]
        (expected,) = (each for each in rows if each["role"] == "edited")
        assert row["image"] == expected["image"] != rows[0]["image"]
        assert row["n_channels"] == 8
        assert row["mse"] == expected["mse"] > 0


@pytest.mark.parametrize("steps", ["thirds", "each", "windows:2", "2", "0,3"])
def test_steps_that_not_all_samples_have_are_refused(steps: str) -> None:
    with pytest.raises(InputError, match=r"samples have 2 to 4 steps|the valid ones are 0 to 1"):
        expand([Grid(steps=(steps,))], BLOCKS, 4, 16, 2)


def test_steps_that_all_samples_have_are_taken() -> None:
    def of(text: str, fewest: int | None) -> set[tuple[int, ...]]:
        return {each.steps for each in expand([Grid(steps=(text,))], BLOCKS, 4, 16, fewest)}

    assert of("all", 2) == {(0, 1, 2, 3)}
    assert of("0,1", 2) == {(0, 1)}
    assert of("last", 2) == {(-1,)}
    assert of("last", None) == of("last", 4) == {(3,)}


def mask(path: Path, value: int) -> Path:
    Image.new("L", (16, 16), value).save(path)
    return path


def test_a_mask_that_chooses_no_token_edits_nothing_and_is_in_no_mean(tiny_model: Path, tmp_path: Path) -> None:
    half = np.zeros((16, 16), np.uint8)
    half[:8] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    none, every = mask(tmp_path / "none.png", 0), mask(tmp_path / "all.png", 255)
    source = f"prompt,seed,mask\na star,1,{none}\na ring,2,{tmp_path / 'half.png'}\na heart,3,{every}\n"
    grid = Grid(k=(8,), selections=("top", "bottom"), tokens=("inside", "outside"))
    prepared, rows = swept(source, tmp_path / "folder", tiny_model, grid)
    edited = {(row["seed"], row["tokens"], row["selection"]): row for row in rows if row["role"] == "edited"}
    undisturbed = {row["seed"]: row for row in rows if row["role"] == "undisturbed"}
    for (seed, tokens, _), row in edited.items():
        as_it_was = (seed, tokens) in {(1, "inside"), (3, "outside")}
        assert (row["n_channels"] == 0) == as_it_was
        assert (row["image"] == undisturbed[seed]["image"]) == as_it_was
        assert (row["mse"] is None) == as_it_was
    effects = end_sweep(prepared.sweep.storage)
    assert effects.numbers["n_not_edited"] == 4
    assert "and 4 were not edited" in effects.text
    with Catalog(prepared.sweep.place) as catalog:
        told = catalog.sql("select distinct tokens, n_items, n_not_edited from effects_means where metric = 'mse'")
        assert sorted(told.fetchall()) == [("inside", 2, 1), ("outside", 2, 1)]
        assert set(catalog.sql("select n_items from effects_contrasts where metric = 'mse'").fetchall()) == {(2,)}


def test_no_common_top_channel_is_no_edit(tiny_model: Path, tmp_path: Path, manifest_of: Any) -> None:
    grid = Grid(actions=("transport",), selections=("top",), k=(0, 1), scores_from=("intersection",))
    settings = SweepSettings("text", CaptureConfig(model=str(tiny_model), num_inference_steps=2), (grid,))
    prepared = prepare_sweep(manifest_of("prompt,seed\na star,1\na ring,2\n"), tmp_path / "s", settings)
    begin_sweep(prepared)
    worker = SweepWorker(prepared.sweep, 1)
    rows = [row for row in worker.images(worker.items(range(1))) if row["role"] == "edited"]
    by_k = {row["k"]: row for row in rows}
    assert by_k[0]["mse"] == 0, "of no channels by its own settings: its effect is none, and is measured"
    assert (by_k[1]["mse"] is None) == (by_k[1]["n_channels"] == 0)


def of_items(values: dict[tuple[int, str], dict[str, Any]]) -> pd.DataFrame:
    """Items under a top and a bottom edit, with an undisturbed image each."""
    places = {"top": condition(0), "bottom": condition(1, selection="bottom")}
    prompt = {item: f"prompt {item % 10}" for item, _ in values}  # so that intervals draw from the same prompts
    rows = [picture(item, role="undisturbed", prompt=prompt[item]) for item in sorted(prompt)]
    for (item, which), columns in values.items():
        rows.append(picture(item, prompt=prompt[item], **places[which] | columns))
    return edits_of(rows)


def of_mse(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return table[table["metric"] == "mse"][columns].reset_index(drop=True)


def test_what_was_not_edited_or_broke_is_in_no_mean_no_contrast_and_no_test() -> None:
    random, good, every = np.random.default_rng(0), {}, {}
    for item in range(10):
        for which in ("top", "bottom"):
            good[item, which] = every[item, which] = {"mse": float(np.float32(random.random())), "n_channels": 8}
    for item, columns in (
        (10, {"n_channels": 0}),
        (11, {"nonfinite_steps": 3}),
        (12, {"token_share": 0.0}),
        (13, {"n_channels": None}),  # of an older version, for steps that a sample did not have
    ):
        for which in ("top", "bottom"):
            every[item, which] = {"mse": 0.0, "n_channels": 8.0} | columns
    own = ["mean", "low", "high", "n_items", "n_prompts"]
    expected, found = means(of_items(good)), means(of_items(every))
    pd.testing.assert_frame_equal(
        *(each[each["metric"] == "mse"][own].reset_index(drop=True) for each in (expected, found))
    )
    assert set(found["n_not_edited"].dropna()[found["condition"].notna()]) == {3}
    assert set(found["n_nonfinite"][found["condition"].notna()]) == {1}
    names = [*own, "d_z", "p"]
    expected, found = contrasts(of_items(good)), contrasts(of_items(every))
    pd.testing.assert_frame_equal(
        *(each[each["metric"] == "mse"][names].reset_index(drop=True) for each in (expected, found))
    )
    numbers = summarize(of_items(every)).numbers
    assert (numbers["n_not_edited"], numbers["n_nonfinite"]) == (6, 2)


def test_what_is_compared_with_an_image_of_broken_latents_is_in_no_mean() -> None:
    rows = [picture(0, role="undisturbed"), picture(1, role="undisturbed", nonfinite_steps=1)]
    rows += [picture(item, **condition(0), mse=0.25 + item) for item in (0, 1)]
    found = means(edits_of(rows))
    (of_edits,) = found[found["metric"] == "mse"].to_dict("records")
    assert (of_edits["mean"], of_edits["n_items"], of_edits["n_nonfinite"]) == (0.25, 1, 1)


def test_images_of_broken_latents_have_no_metrics() -> None:
    conditions = expand([Grid(selections=("top", "bottom"))], BLOCKS, 2, 16)
    items = [Item(i, f"{i:016x}", Sample(f"{i:016x}", "a prompt", i)) for i in (0, 1)]
    (batch,) = batches(items, conditions, 16)
    noise = np.random.default_rng(0).integers(0, 256, (len(batch.rows), 16, 16, 3), np.uint8)
    broken = {(0, 0), (1, -1)}  # an edited image of the first item, and the second's undisturbed one
    made = [
        Measured(row, Image.fromarray(pixels), {"nonfinite_steps": int((row.item.item, row.place) in broken)})
        for row, pixels in zip(batch.rows, noise, strict=True)
    ]
    found = {(each.row.item.item, each.row.place): each.columns.get("mse") for each in Measures((), "cpu").of(made)}
    assert found[0, 1] > 0
    assert [found[at] for at in ((0, 0), (1, 0), (1, 1))] == [None, None, None]


@pytest.mark.filterwarnings("error")
def test_latents_that_are_not_finite_end_in_an_image_without_metrics(tiny_model: Path, tmp_path: Path) -> None:
    grid = Grid(actions=("zero",), amounts=(1000.0,), selections=("all",))
    prepared, rows = swept("prompt,seed\na star,1\n", tmp_path / "folder", tiny_model, grid)
    assert {row["status"] for row in rows} == {"done"}
    edited = rows[-1]
    assert (edited["mse"] is None) == (edited["nonfinite_steps"] > 0)
    assert end_sweep(prepared.sweep.storage).numbers["n_nonfinite"] == int(edited["nonfinite_steps"] > 0)


def test_distances_of_sets_leave_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from fewchannels.interventions.effects import set_distances

    seen = []

    class Models:
        def embeddings(self, images: torch.Tensor) -> dict[str, np.ndarray]:
            seen.extend(images[:, 0, 0, 0].mul(255).round().int().tolist())
            return {"clip": images.flatten(1)[:, :2].numpy()}

    monkeypatch.setattr(set_distances.LearnedMetrics, "of", lambda *arguments: Models())
    rows = [picture(item, role="undisturbed", image=png_of(item, 0, 0)) for item in range(4)]
    changes = ({}, {}, {"n_channels": 0}, {"nonfinite_steps": 1})
    rows += [picture(i, **condition(0) | each, image=png_of(100 + i, 0, 0)) for i, each in enumerate(changes)]
    set_distances.SetDistances(("clip=x",), "cpu").add(as_table(rows))
    assert sorted(seen) == [0, 1, 2, 3, 100, 101]


def test_every_metric_is_left_out_but_the_count_of_steps() -> None:
    rows = [picture(0, **condition(0), nonfinite_steps=2, **dict.fromkeys(("mse", "n_shown", "change"), 1))]
    found = means(edits_of(rows))
    assert set(found["metric"]) == {"nonfinite_steps"} < set(metrics())


def test_a_figure_of_one_metric_is_of_the_same_images(tmp_path: Path) -> None:
    rows = [picture(item, role="undisturbed") for item in range(3)]
    for k in (2, 4):
        about = condition(k // 2 - 1, k=k)
        rows += [
            picture(0, **about, mse=0.0, n_channels=k),  # edited, without an effect
            picture(1, **about, mse=0.5, n_channels=k),
            picture(2, **about, mse=0.75, n_channels=k, nonfinite_steps=1),
        ]
    sweep = make_sweep(tmp_path / "sweep", edits_of(rows))
    (lines,) = draw_dose(open_storage(sweep), "mse", "k").drawn.values()
    assert [line.y.tolist() for line in lines.values()] == [[0.25, 0.25]]
