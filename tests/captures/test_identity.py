"""What decides a run's data is in its identity: what a model's files hold, and images that the manifest names."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from fewchannels import open_run
from fewchannels.analyses.comparison.pairing import side_by_side
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.recompute import recompute
from fewchannels.captures.run import capture
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cli import app
from fewchannels.cluster.shares import Pool
from fewchannels.cluster.tasks import pending_tasks
from fewchannels.errors import InputError, RunConflictError
from fewchannels.models.source import check_files, file_digests, find
from fewchannels.runs import documents, provenance
from fewchannels.runs.identity import fingerprint
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.storage import open_storage
from fewchannels.runs.upkeep.merge import merge

ALONE = Pool(1, 0, 1)
PROMPTS = "prompt,seed\na small red star,3\na large blue ring,4\n"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def config(model: Path, **more: Any) -> CaptureConfig:
    return CaptureConfig(model=str(model), num_inference_steps=2, top_k=2, shard_samples=2, **more)


def captured(manifest: Path, run: Path, how: CaptureConfig) -> Job:
    """A run of which all is done, without Ray."""
    job = prepare(manifest, run, how)
    begin(job, manifest)
    worker = CaptureWorker(job, 1)
    for task in pending_tasks(job):
        worker(task)
    return job


def as_bin(model: Path, times: float = 1.0) -> None:
    """The transformer's weights, pickled as older checkpoints have them."""
    folder = model / "transformer"
    path = folder / "diffusion_pytorch_model.safetensors"
    kept = folder / "diffusion_pytorch_model.bin"
    weights = load_file(path) if path.exists() else torch.load(kept, weights_only=True)
    path.unlink(missing_ok=True)
    torch.save({name: times * value for name, value in weights.items()}, kept)


