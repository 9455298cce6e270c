"""Taps and the sampler on a real FLUX pipeline, against routes that know nothing of hooks."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fewchannels.manifest import Sample
from fewchannels.models.family import Block
from fewchannels.models.generation import Settings
from fewchannels.models.load import load
from fewchannels.models.load_options import Loading
from fewchannels.models.sampler import Sampler
from fewchannels.models.source import find, geometry
from fewchannels.models.taps import Site, tapped

SETTINGS = Settings(height=16, width=16, steps=3, guidance=3.5, true_cfg_scale=1.0)


def sample(prompt: str, seed: int, negative: str | None = None) -> Sample:
    return Sample(
        sample_id=f"{seed:016x}",
        prompt=prompt,
        seed=seed,
        negative_prompt=negative,
        width=None,
        height=None,
        steps=None,
        guidance=None,
        mask=None,
        reference=None,
    )


SAMPLES = [sample("a small red star", 7), sample("a large blue ring", 8), sample("a", 7)]


@pytest.fixture
def sampler(tiny_model: Path) -> Sampler:
    source = find(str(tiny_model))
    shape = geometry(source)
    return Sampler(load(source, shape, Loading(), "cpu"), shape)


@pytest.fixture
def blocks(tiny_model: Path) -> tuple[Block, ...]:
    return geometry(find(str(tiny_model))).blocks


def pixels(images: list) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


@contextmanager
def patched_forwards(transformer: torch.nn.Module, seen: list[tuple[int, Tensor, Tensor]]) -> Iterator[None]:
    """Collect every block's (text, image) output by replacing its forward: a route without hooks."""
    with ExitStack() as stack:
        for layer, block in enumerate([*transformer.transformer_blocks, *transformer.single_transformer_blocks]):
            original = block.forward

            def forward(*args, _layer=layer, _original=original, **kwargs):
                text, image = _original(*args, **kwargs)
                seen.append((_layer, text.clone(), image.clone()))
                return text, image

            block.forward = forward
            stack.callback(delattr, block, "forward")
        yield


def test_geometry_is_read_without_weights(tiny_model: Path) -> None:
    shape = geometry(find(str(tiny_model)))
    assert [block.path for block in shape.blocks] == [
        "transformer_blocks.0",
        "transformer_blocks.1",
        "single_transformer_blocks.0",
        "single_transformer_blocks.1",
    ]
    assert (shape.n_channels, shape.pixels_per_token, shape.default_side) == (32, 4, 16)
    assert shape.token_grid(16, 24) == (4, 6)


def test_a_reading_tap_leaves_the_image_bit_equal(sampler: Sampler, blocks: tuple[Block, ...]) -> None:
    plain = pixels(sampler.generate(SAMPLES, SETTINGS))
    calls = []
    with tapped(sampler, blocks, lambda site, x: calls.append(x.abs().mean()) and None):
        hooked = pixels(sampler.generate(SAMPLES, SETTINGS))
    assert len(calls) == 3 * 4
    np.testing.assert_array_equal(plain, hooked)


def test_a_tap_sees_what_the_block_returned_for_the_image_stream(sampler: Sampler, blocks: tuple[Block, ...]) -> None:
    # Text and image streams are equally long here (16 tokens), so a tap that went by length could take the wrong one.
    expected: list[tuple[int, Tensor, Tensor]] = []
    with patched_forwards(sampler.pipeline.transformer, expected):
        sampler.generate(SAMPLES, SETTINGS)
    seen: list[tuple[int, int, Tensor]] = []

    def read(site: Site, x: Tensor) -> None:
        seen.append((site.block.layer, site.forward.step, x.clone()))

    with tapped(sampler, blocks, read):
        sampler.generate(SAMPLES, SETTINGS)
    assert [layer for layer, _, _ in seen] == [layer for layer, _, _ in expected] == [0, 1, 2, 3] * 3
    assert [step for _, step, _ in seen] == [0] * 4 + [1] * 4 + [2] * 4
    for (_, _, got), (_, text, image) in zip(seen, expected, strict=True):
        assert text.shape == image.shape
        assert torch.equal(got, image)
        assert not torch.equal(got, text)


def test_an_editing_tap_changes_what_later_blocks_see_and_nothing_before(
    sampler: Sampler, blocks: tuple[Block, ...]
) -> None:
    def zero_channel(site: Site, x: Tensor) -> Tensor | None:
        return x.index_fill(2, torch.tensor([5]), 0.0) if site.block.layer == 1 else None

    plain: list[tuple[int, Tensor]] = []
    edited: list[tuple[int, Tensor]] = []
    once = Settings(height=16, width=16, steps=1, guidance=3.5, true_cfg_scale=1.0)
    with tapped(sampler, blocks, lambda site, x: plain.append((site.block.layer, x.clone()))):
        sampler.generate(SAMPLES, once)
    with (
        tapped(sampler, blocks, zero_channel),
        tapped(sampler, blocks, lambda site, x: edited.append((site.block.layer, x.clone()))),
    ):
        sampler.generate(SAMPLES, once)
    before, after = dict(plain), dict(edited)
    assert torch.equal(before[0], after[0])
    assert torch.equal(after[1], before[1].index_fill(2, torch.tensor([5]), 0.0))
    assert not torch.equal(before[2], after[2])


