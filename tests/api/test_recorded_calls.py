"""Recorded calls beside hooks by hand, a capture of the same prompts, and the same calls without a recording."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel
from own_calls import noise
from peft import LoraConfig
from two_runs import ROWS, captured

import fewchannels as fc
from fewchannels.errors import FamilyMismatchError, FewchannelsWarning, InputError
from fewchannels.models.families import FAMILIES
from fewchannels.models.family_file import as_fields

SIZE = {"height": 16, "width": 16, "max_sequence_length": 16}
PROMPT = "a small red star"


CALLS: dict[str, Callable[[DiffusionPipeline], Any]] = {
    "keywords": lambda pipe: pipe(prompt=PROMPT, num_inference_steps=2, generator=noise(1), **SIZE),
    "positional": lambda pipe: pipe(
        PROMPT, None, None, None, 1.0, 16, 16, 2, generator=noise(1), max_sequence_length=16
    ),
    "batch": lambda pipe: pipe([PROMPT, "a"], num_inference_steps=2, generator=noise(1, 2), **SIZE),
    "several": lambda pipe: pipe(
        [PROMPT, "a"], num_images_per_prompt=2, num_inference_steps=1, generator=noise(1), **SIZE
    ),
    "tall": lambda pipe: pipe(PROMPT, num_inference_steps=1, generator=noise(1), **SIZE | {"height": 32}),
    "sigmas": lambda pipe: pipe(PROMPT, sigmas=[1.0, 0.6, 0.2], generator=noise(1), **SIZE),
    "guided": lambda pipe: pipe(
        PROMPT, negative_prompt="b", true_cfg_scale=4.0, num_inference_steps=2, generator=noise(1), **SIZE
    ),
    "not guided": lambda pipe: pipe(PROMPT, true_cfg_scale=4.0, num_inference_steps=2, generator=noise(1), **SIZE),
    "latent": lambda pipe: pipe(PROMPT, output_type="latent", num_inference_steps=2, generator=noise(1), **SIZE),
    "array": lambda pipe: pipe(PROMPT, output_type="np", num_inference_steps=2, generator=noise(1), **SIZE),
    "tuple": lambda pipe: pipe(PROMPT, return_dict=False, num_inference_steps=2, generator=noise(1), **SIZE),
    "callback": lambda pipe: pipe(
        PROMPT, callback_on_step_end=lambda *given: given[-1], num_inference_steps=2, generator=noise(1), **SIZE
    ),
    "latents": lambda pipe: pipe(
        PROMPT, latents=torch.randn(1, 16, 16, generator=noise(3)), num_inference_steps=2, **SIZE
    ),
    "embeddings": lambda pipe: pipe(
        prompt_embeds=torch.ones(2, 16, 32), pooled_prompt_embeds=torch.ones(2, 16), num_inference_steps=1, **SIZE
    ),
}


def first(result: Any) -> np.ndarray:
    return np.stack([np.asarray(each) for each in result[0]])


@pytest.mark.parametrize("name", CALLS)
def test_a_call_returns_what_it_returns_without_a_recording_and_its_states_are_those_of_hooks(
    pipe: DiffusionPipeline, name: str
) -> None:
    seen: list[torch.Tensor] = []
    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    hooks = [block.register_forward_hook(lambda module, given, output: seen.append(output[1])) for block in blocks]
    torch.manual_seed(0)
    plain = first(CALLS[name](pipe))
    for hook in hooks:
        hook.remove()
    torch.manual_seed(0)
    with fc.record(pipe, top_k=2) as recorded:
        result = first(CALLS[name](pipe))
    np.testing.assert_array_equal(result, plain)
    states = torch.stack(seen)
    if name == "guided":  # the conditional forward of a step comes first
        states = states.unflatten(0, (-1, 2, 4))[:, 0].flatten(0, 1)
    n_samples = len(plain)
    expected = states.unflatten(0, (-1, 4)).abs().mean(dim=3).permute(2, 0, 1, 3)
    assert (recorded.n_samples, recorded.activations.sizes["sample"]) == (n_samples, n_samples)
    np.testing.assert_allclose(recorded.activations.mean_abs.values, expected, rtol=1e-5)
    norms = states.unflatten(0, (-1, 4)).norm(dim=-1).permute(2, 0, 1, 3)
    np.testing.assert_allclose(recorded.activations.token_norm.values, norms, rtol=1e-5)
    for sample, images in enumerate(recorded.images):
        assert (images is None) == (name in ("latent", "array"))
        if images is not None:
            np.testing.assert_array_equal(np.asarray(images), plain[sample])


def test_recorded_calls_are_labeled_as_the_run_of_a_capture_is(
    pipe: DiffusionPipeline, tiny_model: Path, tmp_path: Path
) -> None:
    run = fc.open_run(captured(tmp_path, "RUN", tiny_model, ROWS, streams="image,text", batch_size=1))
    with fc.record(pipe, top_k=3, streams=("image", "text")) as recorded:
        for row in ROWS:
            prompt, seed = row.split(",")
            pipe(prompt, num_inference_steps=2, generator=noise(int(seed)), guidance_scale=3.5, **SIZE)
    found, expected = recorded.activations, run.activations.load()
    assert found.sizes == expected.sizes
    xr.testing.assert_equal(found, expected)
    cells = run.sql("select * from cells order by sample, stream, branch, step, layer").df()
    mine = recorded.cells.sort_values(["sample", "stream", "branch", "step", "layer"]).reset_index(drop=True)
    assert list(mine.columns) == list(cells.columns)
    for name in cells:
        for one, other in zip(mine[name], cells[name], strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)
    assert recorded.sample_ids == [
        row[0] for row in run.sql("select sample_id from samples order by sample").fetchall()
    ]


def test_calls_of_several_lengths_and_sizes_are_one_dataset(pipe: DiffusionPipeline) -> None:
    with fc.record(pipe, top_k=2, layers=[0, -1]) as recorded:
        pipe(PROMPT, num_inference_steps=1, generator=noise(1), **SIZE)
        pipe(PROMPT, num_inference_steps=3, generator=noise(2), **SIZE | {"height": 32})
    data = recorded.activations
    assert dict(data.sizes) == {"sample": 2, "step": 3, "layer": 2, "channel": 32, "k": 2, "token": 32}
    assert data.layer.values.tolist() == [0, 3]
    assert np.isnan(data.mean_abs.values[0, 1:]).all()
    assert (data.massive_channel.values[0, 1:] == -1).all()
    assert np.isnan(data.token_norm.values[0, 0, :, 16:]).all()
    assert np.isfinite(data.token_norm.values[1]).all()
    assert recorded.cells.groupby("sample")["step"].max().tolist() == [0, 2]
    assert recorded.map(3, sample=1, channel=int(recorded.top(3, sample=1).channel[0])).shape == (8, 4)
    assert recorded.cells["sample_id"].nunique() == 2


@pytest.mark.parametrize(("chosen", "expected"), [("last", [2]), (-1, [2]), (range(2), [0, 1]), ([0, -1], [0, 2])])
def test_steps_are_chosen_as_in_python(pipe: DiffusionPipeline, chosen: Any, expected: list[int]) -> None:
    with fc.record(pipe, steps=chosen, top_k=0) as recorded:
        pipe(PROMPT, num_inference_steps=3, generator=noise(1), **SIZE)
    assert recorded.activations.step.values.tolist() == expected
    assert "massive_value" not in recorded.activations


def test_largest_channels_and_their_maps_are_read_off_the_arrays(pipe: DiffusionPipeline) -> None:
    with fc.record(pipe, top_k=3) as recorded:
        pipe([PROMPT, "a"], num_inference_steps=2, generator=noise(1, 2), **SIZE)
    data = recorded.activations
    for sample in (0, 1, -1):
        top = recorded.top(layer=2, step=-2, sample=sample)
        assert recorded.top(layer=-2, step=-2, sample=sample).equals(top)
        scores = data.mean_abs.values[sample, 0, 2]
        order = np.argsort(-scores, kind="stable")[:3]
        assert top.channel.tolist() == order.tolist()
        np.testing.assert_array_equal(top.score, scores[order])
        np.testing.assert_allclose(top.ratio, scores[order] / np.sort(scores)[15], rtol=1e-6)
        drawn = recorded.map(layer=2, step=0, channel=int(order[1]), sample=sample)
        assert recorded.map(layer=-2, step=0, channel=int(order[1]), sample=sample).identical(drawn)
        np.testing.assert_array_equal(drawn.values.ravel(), data.massive_value.values[sample, 0, 2, 1])
        assert (drawn.dims, drawn.shape) == (("y", "x"), (4, 4))


def test_both_branches_of_a_guided_call_are_recorded(pipe: DiffusionPipeline) -> None:
    given = {"num_inference_steps": 2, "generator": noise(1), "true_cfg_scale": 4.0, "negative_prompt": "b"}
    with fc.record(pipe, branches=("cond", "uncond"), top_k=2) as recorded:
        pipe(PROMPT, **given, **SIZE)
    with fc.record(pipe, top_k=2) as other:
        pipe("b", num_inference_steps=2, generator=noise(1), **SIZE)
    at_once = recorded.activations
    np.testing.assert_allclose(at_once.uncond_mean_abs.values[:, 0], other.activations.mean_abs.values[:, 0], rtol=1e-5)
    assert (at_once.uncond_mean_abs != at_once.mean_abs).any()
    assert set(recorded.cells["branch"]) == {"cond", "uncond"}


def test_a_callback_may_end_a_call_early(pipe: DiffusionPipeline) -> None:
    def stop(own: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        own._interrupt = step == 1
        return given

    with fc.record(pipe, top_k=1) as recorded:
        pipe(PROMPT, num_inference_steps=5, generator=noise(1), callback_on_step_end=stop, **SIZE)
    assert sorted(set(recorded.cells["step"])) == [0, 1]
    assert recorded.top(0, step=-1).equals(recorded.top(0, step=1))


@pytest.mark.parametrize("how", ["adapter", "compiled", "blocks", "bfloat16"])
def test_a_changed_pipeline_is_recorded_as_it_runs(pipe: DiffusionPipeline, how: str) -> None:
    torch.manual_seed(0)
    if how == "adapter":
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    if how == "bfloat16":
        pipe.to(torch.bfloat16)
    expected: list[torch.Tensor] = []
    hook = pipe.transformer.single_transformer_blocks[1].register_forward_hook(
        lambda module, given, output: expected.append(output[1])
    )
    plain = first(pipe(PROMPT, num_inference_steps=1, generator=noise(1), **SIZE))
    hook.remove()
    if how == "compiled":
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    if how == "blocks":
        for block in pipe.transformer.single_transformer_blocks:
            block.compile(backend="eager")
    if how in ("compiled", "blocks"):
        pipe(PROMPT, num_inference_steps=1, generator=noise(1), **SIZE)  # compiled before anything listens
    with fc.record(pipe, top_k=2) as recorded:
        if how in ("compiled", "blocks"):
            with pytest.warns(FewchannelsWarning, match="the transformer is compiled, and runs uncompiled while"):
                result = first(pipe(PROMPT, num_inference_steps=1, generator=noise(1), **SIZE))
        else:
            result = first(pipe(PROMPT, num_inference_steps=1, generator=noise(1), **SIZE))
    np.testing.assert_array_equal(result, plain)
    scores = expected[0][0].float().abs().mean(dim=0)
    np.testing.assert_allclose(recorded.activations.mean_abs.values[0, 0, 3], scores, rtol=1e-5)


def test_a_pipeline_is_as_it_was_whatever_happens_inside(pipe: DiffusionPipeline, tiny_model: Path) -> None:
    own, schedule = FluxPipeline.__call__, type(pipe.scheduler).step

    def hooks() -> int:
        modules = pipe.transformer.modules()
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)

    def fail(*given: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    with fc.record(pipe) as outer:
        with pytest.raises(ZeroDivisionError), fc.record(pipe):
            pipe(PROMPT, num_inference_steps=2, callback_on_step_end=fail, generator=noise(1), **SIZE)
        assert hooks() == 0
        other = FluxPipeline.from_pretrained(tiny_model)
        other.set_progress_bar_config(disable=True)
        other(PROMPT, num_inference_steps=1, **SIZE)  # of the same class, but nobody's
        assert outer.calls == []
        pipe(PROMPT, num_inference_steps=1, **SIZE)
    assert outer.n_samples == 1
    assert FluxPipeline.__call__ is own
    assert type(pipe.scheduler).step is schedule
    assert "step" not in vars(pipe.scheduler)
    assert hooks() == 0
    pipe(PROMPT, num_inference_steps=1, **SIZE)
    assert outer.n_samples == 1
    assert list(inspect.signature(FluxPipeline.__call__).parameters)[:2] == ["self", "prompt"]


def test_a_recording_without_a_call_says_so(pipe: DiffusionPipeline) -> None:
    with fc.record(pipe) as recorded:
        pass
    assert "no call yet" in repr(recorded)
    assert "no call yet" in recorded._repr_html_()
    for ask in (lambda: recorded.activations, lambda: recorded.cells, lambda: recorded.top(0), lambda: recorded.plot()):
        with pytest.raises(InputError, match="nothing was recorded: the pipeline was not called inside the context"):
            ask()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"layers": [0, 4]}, "layers includes 4; valid are 0 to 3"),
        ({"layers": "cross"}, "unknown layers 'cross'"),
        ({"layers": []}, r"layers is \(\); pass 'all', an index, or several"),
        ({"layers": 1.5}, "layers is 1.5; pass 'all', an index, or several"),
        ({"top_k": 33}, "top_k is 33; the model has 32 channels"),
        ({"top_k": -1}, "top_k is -1; it must be a whole number of at least 0"),
        ({"score": "max"}, "unknown score 'max'"),
        ({"streams": "picture"}, "unknown streams 'picture'"),
        ({"branches": ("cond", "both")}, "unknown branches 'both'"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_any_call(
    pipe: DiffusionPipeline, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says), fc.record(pipe, **given):
        pytest.fail("the context was entered")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (({"steps": "first"}, {}), "unknown steps 'first'"),
        (({"steps": [5]}, {}), "steps includes 5; valid are 0 to 1"),
        (({"branches": "uncond"}, {}), "branches includes uncond, but that branch does not run at guidance 3.5"),
        (({}, {"height": 18}), "height is 18 pixels; FluxTransformer2DModel with this VAE needs multiples of 4"),
        (({}, {"prompt": None}), "the call has no prompt and no embeddings. Pass prompt"),
        (({}, {"guidance_scale": [1.0]}), r"guidance_scale is \[1.0\]; it must be a finite number"),
    ],
)
def test_a_call_that_cannot_be_recorded_is_refused_before_it_runs(
    pipe: DiffusionPipeline, given: tuple[dict[str, Any], dict[str, Any]], says: str
) -> None:
    settings, arguments = given
    with fc.record(pipe, **settings) as recorded:
        with pytest.raises(InputError, match=says):
            pipe(**{"prompt": PROMPT, "num_inference_steps": 2, "generator": noise(1)} | SIZE | arguments)
        assert recorded.calls == []


def test_a_pipeline_without_a_scheduler_is_refused(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    pipe.scheduler = None
    for call in (fc.record(pipe).__enter__, lambda: fc.capture([PROMPT], tmp_path / "RUN", model=pipe)):
        with pytest.raises(InputError, match=r"FluxPipeline has no scheduler, .* Set pipe\.scheduler to one first"):
            call()
    assert not (tmp_path / "RUN").exists()


def test_a_pipeline_without_a_transformer_is_refused() -> None:
    class Unet:
        vae = unet = object()

    with pytest.raises(InputError, match="Unet has no transformer; massive channels can only be recorded from diffu"):
        fc.record(Unet()).__enter__()


class Other(FluxTransformer2DModel):
    """A transformer class that no table has."""


def test_an_unknown_family_is_refused_with_what_to_do_and_taken_from_a_file(
    pipe: DiffusionPipeline, tmp_path: Path
) -> None:
    with fc.record(pipe, top_k=1) as expected:
        pipe(PROMPT, num_inference_steps=1, generator=noise(1), **SIZE)
    pipe.transformer.__class__ = Other
    with pytest.raises(
        InputError, match=r"the transformer class 'Other' is not supported.*fc\.inspect\(pipe\) locates"
    ):
        fc.record(pipe).__enter__()
    file = tmp_path / "family.yaml"
    file.write_text(yaml.safe_dump({"Other": as_fields(FAMILIES["FluxTransformer2DModel"])}))
    with fc.record(pipe, top_k=1, family=file) as recorded:
        pipe(PROMPT, num_inference_steps=1, generator=noise(1), **SIZE)
    xr.testing.assert_identical(recorded.activations, expected.activations)


def test_a_pipeline_that_makes_latents_of_its_own_size_is_refused(
    pipe: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = FluxPipeline.prepare_latents

    def prepare_latents(self: Any, batch: int, channels: int, height: int, width: int, *rest: Any) -> Any:
        return own(self, batch, channels, 2 * height, width, *rest)

    monkeypatch.setattr(FluxPipeline, "prepare_latents", prepare_latents)
    with fc.record(pipe) as recorded:
        with pytest.raises(FamilyMismatchError, match="gave its transformer 32 image tokens, where 4 x 4 image tokens"):
            pipe(PROMPT, num_inference_steps=1, generator=noise(1), **SIZE)
        assert recorded.calls == []


def test_what_is_asked_of_a_recording_and_is_not_in_it_is_named(pipe: DiffusionPipeline) -> None:
    with fc.record(pipe, layers=[1, 2], top_k=2) as recorded:
        pipe(PROMPT, num_inference_steps=2, generator=noise(1), **SIZE)
    absent = next(i for i in range(32) if i not in recorded.top(1).channel.tolist())
    for ask, says in (
        (lambda: recorded.top(0), "layer 0 was not recorded. Choose one of these: 1, 2"),
        (lambda: recorded.top(-3), "layer -3 was not recorded. Choose one of these: 1, 2"),
        (lambda: recorded.top(1, step=2), "step 2 was not recorded. Choose one of these: 0, 1"),
        (lambda: recorded.top(1, step=-3), "step -3 was not recorded. Choose one of these: 0, 1"),
        (lambda: recorded.top(1, sample=1), "there is no sample 1. Choose one of the recorded samples, 0 to 0"),
        (lambda: recorded.top(1, stream="text"), "the text stream of the cond branch was not recorded"),
        (lambda: recorded.map(1, channel=absent), f"channel {absent} is not among the 2 largest of layer 1 at step 1"),
    ):
        with pytest.raises(InputError, match=says):
            ask()


def test_states_that_are_not_finite_are_said(pipe: DiffusionPipeline) -> None:
    torch.nn.init.constant_(pipe.transformer.single_transformer_blocks[1].proj_out.bias, float("nan"))
    warns = pytest.warns(FewchannelsWarning, match="^1 recorded cells contain a NaN or an infinity")
    with fc.record(pipe, top_k=1) as recorded, warns:
        pipe(PROMPT, num_inference_steps=1, generator=noise(1), output_type="latent", **SIZE)
    assert recorded.cells["nonfinite"].tolist() == [0, 0, 0, 16]


def test_a_recording_is_drawn_and_shown(pipe: DiffusionPipeline) -> None:
    with fc.record(pipe, top_k=3) as recorded:
        pipe("<b> & $x$", num_inference_steps=1, generator=noise(1), **SIZE)
    landscape, maps = recorded.plot(), recorded.plot(layer=1, k=2)
    assert len(landscape.axes) == 1
    assert next(axis.get_title().split("\n")[0] for axis in maps.axes) == "image"
    assert len(maps.axes) == 3
    np.testing.assert_array_equal(maps.axes[0].images[0].get_array(), np.asarray(recorded.images[0]))
    top = recorded.top(1).channel.tolist()
    np.testing.assert_array_equal(maps.axes[2].images[0].get_array(), recorded.map(1, channel=top[1]).values)
    shown = recorded._repr_html_()
    assert "&lt;b&gt; &amp; $x$" in shown
    assert "1 samples" not in shown
