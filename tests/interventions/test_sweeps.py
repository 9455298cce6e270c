"""Sweeps from a manifest to the table of edits: what they are compared with, resuming, failing alone, refusing."""

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import metric_models
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fewchannels import manifest
from fewchannels.captures.config import CaptureConfig
from fewchannels.cli import app
from fewchannels.cluster.shares import Pool
from fewchannels.cluster.tasks import pending_tasks
from fewchannels.errors import InputError, RunConflictError, StorageError
from fewchannels.interventions import sweep as sweep_module
from fewchannels.interventions.begin import begin_sweep, check_place
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.estimate import cost
from fewchannels.interventions.pairs import PairRule
from fewchannels.interventions.run import run_sweep
from fewchannels.interventions.sweep import Prepared, SweepSettings, prepare_sweep
from fewchannels.interventions.worker import SweepWorker
from fewchannels.models.generation import Settings
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.upkeep.verify import verify
from fewchannels.tables import from_parquet, to_parquet

BLENDS = Grid(("prompt", "latents", "pixels"), (0.0, 0.5, 1.0), ("all",), scores_from=("source",), steps=("last",))
ZERO = Grid(("zero",), (1.0,), ("top",), k=(4,))
MOVES = Grid(("transport",), (0.5,), ("top", "all"), k=(4,), scores_from=("source",))


@pytest.fixture
def world(tmp_path: Path) -> Path:
    manifest.ingest(["demo:5"], tmp_path / "world.parquet", seeds=[0])
    return tmp_path / "world.parquet"


@pytest.fixture
def generation(tiny_model: Path) -> CaptureConfig:
    return CaptureConfig(model=str(tiny_model), num_inference_steps=3, batch_size=8)


def begun(world: Path, place: Path, settings: SweepSettings) -> Prepared:
    prepared = prepare_sweep(world, place, settings)
    begin_sweep(prepared)
    return prepared


def rows_of(prepared: Prepared, task: int) -> list[dict]:
    return from_parquet(prepared.sweep.storage.get(f"edits/{task:05d}.parquet")).to_pylist()


def pixels(row: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["image"])))


def test_baselines_reach_from_the_target_to_the_source(world: Path, generation: CaptureConfig, tmp_path: Path) -> None:
    settings = SweepSettings("text", replace(generation, batch_size=16), (BLENDS,), pairs=PairRule(n=2))
    prepared = begun(world, tmp_path / "sweep", settings)
    SweepWorker(prepared.sweep, 1)(0)
    rows = [row for row in rows_of(prepared, 0) if row["item"] == 0]
    ends = {row["role"]: pixels(row) for row in rows if row["role"] != "edited"}
    edits = {(row["action"], row["amount"]): pixels(row) for row in rows if row["role"] == "edited"}
    assert len(edits) == 9
    for action in ("prompt", "latents", "pixels"):
        assert np.array_equal(edits[action, 0.0], ends["undisturbed"]), action
        # Rows of one batch may differ in the last bits of what the same arithmetic says of them.
        assert np.abs(edits[action, 1.0].astype(int) - ends["source"]).max() <= 1, action
        assert np.abs(edits[action, 0.5].astype(int) - ends["source"]).max() >= 3, action
    half = (ends["undisturbed"].astype(float) + ends["source"]) / 2
    assert np.abs(edits["pixels", 0.5] - half).max() <= 1


def test_a_tasks_ids_are_those_of_its_items(world: Path, generation: CaptureConfig, tmp_path: Path) -> None:
    settings = SweepSettings("text", generation, (MOVES,), pairs=PairRule(n=3))
    sweep = replace(begun(world, tmp_path / "pairs", settings).sweep, shard_items=2)
    pairs = pd.read_parquet(tmp_path / "pairs" / "pairs.parquet")["pair_id"].tolist()
    assert [sweep.ids(task) for task in range(sweep.n_tasks)] == [pairs[:2], pairs[2:]]
    samples = pd.read_parquet(world)["sample_id"].tolist()
    settings = SweepSettings("disruption", generation, (ZERO,))
    sweep = replace(begun(world, tmp_path / "samples", settings).sweep, shard_items=2)
    assert [sweep.ids(task) for task in range(sweep.n_tasks)] == [samples[:2], samples[2:4], samples[4:]]