def test_taps_are_gone_after_an_error_inside(sampler: Sampler, blocks: tuple[Block, ...]) -> None:
    def fail(site: Site, x: Tensor) -> None:
        raise RuntimeError("planted")

    transformer = sampler.pipeline.transformer
    with pytest.raises(RuntimeError, match="planted"), tapped(sampler, blocks, fail):
        sampler.generate(SAMPLES, SETTINGS)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in transformer.modules())
    assert "cache_context" not in vars(transformer)
    assert "step" not in vars(sampler.pipeline.scheduler)


def test_both_guidance_branches_are_declared_as_the_pipeline_names_them(
    sampler: Sampler, blocks: tuple[Block, ...]
) -> None:
    guided = Settings(height=16, width=16, steps=2, guidance=1.0, true_cfg_scale=4.0)
    batch = [sample("a small red star", 7, "a large blue ring")]
    seen: list[tuple[int, str, Tensor]] = []

    def read(site: Site, x: Tensor) -> None:
        if site.block.layer == 0:
            seen.append((site.forward.step, site.branch, x.clone()))

    both = ("cond", "uncond")
    with tapped(sampler, blocks, read, branches=both):
        sampler.generate(batch, guided)
    assert [(step, branch) for step, branch, _ in seen] == [(0, "cond"), (0, "uncond"), (1, "cond"), (1, "uncond")]
    swapped = list(seen)
    seen.clear()
    with tapped(sampler, blocks, read, branches=both):
        sampler.generate([sample("a large blue ring", 7, "a small red star")], guided)
    # With the prompts exchanged, the first step's conditional state is what the unconditional one was.
    torch.testing.assert_close(seen[0][2], swapped[1][2])
    torch.testing.assert_close(seen[1][2], swapped[0][2])


def test_a_samples_noise_and_image_do_not_depend_on_its_batch(sampler: Sampler, blocks: tuple[Block, ...]) -> None:
    states: list[Tensor] = []
    with tapped(sampler, blocks[-1:], lambda site, x: states.append(x.clone()) and None):
        together = pixels(sampler.generate(SAMPLES, SETTINGS))
        alone = [pixels(sampler.generate([one], SETTINGS))[0] for one in reversed(SAMPLES)][::-1]
    for i in range(3):
        # float32 sums may differ in their last bits between batch sizes; the image's 8 bits by one level at most.
        assert np.abs(together[i].astype(int) - alone[i].astype(int)).max() <= 1
        torch.testing.assert_close(states[2][i], states[3 + 3 * (2 - i) + 2][0], rtol=1e-4, atol=1e-4)
    assert not np.array_equal(together[0], together[2]), "another prompt with the same seed is another image"


def test_generation_leaves_the_global_random_state_alone(sampler: Sampler) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sampler.generate(SAMPLES[:1], SETTINGS)
    assert torch.equal(before, torch.get_rng_state())


def test_the_schedule_is_the_schedulers_own(sampler: Sampler) -> None:
    sampler.generate(SAMPLES[:1], SETTINGS)
    timesteps, sigmas = sampler.schedule()
    assert timesteps == pytest.approx([1000.0, 2000 / 3, 1000 / 3])  # shift 1: evenly spaced from 1 to 1/3
    assert sigmas == pytest.approx([1.0, 2 / 3, 1 / 3])


def test_prompts_longer_than_the_encoder_are_counted_as_cut(sampler: Sampler) -> None:
    lengths = sampler.prompt_lengths(["a small red star", "a " * 40])
    assert lengths == [(5, False), (41, True)]


def test_a_hundred_generations_leave_nothing_behind(sampler: Sampler, blocks: tuple[Block, ...]) -> None:
    once = Settings(height=16, width=16, steps=1, guidance=3.5, true_cfg_scale=1.0)

    def generate(n: int) -> int:
        for _ in range(n):
            with tapped(sampler, blocks, lambda site, x: None):
                sampler.generate(SAMPLES[:1], once)
        gc.collect()
        return sum(isinstance(each, Tensor) for each in gc.get_objects())

    before = generate(3)
    traced = len(gc.get_objects())
    assert generate(100) == before
    assert len(gc.get_objects()) < traced + 100, "one object left by each generation would be a hundred"