def edited(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


CHANGES: dict[str, Callable[[Path], None]] = {
    "transformer/diffusion_pytorch_model.bin": lambda model: as_bin(model, 1.3),
    "scheduler/scheduler_config.json": lambda model: edited(model / "scheduler/scheduler_config.json", shift=9.0),
    "tokenizer_2/tokenizer.json": lambda model: edited(model / "tokenizer_2/tokenizer.json", version="1.0 "),
    "text_encoder_2/config.json": lambda model: edited(model / "text_encoder_2/config.json", num_heads=1),
    "vae/config.json": lambda model: edited(model / "vae/config.json", scaling_factor=2.0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_goes_on_with_the_very_files_it_was_begun_with(model: Path, manifest_of, tmp_path: Path, name) -> None:
    as_bin(model)
    manifest = manifest_of(PROMPTS)
    captured(manifest, tmp_path / "run", config(model))
    assert begin(prepare(manifest, tmp_path / "run", config(model)), manifest)
    CHANGES[name](model)
    with pytest.raises(RunConflictError, match=rf"files\.{name}: '[0-9a-f]{{16}}' -> '[0-9a-f]{{16}}'"):
        begin(prepare(manifest, tmp_path / "run", config(model)), manifest)
    with pytest.raises(RunConflictError, match=rf"files\.{name}"):
        recompute(open_storage(tmp_path / "run"), 1, 1)


def test_files_that_loading_does_not_read_are_in_no_identity(model: Path) -> None:
    before = file_digests(find(str(model)))
    (model / "README.md").write_text("a card")
    (model / "transformer" / ".gitattributes").write_text("x")
    (model / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"beside safetensors")
    (model / "transformer" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant")
    (model / "text_encoder" / "flax_model.msgpack").write_bytes(b"x")
    (model / "samples").mkdir()
    (model / "samples" / "config.json").write_text("{}")
    assert file_digests(find(str(model))) == before


def test_a_model_without_its_weights_is_refused_before_anything_is_loaded(model: Path, manifest_of, tmp_path) -> None:
    folder, manifest = model / "transformer", manifest_of(PROMPTS)
    whole = folder / "diffusion_pytorch_model.safetensors"
    whole.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(
        InputError,
        match=r"no transformer/diffusion_pytorch_model.safetensors, only those of the variant 'fp16',",
    ):
        prepare(manifest, tmp_path / "run", config(model))
    first, second = (f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2))
    (folder / "diffusion_pytorch_model.fp16.safetensors").rename(folder / first)
    index = {"weight_map": {"a": first, "b": second}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"lacks 1 of the 2 files that .*, such as '.*-00002-of-"):
        prepare(manifest, tmp_path / "run", config(model))
    (folder / second).write_bytes(b"")
    check_files(find(str(model)), config(model))


def drawn(path: Path, seed: int) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    return path


def test_one_name_is_one_image_in_a_run(model: Path, manifest_of, tmp_path: Path) -> None:
    first, second = (drawn(tmp_path / f"{i}.png", i) for i in range(2))
    row = f"prompt,seed,reference\na small red star,3,{first}\n"
    run, how = tmp_path / "run", config(model, from_images=True)
    captured(manifest_of(row), run, how)
    longer = manifest_of(f"{row}a blue ring,4,{second}\n", name="longer")
    drawn(first, 7)
    with pytest.raises(RunConflictError, match=r"have changed, such as '.*0\.png'"):
        capture(prepare(longer, run, how), longer, ALONE)
    with pytest.raises(RunConflictError, match=r"0\.png"):
        recompute(open_storage(run), 1, 1)
    drawn(first, 0)
    captured(longer, run, how)
    outcome = capture(prepare(longer, run, how), longer, ALONE)
    assert (outcome.n_done, outcome.notes) == (2, ())
    (record,) = Ledger(open_storage(run)).records(outcome_fingerprint(run)).values()
    assert set(record.files) == {str(first), str(second)}, "a task that grew names the files of all its samples"


def outcome_fingerprint(run: Path) -> str:
    return str(open_run(run).description["fingerprint"])


def older(run: Path) -> None:
    """Make of a run what an earlier version would have left: without digests of files, versions and threads."""
    description = documents.from_bytes((run / "run.json").read_bytes())
    del description["identity"]["files"]
    description["fingerprint"] = fingerprint(description["identity"])
    (run / "run.json").write_bytes(documents.to_bytes(description))
    for path in (run / "ledger").glob("*.json"):  # none names a file
        record = documents.from_bytes(path.read_bytes()) | {"fingerprint": description["fingerprint"]}
        del record["computed_by"]
        path.write_bytes(documents.to_bytes(record))


def test_a_run_of_an_earlier_version_is_resumed_with_a_note(model: Path, manifest_of, tmp_path: Path) -> None:
    manifest, run = manifest_of(PROMPTS), tmp_path / "run"
    captured(manifest, run, config(model))
    older(run)
    was = outcome_fingerprint(run)
    job = prepare(manifest, run, config(model))
    assert (job.fingerprint, job.unchecked) == (was, ("files",))
    seen: list[str] = []
    outcome = capture(job, manifest, ALONE, on_note=seen.append)
    assert (outcome.n_resumed, outcome.n_done) == (2, 2)
    assert seen == list(outcome.notes)
    assert "created by an earlier version, which recorded no digest of files" in seen[0]
    assert open_run(run).sql("select computed_by from tasks").fetchall() == [(None,)]
    with pytest.raises(RunConflictError, match=r"config\.top_k: 2 -> 1"):
        begin(prepare(manifest, run, replace(config(model), top_k=1)), manifest)


def test_versions_and_threads_are_kept_for_each_task_and_a_change_is_said(
    model: Path, manifest_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, longer = tmp_path / "run", manifest_of(f"{PROMPTS}a,5\nb,6\n", name="longer")
    now = provenance.versions()
    before = now | {"torch": "1.0"}
    monkeypatch.setattr(provenance, "versions", lambda: before)
    captured(manifest_of(PROMPTS), run, config(model))
    monkeypatch.setattr(provenance, "versions", lambda: now)
    captured(longer, run, config(model))
    asked = "select computed_by like '%torch 1.0,%', computed_by like '%threads 1%', count(*) from tasks group by all"
    assert sorted(open_run(run).sql(asked).fetchall()) == [(False, True, 1), (True, True, 1)]
    assert open_run(run).description["versions"]["torch"] == "1.0", "those that began it"
    outcome = capture(prepare(longer, run, config(model)), longer, Pool(1, 0, 2))
    assert outcome.notes == (
        "2 finished tasks ran with 1 CPU threads; it is 2 now",
        f"1 finished task ran with torch 1.0; it is {now['torch']} now",
    )
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["runs", "show", str(run)]).output
    assert "torch 1.0," in shown
    assert shown.count("1 task:") == 2


def test_a_task_of_two_versions_names_both() -> None:
    earlier = Record(0, 0, 1, "0" * 16, 1, 1, 0, 0.0, "", "here", "cpu", {}, {"torch": "1.0", "threads": "1"}, {})
    found = provenance.computed_by(2, earlier)
    assert (found["torch"], found["threads"]) == (f"1.0, {provenance.versions()['torch']}", "1, 2")
    assert found["numpy"] == f"not recorded, {provenance.versions()['numpy']}"


def test_a_task_that_tritons_kernels_reduced_names_their_version(
    model: Path, manifest_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, longer = tmp_path / "run", manifest_of(f"{PROMPTS}a,5\nb,6\n", name="longer")
    monkeypatch.setattr("fewchannels.captures.worker.version_on", lambda device: f"3.7.1 on {device}")
    captured(manifest_of(PROMPTS), run, config(model))
    monkeypatch.undo()
    captured(longer, run, config(model))
    records = Ledger(open_storage(run)).records(outcome_fingerprint(run)).values()
    found = [record.computed_by.get("triton") for record in records]
    assert found[0] == "3.7.1 on cpu"
    assert found[-1] is None, "a run is continued by either"


def test_a_samples_data_do_not_depend_on_its_batch_on_a_cpu(model: Path, manifest_of, tmp_path: Path) -> None:
    rows = "".join(f"a {colour} star,{seed}\n" for seed, colour in enumerate(["red", "blue", "green", "white"] * 4))
    manifest, runs = manifest_of(f"prompt,seed\n{rows}"), []
    for size in (1, 16):
        how = replace(config(model), batch_size=size, shard_samples=16)
        captured(manifest, tmp_path / f"run{size}", how)
        runs.append(open_run(tmp_path / f"run{size}"))
    alone, together = (run.activations.load() for run in runs)
    assert [run.sql("select distinct batch_size from samples").fetchall() for run in runs] == [[(1,)], [(16,)]]
    for name, values in together.data_vars.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, alone[name], rtol=2e-5, atol=1e-5, err_msg=str(name))
    images = [[np.asarray(run.image(str(i))).astype(int) for i in alone.sample_id.values] for run in runs]
    assert np.abs(np.stack(images[0]) - np.stack(images[1])).max() <= 1


def test_runs_of_two_versions_are_merged_and_compared_by_what_both_say(model: Path, manifest_of, tmp_path) -> None:
    first, second, out = (tmp_path / name for name in ("first", "second", "out"))
    captured(manifest_of(PROMPTS), first, config(model))
    both = manifest_of(f"{PROMPTS}a heart,5\n", name="both")
    captured(both, second, config(model))
    older(first)
    assert side_by_side(str(first), str(second)).settings == ()
    for sources in ([first, second], [second, first]):
        assert merge([open_storage(path) for path in sources], open_storage(out))["n_done"] == 3
        assert "files" not in open_run(out).description["identity"]
        assert open_run(out).sql("select count(*) from samples").fetchall() == [(3,)]
        assert prepare(both, out, config(model)).fingerprint == outcome_fingerprint(out) == outcome_fingerprint(first)
        shutil.rmtree(out)
    edited(model / "scheduler" / "scheduler_config.json", shift=9.0)
    third = tmp_path / "third"
    captured(both, third, config(model))
    with pytest.raises(RunConflictError, match=r"files\.scheduler/scheduler_config\.json"):
        merge([open_storage(second), open_storage(third)], open_storage(out))
    assert len(side_by_side(str(second), str(third)).settings) == 1


def test_runs_in_which_one_name_is_two_images_are_not_merged(model: Path, manifest_of, tmp_path: Path) -> None:
    image, how = tmp_path / "0.png", config(model, from_images=True)
    for seed, name in enumerate(("first", "second")):
        drawn(image, seed)
        captured(manifest_of(f"prompt,seed,reference\na,{seed},{image}\n", name=name), tmp_path / name, how)
    with pytest.raises(RunConflictError, match=r"0\.png' is not the same file in all runs"):
        merge([open_storage(tmp_path / name) for name in ("first", "second")], open_storage(tmp_path / "out"))
