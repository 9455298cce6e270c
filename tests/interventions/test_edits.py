"""Edits on a real FLUX pipeline: what changes, what does not, and what the ends of every scale are."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fewchannels.captures.config import CaptureConfig
from fewchannels.interventions.conditions import Condition, Grid
from fewchannels.interventions.pairs import PairRule
from fewchannels.interventions.rows import Item, batches
from fewchannels.interventions.sweep import SweepSettings, prepare_sweep
from fewchannels.interventions.worker import SweepWorker

PROMPTS = "prompt,seed\na small red star,7\na large blue ring,8\na green heart,9\n"


class Stage:
    """A worker on the tiny model, whose conditions a test changes."""

    def __init__(self, model: Path, manifest: Path, folder: Path) -> None:
        generation = CaptureConfig(model=str(model), num_inference_steps=3)
        self.settings = SweepSettings("text", generation, (Grid(("transport",), scores_from=("source",)),))
        self.settings = replace(self.settings, pairs=PairRule(n=2, seed=1))
        self.prepared = prepare_sweep(manifest, folder, self.settings)
        self.worker = SweepWorker(self.prepared.sweep, 1)
        storage = self.worker.sweep.storage
        storage.put("manifest.parquet", [manifest.read_bytes()])
        storage.put("pairs.parquet", [self.prepared.tables["pairs.parquet"]])
        self.item = self.worker.items(range(1))[0]
        self.blocks = self.worker.sweep.geometry.blocks

    def condition(self, **changed) -> Condition:
        layers = tuple(block.layer for block in self.blocks)
        plain = Condition("zero", 1.0, "top", 0, 4, "undisturbed", (), layers, (0, 1, 2), ("image",), "all", "same")
        return replace(plain, **changed)

    def generate(self, *conditions: Condition, item: Item | None = None, batch_size: int = 16) -> list[np.ndarray]:
        """The images of a batch: undisturbed, source, then one of each condition."""
        self.worker.sweep = replace(self.worker.sweep, conditions=conditions)
        (batch,) = batches([item or self.item], conditions, batch_size)
        made = self.worker.generate(batch, self.worker.sweep.generation.settings(self.item.target))
        return [np.asarray(each.image) for each in made]

    def untouched(self, *conditions: Condition) -> list[np.ndarray]:
        """The same batch without any of our code around it but the sampler."""
        (batch,) = batches([self.item], conditions, 16)
        samples = [row.sample for row in batch.rows]
        images = self.worker.sampler.generate(samples, self.worker.sweep.generation.settings(self.item.target))
        return [np.asarray(image) for image in images]

    @contextmanager
    def inputs(self) -> Iterator[list[tuple[int, Tensor]]]:
        """What every dual block but the first is given: (layer before it, image tokens) in the order of work."""
        seen: list[tuple[int, Tensor]] = []
        dual = self.worker.sampler.pipeline.transformer.transformer_blocks
        handles = []
        for layer, block in enumerate(dual[1:]):

            def look(module, arguments, keywords, _layer=layer) -> None:
                seen.append((_layer, keywords["hidden_states"].clone()))

            handles.append(block.register_forward_pre_hook(look, with_kwargs=True))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


@pytest.fixture
def stage(tiny_model: Path, manifest_of, tmp_path: Path) -> Stage:
    return Stage(tiny_model, manifest_of(PROMPTS), tmp_path / "sweep")


def test_edits_of_no_strength_leave_every_image_as_it_is_to_the_last_bit(stage: Stage) -> None:
    conditions = [
        stage.condition(amount=0.0),
        stage.condition(k=0),
        stage.condition(action="shuffle", amount=0.0, streams=("image", "text")),
        stage.condition(action="transport", scores_from="source", amount=0.0, selection="all"),
        stage.condition(action="guide", amount=0.0),
    ]
    undisturbed, _, *edited = stage.generate(*conditions)
    assert len(edited) == len(conditions)
    assert all(np.array_equal(image, undisturbed) for image in edited)


def test_the_tap_itself_changes_no_bit_where_an_edit_comes_to_nothing(stage: Stage, tmp_path: Path) -> None:
    Image.new("L", (16, 16)).save(tmp_path / "nothing.png")
    conditions = [
        stage.condition(tokens="inside", selection="all"),
        stage.condition(tokens="inside", selection="scaled"),
        stage.condition(action="transport", scores_from="target", tokens="inside"),
    ]
    made = stage.generate(*conditions, item=replace(stage.item, mask=str(tmp_path / "nothing.png")))
    for image, expected in zip(made, stage.untouched(*conditions), strict=True):
        assert np.array_equal(image, expected)


def test_an_edit_that_is_not_nothing_changes_the_image(stage: Stage) -> None:
    undisturbed, _, *edited = stage.generate(
        stage.condition(), stage.condition(selection="bottom"), stage.condition(action="mean", selection="random")
    )
    assert all((image != undisturbed).any() for image in edited)


def test_transport_of_everything_gives_the_sources_image_where_nothing_else_reaches_the_output(stage: Stage) -> None:
    """FLUX's last norm is modulated by the pooled prompt, past all blocks: without that, the source is all there is."""
    everything = stage.condition(action="transport", scores_from="source", selection="all", k=0)
    target, source, edited = stage.generate(everything)
    assert (edited != source).any()
    embedder = stage.worker.sampler.pipeline.transformer.time_text_embed.text_embedder
    with torch.no_grad():
        embedder.linear_2.weight.zero_()
    target, source, edited = stage.generate(everything)
    assert np.array_equal(edited, source)
    assert (target != source).any()


