"""From grids to conditions: every way once, with nothing in it that does nothing; and which source goes with which."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewchannels import manifest
from fewchannels.errors import InputError
from fewchannels.interventions.conditions import Condition, Grid, expand, in_short
from fewchannels.interventions.pairs import PairRule, pairs_from_file, pairs_of_samples, pairs_with_images
from fewchannels.interventions.protocols import PROTOCOLS
from fewchannels.interventions.rows import batches, check_batch_size, count
from fewchannels.interventions.settings import generation, grids_of
from fewchannels.manifest import Manifest
from fewchannels.models.family import Block

BLOCKS = tuple(Block(i, f"blocks.{i}", "dual" if i < 2 else "single") for i in range(6))


def expanded(**settings) -> list[Condition]:
    return expand([Grid(**settings)], BLOCKS, 7, 128)


def test_a_grid_is_the_product_of_its_axes() -> None:
    found = expanded(k=(4, 8), selections=("top", "random"), trials=3, actions=("zero", "mean"))
    assert len(found) == 2 * 2 * (1 + 3)
    assert {(c.action, c.k, c.selection, c.trial) for c in found} >= {("mean", 8, "random", 2), ("zero", 4, "top", 0)}


def test_layers_and_steps_are_named_in_every_way() -> None:
    layers = expanded(selections=("top",), layers=("all", "dual", "each", "windows:4", "0,5"))
    assert [c.layers for c in layers] == [
        (0, 1, 2, 3, 4, 5),
        (0, 1),
        *((i,) for i in range(6)),
        (0, 1, 2, 3),
        (4, 5),
        (0, 5),
    ]
    steps = expanded(selections=("top",), steps=("thirds", "last", "windows:5"))
    assert [c.steps for c in steps] == [(0, 1), (2, 3, 4), (5, 6), (6,), (0, 1, 2, 3, 4)]  # 5,6 once
    assert in_short((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"
    assert in_short(()) == "none"


def test_settings_that_do_nothing_do_not_make_conditions() -> None:
    assert len(expanded(selections=("all",), k=(4, 8))) == 1
    of_sources = {"actions": ("transport",), "scores_from": ("source", "target", "union")}
    assert len(expanded(selections=("random",), trials=1, **of_sources)) == 1
    assert len(expanded(selections=("top",), **of_sources)) == 3
    assert len(expanded(actions=("pixels",), selections=("top", "all"), k=(4, 8), scores_from=("source",))) == 1
    assert len(expand([Grid(), Grid()], BLOCKS, 7, 128)) == len(expanded())


def test_scaling_is_zeroing_part_of_the_way() -> None:
    (found,) = expanded(actions=("scale:0.25",), selections=("top",))
    assert (found.action, found.amount) == ("zero", 0.75)


def test_ids_are_of_the_settings_alone() -> None:
    one, other = expanded(selections=("top",)), expanded(selections=("bottom", "top"))
    assert one[0].condition_id == other[1].condition_id
    assert len({c.condition_id for c in expanded(k=(1, 2, 3))}) == len(expanded(k=(1, 2, 3)))
    assert Condition.of(one[0].row(0)) == one[0]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"selections": ("tops",)}, "Did you mean 'top'"),
        ({"actions": ("zeros",)}, "Did you mean 'zero'"),
        ({"actions": ("scale:x",)}, "F of action 'scale:x' is 'x'; it must be a number"),
        ({"k": (129,), "selections": ("top",)}, "with top it must be 0 to 128, as the model has 128 channels"),
        ({"k": (65,), "selections": ("matched",)}, "with matched it must be 1 to 64"),
        ({"selections": ("listed",)}, "channels is empty"),
        ({"selections": ("listed",), "channels": (3, 128)}, "list at least one of 0 to 127"),
        ({"actions": ("transport",)}, "with transport it must be target, source, union, intersection"),
        ({"scores_from": ("source",)}, "with zero it must be undisturbed, own or run"),
        ({"layers": ("windows:7",)}, "N of 'windows:7' is 7; it must be 1 to 6"),
        ({"steps": ("windows:²",)}, "N of 'windows:²' is '²'; it must be a whole number, 1 to 7"),
        ({"layers": ("6",)}, "layer 6 does not exist"),
        ({"tokens": ("foreground",), "streams": ("image,text",)}, "text tokens have no position"),
        ({"tokens": ("target_foreground",)}, "only a transport has a source and a target"),
        ({"trials": 0}, "trials is 0"),
        ({"amounts": (float("nan"),)}, "each must be a finite number, -1,000 to 1,000"),
        ({"k": ()}, "k is empty; it must list 1 to 1,000 values"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict, why: str) -> None:
    with pytest.raises(InputError, match=why):
        expanded(**settings)


def test_protocols_expand_and_say_what_is_not_published() -> None:
    for protocol in PROTOCOLS.values():
        found = expand(protocol.grids, BLOCKS, 7, 128)
        assert {"top", "bottom", "random", "matched", "scaled"} <= {c.selection for c in found}
        assert "arXiv" in protocol.source
        assert protocol.unpublished


@given(st.integers(1, 20), st.integers(1, 40), st.integers(3, 20), st.booleans())
def test_every_item_meets_every_condition_once(n_items: int, n_conditions: int, size: int, has_source: bool) -> None:
    from fewchannels.interventions.rows import Item
    from fewchannels.manifest import Sample

    action, whose = ("transport", "source") if has_source else ("zero", "undisturbed")
    conditions = expand(
        [Grid(actions=(action,), selections=("top",), k=tuple(range(n_conditions)), scores_from=(whose,))],
        BLOCKS,
        7,
        128,
    )
    check_batch_size(conditions, size, has_source=has_source)
    samples = [Sample(f"{i:016x}", str(i), i) for i in range(n_items)]
    items = [Item(i, s.sample_id, s, s if has_source else None) for i, s in enumerate(samples)]
    made = list(batches(items, conditions, size))
    rows = [row for batch in made for row in (*batch.rows, *batch.blended)]  # with no channels, nothing is generated
    edited = [(row.item.item, row.place) for row in rows if row.role == "edited"]
    assert sorted(edited) == [(i, c) for i in range(n_items) for c in range(n_conditions)]
    assert (len(made), sum(len(batch.rows) for batch in made)) == count(
        n_items, conditions, size, has_source=has_source
    )
    for batch in made:
        assert len(batch.rows) <= size
        for row in batch.rows:
            beside = batch.rows[row.undisturbed]
            assert (beside.role, beside.item) == ("undisturbed", row.item)
            if has_source:
                assert row.source is not None
                assert (batch.rows[row.source].role, batch.rows[row.source].item) == ("source", row.item)


def test_a_batch_too_small_for_an_edit_is_refused() -> None:
    (guide,) = expanded(actions=("guide",), selections=("top",))
    with pytest.raises(InputError, match="batch_size is 2; an edit needs 3 rows"):
        check_batch_size([guide], 2, has_source=False)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    manifest.ingest(["demo:12"], tmp_path / "world.parquet", seeds=[0, 1])
    return tmp_path / "world.parquet"


def test_pairs_keep_the_rule(world: Path) -> None:
    rows = manifest.columns(world, ["prompt", "seed", "colour", "shape"])
    every = pairs_of_samples(Manifest.read(world), PairRule())
    prompts = rows["prompt"]
    expected = {(t, s) for t in range(24) for s in range(24) if prompts[t] != prompts[s]}
    assert set(zip(every["target_row"], every["source_row"], strict=True)) == expected
    assert list(every["source_seed"]) == [rows["seed"][t] for t in every["target_row"]]
    drawn = pairs_of_samples(Manifest.read(world), PairRule(n=10, across=("shape",), noise="separate", seed=3))
    assert len(set(drawn["pair_id"])) == 10
    for target, source, seed in zip(drawn["target_row"], drawn["source_row"], drawn["source_seed"], strict=True):
        assert rows["shape"][target] != rows["shape"][source]
        assert seed == rows["seed"][source]
    again = pairs_of_samples(Manifest.read(world), PairRule(n=10, across=("shape",), noise="separate", seed=3))
    assert again == drawn
    with pytest.raises(InputError, match="24 targets and 24 sources allow at most 576"):
        pairs_of_samples(Manifest.read(world), PairRule(n=600))
    with pytest.raises(InputError, match="unknown column of the manifest 'shap'"):
        pairs_of_samples(Manifest.read(world), PairRule(n=1, within=("shap",)))


def test_rows_without_a_value_are_in_no_pair_and_whole_numbers_are_one_category(
    tmp_path: Path, manifest_of: Callable[..., Path]
) -> None:
    targets = manifest_of("prompt,seed,group\na,0,x\nb,0,\nc,0,\nd,0,x\ne,0,y\n", "targets")
    for rule, expected in (
        (PairRule(within=("group",)), {(0, 3), (3, 0)}),
        (PairRule(across=("group",)), {(0, 4), (3, 4), (4, 0), (4, 3)}),
    ):
        found = pairs_of_samples(Manifest.read(targets), rule)
        assert set(zip(found["target_row"], found["source_row"], strict=True)) == expected
    for name, group in (("whole", [1, 2, 2]), ("nullable", [1.0, None, 2.0])):
        rows = {"prompt": ["f", "g", "h"], "reference": ["i.png"] * 3, "group": group, "seed": [0, 1, 2]}
        pd.DataFrame(rows).to_parquet(tmp_path / f"{name}_source.parquet")
        manifest.ingest([tmp_path / f"{name}_source.parquet"], tmp_path / f"{name}.parquet")
    found = pairs_with_images(
        Manifest.read(tmp_path / "whole.parquet"), tmp_path / "nullable.parquet", PairRule(within=("group",))
    )
    assert list(zip(found["target_row"], found["source_prompt"], strict=True)) == [(0, "f"), (1, "h"), (2, "h")]


def test_pairs_of_a_file_are_ids_or_prompts(world: Path, tmp_path: Path) -> None:
    rows = manifest.columns(world, ["sample_id", "prompt"])
    named = pd.DataFrame({"target": [rows["sample_id"][3]], "source": [rows["prompt"][6]]})
    named.to_csv(tmp_path / "pairs.csv")
    found = pairs_from_file(Manifest.read(world), tmp_path / "pairs.csv", "shared")
    first = rows["prompt"].index(rows["prompt"][6])
    assert (list(found["target_row"]), list(found["source_row"])) == ([3], [first])
    named["source"] = "a cat"
    named.to_parquet(tmp_path / "pairs.parquet")
    with pytest.raises(InputError, match=r"row 1 of .* names 'a cat'"):
        pairs_from_file(Manifest.read(world), tmp_path / "pairs.parquet", "shared")


def test_pairs_of_a_file_may_be_of_prompts_that_read_like_no_value(
    tmp_path: Path, manifest_of: Callable[..., Path]
) -> None:
    targets = manifest_of("prompt,seed\nnull,0\nNA,0\n", "targets")
    (tmp_path / "pairs.csv").write_text("target,source\nnull,NA\n")
    found = pairs_from_file(Manifest.read(targets), tmp_path / "pairs.csv", "shared")
    assert (list(found["target_row"]), list(found["source_row"])) == ([0], [1])


def test_references_without_an_image_are_refused(world: Path) -> None:
    with pytest.raises(InputError, match=r"24 of 24 rows .* have no reference image"):
        pairs_with_images(Manifest.read(world), world, PairRule(n=1))


def test_a_file_of_settings_holds_grids_and_how_to_generate(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("num_inference_steps: 5\ngrids:\n- {k: [4, 8], layers: each}\n- {actions: mean, amounts: [1]}\n")
    assert generation(path, {"height": None}).num_inference_steps == 5
    one, other = grids_of(path)
    assert (one.k, one.layers, other.actions, other.amounts) == ((4, 8), ("each",), ("mean",), (1.0,))
    path.write_text("grids:\n- {kk: 4}\n")
    with pytest.raises(InputError, match="Did you mean 'k'"):
        grids_of(path)
    path.write_text("grids:\n- {k: four}\n")
    with pytest.raises(InputError, match="is 'four'; it must be a list of int"):
        grids_of(path)
