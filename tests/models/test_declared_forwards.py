"""What a pipeline runs is held to what its family says: forwards, branches and steps, each counted as it runs."""

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CASES
from diffusers import ChromaPipeline, DiffusionPipeline, FluxImg2ImgPipeline
from PIL import Image
from tiny import TINY
from torch import Tensor

from fewchannels import open_run
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.demo.build import build_pipeline
from fewchannels.errors import FamilyMismatchError, InputError
from fewchannels.manifest import Sample
from fewchannels.models.family import ModelGeometry
from fewchannels.models.family_file import family_of
from fewchannels.models.generation import Settings
from fewchannels.models.inspection import Inspection, inspect_pipeline
from fewchannels.models.sampler import Sampler
from fewchannels.models.source import find, geometry
from fewchannels.models.taps import Site, tapped
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.storage import open_storage
from fewchannels.runs.upkeep.verify import verify

BY_NAME = {case.name: case for case in CASES}
SAMPLES = [Sample("0" * 16, "a small red star", 5)]


class AlwaysGuided(ChromaPipeline):
    """Guides at every scale above 0, as Krea 2 does."""

    __module__ = ChromaPipeline.__module__  # whose noise the inspection changes

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 0


@pytest.fixture(scope="module")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chroma") / "model"
    BY_NAME["chroma"].build().save_pretrained(folder)
    return folder


def opened(folder: Path, kind: type[Any] = DiffusionPipeline) -> Any:
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def unguided_at(geometry: ModelGeometry, scale: float) -> ModelGeometry:
    return replace(geometry, pipeline=replace(geometry.pipeline, unguided=scale))


def first_states(sampler: Sampler, settings: Settings) -> dict[str, Tensor]:
    """Of each branch, what the first block gave in the first step."""
    seen: dict[str, Tensor] = {}

    def read(site: Site, x: Tensor) -> None:
        seen.setdefault(site.branch, x.clone())

    with tapped(sampler, sampler.geometry.blocks[:1], read, branches=("cond", "uncond")):
        sampler.generate(SAMPLES, settings)
    return seen


def test_a_branch_that_was_not_declared_ends_the_generation_and_never_overwrites(chroma: Path) -> None:
    shape, pipeline = geometry(find(str(chroma))), opened(chroma, AlwaysGuided)
    settings = Settings(16, 16, 2, 1.0, 1.0)
    with pytest.raises(FamilyMismatchError, match=r"AlwaysGuided ran cond and cond in step 0, and declared are cond,"):
        first_states(Sampler(pipeline, shape), settings)
    with pytest.raises(FamilyMismatchError):  # without a tap as well
        Sampler(pipeline, shape).generate(SAMPLES, settings)
    described = first_states(Sampler(pipeline, unguided_at(shape, 0.0)), settings)
    plain = first_states(Sampler(opened(chroma), shape), settings)  # Chroma itself runs one branch at a scale of 1
    assert torch.equal(described["cond"], plain["cond"])
    assert not torch.equal(described["uncond"], plain["cond"])


def test_a_branch_that_was_declared_and_does_not_run_ends_the_generation(chroma: Path) -> None:
    shape = unguided_at(geometry(find(str(chroma))), 0.0)
    with pytest.raises(FamilyMismatchError, match="ended step 0 after cond, without the declared uncond"):
        first_states(Sampler(opened(chroma), shape), Settings(16, 16, 2, 1.0, 1.0))


