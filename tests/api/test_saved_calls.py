"""Recorded calls saved as a run, beside the run of a capture of the same prompts."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from diffusers import DiffusionPipeline, FluxPipeline
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from peft import LoraConfig
from two_runs import ROWS, captured
from typer.testing import CliRunner

import fewchannels as fc
from fewchannels.cli import app
from fewchannels.errors import InputError, RunConflictError
from fewchannels.models.in_memory import pipeline_identity

SIZE = {"height": 16, "width": 16, "max_sequence_length": 16}


def noise(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class OwnProcessor(FluxAttnProcessor):
    """An attention processor that is not diffusers' own."""


def of_rows(pipe: DiffusionPipeline, **more: Any) -> fc.Recorded:
    with fc.record(pipe, top_k=3, streams=("image", "text")) as recorded:
        for row in ROWS:
            prompt, seed = row.split(",")
            pipe(prompt, num_inference_steps=2, guidance_scale=3.5, generator=noise(int(seed)), **SIZE | more)
    return recorded


def test_a_saved_recording_is_the_run_of_a_capture(pipe: DiffusionPipeline, tiny_model: Path, tmp_path: Path) -> None:
    expected = fc.open_run(captured(tmp_path, "RUN", tiny_model, ROWS, streams="image,text", batch_size=1))
    run = of_rows(pipe).save(tmp_path / "SAVED")
    xr.testing.assert_identical(run.activations.load(), expected.activations.load())
    for table, order in (
        ("cells", "sample, stream, branch, step, layer"),
        ("samples", "sample"),
        ("manifest", "sample_id"),
    ):
        mine, theirs = (each.sql(f"select * from {table} order by {order}").df() for each in (run, expected))
        assert list(mine.columns) == list(theirs.columns)
        for name in theirs.columns.difference(["seconds", "task", "peak_memory_bytes"]):
            for one, other in zip(mine[name], theirs[name], strict=True):
                np.testing.assert_array_equal(one, other, err_msg=f"{table}.{name}")
    (row,) = run.sql("select * from run").df().to_dict("records")
    assert row["n_samples"] == len(ROWS)


COMMANDS = ["runs verify RUN", "runs show RUN", "query RUN massive_channels", "analyze stability RUN --k 2 --workers 1"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_read_a_saved_recording(pipe: DiffusionPipeline, tmp_path: Path, command: str) -> None:
    of_rows(pipe).save(tmp_path / "SAVED")
    answer = CliRunner().invoke(app, command.replace("RUN", str(tmp_path / "SAVED")).split())
    assert answer.exit_code == 0, answer.output


def test_calls_that_differ_are_samples_with_settings_of_their_own(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    with fc.record(pipe, top_k=2) as recorded:
        pipe(["a", "b"], num_inference_steps=1, generator=noise(1, 2), **SIZE)
        pipe("c", num_inference_steps=3, guidance_scale=2.0, generator=noise(3), **SIZE | {"height": 32})
    run = recorded.save(tmp_path / "SAVED")
    rows = run.sql("select prompt, seed, n_steps, guidance, height, grid_height, batch_size from samples").fetchall()
    assert rows == [("a", 1, 1, 3.5, 16, 4, 2), ("b", 2, 1, 3.5, 16, 4, 2), ("c", 3, 3, 2.0, 32, 8, 1)]
    assert run.sql("select prompt, steps, guidance, height from manifest order by prompt").fetchall()[2] == (
        "c",
        3,
        2.0,
        32,
    )
    saved = run.activations.load()
    own = ["sample_id", "height", "width", "steps", "guidance"]
    xr.testing.assert_equal(saved.drop_vars(own), recorded.activations.drop_vars("sample_id"))
    assert np.array_equal(np.asarray(run.image(str(saved.sample_id.values[2]))), np.asarray(recorded.images[2]))


def test_saving_twice_keeps_one_run_and_another_recording_is_refused(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    recorded = of_rows(pipe)
    recorded.save(tmp_path / "SAVED")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "SAVED" / "ledger").iterdir()}
    recorded.save(tmp_path / "SAVED")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "SAVED" / "ledger").iterdir()} == before
    with pytest.raises(RunConflictError, match="created with different settings"):
        of_rows(pipe, height=32).save(tmp_path / "SAVED")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(RunConflictError, match=r"notes\.txt"):
        recorded.save(tmp_path / "full")


