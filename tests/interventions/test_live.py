"""A live session beside routes that know nothing of it: diffusers' own pipeline with hooks by hand, and a sweep."""

import gc
import io
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import psutil
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from torch import Tensor

from fewchannels.captures.config import CaptureConfig
from fewchannels.errors import InputError
from fewchannels.interventions.begin import begin_sweep
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.live.ask import Ask, Edit, parse
from fewchannels.interventions.live.session import LiveModel
from fewchannels.interventions.live.trajectory import Snapshot, Trajectory
from fewchannels.interventions.rows import batches
from fewchannels.interventions.sweep import SweepSettings, prepare_sweep
from fewchannels.interventions.worker import SweepWorker
from fewchannels.models.source import find

PROMPT, OTHER, SEED, N_STEPS = "a small red star", "a large blue ring", 7, 3
WAIT_S = 120
Hook = Callable[[int, int, Tensor], Tensor | None]


@pytest.fixture(params=["tiny", "demo"])
def name(request: pytest.FixtureRequest, tiny_model: Path) -> str:
    return str(tiny_model) if request.param == "tiny" else "demo"


@pytest.fixture
def live(tiny_model: Path) -> Iterator[LiveModel]:
    with LiveModel(str(tiny_model), 1, n_steps=N_STEPS) as session:
        yield session


