"""Edited calls beside a sweep of the same conditions, hooks by hand, and arithmetic on what a recording holds."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from own_calls import noise

import fewchannels as fc
from fewchannels.errors import FewchannelsWarning, InputError
from fewchannels.interventions.begin import begin_sweep
from fewchannels.interventions.conditions import MEASURES, Grid
from fewchannels.interventions.rows import batches
from fewchannels.interventions.sweep import SweepSettings, prepare_sweep
from fewchannels.interventions.worker import SweepWorker
from fewchannels.models.generation import Generation

PROMPT, OTHER, SEED = "a small red star", "a large blue ring", 7
SIZE = {"height": 16, "width": 16, "max_sequence_length": 16, "guidance_scale": 3.5}


def made(pipe: DiffusionPipeline, prompt: Any = PROMPT, seeds: tuple[int, ...] = (SEED,), **more: Any) -> np.ndarray:
    given = {"num_inference_steps": 3, "generator": noise(*seeds)} | SIZE | more
    return np.stack([np.asarray(image) for image in pipe(prompt, **given).images])


CONDITIONS = {
    "zero top": (fc.zero(top=8), Grid(selections=("top",))),
    "own scores": (fc.zero(top=8, scores_from="own"), Grid(selections=("top",), scores_from=("own",))),
    "mean bottom": (fc.mean(bottom=4, amount=0.5), Grid(("mean",), (0.5,), selections=("bottom",), k=(4,))),
    "second draw": (fc.zero(random=6, trial=1), Grid(selections=("random",), k=(6,), trials=2)),
    "redrawn": (fc.zero(redrawn=6), Grid(selections=("redrawn",), k=(6,), trials=1)),
    "matched": (fc.zero(matched=2), Grid(selections=("matched",), k=(2,))),
    "scaled": (fc.zero(scaled=2), Grid(selections=("scaled",), k=(2,), trials=1)),
    "listed": (fc.scale([3, 1], factor=-2.0), Grid(("scale:-2.0",), selections=("listed",), channels=(1, 3))),
    "all": (fc.zero("all", layers=[1, -1], steps=-1), Grid(selections=("all",), layers=("1,3",), steps=("last",))),
    "foreground": (
        fc.shuffle(top=8, tokens="foreground", layers="dual"),
        Grid(("shuffle",), selections=("top",), tokens=("foreground",), layers=("dual",)),
    ),
    "text": (
        fc.zero(top=8, streams=("image", "text"), steps=range(1, 3)),
        Grid(selections=("top",), streams=("image,text",), steps=("1,2",)),
    ),
    "transport": (
        fc.transport(top=8, source=OTHER, amount=0.75),
        Grid(("transport",), (0.75,), selections=("top",), scores_from=("source",)),
    ),
    "transport of the target's": (
        fc.transport(top=8, source=OTHER, scores_from="union", tokens="target_foreground"),
        Grid(("transport",), selections=("top",), scores_from=("union",), tokens=("target_foreground",)),
    ),
    "transport at random": (
        fc.transport(random=8, source=OTHER),
        Grid(("transport",), selections=("random",), scores_from=("source",), trials=1),
    ),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_an_edited_call_makes_the_image_of_a_sweep_to_the_last_bit(
    pipe: DiffusionPipeline, tiny_model: Path, manifest_of: Any, tmp_path: Path, name: str
) -> None:
    edit, grid = CONDITIONS[name]
    table = manifest_of(f"prompt,seed\n{PROMPT},{SEED}\n{OTHER},{SEED}\n")
    generation = Generation(model=str(tiny_model), num_inference_steps=3)
    kind = "text" if edit.source else "disruption"
    prepared = prepare_sweep(table, tmp_path / "sweep", SweepSettings(kind, generation, (grid,)))
    begin_sweep(prepared)
    worker = SweepWorker(prepared.sweep, 1)
    (item,) = [each for each in worker.items(range(2)) if each.target.prompt == PROMPT]
    conditions = [each for each in prepared.sweep.conditions if each.trial == edit.trial]
    (batch,) = batches([item], conditions, 16)
    (*_, expected) = worker.generate(batch, prepared.sweep.generation.settings(item.target))
    with fc.edit(pipe, edit) as editing:
        found = made(pipe)
    np.testing.assert_array_equal(found[0], np.asarray(expected.image))
    assert (found != made(pipe)).any()
    (measures,) = editing.measures.to_dict("records")
    assert {each: measures[each] for each in MEASURES} == pytest.approx(
        {each: expected.columns[each] for each in MEASURES}
    )


@pytest.mark.parametrize("rows", ["its own", "more"])
def test_channels_are_zero_behind_the_edited_layers_alone(pipe: DiffusionPipeline, rows: str) -> None:
    edit = fc.zero([5, 9], layers=range(1, 3), steps=[0, -1])
    if rows == "more":  # beside an edit that needs the unedited image
        edit = edit + fc.scale(top=1, factor=2.0, layers=0, steps=0)
    with fc.edit(pipe, edit), fc.record(pipe, top_k=32) as recorded:
        made(pipe, [PROMPT, OTHER], (1, 2))
    data = recorded.activations
    is_zero = (data.max_abs.values == 0)[..., [5, 9]]
    expected = np.zeros((2, 3, 4, 2), bool)
    expected[:, [0, 2], 1:3] = True
    np.testing.assert_array_equal(is_zero, expected)


def test_rows_beside_the_callers_are_not_recorded_and_not_returned(pipe: DiffusionPipeline) -> None:
    with fc.record(pipe) as plain:
        expected = made(pipe, [PROMPT, OTHER], (1, 2))
    nothing = fc.transport(top=1, source="b", amount=0.0)
    with fc.record(pipe) as recorded, fc.edit(pipe, nothing):
        found = made(pipe, [PROMPT, OTHER], (1, 2))
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert recorded.sample_ids == plain.sample_ids
    np.testing.assert_allclose(recorded.activations.rms, plain.activations.rms, rtol=1e-4, atol=1e-5)


def test_every_image_of_a_prompt_is_edited_as_alone(pipe: DiffusionPipeline) -> None:
    with fc.edit(pipe, fc.zero(top=8)) as editing:
        together = made(pipe, [PROMPT, OTHER], (1, 2, 3, 4), num_images_per_prompt=2)
    assert len(editing.measures) == len(together) == 4
    for i, (prompt, seed) in enumerate([(PROMPT, 1), (PROMPT, 2), (OTHER, 3), (OTHER, 4)]):
        with fc.edit(pipe, fc.zero(top=8)):
            alone = made(pipe, prompt, (seed,))
        assert np.abs(together[i].astype(int) - alone[0]).max() <= 1


def test_a_generator_is_left_as_the_call_alone_leaves_it(pipe: DiffusionPipeline) -> None:
    plain, edited = noise(1), noise(1)
    given = {"num_inference_steps": 1} | SIZE
    first = pipe(PROMPT, generator=plain, **given).images[0]
    with fc.edit(pipe, fc.zero(top=4, amount=0.0)):
        same = pipe(PROMPT, generator=edited, **given).images[0]
    assert np.abs(np.asarray(first).astype(int) - np.asarray(same)).max() <= 1
    assert torch.equal(plain.get_state(), edited.get_state())


@pytest.mark.parametrize("amount", [1.0, 0.25])
def test_a_recording_is_a_source_as_its_prompt_is(pipe: DiffusionPipeline, amount: float) -> None:
    with fc.record(pipe, top_k=4) as source:
        made(pipe, OTHER)
    with fc.edit(pipe, fc.transport(top=4, source=OTHER, amount=amount)):
        expected = made(pipe)
    with fc.edit(pipe, fc.transport(top=4, source=source, amount=amount)):
        found = made(pipe)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found != made(pipe)).any()
    channel = int(source.top(layer=3).channel[0])
    moved = fc.transport([channel], source=source, layers=3, steps=-1)
    with fc.edit(pipe, moved), fc.record(pipe, top_k=32) as recorded:
        made(pipe)
    expected_map = source.map(layer=3, channel=channel).values
    np.testing.assert_array_equal(recorded.map(layer=3, channel=channel).values, expected_map)


@pytest.mark.parametrize(
    ("source", "edit", "says"),
    [
        ({"top_k": 2}, {"top": 3}, "the edit copies 3 channels, but the source has maps of only 2"),
        ({"top_k": 0}, {"top": 3}, "the source has no token maps"),
        ({"layers": [0, 1]}, {"top": 1}, "the source does not have layer 2"),
        ({"steps": "last"}, {"top": 1}, "the source does not have step 0"),
        ({}, {"top": 1, "size": 32}, "the source's token grid differs from the call's, 8 x 4"),
        ({}, {"top": 1, "prompts": 3}, "the source has 1 samples, but the call generates 3 images"),
    ],
)
def test_a_recording_that_lacks_what_is_to_be_copied_is_refused(
    pipe: DiffusionPipeline, source: dict[str, Any], edit: dict[str, Any], says: str
) -> None:
    with fc.record(pipe, **source) as recorded:
        made(pipe, [OTHER] * (2 if "prompts" in edit else 1), (1, 2) if "prompts" in edit else (1,))
    n = edit.get("prompts", 1)
    says = says.replace("has 1 samples", "has 2 samples") if n > 1 else says
    with (
        fc.edit(pipe, fc.transport(top=edit["top"], source=recorded)),
        pytest.raises(InputError, match=says),
    ):
        made(pipe, [PROMPT] * n, tuple(range(n)), height=edit.get("size", 16))


def test_edits_at_once_do_not_see_each_other_and_may_not_overlap(pipe: DiffusionPipeline) -> None:
    with fc.edit(pipe, fc.zero([1, 2]) + fc.scale([3], factor=2.0)) as editing:
        both = made(pipe)
    with fc.edit(pipe, fc.scale([3], factor=2.0) + fc.zero([1, 2])):
        np.testing.assert_array_equal(made(pipe), both)
    assert editing.measures.n_channels.tolist() == [2.0, 1.0]
    ranks = fc.zero(top=2) + fc.zero(bottom=2)
    with fc.edit(pipe, ranks) as editing:
        made(pipe)
    assert editing.measures.n_channels.tolist() == [2.0, 2.0]
    says = "two edits change the same values at layer 0 in step 0. Give them different channels"
    for overlapping in (fc.zero([1, 2]) + fc.mean([2]), fc.zero(top=3) + fc.mean("all")):
        with fc.edit(pipe, overlapping), pytest.raises(InputError, match=says):
            made(pipe)
    with fc.edit(pipe, fc.zero([1], layers=0) + fc.mean([1], layers=1) + fc.mean([1], layers=0, streams="text")):
        made(pipe)


def test_a_function_of_ones_own_edits_what_it_is_shown(pipe: DiffusionPipeline) -> None:
    seen = []

    def halve(x: torch.Tensor, site: Any) -> torch.Tensor | None:
        seen.append((site.block.layer, site.stream, site.branch, site.forward.step, tuple(x.shape)))
        return 0.5 * x if site.stream == "image" else None

    with fc.edit(pipe, halve), fc.record(pipe, top_k=0) as recorded:
        found = made(pipe)
    assert {each[1:3] for each in seen} == {("image", "cond"), ("text", "cond")}
    assert {(layer, step) for layer, *_, step, _ in seen} == {(layer, step) for layer in range(4) for step in range(3)}
    assert {each[-1] for each in seen if each[1] == "image"} == {(1, 16, 32)}
    with fc.edit(pipe, fc.scale("all", factor=0.5)), fc.record(pipe, top_k=0) as scaled:
        np.testing.assert_array_equal(found, made(pipe))
    np.testing.assert_array_equal(recorded.activations.rms, scaled.activations.rms)
    with fc.edit(pipe, halve + fc.zero(top=1)), fc.record(pipe, top_k=0) as after:
        made(pipe)  # the function is shown the call's own row alone, among others
    assert after.n_samples == 1
    assert {each[-1] for each in seen if each[1] == "image"} == {(1, 16, 32)}
    says = r"the function returned \(1, 16\) at layer 0; it must return a tensor of shape \(1, 16, 32\)"
    with fc.edit(pipe, lambda x, site: x[..., 0]), pytest.raises(InputError, match=says):
        made(pipe)
    with (
        fc.edit(pipe, lambda x, site: None),
        pytest.warns(FewchannelsWarning, match="the functions changed no hidden states"),
    ):
        made(pipe)


def test_a_mask_of_tokens_is_where_an_edit_is(pipe: DiffusionPipeline) -> None:
    mask = np.zeros((4, 4), bool)
    mask[1:3, 2] = True
    with fc.edit(pipe, fc.zero([4], tokens=mask, layers=3, steps=-1)) as editing, fc.record(pipe, top_k=32) as seen:
        made(pipe)
    np.testing.assert_array_equal(seen.map(layer=3, channel=4).values == 0, mask)
    assert editing.measures.token_share.tolist() == [2 / 16]
    with (
        fc.edit(pipe, fc.zero([4], tokens=mask[:3])),
        pytest.raises(InputError, match=r"the mask of tokens has shape \(3, 4\); the images have 4 x 4 tokens"),
    ):
        made(pipe)


def test_one_branch_is_edited(pipe: DiffusionPipeline) -> None:
    guided = {"true_cfg_scale": 4.0, "negative_prompt": "b"}
    for branches in (("cond",), ("uncond",), ("cond", "uncond")):
        with (
            fc.edit(pipe, fc.zero([4], branches=branches)),
            fc.record(pipe, top_k=0, branches=("cond", "uncond")) as recorded,
        ):
            made(pipe, **guided)
        data = recorded.activations
        for name, branch in (("max_abs", "cond"), ("uncond_max_abs", "uncond")):
            assert bool((data[name].values[..., 4] == 0).all()) == (branch in branches)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: fc.zero(), "an edit takes exactly one selection of channels; it was given none"),
        (lambda: fc.zero([1], top=2), "an edit takes exactly one selection of channels; it was given channels, top"),
        (lambda: fc.zero(top=2, bottom=2), "it was given top, bottom"),
        (lambda: fc.zero([]), "channels is empty. List at least one"),
        (lambda: fc.zero([1.5]), "channels is 1.5; it must be a whole number of at least 0"),
        (lambda: fc.zero([-1]), "channels is -1; it must be a whole number of at least 0"),
        (lambda: fc.zero("top"), "channels is 'top'; it must be indices or 'all'"),
        (lambda: fc.zero(top=True), "top is True; it must be a whole number"),
        (lambda: fc.zero([1], amount=float("nan")), "amount is nan; it must be a finite number"),
        (lambda: fc.zero([1], layer=2), "unknown argument 'layer'. Did you mean 'layers'?"),
        (lambda: fc.zero([1], trial=2), "trial is 2, but listed channels are not drawn at random"),
        (lambda: fc.zero([1], streams="picture"), "unknown streams 'picture'"),
        (lambda: fc.zero([1], streams=None), "streams is None; it must be one name, or several, such as 'image'"),
        (lambda: fc.zero([1], branches=[0]), "branches is [0]; it must be one name, or several, such as 'cond'"),
        (lambda: fc.zero([1], layers=None), "layers is None; pass 'all', an index, or several"),
        (lambda: fc.zero([1], scores_from=3), "unknown scores_from 3"),
        (lambda: fc.zero([1], tokens=np.ones(16, bool)), "tokens is an array of bool with 1 dimensions; a mask must"),
        (lambda: fc.scale([1], factor="2"), "factor is '2'; it must be a finite number"),
        (lambda: fc.transport([1], source=None), "source is NoneType; it must be a prompt or a recording"),
        (lambda: fc.transport(random=1, source=_recorded()), "a recording has only the maps of its largest channels"),
    ],
)
def test_an_edit_that_says_nothing_clear_is_refused_where_it_is_made(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        make()


def test_an_edit_is_shown_as_the_call_that_makes_it(pipe: DiffusionPipeline) -> None:
    mask = np.ones((4, 3), bool)
    for edit, shown in (
        (fc.zero([46], layers=range(2, 5)), "fc.zero([46], layers=(2, 3, 4))"),
        (fc.mean("all", amount=0.5), "fc.mean('all', amount=0.5)"),
        (fc.shuffle(random=4, trial=1, tokens=mask), "fc.shuffle(random=4, trial=1, tokens=<mask of 4 x 3 tokens>)"),
        (fc.transport(top=8, source="a cat"), "fc.transport(top=8, scores_from='source', source='a cat')"),
        (fc.zero([1]) + np.abs + fc.mean([2]), "fc.zero([1]) + absolute + fc.mean([2])"),
    ):
        assert repr(edit) == shown
    with fc.edit(pipe, fc.zero([1]) + fc.mean([2])) as editing:
        pipe(PROMPT, num_inference_steps=1, **SIZE)
    assert repr(editing) == "Editing(fc.zero([1]) + fc.mean([2]), calls=1)"


def _recorded() -> fc.Recorded:
    return fc.Recorded("mean_abs")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (fc.zero([32]), "channels is 32; list at least one of 0 to 31"),
        (fc.zero(top=33), "k is 33; with top it must be 0 to 32"),
        (fc.zero([1], layers=4), "layers includes 4; valid are 0 to 3"),
        (fc.zero([1], tokens="subject"), "unknown tokens 'subject'"),
        (fc.zero(top=1, scores_from="source"), "scores_from is 'source'; with zero it must be undisturbed, own or run"),
        (fc.zero([1], streams="text", tokens="foreground"), "text tokens have no position in the image"),
        (fc.transport([1], source=_recorded()), "nothing was recorded"),
        ("zero", "'zero' is not an edit. Pass fc.zero"),
    ],
)
def test_an_edit_that_does_not_fit_the_model_is_refused_before_any_call(
    pipe: DiffusionPipeline, edit: Any, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        fc.edit(pipe, edit).__enter__()
    assert FluxPipeline.__call__.__module__.startswith("diffusers")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"generator": None}, "generators: 0, images: 1. This edit runs additional rows"),
        ({"num_images_per_prompt": 2}, "generators: 1, images: 2. This edit runs additional rows"),
        ({"callback_on_step_end": print}, "callback_on_step_end cannot be repeated"),
        ({"prompt": None, "prompt_embeds": torch.ones(1, 16, 32)}, "prompt_embeds cannot be repeated"),
    ],
)
def test_arguments_that_further_rows_cannot_have_are_refused_and_others_are_taken(
    pipe: DiffusionPipeline, given: dict[str, Any], says: str
) -> None:
    arguments = {"prompt": PROMPT, "num_inference_steps": 1, "generator": noise(1)} | SIZE | given
    if "prompt_embeds" in given:
        arguments["pooled_prompt_embeds"] = torch.ones(1, 16)
    with fc.edit(pipe, fc.zero(top=1)), pytest.raises(InputError, match=says):
        pipe(**arguments)
    if "callback_on_step_end" in given:
        arguments["callback_on_step_end"] = lambda *each: each[-1]
    with fc.edit(pipe, fc.zero(top=1, scores_from="own")) as editing:
        pipe(**arguments)
    assert editing.measures.n_channels.tolist() == [1.0] * arguments.get("num_images_per_prompt", 1)


def test_an_edit_that_reaches_nothing_says_so(pipe: DiffusionPipeline) -> None:
    says = "the zero edit number 0 changed nothing in this call"
    with fc.edit(pipe, fc.zero([1], branches="uncond")), pytest.warns(FewchannelsWarning, match=says) as warned:
        made(pipe)
    assert warned[0].filename == __file__
    with fc.edit(pipe, fc.zero([1], steps=2)), pytest.raises(InputError, match="steps includes 2; valid are 0 to 1"):
        made(pipe, num_inference_steps=2)


def test_numbers_of_numpy_are_numbers(pipe: DiffusionPipeline) -> None:
    edit = fc.zero(np.int64(3), amount=np.float32(0.5), layers=np.array([1, 0]), steps=np.int64(0))
    assert (edit.channels, edit.amount) == ((3,), 0.5)
    with fc.edit(pipe, edit), fc.record(pipe, top_k=np.int64(2), layers=np.arange(2)) as recorded:
        pipe(PROMPT, num_inference_steps=1, generator=noise(1), **SIZE)
    assert recorded.activations.layer.values.tolist() == [0, 1]
