"""Edits of every family that makes images from text, guided where it can be: what comes out beside the pipeline's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import CASES
from PIL import Image

from fewchannels.captures.config import CaptureConfig
from fewchannels.errors import InputError
from fewchannels.interventions.begin import begin_sweep
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.pairs import PairRule
from fewchannels.interventions.rows import Batch, batches
from fewchannels.interventions.sweep import SweepSettings, prepare_sweep
from fewchannels.interventions.worker import SweepWorker
from fewchannels.models.generation import Settings
from fewchannels.models.source import find, geometry
from fewchannels.models.taps import Site, tapped

BY_NAME = {case.name: case for case in CASES if case.reference != "must" and case.name != "dit"}

UNBLENDED = {"hidream", "z-image"}


def one_batch(table: Path, place: Path, asked: SweepSettings) -> tuple[SweepWorker, Batch, Settings]:
    """A begun sweep of one item: its worker, its only batch, and what that is generated with."""
    prepared = prepare_sweep(table, place, asked)
    begin_sweep(prepared)
    worker = SweepWorker(prepared.sweep, 1)
    (item,) = worker.items(range(1))
    (batch,) = batches([item], prepared.sweep.conditions, 8)
    return worker, batch, prepared.sweep.generation.settings(item.target)


@pytest.mark.parametrize("name", BY_NAME)
def test_targets_sources_and_blends_are_the_pipelines_and_edits_are_not(name: str, tmp_path: Path, manifest_of) -> None:
    case, folder = BY_NAME[name], tmp_path / "model"
    case.build().save_pretrained(folder)
    table = manifest_of(f"prompt,seed\n{case.prompts[0]},3\n{case.prompts[1]},4\n")
    scales = case.guided or case.unguided
    generation = CaptureConfig(
        model=str(folder),
        num_inference_steps=2,
        height=case.square[0],
        width=case.square[1],
        guidance_scale=scales.get("guidance"),
        true_cfg_scale=scales.get("true_cfg_scale"),
        batch_size=8,
    )
    moves = Grid(("transport",), (1.0,), ("top", "all"), k=(3,), scores_from=("source",))
    blends = Grid(("prompt",), (1.0,), ("all",), scores_from=("source",))
    asked = SweepSettings("text", generation, (moves, blends), pairs=PairRule(n=1))
    if name in UNBLENDED:
        with pytest.raises(InputError, match=r"cannot be blended: .* Omit prompt from --baselines"):
            prepare_sweep(table, tmp_path / "sweep", asked)
        asked = replace(asked, grids=(moves,))
    worker, batch, settings = one_batch(table, tmp_path / "sweep", asked)
    made = {
        row.row.condition.selection if row.row.condition else row.row.role: row
        for row in worker.generate(batch, settings)
    }
    expected = [np.asarray(i) for i in worker.sampler.generate([row.sample for row in batch.rows], settings)]
    images = {what: np.asarray(each.image).astype(int) for what, each in made.items()}
    assert np.abs(images["undisturbed"] - expected[0]).max() <= 1
    assert np.abs(images["source"] - expected[1]).max() <= 1
    if name not in UNBLENDED:
        assert np.abs(images["none"] - expected[1]).max() <= 2, "the source's prompt and noise make the source's image"
    for selection in ("top", "all"):
        assert (images[selection] != images["undisturbed"]).any()
    assert made["top"].columns["n_channels"] == 3
    assert made["all"].columns["energy_share"] == pytest.approx(1, rel=1e-5)


def test_classes_are_no_prompts_that_could_be_blended(tmp_path: Path, manifest_of) -> None:
    (case,) = (each for each in CASES if each.name == "dit")
    case.build().save_pretrained(tmp_path / "model")
    table = manifest_of(f"prompt,seed\n{case.prompts[0]},3\n{case.prompts[1]},4\n")
    blends = Grid(("prompt",), (1.0,), ("all",), scores_from=("source",))
    generation = CaptureConfig(model=str(tmp_path / "model"), num_inference_steps=2)
    with pytest.raises(InputError, match="DiTPipeline cannot be blended: it takes class labels, not prompts"):
        prepare_sweep(table, tmp_path / "sweep", SweepSettings("text", generation, (blends,), pairs=PairRule(n=1)))


@pytest.mark.parametrize("name", BY_NAME)
def test_an_images_trajectory_beside_others_is_the_one_that_it_has_alone(
    name: str, tmp_path: Path, manifest_of
) -> None:
    case, folder = BY_NAME[name], tmp_path / "model"
    case.build().save_pretrained(folder)
    height, width = case.square
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(path)
    table = manifest_of(f"prompt,seed\n{case.prompts[0]},3\n")
    references = manifest_of(f"prompt,reference\n{case.prompts[1]},{path}\n", "references")
    generation = CaptureConfig(
        model=str(folder), num_inference_steps=2, height=height, width=width, guidance_scale=1.0, batch_size=8
    )
    moves = Grid(("transport",), (1.0,), ("top", "all"), k=(3,), scores_from=("source",))
    asked = SweepSettings("image", generation, (moves,), pairs=PairRule(n=1), references=references)
    if not geometry(find(str(folder))).takes_images:
        with pytest.raises(InputError, match="flow matching"):
            prepare_sweep(table, tmp_path / "sweep", asked)
        return
    worker, batch, settings = one_batch(table, tmp_path / "sweep", asked)
    blocks = worker.sweep.geometry.blocks
    seen: dict[tuple[int, int], torch.Tensor] = {}

    def look(site: Site, x: torch.Tensor) -> None:  # before the taps that edit, which generate() adds behind it
        seen[site.block.layer, site.forward.step] = x.float().clone()

    with tapped(worker.sampler, blocks, look):
        made = worker.generate(batch, settings)
    beside, source = dict(seen), batch.rows[0].source
    assert source is not None
    with tapped(worker.sampler, blocks, look):
        worker.sampler.generate([batch.rows[source].sample], replace(settings, image=str(path), only_steps=(0, 1)))
    assert len(seen) == len(beside) == 2 * len(blocks)
    for cell, alone in seen.items():
        torch.testing.assert_close(beside[cell][source], alone[0], rtol=1e-3, atol=1e-3 * float(alone.std()))
    undisturbed, _, *edited = (np.asarray(each.image) for each in made)
    assert all((image != undisturbed).any() for image in edited)