def test_only_the_named_channels_tokens_layers_steps_and_rows_change(stage: Stage) -> None:
    condition = stage.condition(layers=(0,), steps=(1,), k=3)
    with stage.inputs() as plain:
        stage.untouched(condition)
    with stage.inputs() as edited:
        stage.generate(condition)
    assert len(plain) == len(edited) == 3
    for step, ((_, before), (_, after)) in enumerate(zip(plain, edited, strict=True)):
        if step == 0:
            assert torch.equal(before, after)
        if step == 1:
            target = before[0]
            top = target.abs().mean(dim=0).topk(3).indices
            expected = before.clone()
            expected[2, :, top] = 0
            assert torch.equal(after, expected)


@pytest.mark.parametrize("action", ["mean", "shuffle", "transport"])
def test_the_chosen_values_become_what_the_action_says(stage: Stage, action: str) -> None:
    whose = "source" if action == "transport" else "undisturbed"
    condition = stage.condition(action=action, layers=(0,), steps=(0,), k=3, scores_from=whose, amount=0.25)
    with stage.inputs() as plain:
        stage.untouched(condition)
    with stage.inputs() as edited:
        stage.generate(condition)
    before, after = plain[0][1], edited[0][1]
    target, source = before[0], before[1]
    top = (source if action == "transport" else target).abs().mean(dim=0).topk(3).indices
    others = [c for c in range(target.shape[1]) if c not in top]
    assert torch.equal(after[2][:, others], target[:, others])
    moved = (after[2][:, top] - target[:, top]) / 0.25 + target[:, top]
    if action == "shuffle":
        moved, expected = (each.sort(dim=0).values for each in (moved, target[:, top]))
    else:
        expected = target[:, top].mean(dim=0).expand_as(moved) if action == "mean" else source[:, top]
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-5)


def test_controls_are_what_they_say(stage: Stage) -> None:
    d = stage.worker.sweep.geometry.n_channels
    conditions = [
        stage.condition(selection=word, layers=(0,), steps=(0,), k=3)
        for word in ("top", "bottom", "random", "redrawn", "matched", "scaled", "all")
    ]
    with stage.inputs() as plain:
        stage.untouched(*conditions)
    with stage.inputs() as edited:
        stage.generate(*conditions)
    target, after = plain[0][1][0].double(), edited[0][1][2:].double()
    change = dict(zip([c.selection for c in conditions], (after - target).square().sum(dim=1), strict=True))
    order = target.abs().mean(dim=0).argsort(descending=True).tolist()
    changed = {word: set(each.nonzero().flatten().tolist()) for word, each in change.items()}
    assert changed["top"] == set(order[:3])
    assert changed["bottom"] == set(order[-3:])
    assert len(changed["random"]) == len(changed["redrawn"]) == 3
    assert changed["all"] == set(range(d))
    assert not changed["matched"] & changed["top"]
    energy = target.square().sum(dim=0)
    n = len(changed["matched"])
    assert changed["matched"] == set(order[3 : 3 + n])
    held = energy[order[3:]].cumsum(dim=0)
    wanted = float(energy[order[:3]].sum())
    assert float(held[n - 1]) >= wanted or n == d - 3
    assert n == 1 or float(held[n - 2]) < wanted
    assert not changed["scaled"] & changed["top"]
    assert float(change["scaled"].sum()) == pytest.approx(float(change["top"].sum()), rel=1e-5)


