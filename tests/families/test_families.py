"""Every family's line in the table against a real pipeline of its class, by routes that know nothing of the table."""

import functools
import inspect
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CASES
from checkpoints.case import Case, patched_forwards
from diffusers import DiffusionPipeline
from diffusers.utils import torch_utils
from PIL import Image
from torch import Tensor, nn

import fewchannels as fc
from fewchannels.captures.recorder import Recorder
from fewchannels.manifest import Sample
from fewchannels.models.families import FAMILIES
from fewchannels.models.generation import Settings
from fewchannels.models.load import load
from fewchannels.models.load_options import Loading
from fewchannels.models.sampler import Sampler
from fewchannels.models.source import find, geometry
from fewchannels.models.taps import Site, Tap, tapped
from fewchannels.runs.layout import Layout

BY_NAME = {case.name: case for case in CASES}


@dataclass
class Stage:
    """A case's checkpoint, saved, and loaded from its folder as a user's would be."""

    case: Case
    folder: Path
    sampler: Sampler

    @property
    def blocks(self) -> list[tuple[str, nn.Module]]:
        return self.case.blocks(self.sampler.pipeline.transformer)

    def settings(self, size: tuple[int, int] | None = None, steps: int = 2, **more: Any) -> Settings:
        height, width = size or self.case.square
        return Settings(height, width, steps, **({"guidance": 1.0, "true_cfg_scale": 1.0} | self.case.unguided | more))

    def conditional(self, ran: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """What ran in the conditional forwards, each of every block."""
        n_layers = len(self.blocks)
        return [each for i, each in enumerate(ran) if not self.case.always_guided or i // n_layers % 2 == 0]

    def images(self, samples: list[Sample], settings: Settings) -> np.ndarray:
        return np.stack([np.asarray(image) for image in self.sampler.generate(samples, settings)])


@pytest.fixture(scope="module", params=list(BY_NAME))
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    case = BY_NAME[request.param]
    folder = tmp_path_factory.mktemp("families") / case.name
    case.build().save_pretrained(folder)
    source = find(str(folder))
    shape = geometry(source)
    return Stage(case, folder, Sampler(load(source, shape, Loading(), "cpu"), shape))


@pytest.fixture
def reference(stage: Stage, tmp_path: Path) -> str | None:
    """A reference image's path where the case cannot do without."""
    return image(tmp_path) if stage.case.reference == "must" else None


def image(folder: Path) -> str:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "reference.png")
    return str(folder / "reference.png")


def samples(case: Case, n: int = 1, seed: int = 5, negative: str | None = None) -> list[Sample]:
    return [Sample(f"{i:016x}", case.prompts[i], seed + i, negative_prompt=negative) for i in range(n)]


@contextmanager
def scheduler_told(stage: Stage) -> Iterator[list[tuple[float, float | None, bool]]]:
    """Collect, forward by forward, the timestep that the scheduler is told, its sigma, and whether a step begins there.

    That is what the scheduler itself says: one of second order corrects a step with a forward at the next timestep.
    """
    told: list[tuple[float, float | None, bool]] = []
    kind = type(stage.sampler.pipeline.scheduler)
    own = kind.step

    @functools.wraps(own)
    def step(self: Any, model_output: Tensor, timestep: Any, *arguments: Any, **keywords: Any) -> Any:
        begins = getattr(self, "state_in_first_order", True)
        result = own(self, model_output, timestep, *arguments, **keywords)
        sigma = float(self.sigmas[self.step_index - 1]) if hasattr(self, "sigmas") else None
        told.append((float(torch.as_tensor(timestep).flatten()[0]), sigma, begins))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "step", step)
        yield told


def states(
    stage: Stage, batch: list[Sample], settings: Settings, streams=("image",), branches=("cond",)
) -> list[tuple[Site, Tensor]]:
    """All that a reading tap sees in one generation, in forwards at their step's own timestep."""
    seen: list[tuple[Site, Tensor]] = []
    with tapped(
        stage.sampler,
        stage.sampler.geometry.blocks,
        lambda site, x: seen.append((site, x.clone())),
        streams,
        branches,
    ):
        stage.sampler.generate(batch, settings)
    return [(site, x) for site, x in seen if site.forward.leads]