def test_forwards_after_the_last_step_and_steps_that_do_not_run_end_the_generation(
    chroma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(opened(chroma), geometry(find(str(chroma))))
    transformer, scheduler, own = sampler.pipeline.transformer, sampler.pipeline.scheduler, ChromaPipeline.__call__
    given: dict[str, Any] = {}
    transformer.register_forward_pre_hook(lambda module, a, keywords: given.update(keywords), with_kwargs=True)

    def once_more(self: Any, **keywords: Any) -> Any:
        images = own(self, **keywords)
        transformer(**given)
        return images

    def fewer(self: Any, **keywords: Any) -> Any:
        return own(self, **keywords | {"num_inference_steps": keywords["num_inference_steps"] - 1})

    settings = Settings(16, 16, 3, 1.0, 1.0)
    monkeypatch.setattr(ChromaPipeline, "__call__", once_more)
    with pytest.raises(FamilyMismatchError, match="ran cond once more after the last step"):
        sampler.generate(SAMPLES, settings)
    monkeypatch.setattr(ChromaPipeline, "__call__", fewer)
    name = type(scheduler).__name__
    with pytest.raises(FamilyMismatchError, match=f"ended 2 steps of {name} where 3 of 3 were declared"):
        sampler.generate(SAMPLES, settings)


def test_a_step_of_second_order_has_two_forwards_of_every_branch(tmp_path: Path) -> None:
    BY_NAME["sd3-heun"].build().save_pretrained(tmp_path / "model")
    source = find(str(tmp_path / "model"))
    sampler = Sampler(opened(source.folder), geometry(source))
    seen: list[tuple[int, str, bool]] = []
    with tapped(
        sampler,
        sampler.geometry.blocks[:1],
        lambda site, x: seen.append((site.forward.step, site.branch, site.forward.leads)),
        branches=("cond", "uncond"),
    ):
        sampler.generate(SAMPLES, Settings(40, 40, 2, 7.0, 1.0))
    first = [("uncond", True), ("cond", True)], [("uncond", False), ("cond", False)]
    # The last step has nothing to correct.
    assert seen == [
        (step, *each) for step, several in ((0, first[0]), (0, first[1]), (1, first[0])) for each in several
    ]


def test_a_guider_that_runs_a_third_branch_ends_the_generation(tmp_path: Path) -> None:
    from diffusers.guiders import SkipLayerGuidance
    from diffusers.hooks import LayerSkipConfig

    BY_NAME["hunyuan-image"].build().save_pretrained(tmp_path / "model")
    source = find(str(tmp_path / "model"))
    pipeline, case = opened(source.folder), BY_NAME["hunyuan-image"]
    shape = geometry(source)
    first_states(Sampler(pipeline, shape), Settings(*case.square, 2, 1.0, 1.0))
    pipeline.guider = SkipLayerGuidance(
        guidance_scale=3.5,
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
        skip_layer_config=LayerSkipConfig([0], fqn="transformer_blocks"),
    )
    with pytest.raises(FamilyMismatchError, match="ran a forward that its guider calls 'pred_cond_skip'"):
        first_states(Sampler(pipeline, shape), Settings(*case.square, 2, 1.0, 1.0))


@pytest.fixture
def always_guided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ChromaPipeline, "do_classifier_free_guidance", AlwaysGuided.do_classifier_free_guidance)
    return


@pytest.mark.usefixtures("always_guided")
def test_a_capture_of_a_pipeline_that_its_family_does_not_describe_keeps_nothing(
    chroma: Path, manifest_of, tmp_path: Path
) -> None:
    manifest = manifest_of("prompt,seed\na small red star,5\na blue ring,6\n")
    config = CaptureConfig(
        model=str(chroma), height=16, width=16, num_inference_steps=2, guidance_scale=1.0, top_k=4, batch_size=2
    )
    job = prepare(manifest, tmp_path / "run", config)
    begin(job, manifest)
    with pytest.raises(FamilyMismatchError, match="would overwrite"):
        CaptureWorker(job, 1)(0)
    assert Ledger(job.storage).keys() == {}
    assert not [key for key in job.storage.list() if "max_abs/c/" in key or key.startswith(("cells/", "samples/"))]


def inspected(pipeline: Any) -> tuple[Inspection, Any]:
    pipeline.set_progress_bar_config(disable=True)
    found = inspect_pipeline(pipeline, 28, 12)
    (how,) = found.family.pipelines.values()
    return found, how


def test_the_inspection_tries_a_scale_of_zero(chroma: Path) -> None:
    _, plain = inspected(opened(chroma))
    found, how = inspected(opened(chroma, AlwaysGuided))
    assert (plain.guidance, plain.order, plain.unguided) == ("sequential", ("cond", "uncond"), 1.0)
    assert (how.guidance, how.order, how.unguided) == ("sequential", ("cond", "uncond"), 0.0)
    assert any("guidance_scale above 0 runs two branches, sequential, cond first" in line for line in found.evidence)


def test_the_inspection_doubts_forwards_that_it_cannot_explain(chroma: Path) -> None:
    class Thrice(ChromaPipeline):
        """Runs its transformer once more at the end of every generation."""

        __module__ = ChromaPipeline.__module__  # whose noise the inspection changes

        @functools.wraps(ChromaPipeline.__call__)  # the inspection looks at its parameters
        def __call__(self, **keywords: Any) -> Any:
            given: dict[str, Any] = {}
            hook = self.transformer.register_forward_pre_hook(lambda m, a, k: given.update(k), with_kwargs=True)
            images = super().__call__(**keywords)
            hook.remove()
            self.transformer(**given)
            return images

    class Everywhere(ChromaPipeline):
        """Guides at every scale."""

        __module__ = ChromaPipeline.__module__  # whose noise the inspection changes

        do_classifier_free_guidance = True

    thrice, _ = inspected(opened(chroma, Thrice))
    assert any("guidance_scale 4 runs 3 forwards of 1 and 1 and 1 rows" in doubt for doubt in thrice.doubts)
    everywhere, how = inspected(opened(chroma, Everywhere))
    assert any("two branches at every scale that was tried" in doubt for doubt in everywhere.doubts)
    assert (how.guidance, how.order, how.unguided) == ("sequential", ("cond", "uncond"), -1.0)


