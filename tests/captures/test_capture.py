"""Capture without Ray: what a worker stores, against a direct run of the model; what it does when things fail."""

import io
import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from fewchannels import manifest, open_run
from fewchannels.captures.begin import begin, check_place
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.run import check_space
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.attempts import MAX_ATTEMPTS
from fewchannels.cluster.tasks import pending_tasks
from fewchannels.errors import InputError, RunConflictError, StorageError
from fewchannels.runs.ledger import Ledger

PROMPTS = 'prompt,seed\na small red star,3\na large blue ring,4\na green heart,5\n"one, two",6\nlast of all,7\n'


@pytest.fixture
def config(tiny_model: Path) -> CaptureConfig:
    return CaptureConfig(model=str(tiny_model), num_inference_steps=3, top_k=4, batch_size=2, shard_samples=2)


@pytest.fixture
def job(tmp_path: Path, manifest_of, config: CaptureConfig) -> Job:
    return prepare(manifest_of(PROMPTS), tmp_path / "run", config)


def run_all(job: Job, manifest_path: Path, tasks: list[int] | None = None) -> CaptureWorker:
    begin(job, manifest_path)
    worker = CaptureWorker(job, 1)
    for task in pending_tasks(job) if tasks is None else tasks:
        worker(task)
    return worker