CALLS: dict[str, tuple[Callable[[DiffusionPipeline], Any], str]] = {
    "no seed": (lambda pipe: pipe("a", num_inference_steps=1, **SIZE), "1 of 1 samples have no seed, such as sample 0"),
    "used generator": (
        lambda pipe: [pipe("a", num_inference_steps=1, generator=each, **SIZE) for each in noise(1) * 2],
        "1 of 2 samples have no seed, such as sample 1",
    ),
    "one generator": (
        lambda pipe: pipe(["a", "b"], num_inference_steps=1, generator=noise(1)[0], **SIZE),
        "2 of 2 samples have no seed",
    ),
    "latents": (
        lambda pipe: pipe("a", latents=torch.zeros(1, 16, 16), num_inference_steps=1, generator=noise(1), **SIZE),
        "1 of 1 samples have no seed",
    ),
    "embeddings": (
        lambda pipe: pipe(
            prompt_embeds=torch.ones(1, 16, 32),
            pooled_prompt_embeds=torch.ones(1, 16),
            num_inference_steps=1,
            generator=noise(1),
            **SIZE,
        ),
        "1 of 1 samples have no prompt",
    ),
    "no image": (
        lambda pipe: pipe("a", num_inference_steps=1, generator=noise(1), output_type="latent", **SIZE),
        "1 of 1 samples have no image",
    ),
    "twice": (
        lambda pipe: [pipe(text, num_inference_steps=1, generator=noise(1), **SIZE) for text in ("a", "b", " a")],
        "sample 2 has the same prompt and seed as sample 0",
    ),
    "scales": (
        lambda pipe: [
            pipe(
                "a", negative_prompt="n", true_cfg_scale=each, num_inference_steps=1, generator=noise(int(each)), **SIZE
            )
            for each in (2.0, 3.0)
        ],
        "the calls have several true CFG scales",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_a_run_could_not_name_is_refused_and_nothing_is_written(
    pipe: DiffusionPipeline, tmp_path: Path, name: str
) -> None:
    call, says = CALLS[name]
    with fc.record(pipe, top_k=1) as recorded:
        call(pipe)
    with pytest.raises(InputError, match=says):
        recorded.save(tmp_path / "SAVED")
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_pipeline_is_said(tiny_model: Path, tmp_path: Path) -> None:
    loaded = FluxPipeline.from_pretrained(tiny_model)
    recorded = of_rows(loaded)
    del loaded
    gc.collect()
    with pytest.raises(InputError, match="the pipeline was deleted, so its weights cannot be identified"):
        recorded.save(tmp_path / "SAVED")


def test_whatever_decides_an_image_is_in_the_identity_of_a_pipeline_in_memory(tiny_model: Path) -> None:
    def loaded() -> DiffusionPipeline:
        return FluxPipeline.from_pretrained(tiny_model)

    def weight(pipe: DiffusionPipeline) -> None:
        with torch.no_grad():
            next(pipe.text_encoder.parameters()).view(-1)[0] += 1e-3

    def adapter(pipe: DiffusionPipeline) -> None:
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))

    def strength(pipe: DiffusionPipeline) -> None:
        adapter(pipe)
        pipe.transformer.set_adapters(["default"], [0.5])

    def scheduler(pipe: DiffusionPipeline) -> None:
        pipe.scheduler.register_to_config(shift=2.5)

    def tokenizer(pipe: DiffusionPipeline) -> None:
        pipe.tokenizer.add_tokens(["zebra"])

    def dtype(pipe: DiffusionPipeline) -> None:
        pipe.to(torch.bfloat16)

    torch.manual_seed(0)
    same = pipeline_identity(loaded())
    assert pipeline_identity(loaded()) == same
    found = [same]

    def hook(pipe: DiffusionPipeline) -> None:
        pipe.transformer.transformer_blocks[0].register_forward_hook(lambda module, inputs, output: output)

    def early_hook(pipe: DiffusionPipeline) -> None:
        pipe.vae.register_forward_pre_hook(lambda module, inputs: None)

    def processor(pipe: DiffusionPipeline) -> None:
        pipe.transformer.transformer_blocks[0].attn.set_processor(OwnProcessor())

    def forward(pipe: DiffusionPipeline) -> None:
        block = pipe.transformer.transformer_blocks[0]
        own = block.forward
        block.forward = lambda *arguments, **given: own(*arguments, **given)

    def shift(pipe: DiffusionPipeline) -> None:
        pipe.scheduler.set_shift(9.0)

    def attribute(pipe: DiffusionPipeline) -> None:
        pipe.transformer.pos_embed.theta = 3

    def method(pipe: DiffusionPipeline) -> None:
        own = pipe.encode_prompt
        pipe.encode_prompt = lambda *arguments, **given: own(*arguments, **given)

    def kind(pipe: DiffusionPipeline) -> None:
        pipe.__class__ = type("FluxPipeline", (type(pipe),), {"prepare_latents": FluxPipeline.prepare_latents})

    others = (hook, early_hook, processor, forward, shift, attribute, method, kind)
    for change in (weight, adapter, strength, scheduler, tokenizer, dtype, *others):
        changed = loaded()
        torch.manual_seed(0)
        change(changed)
        found.append(pipeline_identity(changed))
    assert len({str(each) for each in found}) == len(found)


