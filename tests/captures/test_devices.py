"""Where analyses compute: on the GPU that is a worker's share, else on the CPU; and no step of theirs mixes the two.

Without a GPU, PyTorch's fake tensors stand for those on one: they know shapes, types and devices, and refuse to mix.
"""

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from typer.testing import CliRunner

from fewchannels import machine, manifest
from fewchannels.analyses.analysis import analyze
from fewchannels.analyses.concentration.units import Concentration
from fewchannels.analyses.selection import select
from fewchannels.analyses.settings import RULES
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cli import app
from fewchannels.cluster.parallel import spread
from fewchannels.cluster.shares import Pool
from fewchannels.cluster.sizing import choose_pool
from fewchannels.errors import InputError
from fewchannels.measures import kmeans
from fewchannels.measures.kmeans import k_means
from fewchannels.models.loaded import LoadedModel, device_of
from fewchannels.models.source import find, geometry

ELSEWHERE = torch.device("meta")
N_CELLS, N_TOKENS, N_CHANNELS = 3, 49, 40


@pytest.mark.parametrize("n_clusters", [2, 3])
@pytest.mark.parametrize("answer", [False, True])
def test_clustering_stays_on_the_device_of_its_tokens(
    n_clusters: int, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, "__bool__", lambda self: answer)  # a fake tensor has no values to branch by
    monkeypatch.setattr(kmeans, "MOST_PASSES", 3)
    with FakeTensorMode(shape_env=ShapeEnv()):
        x, weights = (torch.empty(N_CELLS, *shape, N_TOKENS, device=ELSEWHERE) for shape in ((12,), ()))
        starts = torch.empty(N_CELLS, 4, n_clusters, dtype=torch.int64, device=ELSEWHERE)
        found = k_means(x, starts, weights)
        assert {each.device for each in vars(found).values()} == {ELSEWHERE}
        assert {each.device.type for each in vars(found.to("cpu")).values()} == {"cpu"}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n_maps", [12, N_CHANNELS])