def direct_run(
    folder: Path, prompts: list[str], seeds: list[int], **guidance: object
) -> tuple[list[np.ndarray], np.ndarray]:
    """Images and every block's image stream ``(step, layer, sample, token, channel)``, by diffusers alone."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    transformer, states = pipeline.transformer, []
    for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
        block.register_forward_hook(lambda module, inputs, output: states.append(output[1].numpy().copy()))
    with torch.inference_mode():
        images = pipeline(
            prompts,
            height=16,
            width=16,
            num_inference_steps=3,
            guidance_scale=3.5,
            max_sequence_length=16,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            **guidance,
        ).images
    return [np.asarray(image) for image in images], np.stack(states).reshape(3, -1, *states[0].shape)


def test_what_is_stored_equals_a_direct_run_of_the_model(job: Job, tmp_path: Path, tiny_model: Path) -> None:
    run_all(job, tmp_path / "manifest.parquet")
    images, states = direct_run(tiny_model, ["a small red star", "a large blue ring"], [3, 4])
    run = open_run(tmp_path / "run")
    data = run.activations
    assert data.sizes == {"sample": 5, "step": 3, "layer": 4, "channel": 32, "k": 4, "token": 16}
    for sample in range(2):
        np.testing.assert_array_equal(np.asarray(run.image(str(data.sample_id.values[sample]))), images[sample])
        x = states[:, :, sample].astype(np.float64)  # (step, layer, token, channel)
        stored = data.isel(sample=sample)
        np.testing.assert_allclose(stored["mean_abs"], np.abs(x).mean(2), rtol=1e-5)
        np.testing.assert_allclose(stored["abs_mean"], np.abs(x.mean(2)), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(stored["max_abs"], np.abs(states[:, :, sample]).max(2))
        np.testing.assert_allclose(stored["rms"], np.sqrt((x**2).mean(2)), rtol=1e-5)
        np.testing.assert_allclose(stored["token_norm"], np.linalg.norm(x, axis=3), rtol=1e-5)
        for step in range(3):
            for layer in range(4):
                top = np.argsort(-np.abs(states[step, layer, sample]).mean(0), kind="stable")[:4]
                np.testing.assert_array_equal(stored["massive_channel"][step, layer], top)
                np.testing.assert_array_equal(stored["massive_value"][step, layer], states[step, layer, sample].T[top])


def test_only_the_conditional_branch_of_classifier_free_guidance_is_stored(
    manifest_of, config: CaptureConfig, tmp_path: Path, tiny_model: Path
) -> None:
    path = manifest_of("prompt,negative_prompt\na small red star,a large blue ring\na green heart,\n")
    run_all(prepare(path, tmp_path / "run", CaptureConfig(**{**vars(config), "true_cfg_scale": 4.0})), path)
    images, states = direct_run(
        tiny_model,
        ["a small red star", "a green heart"],
        [0, 0],
        true_cfg_scale=4.0,
        negative_prompt=["a large blue ring", ""],
    )
    conditional = states[:, :4]  # each step runs the 4 layers for the prompt, then for the negative prompt
    run = open_run(tmp_path / "run")
    stored = run.activations["max_abs"].values
    np.testing.assert_array_equal(stored, np.abs(conditional).max(axis=3).transpose(2, 0, 1, 3))
    assert not np.array_equal(stored, np.abs(states[:, 4:]).max(axis=3).transpose(2, 0, 1, 3))
    np.testing.assert_array_equal(np.asarray(run.image(str(run.activations.sample_id.values[0]))), images[0])


def test_cells_equal_arithmetic_on_the_direct_run(job: Job, tmp_path: Path, tiny_model: Path) -> None:
    run_all(job, tmp_path / "manifest.parquet", [0])
    _, states = direct_run(tiny_model, ["a small red star", "a large blue ring"], [3, 4])
    rows = open_run(tmp_path / "run").sql("select * from cells order by sample, step, layer").df()
    assert len(rows) == 2 * 3 * 4
    for row in rows.itertuples():
        x = states[row.step, row.layer, row.sample].astype(np.float64)
        score = np.abs(x).mean(0)
        energy, top = (x**2).sum(0), np.argsort(-score, kind="stable")[:4]
        norms = np.sort(np.linalg.norm(x, axis=1))
        assert row.top_channels.tolist() == top.tolist()
        np.testing.assert_allclose(row.top_scores, score[top], rtol=1e-5)
        assert row.median_score == pytest.approx(np.sort(score)[15], rel=1e-5)  # lower of the two in the middle
        assert row.ratio == pytest.approx(score.max() / np.sort(score)[15], rel=1e-5)
        assert row.energy_share == pytest.approx(energy[top].sum() / energy.sum(), rel=1e-5)
        assert row.token_norm_ratio == pytest.approx(norms[-1] / norms[7], rel=1e-5)
        assert row.timestep == pytest.approx(1000 * (1 - row.step / 3), rel=1e-5)
        assert row.sigma == pytest.approx(1 - row.step / 3, rel=1e-5)
        assert (row.stream, row.branch, row.score, row.nonfinite) == ("image", "cond", "mean_abs", 0)


def test_tasks_in_any_order_and_run_again_give_bit_equal_results(
    manifest_of, config: CaptureConfig, tmp_path: Path
) -> None:
    path = manifest_of(PROMPTS)
    results = []
    for name, order in (("one", [0, 1, 2]), ("two", [2, 0, 1, 0])):
        job = prepare(path, tmp_path / name, config)
        run_all(job, path, order)
        run = open_run(tmp_path / name)
        images = run.sql("select sample_id, image from samples order by sample").fetchall()
        results.append((run.activations.load(), images))
    (a, images_a), (b, images_b) = results
    assert a.identical(b)
    assert images_a == images_b
    assert len({sample_id for sample_id, _ in images_a}) == 5


def test_a_shorter_score_list_or_another_score_ranks_by_that_score(
    manifest_of, config: CaptureConfig, tmp_path: Path, tiny_model: Path
) -> None:
    path = manifest_of(PROMPTS)
    job = prepare(path, tmp_path / "run", CaptureConfig(**{**vars(config), "score": "max_abs", "layers": "1,3"}))
    run_all(job, path, [0])
    _, states = direct_run(tiny_model, ["a small red star", "a large blue ring"], [3, 4])
    data = open_run(tmp_path / "run").activations
    assert data.layer.values.tolist() == [1, 3]
    for layer in (1, 3):
        top = np.argsort(-np.abs(states[2, layer, 0]).max(0), kind="stable")[:4]
        assert data["massive_channel"].sel(sample=0, step=2, layer=layer).values.tolist() == top.tolist()


def test_a_finished_task_is_not_pending_and_its_files_are_complete(job: Job, tmp_path: Path) -> None:
    begin(job, tmp_path / "manifest.parquet")
    assert pending_tasks(job) == [0, 1, 2]
    CaptureWorker(job, 1)(1)
    assert pending_tasks(job) == [0, 2]
    record = Ledger(job.storage).records(job.fingerprint)[1]
    assert (record.start, record.stop, record.n_done, record.n_failed, record.attempt) == (2, 4, 2, 0, 1)
    assert not list(Path(job.run).rglob("*.tmp"))


def test_rows_with_their_own_size_steps_and_guidance_get_them(
    manifest_of, config: CaptureConfig, tmp_path: Path
) -> None:
    path = manifest_of("prompt,width,height,steps,guidance\na,,,,\nb,24,16,,\nc,,,2,\nd,,,,1.5\n")
    job = prepare(path, tmp_path / "run", config)
    assert job.layout.n_tokens == 24
    run_all(job, path)
    run = open_run(tmp_path / "run")
    rows = run.sql(
        "select grid_height, grid_width, n_steps, guidance, batch_size from samples order by sample"
    ).fetchall()
    assert rows == [(4, 4, 3, 3.5, 1), (4, 6, 3, 3.5, 1), (4, 4, 2, 3.5, 1), (4, 4, 3, 1.5, 1)]
    assert run.image(str(run.activations.sample_id.values[1])).size == (24, 16)
    norms = run.activations["token_norm"].values
    assert np.isfinite(norms[1]).all()
    assert np.isfinite(norms[0, :, :, :16]).all()
    assert np.isnan(norms[0, :, :, 16:]).all()
    assert np.isnan(norms[2, 2]).all()
    assert np.isfinite(norms[2, :2, :, :16]).all()
    cells = run.sql("select sample, count(*), max(nonfinite) from cells group by sample order by sample").fetchall()
    assert cells == [(0, 12, 0), (1, 12, 0), (2, 8, 0), (3, 12, 0)]


def test_a_sample_that_fails_fails_alone_and_is_tried_again_next_time(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(job, tmp_path / "manifest.parquet")
    worker = CaptureWorker(job, 1)
    generate = worker.sampler.generate

    def fails_on_rings(samples, settings):
        images = generate(samples, settings)  # the taps have recorded by now
        if any("ring" in sample.prompt for sample in samples):
            raise torch.OutOfMemoryError("planted")
        return images

    with monkeypatch.context() as patch:
        patch.setattr(worker.sampler, "generate", fails_on_rings)
        record = worker(0)
    assert (record.n_done, record.n_failed) == (1, 1)
    run = open_run(job.run)
    rows = run.sql("select status, error, image is null from samples order by sample").fetchall()
    assert rows == [("done", None, False), ("failed", "OutOfMemoryError: planted", True)]
    assert np.isnan(run.activations["mean_abs"].values[1]).all()
    assert np.isfinite(run.activations["mean_abs"].values[0]).all()
    assert run.sql("select distinct sample from cells").fetchall() == [(0,)]
    assert pending_tasks(job) == [0, 1, 2]
    assert worker(0).n_failed == 0
    assert np.isfinite(open_run(job.run).activations["mean_abs"].values[1]).all()


def test_non_finite_hidden_states_are_recorded_counted_and_called_a_failure(job: Job, tmp_path: Path) -> None:
    begin(job, tmp_path / "manifest.parquet")
    worker = CaptureWorker(job, 1)
    with torch.no_grad():
        worker.sampler.pipeline.transformer.transformer_blocks[1].ff.net[2].bias[3] = torch.inf
    assert worker(0).n_failed == 2
    run = open_run(job.run)
    (error,) = run.sql("select error from samples where sample = 0").fetchone()
    # Step 0 is bad from layer 1 on (3 cells); from then on the latents are bad too (2 steps x 4 layers).
    assert error == "non-finite hidden states in 11 of the recorded cells"
    bad = run.sql("select layer, min(nonfinite) from cells where step = 0 and sample = 0 group by layer order by layer")
    assert bad.fetchall() == [(0, 0), (1, 16), (2, 16), (3, 16)]
    assert np.isinf(run.activations["max_abs"].sel(sample=0, step=0, layer=1, channel=3))


def test_a_task_that_keeps_failing_is_given_up_after_bounded_attempts(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(job, tmp_path / "manifest.parquet")
    worker = CaptureWorker(job, 1)
    monkeypatch.setattr("fewchannels.captures.worker.tables_of", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker(0)
    failures = sorted((Path(job.run) / "ledger" / "failed").iterdir())
    assert [path.name for path in failures] == [f"00000.{i + 1}.json" for i in range(MAX_ATTEMPTS)]
    assert "ZeroDivisionError" in json.loads(failures[0].read_text())["error"]
    assert pending_tasks(job) == [0, 1, 2]
    monkeypatch.undo()
    assert worker(0).attempt == MAX_ATTEMPTS + 1


def test_a_full_disk_stops_at_once_and_the_run_can_go_on(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(job, tmp_path / "manifest.parquet")
    worker = CaptureWorker(job, 1)

    def full(*arguments) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="No space left on device"):
            worker(0)
    assert pending_tasks(job) == [0, 1, 2]
    worker(0)
    assert pending_tasks(job) == [1, 2]


def test_a_run_that_cannot_fit_on_the_disk_is_refused_before_it_starts(job: Job, monkeypatch, tmp_path: Path) -> None:
    begin(job, tmp_path / "manifest.parquet")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": job.layout.expected_bytes - 1})())
    with pytest.raises(StorageError, match=r"3 tasks will write about .* Free space"):
        check_space(job, [0, 1, 2])


def test_another_config_or_manifest_in_the_same_run_is_refused_naming_the_fields(
    job: Job, tmp_path: Path, manifest_of, config: CaptureConfig
) -> None:
    begin(job, tmp_path / "manifest.parquet")
    assert begin(job, tmp_path / "manifest.parquet") is True
    other = prepare(tmp_path / "manifest.parquet", job.run, CaptureConfig(**{**vars(config), "top_k": 5}))
    with pytest.raises(RunConflictError, match=r"config.top_k: 4 -> 5"):
        begin(other, tmp_path / "manifest.parquet")
    reordered = manifest_of("prompt,seed\nanother,1\n" + PROMPTS.removeprefix("prompt,seed\n"), "reordered")
    with pytest.raises(RunConflictError, match=r"\n  manifest: the run's 5 samples are not the first 5"):
        begin(prepare(reordered, job.run, config), reordered)
    shorter = manifest_of("prompt,seed\na small red star,3\n", "shorter")
    with pytest.raises(RunConflictError, match="has 5 samples, but this manifest has only 1"):
        begin(prepare(shorter, job.run, config), shorter)


def test_a_folder_with_other_files_is_refused(job: Job, tmp_path: Path) -> None:
    Path(job.run).mkdir()
    (Path(job.run) / "thesis.tex").write_text("x")
    with pytest.raises(RunConflictError, match=r"thesis\.tex"):
        check_place(job)


def test_a_run_whose_beginning_was_interrupted_begins_again(job: Job, tmp_path: Path) -> None:
    begin(job, tmp_path / "manifest.parquet")
    (Path(job.run) / "run.json").unlink()
    assert begin(job, tmp_path / "manifest.parquet") is False
    CaptureWorker(job, 1)(0)
    assert pending_tasks(job) == [1, 2]


def test_the_same_weights_in_another_folder_continue_the_run(
    job: Job, tmp_path: Path, tiny_model: Path, config: CaptureConfig
) -> None:
    begin(job, tmp_path / "manifest.parquet")
    moved = tmp_path / "moved"
    moved.symlink_to(tiny_model)
    again = prepare(tmp_path / "manifest.parquet", job.run, CaptureConfig(**{**vars(config), "model": str(moved)}))
    assert again.fingerprint == job.fingerprint


def test_other_weights_make_another_fingerprint(
    job: Job, tmp_path: Path, tiny_model: Path, config: CaptureConfig
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(tiny_model, changed)
    weights = changed / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    other = prepare(tmp_path / "manifest.parquet", job.run, CaptureConfig(**{**vars(config), "model": str(changed)}))
    assert other.fingerprint != job.fingerprint
    assert other.identity["weights"] != job.identity["weights"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"top_k": -1}, "top_k is -1; it must be 0 to 1,000,000"),
        ({"value_precision": "float16"}, "Did you mean 'bfloat16'"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan; it must be a finite number"),
        ({"score": "mean"}, "Did you mean 'mean_abs'"),
        ({"dtype": "float61"}, "Did you mean 'float16'"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_the_rule(setting: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        CaptureConfig(**setting)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "dmeo"}, "unknown model 'dmeo'. Did you mean 'demo'"),
        ({"model": "/tmp"}, "has no model_index.json"),
        ({"layers": "9"}, "layer 9 does not exist; the valid ones are 0 to 3"),
        ({"steps": "3"}, "step 3 does not exist; the valid ones are 0 to 2"),
        ({"top_k": 33}, "top_k is 33, but .* has only 32 channels"),
        ({"height": 18}, "height is 18 pixels; .* needs multiples of 4"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_anything_is_written(
    change: dict, says: str, tmp_path: Path, manifest_of, config: CaptureConfig
) -> None:
    with pytest.raises(InputError, match=says):
        prepare(manifest_of(PROMPTS), tmp_path / "run", CaptureConfig(**{**vars(config), **change}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "prompt,negative_prompt\na,ugly\n",
            "negative prompts, which would have no effect. Give --true-cfg-scale above 1",
        ),
        ("prompt,reference\na,cat.png\n", "FluxPipeline uses only text"),
        ("prompt,steps\na,2\nb,3\n", "the samples have different numbers of steps"),
        ("prompt,width\na,17\n", "width is 17 pixels"),
    ],
)
def test_a_manifest_that_the_capture_cannot_honour_is_refused(
    text: str, says: str, tmp_path: Path, manifest_of, config: CaptureConfig
) -> None:
    settings = CaptureConfig(**{**vars(config), "steps": "last" if "steps" in text else "all"})
    with pytest.raises(InputError, match=says):
        prepare(manifest_of(text), tmp_path / "run", settings)


def test_the_samples_table_tells_cut_prompts_and_holds_images(
    manifest_of, config: CaptureConfig, tmp_path: Path
) -> None:
    path = manifest_of(f"prompt\na small red star\n{'a ' * 40}\n")
    run_all(prepare(path, tmp_path / "run", config), path)
    parts = str(tmp_path / "run" / "samples" / "*.parquet")
    rows = duckdb.sql(f"select prompt_tokens, prompt_truncated, image, seed from '{parts}' order by sample").fetchall()
    assert [(row[0], row[1]) for row in rows] == [(5, False), (41, True)]
    assert Image.open(io.BytesIO(rows[0][2])).size == (16, 16)
    assert manifest.Manifest.read(tmp_path / "run" / "manifest.parquet").n_samples == 2