def by_hand(
    name: str, prompts: list[str], hook: Hook, n_steps: int = N_STEPS, guidance: float = 3.5
) -> list[np.ndarray]:
    """Images of diffusers' own pipeline; the hook is called with step, layer and the image tokens behind it."""
    pipeline = FluxPipeline.from_pretrained(find(name).folder)
    pipeline.set_progress_bar_config(disable=True)
    calls = itertools.count()
    blocks = [*pipeline.transformer.transformer_blocks, *pipeline.transformer.single_transformer_blocks]

    def behind(module: torch.nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        step, layer = divmod(next(calls), len(blocks))
        text, image = output
        edited = hook(step, layer, image)
        return text, image if edited is None else edited

    with ExitStack() as stack, torch.inference_mode():
        for block in blocks:
            stack.callback(block.register_forward_hook(behind).remove)
        images = pipeline(
            prompts,
            height=pipeline.vae.config.sample_size,
            width=pipeline.vae.config.sample_size,
            num_inference_steps=n_steps,
            guidance_scale=guidance,
            max_sequence_length=16,
            generator=[torch.Generator().manual_seed(SEED) for _ in prompts],
        ).images
    assert next(calls) == n_steps * len(blocks)
    return [np.asarray(image) for image in images]


def answer(live: LiveModel, ask: Ask) -> Snapshot:
    found = live.begin(ask).wait(WAIT_S)
    assert found.state == "done", found.error
    return found


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def assert_seen(found: Snapshot, role: str, states: dict, grid: tuple[int, int], score: str = "mean_abs") -> None:
    """What was kept of a row is what its hidden states ``(token, channel)`` by (step, layer) have."""
    assert [step.step for step in found.steps] == sorted({step for step, _ in states})
    for (step, layer), x in states.items():
        row = found.steps[step].rows[role]
        scores = x.abs().mean(dim=0) if score == "mean_abs" else x.abs().amax(dim=0)
        top = scores.topk(row.channels.shape[1]).indices
        median = float(scores.sort().values[(len(scores) - 1) // 2])
        assert row.channels[layer].tolist() == top.tolist()
        np.testing.assert_allclose(row.scores[layer], scores[top], rtol=1e-4)
        assert row.median_score[layer] == pytest.approx(median, rel=1e-4)
        assert row.ratio[layer] == pytest.approx(float(scores.max()) / median, rel=1e-4)
        assert row.energy_share[layer] == pytest.approx(float(x[:, top].square().sum() / x.square().sum()), rel=1e-4)
        np.testing.assert_allclose(row.maps[layer], x[:, top].T.reshape(-1, *grid), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("score", "k"), [("mean_abs", 8), ("max_abs", 3)])
def test_an_image_and_what_is_seen_of_it_are_the_pipelines_own(name: str, score: str, k: int) -> None:
    states: dict[tuple[int, int], Tensor] = {}
    (expected,) = by_hand(name, [PROMPT], lambda step, layer, x: states.update({(step, layer): x[0].clone()}))
    with LiveModel(name, 1, score=score, top_k=k) as live:
        generation = live.begin(Ask(PROMPT, SEED, N_STEPS))
        found = generation.wait(WAIT_S)
        assert (found.state, found.error, dict(found.measures)) == ("done", None, {})
        np.testing.assert_array_equal(pixels(found.images["undisturbed"]), expected)
        assert_seen(found, "undisturbed", states, generation.token_grid, score)
        assert set(found.images) == {"undisturbed"} == set(generation.roles)
        assert found.steps[0].rows["undisturbed"].maps.shape == (len(generation.blocks), k, *generation.token_grid)
        assert [block.layer for block in generation.blocks] == sorted({layer for _, layer in states})
        assert generation.blocks[0].path == "transformer_blocks.0"
        beside = answer(live, Ask(PROMPT, SEED, N_STEPS, edit=Edit("mean")))
        assert np.abs(pixels(beside.images["undisturbed"]).astype(int) - expected).max() <= 1


def test_a_zero_edit_of_listed_channels_is_a_hook_that_zeroes_them(name: str) -> None:
    channels, layers, steps = [3, 17, 30], [1, 3], [0, 2]
    states: dict[tuple[int, int], list[Tensor]] = {}

    def zero(step: int, layer: int, x: Tensor) -> Tensor:
        x = x.clone()
        if layer in layers and step in steps:
            x[1, :, channels] = 0
        states[step, layer] = list(x.clone())
        return x

    expected = by_hand(name, [PROMPT, PROMPT], zero)
    edit = Edit("zero", selection="listed", channels=(30, 3, 17), layers="1,3", steps="0,2")
    with LiveModel(name, 1) as live:
        generation = live.begin(Ask(PROMPT, SEED, N_STEPS, edit=edit))
        found = generation.wait(WAIT_S)
    assert found.state == "done", found.error
    for place, role in enumerate(("undisturbed", "edited")):
        np.testing.assert_array_equal(pixels(found.images[role]), expected[place])
        assert_seen(found, role, {cell: x[place] for cell, x in states.items()}, generation.token_grid)


def test_a_transport_of_no_strength_leaves_the_image_and_shows_the_source(live: LiveModel, tiny_model: Path) -> None:
    target, source = by_hand(str(tiny_model), [PROMPT, OTHER], lambda step, layer, x: None)
    found = answer(live, Ask(PROMPT, SEED, edit=Edit("transport", alpha=0.0, source=OTHER)))
    assert found.images["edited"] == found.images["undisturbed"]
    np.testing.assert_array_equal(pixels(found.images["undisturbed"]), target)
    np.testing.assert_array_equal(pixels(found.images["source"]), source)
    assert (target != source).any()
    for step in found.steps:
        np.testing.assert_array_equal(step.rows["edited"].maps, step.rows["undisturbed"].maps)
        assert (step.rows["source"].maps != step.rows["undisturbed"].maps).any()
    assert set(found.measures.values()) == {0.0}


@pytest.mark.parametrize(
    ("edit", "amount"), [(Edit("scale", -2.5, k=3), 3.5), (Edit("transport", None, 0.75, OTHER, k=3), 0.75)]
)
def test_an_edit_does_to_the_top_channels_what_it_says(live, tiny_model: Path, edit: Edit, amount: float) -> None:
    roles = ("undisturbed", "source", "edited") if edit.source else ("undisturbed", "edited")
    states: dict[tuple[int, int], Tensor] = {}

    def hook(step: int, layer: int, x: Tensor) -> Tensor:
        *_, ranked, edited = x = x.clone()  # of a transport the source, else the undisturbed
        top = ranked.abs().mean(dim=0).topk(3).indices
        edited[:, top] += amount * (ranked[:, top] * bool(edit.source) - edited[:, top])
        states[step, layer] = edited.clone()
        return x

    expected = by_hand(str(tiny_model), [OTHER if role == "source" else PROMPT for role in roles], hook)
    found = answer(live, Ask(PROMPT, SEED, edit=edit))
    for image, role in zip(expected, roles, strict=True):
        assert np.abs(pixels(found.images[role]).astype(int) - image).max() <= 1
    assert_seen(found, "edited", states, (4, 4))
    assert (expected[-1] != expected[0]).any()


@pytest.mark.parametrize(
    ("edit", "grid"),
    [
        (Edit("shuffle", selection="random", k=6), Grid(("shuffle",), selections=("random",), k=(6,), trials=1)),
        (Edit("zero", tokens="foreground"), Grid(("zero",), selections=("top",), tokens=("foreground",))),
        (
            Edit("transport", source=OTHER, selection="random", tokens="foreground", layers="dual"),
            Grid(("transport",), (1.0,), ("random",), 1, (8,), ("source",), (), ("dual",), tokens=("foreground",)),
        ),
    ],
)
def test_a_live_edit_is_what_a_sweep_makes(live, tiny_model: Path, manifest_of, tmp_path, edit: Edit, grid) -> None:
    table = manifest_of(f"prompt,seed\n{PROMPT},{SEED}\n{OTHER},{SEED}\n")
    generation = CaptureConfig(model=str(tiny_model), num_inference_steps=N_STEPS)
    settings = SweepSettings("text" if edit.source else "disruption", generation, (grid,))
    prepared = prepare_sweep(table, tmp_path / "sweep", settings)
    begin_sweep(prepared)
    worker = SweepWorker(prepared.sweep, 1)
    (item,) = [each for each in worker.items(range(2)) if each.target.prompt == PROMPT]
    (batch,) = batches([item], prepared.sweep.conditions, 16)
    (*_, made) = worker.generate(batch, prepared.sweep.generation.settings(item.target))
    found = answer(live, Ask(PROMPT, SEED, edit=edit))
    np.testing.assert_array_equal(pixels(found.images["edited"]), np.asarray(made.image))
    assert found.images["edited"] != found.images["undisturbed"]
    assert dict(found.measures) == pytest.approx({name: made.columns[name] for name in found.measures})


@contextmanager
def gated(live: LiveModel) -> Iterator[threading.Semaphore]:
    """Inside, every forward of the transformer waits until it is let through."""
    gate = threading.Semaphore(0)
    transformer = live.model.sampler.pipeline.transformer
    handle = transformer.register_forward_pre_hook(lambda *_: gate.acquire(timeout=WAIT_S) and None)
    try:
        yield gate
    finally:
        handle.remove()
        gate.release(1000)


def test_every_step_is_seen_before_the_next_begins(live: LiveModel) -> None:
    with gated(live) as gate:
        generation = live.begin(Ask(PROMPT, SEED, edit=Edit("zero")))
        assert generation.snapshot().steps == ()
        for n in range(1, N_STEPS + 1):
            gate.release()
            found = generation.wait(WAIT_S, after_steps=n - 1)
            assert len(found.steps) == n
            if n < N_STEPS:
                assert generation.wait(0.05, after_steps=n) is found
                assert (found.state, dict(found.images)) == ("running", {})
        assert generation.wait(WAIT_S).state == "done"
    timesteps, sigmas = zip(*((step.timestep, step.sigma) for step in generation.snapshot().steps), strict=True)
    assert (timesteps, sigmas[0]) == (tuple(sorted(timesteps, reverse=True)), 1.0)


def test_a_newer_ask_and_closing_end_what_runs_and_what_waits(live: LiveModel) -> None:
    with gated(live) as gate:
        first = live.begin(Ask("a circle", n_steps=50))
        gate.release()
        first.wait(WAIT_S, after_steps=0)
        second, third = live.begin(Ask("a ring")), live.begin(Ask("a star"))
        assert [each.snapshot().state for each in (second, third)] == ["cancelled", "waiting"]
        assert live.begin(Ask("a star")) is third
        gate.release(100)
        ended = first.wait(WAIT_S)
        assert (ended.state, len(ended.steps), dict(ended.images)) == ("cancelled", 1, {})
        assert "newer request" in (ended.error or "")
        assert third.wait(WAIT_S).state == "done"
    answer(live, Ask("a ring"))  # a cancelled one is not remembered
    with gated(live) as gate:
        running = live.begin(Ask("a circle", n_steps=50))
        gate.release()
        running.wait(WAIT_S, after_steps=0)
        waiting = live.begin(Ask("a heart"))
        gate.release(100)
        live.close()
    assert [each.snapshot().state for each in (running, waiting)] == ["cancelled", "cancelled"]
    with pytest.raises(RuntimeError, match="is closed"):
        live.begin(Ask(PROMPT))


def test_a_cancelled_generation_ends_before_its_next_block_and_leaves_nothing(live: LiveModel) -> None:
    plain = answer(live, Ask(PROMPT, SEED)).images
    ran: list[int] = []

    def run(layer: int) -> None:
        ran.append(layer)
        generation.cancel()

    with gated(live) as gate, ExitStack() as stack:
        for layer, block in enumerate(live.model.sampler.pipeline.transformer.transformer_blocks):
            stack.callback(block.register_forward_pre_hook(lambda *_, _layer=layer: run(_layer)).remove)
        generation = live.begin(Ask(PROMPT, SEED, 50))
        gate.release(100)
        assert generation.wait(WAIT_S).state == "cancelled"
    assert ran == [0]
    generation.cancel()
    for seed in range(100, 116):  # so that the image is forgotten
        answer(live, Ask(PROMPT, seed, 1))
    assert answer(live, Ask(PROMPT, SEED)).images == plain


def test_an_ask_of_the_same_effect_is_answered_by_a_finished_generation(live: LiveModel) -> None:
    generation = live.begin(Ask(PROMPT, SEED, edit=Edit("zero", layers="all")))
    generation.wait(WAIT_S)
    same = Ask(f" {PROMPT} ", SEED, N_STEPS, 16, 16, 3.5, Edit("scale", 0.0, layers="0,1,2,3", steps="2,1,0"))
    assert live.begin(same) is generation
    assert live.begin(Ask(PROMPT, SEED + 1, edit=Edit("zero"))) is not generation


def test_only_the_latest_generations_that_fit_are_remembered(tiny_model: Path) -> None:
    def begun(live: LiveModel, seed: int) -> Trajectory:
        generation = live.begin(Ask(PROMPT, seed, n_steps=1))
        assert generation.wait(WAIT_S).state == "done"
        return generation

    with LiveModel(str(tiny_model), 1) as live:
        made = [begun(live, seed) for seed in range(16)]
        assert begun(live, 0) is made[0]
        begun(live, 16)
        assert begun(live, 0) is made[0]
        assert begun(live, 1) is not made[1]
    with LiveModel(str(tiny_model), 1, most_bytes=2 * 4 * 8 * 16 * 4) as live:  # one's maps twice, and less than two
        made = [begun(live, seed) for seed in range(2)]
        assert begun(live, 1) is made[1]
        assert begun(live, 0) is not made[0]


def test_maps_that_would_not_fit_are_refused_before_they_are_made(tiny_model: Path) -> None:
    n_bytes = 3 * 2 * 4 * 8 * 16 * 4  # rows, steps, layers, channels, tokens, bytes
    edit = Edit("transport", source=OTHER)
    with LiveModel(str(tiny_model), 1, n_steps=2, most_bytes=n_bytes) as live:
        found = answer(live, Ask(PROMPT, edit=edit))
        assert sum(row.maps.nbytes for step in found.steps for row in step.rows.values()) == n_bytes
        with pytest.raises(InputError, match=r"would take 18\.4 kB; at most 12\.3 kB are kept\. Use fewer than 3"):
            live.begin(Ask(PROMPT, n_steps=3, edit=edit))


def test_a_model_that_fails_ends_its_generation_and_not_the_session(live: LiveModel) -> None:
    calls = itertools.count()

    def spoil(module: torch.nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        call, (text, image) = next(calls), output
        if call == 2:
            raise ValueError("no more room")
        return text, image.index_fill(2, torch.tensor([3]), torch.nan) if call == 1 else image

    handle = live.model.sampler.pipeline.transformer.transformer_blocks[1].register_forward_hook(spoil)
    nan, failed = (live.begin(Ask(PROMPT)).wait(WAIT_S) for _ in range(2))
    handle.remove()
    assert (nan.state, len(nan.steps)) == ("failed", 1)
    where = "undisturbed row contains a NaN or an infinity at the output of layer 1 (transformer_blocks.1) in step 1"
    assert where in (nan.error or "")
    assert (failed.state, failed.error) == ("failed", "ValueError: no more room")

    def overflow(block: object, given: object, output: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        text, image = output
        return text, torch.cat([image[:-1], image[-1:] * torch.inf])  # the edited row is the last

    handle = live.model.sampler.pipeline.transformer.transformer_blocks[1].register_forward_hook(overflow)
    too_much = live.begin(Ask(PROMPT, edit=Edit("scale", 2.0, k=32))).wait(WAIT_S)
    handle.remove()
    assert too_much.state == "failed"
    assert "edited row contains a NaN or an infinity at the output of layer" in (too_much.error or "")
    assert "Weaken the edit" in (too_much.error or "")
    assert answer(live, Ask(PROMPT)).images


def test_two_threads_read_while_it_runs(live: LiveModel) -> None:
    generation = live.begin(Ask(PROMPT, SEED, 15, edit=Edit("zero")))

    def read() -> list[int]:
        seen = []
        while not (now := generation.snapshot()).has_ended:
            seen.append(len(now.steps))
            assert [step.step for step in now.steps] == list(range(len(now.steps)))
            for step in now.steps:
                assert all(np.isfinite(row.maps).all() for row in step.rows.values())
                with pytest.raises(ValueError, match="read-only"):
                    step.rows["edited"].maps[0] = 0
        return seen

    with ThreadPoolExecutor(2) as threads:
        for reading in [threads.submit(read), threads.submit(read)]:
            seen = reading.result(WAIT_S)
            assert seen == sorted(seen)
            assert len(set(seen)) > 2
    assert generation.snapshot().state == "done"


P, Z = f"prompt={PROMPT}&", f"prompt={PROMPT}&action=zero&"
REFUSED_BY_THE_MODEL = [
    (P + "height=17", "height is 17 pixels; .* needs multiples of 4"),
    (P + "height=80", "height and width are 80 and 16; .* at most 4 times the pixels .* 16 x 16. Choose a smaller"),
    (Z + "layers=4", "layer 4 does not exist; the valid ones are 0 to 3"),
    (Z + "layers=each", "layers is 'each', which means several edits; a live page makes only one. Give all"),
    (Z + "steps=3", "step 3 does not exist; the valid ones are 0 to 2"),
    (Z + "k=33", "k is 33; with top it must be 0 to 32, as the model has 32 channels"),
    (Z + "selection=listed&channels=32", "channels is 32; list at least one of 0 to 31"),
]


def test_guidance_is_the_pipelines_own_and_refused_where_it_does_nothing(
    live: LiveModel, tiny_model: Path, tmp_path: Path
) -> None:
    (expected,) = by_hand(str(tiny_model), [PROMPT], lambda step, layer, x: None, guidance=9.0)
    guided = answer(live, parse({"prompt": PROMPT, "seed": str(SEED), "guidance": "9"}))
    np.testing.assert_array_equal(pixels(guided.images["undisturbed"]), expected)
    usual = answer(live, Ask(PROMPT, SEED))
    assert (pixels(usual.images["undisturbed"]) != expected).any()
    pipeline = FluxPipeline.from_pretrained(tiny_model)
    pipeline.transformer.register_to_config(guidance_embeds=False)
    del pipeline.transformer.time_text_embed.guidance_embedder
    pipeline.save_pretrained(tmp_path / "plain")
    with (
        LiveModel(str(tmp_path / "plain"), 1, n_steps=N_STEPS) as plain,
        pytest.raises(InputError, match=r"guidance is 2; with this model, .* has no effect. Omit guidance"),
    ):
        plain.begin(Ask(PROMPT, guidance=2.0))


def test_what_a_model_cannot_do_is_refused_before_anything_runs(live: LiveModel, tiny_model: Path) -> None:
    for query, text in REFUSED_BY_THE_MODEL:
        with pytest.raises(InputError, match=text):
            live.begin(parse(dict(parse_qsl(query))))
    with pytest.raises(InputError, match=r"n_steps is 0; it must be from 1 to 200\. Give one of those"):
        LiveModel(str(tiny_model), 1, n_steps=0)
    with pytest.raises(InputError, match="top_k is 33; it must be from 1 to the model's 32 channels"):
        LiveModel(str(tiny_model), 1, top_k=33)


def test_memory_and_threads_stay_as_they_are_however_many_asks_there_are(live: LiveModel) -> None:
    """Ninety asks of three steps, each of its own prompt, seed and edit, every fifth cancelled."""
    process = psutil.Process()

    def ask(first: int, stop: int) -> tuple[float, int]:
        for i in range(first, stop):
            edit = Edit("zero", k=1 + i % 4) if i % 2 else None
            generation = live.begin(Ask(f"a small red star, number {i}", seed=i, edit=edit))
            if i % 5 == 0:
                generation.cancel()
            assert generation.wait(WAIT_S).state in ("done", "cancelled")
        gc.collect()
        return process.memory_info().rss / 2**20, process.num_threads()

    before, n_threads = ask(0, 30)
    after, n_after = ask(30, 90)
    assert after - before < 24  # MiB: 0.4 an ask
    assert n_after == n_threads
