"""Reference images, from the manifest's column to what is stored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import CASES
from diffusers import DiffusionPipeline
from PIL import Image

from fewchannels import open_run
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.errors import InputError


def checkpoint(name: str, folder: Path) -> tuple[Path, dict[str, int]]:
    """A case's folder, and settings for a small image."""
    case = next(case for case in CASES if case.name == name)
    case.build().save_pretrained(folder / "model")
    height, width = case.square
    return folder / "model", {"height": height, "width": width, "num_inference_steps": 2, "top_k": 4}


def picture(path: Path, seed: int) -> Path:
    noise = np.random.default_rng(seed).integers(0, 255, (64, 80, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_samples_with_and_without_references_are_stored_as_direct_runs_have_them(manifest_of, tmp_path: Path) -> None:
    model, size = checkpoint("flux2-klein", tmp_path)
    first, second = picture(tmp_path / "first.png", 1), picture(tmp_path / "second.png", 2)
    manifest = manifest_of(
        f"prompt,seed,reference\na small red star,3,{first}\na small red star,3,{second}\na small red star,3,\na,4,\n"
    )
    job = prepare(manifest, tmp_path / "run", CaptureConfig(model=str(model), guidance_scale=1.0, **size))
    begin(job, manifest)
    CaptureWorker(job, 1)(0)
    run = open_run(tmp_path / "run")
    rows = run.sql("select status, batch_size, grid_height * grid_width from samples order by sample").fetchall()
    assert [row[:2] for row in rows] == [("done", 1), ("done", 1), ("done", 2), ("done", 2)]

    pipeline = DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    n_tokens, states = rows[0][2], []
    pipeline.transformer.transformer_blocks[0].register_forward_hook(
        lambda module, inputs, output: states.append(output[1][0, :n_tokens].numpy().copy())
    )
    stored = run.activations["max_abs"].sel(layer=0)
    for sample, reference in enumerate((first, second)):
        states.clear()
        with torch.inference_mode():
            image = pipeline(
                prompt="a small red star",
                image=Image.open(reference),
                height=size["height"],
                width=size["width"],
                num_inference_steps=2,
                guidance_scale=1.0,
                max_sequence_length=min(512, pipeline.tokenizer.model_max_length),
                generator=[torch.Generator().manual_seed(3)],
            ).images[0]
        np.testing.assert_allclose(stored[sample], np.abs(np.stack(states)).max(axis=1), rtol=1e-4, atol=1e-5)
        drawn = np.asarray(run.image(str(run.activations.sample_id.values[sample]))).astype(int)
        assert np.abs(drawn - np.asarray(image)).max() <= 1
    assert not np.allclose(stored[0], stored[1], rtol=1e-3)
    assert not np.allclose(stored[0], stored[2], rtol=1e-3)


def test_a_model_that_needs_references_refuses_rows_without(manifest_of, tmp_path: Path) -> None:
    model, size = checkpoint("qwen-image-edit", tmp_path)
    reference = picture(tmp_path / "first.png", 1)
    manifest = manifest_of(f"prompt,reference\na star,{reference}\na ring,\n")
    with pytest.raises(InputError, match="needs a reference image for every sample; 1 of the manifest's 2 rows"):
        prepare(manifest, tmp_path / "run", CaptureConfig(model=str(model), **size))


def test_references_that_are_not_there_are_named_before_the_run(manifest_of, tmp_path: Path) -> None:
    model, size = checkpoint("flux2-klein", tmp_path)
    manifest = manifest_of(f"prompt,reference\na star,{tmp_path / 'gone.png'}\n")
    with pytest.raises(InputError, match=r"1 reference images of the manifest do not exist, such as .*gone\.png"):
        prepare(manifest, tmp_path / "run", CaptureConfig(model=str(model), **size))


def test_a_reference_that_is_no_image_fails_its_sample_alone(manifest_of, tmp_path: Path) -> None:
    model, size = checkpoint("flux2-klein", tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    manifest = manifest_of(f"prompt,reference\na star,{tmp_path / 'broken.png'}\na ring,\n")
    job = prepare(manifest, tmp_path / "run", CaptureConfig(model=str(model), guidance_scale=1.0, **size))
    begin(job, manifest)
    CaptureWorker(job, 1)(0)
    rows = open_run(tmp_path / "run").sql("select status, error from samples order by sample").fetchall()
    assert rows[0][0] == "failed"
    assert "the image" in rows[0][1]
    assert "broken.png" in rows[0][1]
    assert rows[1] == ("done", None)