def test_every_family_and_pipeline_of_the_table_has_a_checkpoint() -> None:
    built = {type(case.build()).__name__ for case in CASES}
    assert built == {name for family in FAMILIES.values() for name in family.pipelines}


def test_layers_are_the_blocks_in_running_order(stage: Stage, reference: str | None) -> None:
    expected = [path for path, _ in stage.blocks]
    ran: list[tuple[str, Any]] = []
    with patched_forwards(stage.blocks, ran):
        stage.sampler.generate(samples(stage.case), stage.settings(steps=1, reference=reference))
    assert [block.path for block in stage.sampler.geometry.blocks] == expected
    assert [path for path, _ in stage.conditional(ran)] == expected
    assert [block.layer for block in stage.sampler.geometry.blocks] == list(range(len(expected)))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("shape", ["square", "tall"])
def test_a_tap_sees_the_image_tokens_that_the_block_returned_and_changes_nothing(
    stage: Stage, reference: str | None, shape: str, n: int
) -> None:
    case, size = stage.case, getattr(stage.case, shape)
    if size is None:
        pytest.skip("makes square images only")
    if reference and n > 1:
        pytest.skip("samples with a reference run one by one")
    settings, batch = stage.settings(size, reference=reference), samples(case, n)
    assert stage.sampler.geometry.token_grid(*size) == (size[0] // case.token_side, size[1] // case.token_side)
    n_image = size[0] // case.token_side * (size[1] // case.token_side)
    whole: list[tuple[str, Any]] = []
    with patched_forwards(stage.blocks, whole):
        plain = stage.images(batch, settings)
    whole = stage.conditional(whole)
    seen: list[tuple[Site, Tensor]] = []
    blocks = stage.sampler.geometry.blocks
    with scheduler_told(stage) as told, tapped(stage.sampler, blocks, lambda site, x: seen.append((site, x.clone()))):
        hooked = stage.images(batch, settings)
    np.testing.assert_array_equal(plain, hooked)
    assert [(site.block.path, site.stream, site.branch) for site, _ in seen] == [
        (path, "image", "cond") for path, _ in whole
    ]
    leads = [begins for *_, begins in told]
    steps = [sum(leads[: i + 1]) - 1 for i in range(len(leads))]
    assert [(site.forward.step, site.forward.leads) for site, _ in seen] == [
        each for each in zip(steps, leads, strict=True) for _ in blocks
    ]
    assert steps[-1] == 1
    assert {site.forward.token_grid for site, _ in seen} == {(size[0] // case.token_side, size[1] // case.token_side)}
    for (_, x), (path, output) in zip(seen, whole, strict=True):
        assert x.shape[:2] == (n, n_image)
        assert torch.equal(x, case.image_of(path, output, n_image))


def test_a_step_is_recorded_at_its_own_timestep(stage: Stage, reference: str | None) -> None:
    n_steps, n_layers = 3, len(stage.blocks)
    settings = stage.settings(steps=n_steps, reference=reference)
    shape, scheduler = stage.sampler.geometry, stage.sampler.pipeline.scheduler
    layout = Layout(1, tuple(range(n_steps)), shape.blocks, shape.n_channels, 0, 0, 1)
    recorder = Recorder(layout, "max_abs", ["0"])
    whole: list[tuple[str, Any]] = []
    with (
        scheduler_told(stage) as told,
        patched_forwards(stage.blocks, whole),
        tapped(stage.sampler, shape.blocks, recorder.tap(slice(0, 1))),
    ):
        stage.sampler.generate(samples(stage.case), settings)
    # One of consistency models lists its end too, of which the pipeline's own count knows.
    n_forwards = getattr(stage.sampler.pipeline, "num_timesteps", None)
    assert [timestep for timestep, *_ in told] == scheduler.timesteps.tolist()[:n_forwards]
    timesteps, sigmas = stage.sampler.schedule()
    assert len(timesteps) == n_steps
    assert list(zip(timesteps, sigmas, strict=True)) == [(t, sigma) for t, sigma, begins in told if begins]
    whole = stage.conditional(whole)
    assert len(whole) == len(told) * n_layers
    own = [each for i, each in enumerate(whole) if told[i // n_layers][-1]]
    recorded = recorder.arrays()["max_abs"].reshape(n_steps * n_layers, -1)
    n_image = (settings.height // stage.case.token_side) * (settings.width // stage.case.token_side)
    for row, (path, output) in zip(recorded, own, strict=True):
        np.testing.assert_array_equal(row, stage.case.image_of(path, output, n_image)[0].abs().amax(dim=0))


def test_an_argument_about_two_steps_is_the_pipelines_own_there(stage: Stage) -> None:
    if (name := stage.sampler.geometry.pipeline.two_steps) is None:
        pytest.skip("has no such argument")
    stage.sampler.generate(samples(stage.case), stage.settings(steps=2))
    own = inspect.signature(type(stage.sampler.pipeline).__call__).parameters[name].default
    assert stage.sampler.schedule()[0][1] == pytest.approx(own)


def test_token_order_is_row_major_over_the_grid(
    stage: Stage, reference: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One token's square of the initial noise is changed; the token that moves most must be the one at its place.
    case, size = stage.case, stage.case.tall or stage.case.square
    height, width = (side // case.token_side for side in size)
    settings = stage.settings(size, steps=1, reference=reference)
    module = inspect.getmodule(type(stage.sampler.pipeline))
    own = torch_utils.randn_tensor
    for row, column in ((0, width - 1), (height - 1, 0), (height // 2, 1)):

        def planted(shape: Any, *arguments: Any, _at: tuple[int, int] = (row, column), **keywords: Any) -> Tensor:
            noise = own(shape, *arguments, **keywords)
            assert [noise.shape[axis] % n for axis, n in zip(case.noise_axes, (height, width), strict=True)] == [0, 0]
            side = noise.shape[case.noise_axes[0]] // height
            view = noise.narrow(case.noise_axes[0], _at[0] * side, side)
            view = view.narrow(case.noise_axes[1], _at[1] * side, side)
            view.add_(3 * torch.randn(view.shape, generator=torch.Generator().manual_seed(1)))
            return noise

        before = states(stage, samples(case), settings)
        monkeypatch.setattr(module, "randn_tensor", planted)
        after = states(stage, samples(case), settings)
        monkeypatch.undo()
        moved = (after[0][1] - before[0][1]).norm(dim=-1)[0]
        assert divmod(int(moved.argmax()), width) == (row, column)


def test_both_branches_are_told_apart(stage: Stage, reference: str | None) -> None:
    # Another negative prompt (or, where there is none, another scale) leaves the first step's conditional state alone.
    case, shape = stage.case, stage.sampler.geometry
    alone = stage.settings()
    assert shape.is_guided(alone.guidance, alone.true_cfg_scale) == case.always_guided
    if not case.guided:
        pytest.skip("never runs an unconditional branch")
    how = shape.pipeline
    assert how.negative == ("negative_prompt" in inspect.signature(type(stage.sampler.pipeline).__call__).parameters)
    settings = stage.settings(steps=2, reference=reference, **case.guided)
    assert shape.is_guided(settings.guidance, settings.true_cfg_scale)
    both = ("cond", "uncond")
    batch = samples(case, 1 if case.reference == "must" else 2, negative=case.prompts[1] if how.negative else None)
    seen = states(stage, batch, settings, branches=both)
    first = {(site.branch, site.block.layer): x for site, x in seen if site.forward.step == 0}
    assert {branch for branch, _ in first} == {"cond", "uncond"}
    assert {site.forward.step for site, _ in seen} == {0, 1}
    n_layers = len(stage.blocks)
    assert len(seen) == 2 * 2 * n_layers
    unguided = {
        site.block.layer: x
        for site, x in states(stage, batch, stage.settings(steps=2, reference=reference))
        if site.forward.step == 0
    }
    last = n_layers - 1
    torch.testing.assert_close(first["cond", last], unguided[last], rtol=1e-3, atol=1e-3)
    assert (first["uncond", last] - unguided[last]).abs().max() > 100 * (
        first["cond", last] - unguided[last]
    ).abs().max()
    if how.negative:
        others = [replace(sample, negative_prompt=case.prompts[2]) for sample in batch]
        other = states(stage, others, settings, branches=both)
        again = {(site.branch, site.block.layer): x for site, x in other if site.forward.step == 0}
        torch.testing.assert_close(again["cond", last], first["cond", last], rtol=1e-3, atol=1e-3)
        assert not torch.allclose(again["uncond", last], first["uncond", last], rtol=1e-2, atol=1e-2)


def test_a_transformer_that_embeds_a_guidance_scale_is_told_it(stage: Stage, reference: str | None) -> None:
    if not any("guidance_embedder." in name for name, _ in stage.sampler.pipeline.transformer.named_parameters()):
        pytest.skip("embeds no guidance scale")
    last, again, other = (
        states(stage, samples(stage.case), stage.settings(steps=1, reference=reference, guidance=scale))[-1][1]
        for scale in (2.0, 2.0, 5.0)
    )
    assert torch.equal(last, again)
    assert not torch.equal(last, other)


def test_taps_on_taps_are_told_the_same_branches(stage: Stage, reference: str | None) -> None:
    case = stage.case
    if not case.guided:
        pytest.skip("never runs an unconditional branch")
    told: dict[str, list[tuple[int, int, str]]] = {"outer": [], "inner": []}
    blocks, both = stage.sampler.geometry.blocks, ("cond", "uncond")

    def listen(name: str) -> Tap:
        return lambda site, x: told[name].append((site.forward.step, site.block.layer, site.branch))

    with (
        tapped(stage.sampler, blocks, listen("outer"), branches=both),
        tapped(stage.sampler, blocks, listen("inner"), branches=both),
    ):
        stage.sampler.generate(samples(case), stage.settings(reference=reference, **case.guided))
    assert told["outer"] == told["inner"]
    assert {branch for _, _, branch in told["outer"]} == {"cond", "uncond"}


def test_the_text_stream_is_the_texts(stage: Stage, reference: str | None) -> None:
    case = stage.case
    if case.text_of is None:
        assert not stage.sampler.geometry.family.has_text(stage.sampler.geometry.blocks)
        return
    batch, settings = samples(case), stage.settings(steps=1, reference=reference)
    n_image = (case.square[0] // case.token_side) * (case.square[1] // case.token_side)
    whole: list[tuple[str, Any]] = []
    with patched_forwards(stage.blocks, whole):
        stage.sampler.generate(batch, settings)
    seen = {site.block.path: x for site, x in states(stage, batch, settings, streams=("text",))}
    n_with_text = 0
    for path, output in stage.conditional(whole):
        expected = case.text_of(path, output, n_image)
        if expected is None:
            assert path not in seen
            continue
        n_with_text += 1
        assert torch.equal(seen[path], expected)
    assert n_with_text


def test_text_that_pads_a_shorter_prompt_is_left_off(stage: Stage) -> None:
    case = stage.case
    if case.text_lengths is None:
        pytest.skip("has no text stream, or one that is equally long for every prompt")
    seen = states(stage, samples(case, 3), stage.settings(steps=1), streams=("text",))
    assert seen
    for site, x in seen:
        assert site.lengths == case.text_lengths
        assert x.shape[:2] == (3, max(case.text_lengths))


def test_an_edit_of_one_token_reaches_that_token_only(stage: Stage, reference: str | None) -> None:
    # The edit is made where the tap says the image's last token is, and looked for in the block's whole output.
    case, settings = stage.case, stage.settings(steps=1, reference=reference)
    n_image = (case.square[0] // case.token_side) * (case.square[1] // case.token_side)
    blocks = stage.sampler.geometry.blocks[:1]
    seen: list[Tensor] = []

    def edit(site: Site, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, -1] += 7
        return x

    with (
        tapped(stage.sampler, blocks, lambda site, x: seen.append(x.clone())),
        tapped(stage.sampler, blocks, edit),
        tapped(stage.sampler, blocks, lambda site, x: seen.append(x.clone())),
    ):
        stage.sampler.generate(samples(case), settings)
    moved = (seen[1] - seen[0]).abs().amax(dim=-1)[0]
    assert moved.nonzero().flatten().tolist() == [n_image - 1]
    torch.testing.assert_close(moved[-1], torch.tensor(7.0), rtol=1e-3, atol=1e-3)


def test_a_reference_image_changes_the_image_and_adds_no_tokens(stage: Stage, tmp_path: Path) -> None:
    case = stage.case
    if case.reference == "no":
        assert stage.sampler.geometry.pipeline.reference is None
        return
    n_image = (case.square[0] // case.token_side) * (case.square[1] // case.token_side)
    settings = stage.settings(steps=1, reference=image(tmp_path))
    whole: list[tuple[str, Any]] = []
    with patched_forwards(stage.blocks, whole):
        stage.sampler.generate(samples(case), settings)
    seen = states(stage, samples(case), settings)
    for (_, x), (path, output) in zip(seen, whole, strict=True):
        assert x.shape[1] == n_image
        assert torch.equal(x, case.image_of(path, output, n_image))
    if case.reference == "may":
        without = states(stage, samples(case), stage.settings(steps=1))
        assert without[-1][1].shape == seen[-1][1].shape
        assert not torch.equal(without[-1][1], seen[-1][1])


def test_a_transformer_published_under_its_former_name_is_known(stage: Stage, tmp_path: Path) -> None:
    if stage.case.name not in ("dit", "pixart-alpha"):
        pytest.skip("was published under its own name")
    shutil.copytree(stage.folder, tmp_path / "former")
    for name in ("model_index.json", "transformer/config.json"):
        file = tmp_path / "former" / name
        file.write_text(file.read_text().replace(stage.sampler.geometry.transformer, "Transformer2DModel"))
    source = find(str(tmp_path / "former"))
    shape = geometry(source)
    assert shape == stage.sampler.geometry
    sampler, settings = Sampler(load(source, shape, Loading(), "cpu"), shape), stage.settings(steps=1)
    (image,), (expected,) = (each.generate(samples(stage.case), settings) for each in (sampler, stage.sampler))
    np.testing.assert_array_equal(image, expected)


def test_nothing_is_left_on_the_model(stage: Stage, reference: str | None) -> None:
    def fail(site: Site, x: Tensor) -> None:
        raise RuntimeError("planted")

    pipeline: DiffusionPipeline = stage.sampler.pipeline
    settings = stage.settings(steps=1, reference=reference)
    with pytest.raises(RuntimeError, match="planted"), tapped(stage.sampler, stage.sampler.geometry.blocks, fail):
        stage.sampler.generate(samples(stage.case), settings)
    modules = list(pipeline.transformer.modules())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in modules)
    assert all("forward" not in vars(module) for module in modules)
    assert "cache_context" not in vars(pipeline.transformer)
    assert "step" not in vars(pipeline.scheduler)


def test_an_own_call_of_its_pipeline_is_recorded_as_a_generation_of_ours_is_seen(
    stage: Stage, reference: str | None
) -> None:
    """Guided where it can be, two samples where it can be: images, branches, steps and the statistics of each."""
    n = 1 if reference else 2
    settings = stage.settings(steps=2, reference=reference, **stage.case.guided)
    batch = samples(stage.case, n)
    branches = ("cond", "uncond") if stage.case.guided or stage.case.always_guided else ("cond",)
    pipeline = stage.sampler.pipeline
    plain = stage.images(batch, settings)
    seen = states(stage, batch, settings, branches=branches)
    with fc.record(pipeline, top_k=2, branches=branches) as recorded, torch.inference_mode():
        images = pipeline(**stage.sampler._arguments(batch, settings))[0]
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in images]), plain)
    steps, layers = recorded.layout.steps, [block.layer for block in recorded.layout.blocks]
    for site, x in seen:
        name = "mean_abs" if site.branch == "cond" else "uncond_mean_abs"
        found = recorded.activations[name].values[:, steps.index(site.forward.step), layers.index(site.block.layer)]
        np.testing.assert_allclose(found, x.abs().mean(dim=1), rtol=1e-5)
    assert len(seen) == len(steps) * len(layers) * len(branches)
    assert not recorded.activations.mean_abs.isnull().any()