def test_measuring_cells_stays_on_the_device_of_their_arrays(
    rule: str, n_maps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, "__bool__", lambda self: False)
    with FakeTensorMode():
        shapes = dict.fromkeys(("mean_abs", "abs_mean", "max_abs", "rms"), (N_CHANNELS,))
        shapes |= {"massive_value": (n_maps, N_TOKENS), "token_norm": (N_TOKENS,)}
        arrays = {name: torch.empty(N_CELLS, *shape, device=ELSEWHERE) for name, shape in shapes.items()}
        arrays["massive_channel"] = torch.empty(N_CELLS, n_maps, dtype=torch.int32, device=ELSEWHERE)
        arrays["grid"] = torch.empty(N_CELLS, 2, dtype=torch.int64, device=ELSEWHERE)
        found = Concentration(registers=rule)._measure(arrays, rounded=True)
        assert {each.device for each in found.values()} == {ELSEWHERE}
        with pytest.raises(RuntimeError, match="devices"):
            Concentration()._measure(arrays | {"token_norm": torch.empty(N_CELLS, N_TOKENS)}, rounded=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("devices")
    manifest.ingest(["demo:2"], folder / "manifest.parquet", seeds=[0])
    settings = {"model": str(tiny_model), "num_inference_steps": 1, "top_k": 2, "shard_samples": 1}
    job = prepare(folder / "manifest.parquet", folder / "run", CaptureConfig(**settings))
    begin(job, folder / "manifest.parquet")
    for task in range(job.layout.n_tasks):
        CaptureWorker(job, 1)(task)
    return folder / "run"


def test_a_unit_computes_where_its_workers_share_lets_it_and_the_result_says_where(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # what a machine has gives nobody a share of it
    used: list[str] = []
    own = Concentration.unit
    monkeypatch.setattr(Concentration, "unit", lambda *given: used.append(given[-1]) or own(*given[:-1], "cpu"))
    for gpus, device in ((0, "cpu"), (0.5, "cuda")):
        analyze(Concentration(ks=(1,), k=2), select(str(path)), f"on_{device}", Pool(1, gpus, 1))
        about = json.loads((path / "results" / f"on_{device}" / "result.json").read_text(encoding="utf-8"))
        assert about["versions"]["device"] == device
        assert set(used) == {device}
        used.clear()


@pytest.mark.parametrize(("share", "found"), [("cpu", True), ("cpu", False), (None, False)])
def test_a_model_is_loaded_where_the_share_of_its_actor_lets_it(
    share: str | None, found: bool, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)  # what a machine has gives nobody a share of it
    generation = CaptureConfig(model=str(tiny_model), num_inference_steps=2)
    model = LoadedModel(generation, geometry(find(str(tiny_model), None)), 1, share)
    assert (model.device, model.name.split()[0]) == ("cpu", "cpu")
    assert {each.device.type for each in model.sampler.pipeline.transformer.parameters()} == {"cpu"}


def test_an_actor_whose_gpu_pytorch_does_not_find_says_so(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    generation = CaptureConfig(model=str(tiny_model), num_inference_steps=2)
    with pytest.raises(
        InputError, match=r"this actor was assigned a GPU of .*, but PyTorch finds none there.*--gpus-per-actor 0"
    ):
        LoadedModel(generation, geometry(find(str(tiny_model), None)), 1, "cuda")


def test_what_measures_for_workers_without_a_gpu_uses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (device_of("cpu"), device_of("cuda")) == ("cpu", "cuda")


def test_actors_are_counted_by_the_processors_that_this_process_may_use(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(machine, "_quotas", lambda: iter([3]))
    monkeypatch.setattr(machine, "has_gpus", lambda: False)
    pool = choose_pool()
    assert (pool.n_actors, pool.cpus_per_actor) == (2, 1)
    assert [choose_pool(n_forwards=n).n_actors for n in (1, 1999, 2000, 9000)] == [1, 1, 2, 2]
    assert choose_pool(n_forwards=1).cpus_per_actor == 2
    assert choose_pool(2, n_forwards=1).n_actors == 2, "what the user asked for"
    with pytest.raises(InputError, match="cpus_per_actor is 3; this process may use 2 CPUs"):
        choose_pool(cpus_per_actor=3)
    with pytest.raises(InputError, match="at most 16 for each of the 2 CPUs"):
        choose_pool(33)


def test_a_share_of_a_gpu_is_of_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_gpus", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_pool(None, None).device == "cuda"
    assert choose_pool(None, 0).device == "cpu"
    assert choose_pool(None, 0.5).n_actors == 4
    assert choose_pool(None, 0.5, n_forwards=1).n_actors == 4, "a GPU is never left idle"
    with pytest.raises(InputError, match="needs 3 GPUs, but PyTorch finds 2 on this machine"):
        choose_pool(1, 3)


def test_pytorch_is_not_asked_where_no_gpu_has_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_GPU_FILES", ("null",))  # is in every /dev
    assert machine.has_gpus()
    monkeypatch.setattr(machine, "_GPU_FILES", ("no-such-*",))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1 / 0)
    assert not machine.has_gpus()
    assert choose_pool(None, None).device == "cpu"


def test_a_lone_worker_with_a_clusters_gpu_is_not_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fewchannels.cluster.parallel.mapped", lambda work, items, pool: ((item, "there") for item in items)
    )
    monkeypatch.setattr("fewchannels.cluster.session.ray_session", lambda pool: nullcontext())
    for pool, where in ((Pool(1, 1, 1, "a-cluster"), "there"), (Pool(1, 0, 1, "a-cluster"), "here")):
        assert list(spread(lambda item: "here", [7], pool)) == [(7, where)]


def test_the_command_passes_the_share_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_gpus", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    command = ["analyze", "concentration", str(path), "--k", "2", "--shares", "1", "--gpus-per-worker", "1"]
    with pytest.raises(InputError, match="PyTorch finds 0 on this machine"):
        CliRunner().invoke(app, command, catch_exceptions=False)