def test_random_channels_are_kept_over_layers_and_steps_and_redrawn_ones_are_not(stage: Stage) -> None:
    conditions = [stage.condition(selection=word, k=5, layers=(0,)) for word in ("random", "redrawn")]
    with stage.inputs() as edited:
        stage.generate(*conditions)
    zeroed = [
        [set((each[row].abs().sum(dim=0) == 0).nonzero().flatten().tolist()) for _, each in edited] for row in (2, 3)
    ]
    assert zeroed[0][0] == zeroed[0][1] == zeroed[0][2]
    assert len({frozenset(each) for each in zeroed[1]}) == 3


def test_channels_are_those_of_whoever_the_scores_are_from(stage: Stage) -> None:
    with stage.inputs() as plain:
        stage.untouched(stage.condition())
    ranked = [plain[0][1][row].abs().mean(dim=0).argsort(descending=True).tolist() for row in (0, 1)]
    k = next(k for k in range(2, 32) if set(ranked[0][:k]) != set(ranked[1][:k]))
    conditions = [
        stage.condition(action="transport", scores_from=whose, layers=(0,), steps=(0,), k=k)
        for whose in ("target", "source", "union", "intersection")
    ]
    with stage.inputs() as edited:
        stage.generate(*conditions)
    after = edited[0][1]
    tops = [set(each[:k]) for each in ranked]
    found = [set((after[row] != after[0]).any(dim=0).nonzero().flatten().tolist()) for row in range(2, 6)]
    assert found == [tops[0], tops[1], tops[0] | tops[1], tops[0] & tops[1]]


def test_a_given_mask_bounds_the_edit(stage: Stage, tmp_path: Path) -> None:
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:8, 4:] = 255  # on 4 x 4 tokens: rows 0 and 1, columns 1 to 3
    Image.fromarray(mask).save(tmp_path / "mask.png")
    conditions = [
        stage.condition(selection="all", k=0, layers=(0,), steps=(0,), tokens=word) for word in ("inside", "outside")
    ]
    item = replace(stage.item, mask=str(tmp_path / "mask.png"))
    with stage.inputs() as edited:
        stage.generate(*conditions, item=item)
    inside = {row * 4 + column for row in (0, 1) for column in (1, 2, 3)}
    zeroed = [set((edited[0][1][row].abs().sum(dim=1) == 0).nonzero().flatten().tolist()) for row in (2, 3)]
    assert zeroed == [inside, set(range(16)) - inside]


def test_tokens_that_a_mask_does_not_know_are_in_neither_part(stage: Stage, tmp_path: Path) -> None:
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:8, 4:] = 1
    mask[4:12, :4] = 255  # labels with VOC's void: column 0 of rows 1 and 2 is not known
    Image.fromarray(mask).save(tmp_path / "mask.png")
    conditions = [
        stage.condition(selection="all", k=0, layers=(0,), steps=(0,), tokens=word) for word in ("inside", "outside")
    ]
    with stage.inputs() as edited:
        stage.generate(*conditions, item=replace(stage.item, mask=str(tmp_path / "mask.png")))
    inside = {row * 4 + column for row in (0, 1) for column in (1, 2, 3)}
    zeroed = [set((edited[0][1][row].abs().sum(dim=1) == 0).nonzero().flatten().tolist()) for row in (2, 3)]
    assert zeroed == [inside, set(range(16)) - inside - {4, 8}]


def test_foreground_and_background_part_the_tokens(stage: Stage) -> None:
    conditions = [
        stage.condition(selection="all", k=0, layers=(0,), steps=(0,), tokens=word)
        for word in ("foreground", "background")
    ]
    with stage.inputs() as edited:
        stage.generate(*conditions)
    front, back = (set((edited[0][1][row].abs().sum(dim=1) == 0).nonzero().flatten().tolist()) for row in (2, 3))
    assert front | back == set(range(16))
    assert not front & back
    assert front
    assert back


def test_measures_say_how_large_the_edit_was(stage: Stage) -> None:
    condition = stage.condition(layers=(0,), steps=(0,), k=3)
    stage.worker.sweep = replace(stage.worker.sweep, conditions=(condition,))
    (batch,) = batches([stage.item], [condition], 16)
    with stage.inputs() as plain:
        stage.untouched(condition)
    made = stage.worker.generate(batch, stage.worker.sweep.generation.settings(stage.item.target))
    target = plain[0][1][0].double()
    top = target.abs().mean(dim=0).topk(3).indices
    share = float(target[:, top].square().sum() / target.square().sum())
    assert made[2].columns == {
        "n_channels": 3.0,
        "energy_share": pytest.approx(share, rel=1e-5),
        "token_share": 1.0,
        "change": pytest.approx(share**0.5, rel=1e-5),
        "nonfinite_steps": 0,
    }
    assert made[0].columns["change"] is None