def test_an_image_as_the_source_is_noised_to_every_step(world: Path, generation: CaptureConfig, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(drawn).save(tmp_path / "picture.png")
    (tmp_path / "refs.csv").write_text(f"prompt,reference\nan image,{tmp_path / 'picture.png'}\n")
    manifest.ingest([tmp_path / "refs.csv"], tmp_path / "refs.parquet")
    settings = SweepSettings("image", generation, (MOVES,), pairs=PairRule(n=3), references=tmp_path / "refs.parquet")
    prepared = begun(world, tmp_path / "sweep", settings)
    worker = SweepWorker(prepared.sweep, 1)
    worker(0)
    rows = rows_of(prepared, 0)
    source = next(row for row in rows if row["role"] == "source")
    assert (source["source_prompt"], source["reference"]) == ("an image", str(tmp_path / "picture.png"))
    # The way there is the one of a capture from images, which has its own tests.
    plain = prepared.sweep.generation.settings(worker.items(range(1))[0].target)
    alone = Settings(
        plain.height, plain.width, 3, plain.guidance, 1.0, image=str(tmp_path / "picture.png"), only_steps=(0, 1, 2)
    )
    sample = replace(worker.items(range(1))[0].target, prompt="an image")
    with torch.inference_mode():
        (expected,) = worker.sampler.generate([sample], alone)
    assert np.abs(pixels(source).astype(int) - np.asarray(expected)).max() <= 1
    edits = [row for row in rows if row["role"] == "edited" and row["item"] == 0]
    undisturbed = next(row for row in rows if row["role"] == "undisturbed" and row["item"] == 0)
    assert all((pixels(row) != pixels(undisturbed)).any() for row in edits)


def test_a_sweep_that_another_version_began_is_resumed_and_one_of_other_rows_is_not(
    world: Path, generation: CaptureConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other words in a schema, or another pyarrow, are other bytes of the same rows."""
    settings = SweepSettings("text", generation, (MOVES,), pairs=PairRule(3))
    with monkeypatch.context() as earlier:
        earlier.setattr(sweep_module, "to_parquet", lambda name, columns: in_other_words(to_parquet(name, columns)))
        before = begun(world, tmp_path / "sweep", settings)
    again = prepare_sweep(world, tmp_path / "sweep", settings)
    assert again.sweep.fingerprint == before.sweep.fingerprint
    assert begin_sweep(again)
    elsewhere = prepare_sweep(world, tmp_path / "elsewhere", settings)
    assert elsewhere.sweep.fingerprint != before.sweep.fingerprint, "the bytes differ"
    other = replace(settings, pairs=PairRule(3, seed=1))
    with pytest.raises(RunConflictError, match="pairs: "):
        begin_sweep(prepare_sweep(world, tmp_path / "sweep", other))


def in_other_words(parquet: Any) -> bytes:
    """The same rows with other metadata."""
    table, buffer = from_parquet(parquet), io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"about": "another version's words"}), buffer)
    return buffer.getvalue()


def test_a_sweep_resumes_where_it_stopped_and_its_images_are_the_same(
    world: Path, generation: CaptureConfig, tmp_path: Path
) -> None:
    settings = SweepSettings("disruption", generation, (Grid(k=(2, 4, 8), trials=2),))
    one, other = (begun(world, tmp_path / name, settings) for name in ("one", "other"))
    assert one.sweep.n_tasks > 1
    worker = SweepWorker(one.sweep, 1)
    worker(1)
    assert pending_tasks(one.sweep) == [task for task in range(one.sweep.n_tasks) if task != 1]
    for task in pending_tasks(one.sweep):
        worker(task)
    fresh = SweepWorker(other.sweep, 1)
    for task in range(other.sweep.n_tasks):
        fresh(task)
    for task in range(other.sweep.n_tasks):
        ours, theirs = rows_of(one, task), rows_of(other, task)
        for row in (*ours, *theirs):
            row["seconds"] = None
        assert ours == theirs
    n_items = manifest.Manifest.read(world).n_samples
    with Catalog(tmp_path / "one") as catalog:
        assert catalog.sql("select n_tasks_done, n_edits from sweep").fetchone() == (
            one.sweep.n_tasks,
            n_items * len(one.sweep.conditions),
        )
        assert catalog.sql("select count(*) from edits where role = 'edited'").fetchone() == (one.sweep.n_edits,)
        same = "select count(*) from edits join conditions using (condition_id) where edits.k != conditions.k"
        assert catalog.sql(same).fetchone() == (0,)
        with pytest.raises(InputError, match=r"reads a run, but .* is a sweep"):
            catalog.query("massive_channels")


def test_an_item_fails_alone_and_its_task_is_tried_again(
    world: Path, generation: CaptureConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SweepSettings("disruption", generation, (Grid(k=(2,), selections=("top",)),))
    prepared = begun(world, tmp_path / "sweep", settings)
    worker = SweepWorker(prepared.sweep, 1)
    generate, bad = worker.sampler.generate, worker.items(range(3))[2].target.prompt

    def fails(samples, settings):
        if any(sample.prompt == bad for sample in samples):
            raise ValueError("no such thing")
        return generate(samples, settings)

    with monkeypatch.context() as patch:
        patch.setattr(worker.sampler, "generate", fails)
        record = worker(0)
    assert (record.n_done, record.n_failed) == (4, 1)
    failed = [row for row in rows_of(prepared, 0) if row["status"] == "failed"]
    assert {row["prompt"] for row in failed} == {bad}
    assert {row["error"] for row in failed} == {"ValueError: no such thing"}
    assert {row["role"] for row in failed} == {"undisturbed", "edited"}
    assert pending_tasks(prepared.sweep) == [0]
    assert worker(0).n_failed == 0
    assert pending_tasks(prepared.sweep) == []


def test_channels_of_a_run_are_those_of_its_mean_scores(world: Path, tmp_path: Path, tiny_model: Path) -> None:
    from fewchannels.captures.begin import begin
    from fewchannels.captures.job import prepare
    from fewchannels.captures.worker import CaptureWorker
    from fewchannels.runs.arrays import read

    config = CaptureConfig(model=str(tiny_model), num_inference_steps=3, top_k=2, shard_samples=2)
    job = prepare(world, tmp_path / "run", config)
    begin(job, world)
    capture = CaptureWorker(job, 1)
    for task in range(job.layout.n_tasks):
        capture(task)
    grid = Grid(selections=("top",), k=(3,), scores_from=("run",), layers=("each",))
    settings = SweepSettings(
        "disruption", replace(config, top_k=0), (grid,), channels_run=str(tmp_path / "run"), score="rms"
    )
    prepared = prepare_sweep(world, tmp_path / "sweep", settings)
    ranks = from_parquet(prepared.tables["channel_ranks.parquet"]).to_pandas()
    scores = read(job.storage, ["rms"], 0, 5)["rms"].astype(np.float64).mean(axis=(0, 1))
    for layer in range(scores.shape[0]):
        own = ranks[ranks["layer"] == layer].sort_values("rank")
        assert own["channel"].tolist() == np.argsort(-scores[layer], kind="stable").tolist()
    with pytest.raises(InputError, match="no run is given"):
        prepare_sweep(world, tmp_path / "sweep", replace(settings, channels_run=None))


def test_a_place_with_another_sweep_or_other_files_is_refused(
    world: Path, generation: CaptureConfig, tmp_path: Path
) -> None:
    settings = SweepSettings("disruption", generation, (Grid(k=(2,)),))
    begun(world, tmp_path / "sweep", settings)
    other = prepare_sweep(world, tmp_path / "sweep", replace(settings, score="rms"))
    with pytest.raises(RunConflictError, match="score: 'mean_abs' -> 'rms'"):
        begin_sweep(other)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "notes.txt").write_text("mine")
    with pytest.raises(RunConflictError, match=r"contains no sweep but other files \(notes.txt\)"):
        check_place(prepare_sweep(world, tmp_path / "else", settings))


def test_what_a_sweep_is_can_be_shown_and_its_bytes_verified(
    world: Path, generation: CaptureConfig, tmp_path: Path
) -> None:
    prepared = begun(world, tmp_path / "sweep", SweepSettings("disruption", generation, (Grid(k=(2,)),)))
    worker = SweepWorker(prepared.sweep, 1)
    worker(0)
    shown = json.loads(CliRunner().invoke(app, ["runs", "show", str(tmp_path / "sweep"), "--json"]).stdout)
    assert (shown["n_done"], shown["n_items"], shown["n_edits"]) == (5, 5, prepared.sweep.n_edits)
    checked = verify(prepared.sweep.storage)
    assert (checked.problems, checked.n_recorded, checked.unrecorded) == ((), 1, ())
    part = tmp_path / "sweep" / "edits" / "00000.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    found = verify(prepared.sweep.storage)
    assert [(problem.key, problem.task, problem.kind) for problem in found.problems] == [
        ("edits/00000.parquet", 0, "checksum")
    ]
    result = CliRunner().invoke(app, ["runs", "verify", str(tmp_path / "sweep"), "--repair"])
    assert isinstance(result.exception, StorageError)
    assert pending_tasks(prepared.sweep) == [0]
    worker(0)
    assert verify(prepared.sweep.storage).problems == ()


def test_pairs_that_are_not_each_others_counterparts_are_refused(
    tiny_model: Path, generation: CaptureConfig, manifest_of, tmp_path: Path
) -> None:
    table = manifest_of("prompt,seed,steps\na star,0,3\na ring,0,2\n")
    with pytest.raises(
        InputError, match=r"pair 0: target .* and source .* differ in settings that one batch must share: steps"
    ):
        prepare_sweep(table, tmp_path / "sweep", SweepSettings("text", generation, (MOVES,)))


def test_kinds_and_actions_belong_together(world: Path, generation: CaptureConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="actions of a sweep of kind 'disruption' must be zero"):
        prepare_sweep(world, tmp_path / "sweep", SweepSettings("disruption", generation, (MOVES,)))
    with pytest.raises(InputError, match="actions of a sweep of kind 'text' must be transport"):
        prepare_sweep(world, tmp_path / "sweep", SweepSettings("text", generation, (Grid(),)))
    inside = Grid(tokens=("inside",))
    with pytest.raises(InputError, match="5 of 5 items have no mask"):
        prepare_sweep(world, tmp_path / "sweep", SweepSettings("disruption", generation, (inside,)))


def test_the_cost_counts_every_row(world: Path, generation: CaptureConfig, tmp_path: Path) -> None:
    settings = SweepSettings("disruption", generation, (Grid(k=(2, 4), trials=2),))
    prepared = prepare_sweep(world, tmp_path / "sweep", settings)
    expected = cost(prepared, 1, 1)
    assert not (tmp_path / "sweep").exists()
    begin_sweep(prepared)
    worker = SweepWorker(prepared.sweep, 1)
    generated: list[int] = []
    generate = worker.sampler.generate
    worker.sampler.generate = lambda samples, settings: (generated.append(len(samples)), generate(samples, settings))[1]
    for task in range(prepared.sweep.n_tasks):
        worker(task)
    assert (expected.n_batches, expected.n_rows) == (len(generated), sum(generated))
    n_bytes = sum(path.stat().st_size for path in (tmp_path / "sweep" / "edits").iterdir())
    assert expected.total_bytes == pytest.approx(n_bytes, rel=0.3)


def test_guided_images_differ_from_unguided_ones_and_share_their_latents(
    world: Path, generation: CaptureConfig, tmp_path: Path
) -> None:
    guides = Grid(actions=("guide",), amounts=(0.0, 2.0), selections=("top",), k=(4,))
    prepared = begun(world, tmp_path / "sweep", SweepSettings("disruption", generation, (guides,)))
    worker = SweepWorker(prepared.sweep, 1)
    seen: list[torch.Tensor] = []
    transformer = worker.sampler.pipeline.transformer
    handle = transformer.register_forward_pre_hook(
        lambda module, arguments, keywords: seen.append(keywords["hidden_states"].clone()), with_kwargs=True
    )
    try:
        rows = worker.model.run(worker.images, worker.items(range(1)))
    finally:
        handle.remove()
    assert {len(latents) for latents in seen} == {3}  # undisturbed, then the guided row behind its companion
    assert all(torch.equal(latents[1], latents[2]) for latents in seen)
    assert not torch.equal(seen[-1][0], seen[-1][2])
    of = {row.get("amount"): pixels(row) for row in rows}
    undisturbed, unguided, guided = of[None], of[0.0], of[2.0]
    assert np.array_equal(undisturbed, unguided)
    assert not np.array_equal(undisturbed, guided)


@pytest.mark.parametrize("command", ["probe disruption", "transport text", "transport image"])
def test_a_users_mistake_has_no_traceback(command: str, world: Path, tmp_path: Path) -> None:
    arguments = [*command.split(), "--manifest", str(world), "--out", str(tmp_path / "sweep"), "--layers", "9"]
    if command.endswith("image"):
        arguments += ["--references", str(world)]
    found = CliRunner().invoke(app, arguments)
    assert isinstance(found.exception, InputError)
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_goes_on_with_the_files_it_was_begun_with(
    generation: CaptureConfig, tiny_model: Path, manifest_of, tmp_path: Path
) -> None:
    model, mask, clip = tmp_path / "model", tmp_path / "mask.png", metric_models.clip(tmp_path / "clip")
    shutil.copytree(tiny_model, model)
    upper = np.zeros((16, 16), np.uint8)
    upper[:8] = 255
    Image.fromarray(upper).save(mask)
    world = manifest_of(f"prompt,seed,mask\na red star,1,{mask}\na blue ring,2,{mask}\n")
    grid = replace(ZERO, tokens=("inside",))
    how = replace(generation, model=str(model))
    settings = SweepSettings("disruption", how, (grid,), metrics=(f"clip={clip}",))
    prepared = begun(world, tmp_path / "sweep", settings)
    sweep = replace(prepared.sweep, shard_items=1)
    SweepWorker(sweep, 1)(0)
    (record,) = Ledger(sweep.storage).records(sweep.fingerprint).values()
    assert record.files == {str(mask): hashlib.sha256(mask.read_bytes()).hexdigest()[:16]}
    assert begin_sweep(prepare_sweep(world, tmp_path / "sweep", settings))

    Image.fromarray(255 - upper).save(mask)
    with pytest.raises(RunConflictError, match=r"have changed, such as '.*mask\.png'"):
        run_sweep(prepare_sweep(world, tmp_path / "sweep", settings), Pool(1, 0, 1))
    Image.fromarray(upper).save(mask)

    scheduler = model / "scheduler" / "scheduler_config.json"
    own = scheduler.read_text()
    scheduler.write_text(json.dumps(json.loads(own) | {"shift": 9.0}))
    with pytest.raises(RunConflictError, match=r"files\.scheduler/scheduler_config\.json: "):
        begin_sweep(prepare_sweep(world, tmp_path / "sweep", settings))
    scheduler.write_text(own)

    weights = load_file(clip / "model.safetensors")
    save_file({name: 1.3 * value for name, value in weights.items()}, clip / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunConflictError, match=r"metric_files\.clip: "):
        begin_sweep(prepare_sweep(world, tmp_path / "sweep", settings))
