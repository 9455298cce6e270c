"""Both streams and both branches, from the command's settings to the store, the tables and the queries."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import CASES
from diffusers import DiffusionPipeline

from fewchannels import open_run
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.recompute import recompute
from fewchannels.captures.worker import CaptureWorker
from fewchannels.errors import InputError
from fewchannels.runs.storage import open_storage
from fewchannels.runs.upkeep.consistency import disagreements
from fewchannels.runs.upkeep.verify import verify

PROMPTS = "prompt,negative_prompt,seed\na small red star,a large blue ring,3\na green heart,,4\nlast of all,,5\n"
ALL = {"streams": "text,image", "branches": "uncond,cond", "num_inference_steps": 3, "top_k": 4, "shard_samples": 2}


def captured(manifest: Path, run: Path, model: Path, **settings: object) -> Job:
    job = prepare(manifest, run, CaptureConfig(model=str(model), **settings))
    begin(job, manifest)
    worker = CaptureWorker(job, 1)
    for task in range(job.layout.n_tasks):
        worker(task)
    return job


@pytest.fixture
def run(manifest_of, tmp_path: Path, tiny_model: Path) -> Path:
    captured(manifest_of(PROMPTS), tmp_path / "run", tiny_model, **ALL, true_cfg_scale=4.0)
    return tmp_path / "run"


def direct_run(folder: Path) -> np.ndarray:
    """Every block's streams of the first task, ``(step, branch, layer, stream, sample, token, channel)``."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    transformer, states = pipeline.transformer, []
    for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
        block.register_forward_hook(lambda module, inputs, output: states.append(np.stack(output)))
    with torch.inference_mode():
        pipeline(
            ["a small red star", "a green heart"],
            negative_prompt=["a large blue ring", ""],
            height=16,
            width=16,
            num_inference_steps=3,
            guidance_scale=3.5,
            true_cfg_scale=4.0,
            max_sequence_length=16,
            generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
        )
    return np.stack(states).reshape(3, 2, 4, *states[0].shape)


def test_every_track_is_stored_as_a_direct_run_has_it(run: Path, tiny_model: Path) -> None:
    states, data = direct_run(tiny_model), open_run(run).activations
    assert data.sizes == {"sample": 3, "step": 3, "layer": 4, "channel": 32, "k": 4, "token": 16}
    for branch, branch_prefix in enumerate(("", "uncond_")):
        for stream, stream_prefix in enumerate(("text_", "")):
            prefix = stream_prefix + branch_prefix
            x = states[:, branch, :, stream].astype(np.float64)  # (step, layer, sample, token, channel)
            x = np.moveaxis(x, 2, 0)
            stored = data.isel(sample=[0, 1])
            np.testing.assert_allclose(stored[f"{prefix}mean_abs"], np.abs(x).mean(3), rtol=1e-5)
            np.testing.assert_array_equal(stored[f"{prefix}max_abs"], np.abs(x).max(3))
            top = np.argsort(-stored[f"{prefix}mean_abs"].values, axis=-1, kind="stable")[..., :4]
            np.testing.assert_array_equal(stored[f"{prefix}massive_channel"], top)
            if not stream_prefix:
                values = np.take_along_axis(np.moveaxis(x, 4, 3), top[..., None], axis=3)
                np.testing.assert_array_equal(stored[f"{prefix}massive_value"], values)
                np.testing.assert_allclose(stored[f"{prefix}token_norm"], np.linalg.norm(x, axis=4), rtol=1e-5)
    assert "text_massive_value" not in data, "text has no grid to keep maps on"


def test_cells_have_a_row_for_every_track(run: Path) -> None:
    opened = open_run(run)
    counted = opened.sql("select stream, branch, count(*) from cells group by all order by stream, branch").fetchall()
    assert counted == [(s, b, 3 * 3 * 4) for s in ("image", "text") for b in ("cond", "uncond")]
    ((score, channels),) = opened.sql(
        "select top_scores[1], top_channels from cells "
        "where sample = 1 and step = 2 and layer = 3 and stream = 'text' and branch = 'uncond'"
    ).fetchall()
    stored = opened.activations.isel(sample=1, step=2, layer=3)
    assert channels == stored["text_uncond_massive_channel"].values.tolist()
    assert score == stored["text_uncond_mean_abs"].values.max()
    by_default = opened.query("massive_channels", min_frequency=0.0, top=0).fetchall()
    assert by_default == opened.query("massive_channels", min_frequency=0.0, top=0, stream="image").fetchall()
    assert by_default != opened.query("massive_channels", min_frequency=0.0, top=0, stream="text").fetchall()


def test_a_run_of_every_track_verifies_and_recomputes(run: Path) -> None:
    assert not verify(open_storage(run)).problems
    assert [each.equal for each in recompute(open_storage(run), 3, 1)] == [True] * 3


def test_what_a_track_says_must_agree_with_its_own_arrays(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The text's scores are changed in memory before the comparison: only the text's cells then disagree.
    found: list[tuple[str, str]] = []

    def planted(layout, score, record, ids, arrays, samples, cells):
        arrays = dict(arrays) | {"text_mean_abs": arrays["text_mean_abs"] + 1}
        found.extend(disagreements(layout, score, record, ids, arrays, samples, cells))
        return iter(())

    monkeypatch.setattr("fewchannels.runs.upkeep.verify.disagreements", planted)
    verify(open_storage(run))
    assert found == [("cells", "top_scores are not the store's text_mean_abs at top_channels")] * 2


@pytest.mark.parametrize("name", ["qwen-image", "lumina2"])
def test_scores_of_texts_of_different_lengths_are_over_each_ones_own_tokens(
    name: str, manifest_of, tmp_path: Path
) -> None:
    # A batch pads its shorter text; alone there is nothing to pad.
    case = next(case for case in CASES if case.name == name)
    case.build().save_pretrained(tmp_path / "model")
    short, long = sorted(case.prompts[1:], key=len)
    height, width = case.square
    manifest = manifest_of(f"prompt,seed\n{short},3\n{long},4\n")
    for run, size in (("together", 2), ("alone", 1)):
        captured(
            manifest,
            tmp_path / run,
            tmp_path / "model",
            **ALL | {"branches": "cond", "batch_size": size, "height": height, "width": width},
            guidance_scale=1.0,
        )
    together, alone = (open_run(tmp_path / run).activations for run in ("together", "alone"))
    for array in ("text_mean_abs", "text_rms", "text_max_abs", "mean_abs"):
        a, b = together[array].values, alone[array].values
        written = ~np.isnan(b)
        assert written.any()
        np.testing.assert_array_equal(np.isnan(a), ~written)
        np.testing.assert_allclose(a[written], b[written], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"branches": "uncond"}, "no unconditional branch would run. Give --true-cfg-scale above 1"),
        ({"branches": "both"}, "cond, uncond"),
        ({"streams": "picture"}, "image, text"),
        ({"true_cfg_scale": 1.0, "branches": "cond,uncond"}, "no unconditional branch would run"),
    ],
)
def test_a_track_that_would_never_run_is_refused(
    settings: dict[str, str], says: str, manifest_of, tmp_path: Path, tiny_model: Path
) -> None:
    path = manifest_of("prompt\na small red star\n")
    with pytest.raises(InputError, match=says):
        prepare(path, tmp_path / "run", CaptureConfig(model=str(tiny_model), **settings))