IMAGE_TO_IMAGE: dict[str, Any] = {
    "lists": [
        {"path": "transformer_blocks", "kind": "dual", "count": "num_layers", "image": {"output": 1}},
        {"path": "single_transformer_blocks", "kind": "single", "count": "num_single_layers", "image": {"output": 1}},
    ],
    "patch": 2,
    "packed": True,
    "text": {},
    "default_side": "vae",
}


def image_to_image(fixed: dict[str, Any]) -> tuple[str, Any]:
    how = {"guidance": "none", "embedded": "guidance_scale", "default_guidance": 3.5, "negative": False}
    how |= {"reference": "image", "needs_reference": True, "tokenizer": "tokenizer_2", "fixed": fixed}
    return "FluxTransformer2DModel", family_of(IMAGE_TO_IMAGE | {"pipelines": {"FluxImg2ImgPipeline": how}}, "test")


@pytest.fixture(scope="module")
def begins_within(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("img2img") / "model"
    FluxImg2ImgPipeline(**build_pipeline(TINY, seed=1).components).save_pretrained(folder)
    return folder


def captured(model: Path, manifest_of: Any, tmp_path: Path, fixed: dict[str, Any], steps: str) -> Any:
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "reference.png")
    manifest = manifest_of(f"prompt,seed,reference\na red star,1,{tmp_path / 'reference.png'}\n")
    config = CaptureConfig(model=str(model), height=16, width=16, num_inference_steps=10, steps=steps, top_k=2)
    job = prepare(manifest, tmp_path / "run", config, image_to_image(fixed))
    begin(job, manifest)
    CaptureWorker(job, 1)(0)
    return open_run(tmp_path / "run")


def test_a_pipeline_that_begins_within_the_schedule_has_the_schedulers_noise_levels(
    begins_within: Path, manifest_of, tmp_path: Path
) -> None:
    run = captured(begins_within, manifest_of, tmp_path, {"strength": 0.6}, "all")
    rows = run.sql("select step, sigma, timestep from cells where layer = 0 order by step").fetchall()
    sigmas = [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]  # of 1.0, 0.9, ... 0.1, the last 10 x 0.6
    assert [step for step, _, _ in rows] == [0, 1, 2, 3, 4, 5]
    assert [sigma for _, sigma, _ in rows] == pytest.approx(sigmas)
    assert [timestep for _, _, timestep in rows] == pytest.approx([1000 * sigma for sigma in sigmas])
    assert run.sql("select n_steps from samples").fetchall() == [(6,)]
    assert run.description["config"]["steps"] == [0, 1, 2, 3, 4, 5]


def test_the_last_step_is_the_last_that_runs(begins_within: Path, manifest_of, tmp_path: Path) -> None:
    run = captured(begins_within, manifest_of, tmp_path, {"strength": 0.6}, "last")
    ((step, sigma),) = run.sql("select distinct step, sigma from cells").fetchall()
    assert (step, sigma) == (5, pytest.approx(0.1))
    assert not verify(open_storage(tmp_path / "run")).problems


def test_steps_that_do_not_run_are_refused(begins_within: Path, manifest_of, tmp_path: Path) -> None:
    with pytest.raises(FamilyMismatchError, match=r"ended 6 steps of \w+ where 10 of 10 were declared"):
        captured(begins_within, manifest_of, tmp_path, {}, "last")  # FLUX begins at 0.6 of them by itself
    with pytest.raises(InputError, match="step 6 does not exist; the valid ones are 0 to 5"):
        captured(begins_within, manifest_of, tmp_path, {"strength": 0.6}, "6")
    with pytest.raises(InputError, match="fixed strength is 2; it must be a number above 0, at most 1"):
        captured(begins_within, manifest_of, tmp_path, {"strength": 2}, "all")


def test_an_image_is_not_noised_where_the_schedule_begins_below_pure_noise(tiny_model: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    shape = geometry(find(str(tiny_model)))
    settings = Settings(16, 16, 2, 3.5, 1.0, image=str(tmp_path / "a.png"), only_steps=(0, 1))
    for first in (1.0, 0.6):
        how = replace(shape.pipeline, fixed={"sigmas": [first, 0.3]})
        sampler = Sampler(opened(tiny_model), replace(shape, pipeline=how))
        if first == 1:
            sampler.generate(SAMPLES, settings)
            continue
        with pytest.raises(
            FamilyMismatchError, match=r"FluxPipeline starts at noise level 0\.6, but the trajectory of an image"
        ):
            sampler.generate(SAMPLES, settings)
    assert sampler.schedule()[1] == pytest.approx([0.6])
