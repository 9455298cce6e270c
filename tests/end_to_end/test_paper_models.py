"""The five models of arXiv 2605.13974, tiny, from the command line to a query."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CASES
from checkpoints.case import patched_forwards
from command import line
from diffusers import DiffusionPipeline

from fewchannels import open_run
from fewchannels.runs.storage import open_storage
from fewchannels.runs.upkeep.verify import verify

NAMES = {
    "flux": "FLUX.1-dev",
    "flux-schnell": "FLUX.1-schnell",
    "flux2-klein": "FLUX.2-klein",
    "qwen-image": "Qwen-Image",
    "sana": "SANA 1.5",
}
# SANA's forward has the unconditional rows first; the others run the conditional forward first.
CONDITIONAL_ROWS = {"sana": slice(2, 4)}
GUIDANCE = {
    "flux2-klein": {"guidance_scale": 4.0},
    "sana": {"guidance_scale": 4.5},
    "qwen-image": {"true_cfg_scale": 4.0},
}


def fewchannels(*words: object) -> str:
    done = line(shlex.join(["fewchannels", *map(str, words)]), Path.cwd())
    assert done.code == 0, done.stderr
    return done.stdout


def first_states(folder: Path, name: str, prompts: list[str]) -> np.ndarray:
    """Image tokens in the first conditional forward, by replaced forwards: ``(layer, sample, token, channel)``."""
    case = next(case for case in CASES if case.name == name)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    height, width = case.square
    n_image = (height // case.token_side) * (width // case.token_side)
    blocks = case.blocks(pipeline.transformer)
    seen: list[tuple[str, Any]] = []
    more: dict[str, Any] = GUIDANCE.get(name, {})
    if "true_cfg_scale" in more:
        more = more | {"negative_prompt": [""] * len(prompts)}
    if name == "sana":
        more = more | {"use_resolution_binning": False}
    with patched_forwards(blocks, seen):
        tokenizer = pipeline.tokenizer_2 if hasattr(pipeline, "tokenizer_2") else pipeline.tokenizer
        most = 300 if name == "sana" else 512
        with torch.inference_mode():
            pipeline(
                prompt=prompts,
                height=height,
                width=width,
                num_inference_steps=2,
                max_sequence_length=min(most, tokenizer.model_max_length),
                generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
                **more,
            )
    rows = CONDITIONAL_ROWS.get(name, slice(None))
    return np.stack([case.image_of(path, output, n_image)[rows].numpy() for path, output in seen[: len(blocks)]])


@pytest.mark.parametrize(
    "name",
    # The class of the first one, without guidance: it runs when there is time.
    [pytest.param(name, marks=[pytest.mark.exhaustive] * (name == "flux-schnell")) for name in NAMES],
)
def test_a_model_of_the_paper_runs_from_the_manifest_to_the_answer(name: str, manifest_of, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    model, run = tmp_path / "model", tmp_path / "run"
    case.build().save_pretrained(model)
    prompts, (height, width) = list(case.prompts[:2]), case.square
    rows = "".join(f"{prompt},{seed}\n" for prompt, seed in zip(prompts, (3, 4), strict=True))
    manifest = manifest_of(f"prompt,seed\n{rows}")
    size = ["--height", height, "--width", width, "--num-inference-steps", 2, "--top-k", 4]
    done = json.loads(
        fewchannels("capture", "--model", model, "--manifest", manifest, "--out", run, *size, "--actors", 1, "--json")
    )
    assert (done["n_done"], done["n_failed"]) == (2, 0)
    stored = open_run(run).activations
    expected = np.moveaxis(first_states(model, name, prompts), 0, 1)  # (sample, layer, token, channel)
    np.testing.assert_allclose(stored["max_abs"].sel(step=0), np.abs(expected).max(axis=2), rtol=1e-3, atol=1e-4)
    answer = json.loads(fewchannels("query", run, "massive_channels", "--param", "top=1", "--json"))
    top = {(row["layer"], row["step"]): row["channel"] for row in answer}
    for layer in range(expected.shape[1]):
        largest = [set(np.argsort(-np.abs(sample[layer]).mean(axis=0))[:4].tolist()) for sample in expected]
        if common := largest[0] & largest[1]:
            assert top[layer, 0] in common
    assert not verify(open_storage(run)).problems