def test_the_identity_of_a_pipeline_is_the_same_after_its_calls_and_with_offload(tiny_model: Path) -> None:
    pipe = FluxPipeline.from_pretrained(tiny_model)
    fresh = pipeline_identity(pipe)
    pipe("a longer prompt than the first", num_inference_steps=3, generator=noise(1), **SIZE)
    assert pipeline_identity(pipe) == fresh
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    pipe("a", num_inference_steps=1, generator=noise(1), **SIZE)
    assert pipeline_identity(pipe) == fresh


UNUSUAL: dict[str, dict[str, Any]] = {
    "sigmas": {"sigmas": [1.0, 0.1], "num_inference_steps": 2},
    "second prompt": {"prompt_2": "another"},
    "shorter prompts": {"max_sequence_length": 8},
    "callback": {"callback_on_step_end": lambda pipe, step, timestep, given: given},
}


@pytest.mark.parametrize("unusual", [*UNUSUAL, "edit", "function"])
def test_a_recording_of_another_kind_of_call_is_not_the_run_of_a_capture(
    pipe: DiffusionPipeline, tmp_path: Path, unusual: str
) -> None:
    edit = {"edit": fc.zero([1]), "function": lambda states, site: states * 2}.get(unusual)

    def recording() -> fc.Recorded:
        given = {"num_inference_steps": 2} | SIZE | UNUSUAL.get(unusual, {})
        with fc.record(pipe, top_k=3) as recorded, fc.edit(pipe, edit) if edit else nullcontext():
            pipe("a", generator=noise(1), **given)
        return recorded

    with fc.record(pipe, top_k=3) as plain:
        pipe("a", generator=noise(1), num_inference_steps=2, **SIZE)
    plain.save(tmp_path / "PLAIN")
    with pytest.raises(RunConflictError, match="edits and arguments of the calls"):
        recording().save(tmp_path / "PLAIN")
    first = recording().save(tmp_path / "OWN")
    again = recording().save(tmp_path / "OWN")
    xr.testing.assert_identical(first.activations.load(), again.activations.load())
