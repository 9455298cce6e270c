"""All that needs a GPU, in one command of at most eight minutes and nothing to download: ``python benchmarks/gpu.py``.

Random weights of FLUX.1's geometry in bfloat16, 1024 x 1024 pixels, every step, all statistics, norms and the top 16
channels' maps. Rows that cannot run say so; a section that fails is reported, and the others run.

- ``kernel``: one hidden state reduced by PyTorch's operations (``today's``) and by the Triton kernels (``fused``),
  checked against float64, and for equal bits in a second run, and alone and in a batch;
- ``batch 1`` and ``batch 4``: forwards of the transformer without hooks (``plain``), with a capture's taps of either
  kind, with the hook that people write, which copies the image stream to the CPU as float32, and with nnsight's cache,
  where it is installed;
- ``capture``: a small pipeline of that width, one batch at a time: ``plain``, recorded in memory (``taps``), a whole
  task in turn (``task``), and tasks by a Ray actor (``capture``), which writes one while it generates the next: where
  writing overlaps, a capture takes as long as ``taps``, not as ``task``;
- ``placed``: the same samples with offloading and a device map, and how far their arrays are from those without;
- ``analysis``: a table of all cells of that capture by the CPU, and by a worker with ``--gpus-per-worker 1``.
"""

import argparse
import gc
import importlib.util
import os
import shutil
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from capture_overhead import capture, in_one_process
from diffusers import FluxTransformer2DModel
from measurement import Row, Rows, options, ratio, rotated, save, timed
from tap_overhead import build

from fewchannels import manifest
from fewchannels.analyses.analysis import analyze
from fewchannels.analyses.concentration.units import Concentration
from fewchannels.analyses.selection import select
from fewchannels.captures import aside
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.recorder import Recorder
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.shares import Pool
from fewchannels.manifest import read_samples
from fewchannels.measures import scores
from fewchannels.measures.kernels import VARIABLE, kernels_for
from fewchannels.models.generation import Settings
from fewchannels.models.patching import replaced
from fewchannels.models.source import find
from fewchannels.models.taps import tapped
from fewchannels.runs.layout import Layout

BUDGETS = {
    "kernel: fused": 0.2,
    "batch 1: fused": 1.01,
    "batch 4: fused": 1.01,
    "capture: capture": 1.02,
    "analysis: GPU": 1.0,
}
"""The most of the row that each is compared with."""
EXACT = {"placed: model", "placed: group", "placed: balanced"}
PLACES = {"model": {"offload": "model"}, "group": {"offload": "group"}, "balanced": {"device_map": "balanced"}}
HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if HAS_GPU else torch.device("cpu")
DTYPE = torch.bfloat16 if HAS_GPU else torch.float32
TOP_K = 16


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("--rounds", type=int, default=4)
    found.add_argument("--forwards", type=int, default=8, help="of the transformer, in each round")
    found.add_argument("--heads", type=int, default=24, help="24 is FLUX.1's own width, 3,072 channels")
    found.add_argument("--dual", type=int, default=19, help="dual blocks; FLUX.1 has 19")
    found.add_argument("--single", type=int, default=38, help="single blocks; FLUX.1 has 38")
    found.add_argument("--pixels", type=int, default=1024, help="along a side, a multiple of 16")
    found.add_argument("--steps", type=int, default=8, help="of the captured generations, which have 2 and 4 blocks")
    found.add_argument("--batch", type=int, default=4, help="of these")
    found.add_argument("--tasks", type=int, default=4, help="batches of the capture by a Ray actor")
    found.add_argument("--threads", type=int, default=os.cpu_count())
    found.add_argument("--limit", type=float, default=400, help="seconds after which no other section begins")
    return found


class Measured:
    """Rows of all sections, and what they are compared with."""

    def __init__(self) -> None:
        self.rows: Rows = {}
        self.to: dict[str, str] = {}

    def add(self, section: str, seconds: dict[str, list[float]], to: str, **more: float) -> None:
        """Add the rows of a section, compared with one of them."""
        for name, each in seconds.items():
            self.rows[f"{section}: {name}"] = {"seconds": each, **more}
            self.to[f"{section}: {name}"] = f"{section}: {to}"

    def leave_out(self, names: Sequence[str], why: str) -> None:
        """Add rows that were not run."""
        for name in names:
            self.rows[name] = {"not run": why, "budget": BUDGETS.get(name, 0.0)}


def finished(work: Callable[[], object]) -> Callable[[], None]:
    """The work, until the GPU has done it."""

    def run() -> None:
        work()
        if HAS_GPU:
            torch.cuda.synchronize()

    return run


def todays() -> AbstractContextManager[None]:
    """A context without the Triton kernels, in captures and in statistics."""
    return replaced(aside, "kernels_for", lambda device: None)


def kernel(found: Measured, chosen: argparse.Namespace) -> None:
    """One hidden state, reduced both ways, and what is promised of it."""
    tokens, channels = (chosen.pixels // 16) ** 2, 128 * chosen.heads
    x = torch.randn(4, tokens, channels, device=DEVICE, dtype=DTYPE) * 30
    x[:, :, 7] = 90_000
    one = x[:1]

    def plain() -> None:
        with replaced(scores, "kernels_for", lambda device: None):
            scores.statistics(one)
            scores.token_norms(one)

    works: dict[str, Callable[[], None]] = {"today's": finished(plain)}
    if kernels := kernels_for(DEVICE):
        wide = x.double()
        mean, square = wide.mean(1), wide.square()
        exact = torch.stack([wide.abs().mean(1), mean.abs(), wide.abs().amax(1), square.mean(1).sqrt()])
        first, second, alone = (kernels.reduced(each) for each in (x, x, one))
        scale = torch.stack([exact[3], exact[3], exact[2], exact[3]])  # a mean may be near 0
        error = float(((first[0] - exact).abs() / scale).max())
        assert error < 1e-5, f"statistics are off by {error:.1e}"
        torch.testing.assert_close(first[1], square.sum(2).sqrt().float(), rtol=1e-5, atol=0)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "bits differ in a second run"
        assert torch.equal(first[0][:, :1], alone[0]), "bits depend on the batch"
        assert torch.equal(first[1][:1], alone[1]), "bits depend on the batch"
        del wide, square
        works["fused"] = finished(lambda: kernels.reduced(one))
    else:
        found.leave_out(["kernel: fused"], "no GPU")
    for work in works.values():
        work()
    repeated = {name: lambda work=work: [work() for _ in range(20)] for name, work in works.items()}
    seconds = {name: [each / 20 for each in of] for name, of in rotated(repeated, chosen.rounds).items()}
    found.add("kernel", seconds, "today's")


def taps(found: Measured, chosen: argparse.Namespace, batch: int) -> None:
    """Forwards of the whole transformer, with every way to look at its hidden states."""
    side = chosen.pixels
    transformer, sampler, arguments = build(
        chosen.heads, side, (chosen.dual, chosen.single), DEVICE, DTYPE if HAS_GPU else torch.float32, batch
    )
    blocks, n_forwards = sampler.geometry.blocks, chosen.forwards
    layout = Layout(batch, tuple(range(n_forwards)), blocks, sampler.geometry.n_channels, (side // 16) ** 2, TOP_K, 1)
    settings = Settings(side, side, n_forwards, 3.5, 1.0)

    scheduler = sampler.pipeline.scheduler

    def plain() -> None:
        scheduler.set_timesteps(n_forwards, device=DEVICE)
        for timestep in scheduler.timesteps:
            predicted = transformer(**arguments)[0]
            scheduler.step(predicted, timestep, arguments["hidden_states"])

    # A worker lays the next task's arrays out while the model is at the one before.
    recorder = Recorder(replace(layout, rounded=HAS_GPU), "mean_abs", [str(i) for i in range(batch)])

    def recording() -> None:
        with sampler.declaring(batch, settings), tapped(sampler, blocks, recorder.tap(slice(0, batch))):
            plain()
        assert not np.isnan(recorder.arrays()["massive_value"][:, -1, -1, -1, -1]).any(), "not all was recorded"

    def without_kernels() -> None:
        with todays(), replaced(scores, "kernels_for", lambda device: None):
            recording()

    def copying() -> None:
        kept: list[torch.Tensor] = []

        def keep(module: torch.nn.Module, inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            kept.append((output[1] if isinstance(output, tuple) else output).detach().float().cpu().clone())

        hooks = [transformer.get_submodule(block.path).register_forward_hook(keep) for block in blocks]
        hooks.append(transformer.register_forward_hook(lambda *_: kept.clear()))
        plain()
        for hook in hooks:
            hook.remove()

    def cached() -> None:
        import nnsight

        model = nnsight.NNsight(transformer)
        for _ in range(n_forwards):
            with model.trace(**arguments) as tracer:
                tracer.cache(modules=[*model.transformer_blocks, *model.single_transformer_blocks])

    works: dict[str, Callable[[], None]] = {"plain": plain, "today's": without_kernels}
    if kernels_for(DEVICE):
        works["fused"] = recording
    else:
        found.leave_out([f"batch {batch}: fused"], "no GPU")
    if batch == 1:
        works["copying hook"] = copying
        if importlib.util.find_spec("nnsight"):
            works["nnsight cache"] = cached
    works = {name: finished(work) for name, work in works.items()}
    with torch.inference_mode():
        for work in works.values():
            work()
        seconds = rotated(works, chosen.rounds)
    each = {name: [taken / n_forwards for taken in of] for name, of in seconds.items()}
    found.add(f"batch {batch}", each, "plain")


def small_pipeline(folder: Path, chosen: argparse.Namespace) -> Path:
    """The demo's pipeline with a transformer of FLUX.1's width, 2 dual and 4 single blocks, and random weights."""
    demo, place = find("demo", None).folder, folder / "model"
    shutil.copytree(demo, place, ignore=shutil.ignore_patterns("transformer"))
    config = dict(FluxTransformer2DModel.load_config(demo, subfolder="transformer"))
    wide = {"num_attention_heads": chosen.heads, "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56)}
    torch.manual_seed(0)
    with DEVICE:
        transformer = FluxTransformer2DModel.from_config(config | wide | {"num_layers": 2, "num_single_layers": 4})
    transformer.to(DTYPE).save_pretrained(place / "transformer")
    return place


def job_of(folder: Path, name: str, model: Path, path: Path, chosen: argparse.Namespace, **how: str) -> Job:
    """A capture of whole batches, begun on disk; the demo has 8 pixels a token, FLUX.1 16."""
    side, dtype = chosen.pixels // 2, str(DTYPE).removeprefix("torch.")
    config = CaptureConfig(
        model=str(model),
        dtype=dtype,
        height=side,
        width=side,
        num_inference_steps=chosen.steps,
        top_k=TOP_K,
        batch_size=chosen.batch,
        shard_samples=chosen.batch,
        **how,
    )
    job = prepare(path, folder / name, config)
    begin(job, path)
    return job


def whole_capture(found: Measured, chosen: argparse.Namespace, folder: Path, model: Path) -> None:
    """From Ray to disk; the run stays for the analysis."""
    path, more = folder / "manifest.parquet", folder / "alone.parquet"
    manifest.ingest([f"demo:{chosen.tasks * chosen.batch}"], path)
    manifest.ingest([f"demo:{(1 + chosen.rounds) * chosen.batch}"], more)
    seconds = in_one_process(job_of(folder, "alone", model, more, chosen), more, chosen)
    _free()
    seconds["capture"] = [capture(job_of(folder, "run", model, path, chosen), chosen)]
    for name, each in seconds.items():
        found.add("capture", {name: [statistics.median(each)]}, "taps")


def placed(found: Measured, chosen: argparse.Namespace, folder: Path, model: Path) -> None:
    """The first batch by a model whose weights are elsewhere."""
    samples, arrays = read_samples(folder / "manifest.parquet", 0, chosen.batch), {}
    for name, how in {"as it is": {}, **PLACES}.items():
        job = job_of(folder, name.replace(" ", "_"), model, folder / "manifest.parquet", chosen, **how)
        worker = CaptureWorker(job, chosen.threads)
        recorder = Recorder(job.layout, job.config.score, [sample.sample_id for sample in samples])
        seconds = timed(lambda worker=worker, recorder=recorder: worker.generate(samples, recorder))
        arrays[name] = recorder.arrays()["rms"]
        apart = float(np.abs(arrays[name] - arrays["as it is"]).max() / np.abs(arrays["as it is"]).max())
        found.add("placed", {name: [seconds]}, "as it is", difference=apart)
        worker.close()
        del worker
        _free()


def analysis(found: Measured, chosen: argparse.Namespace, folder: Path) -> None:
    """All cells of the capture, by the CPU and by a worker with a GPU."""
    for name, gpus in {"CPU": 0, "GPU": 1}.items():
        if gpus and not HAS_GPU:
            continue
        selected, pool = select(str(folder / "run")), Pool(1, gpus, chosen.threads)
        work = lambda selected=selected, pool=pool, name=name: analyze(  # noqa: E731
            Concentration(ks=(1, 8), k=8), selected, f"by_{name.lower()}", pool
        )
        found.add("analysis", {name: [timed(work)]}, "CPU")


def _free() -> None:
    gc.collect()
    if HAS_GPU:
        torch.cuda.empty_cache()


def table(found: Measured) -> list[Row]:
    """Print all rows; return the ratios."""
    ratios = []
    print(f"{'':24} {'ms':>10} {'ratio':>7}  {'range of rounds':16} {'budget':>6}")
    for name, row in found.rows.items():
        budget = f"{BUDGETS[name]:.2f}" if name in BUDGETS else "exact" if name in EXACT else ""
        if "not run" in row:
            print(f"{name:24} {'not run: ' + row['not run']:36} {budget:>6}")
            continue
        each = ratio(found.rows, name, found.to[name])
        ratios.append(each)
        span = f"{each['least']:.3f} to {each['most']:.3f}"
        difference = f"  difference {row['difference']:.1e}" if "difference" in row else ""
        ms = 1e3 * statistics.median(row["seconds"])
        print(f"{name:24} {ms:10.3f} {each['ratio']:7.3f}  {span:16} {budget:>6}{difference}")
    return ratios


def main(argv: Sequence[str] | None = None) -> None:
    """Measure section by section and print a table; ``--json FILE`` also writes it."""
    chosen = parser().parse_args(argv)
    chosen.actors, started, found = 1, time.monotonic(), Measured()
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault(VARIABLE, "triton")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model: list[Path] = []
        sections: dict[str, tuple[Callable[[], None], list[str]]] = {
            "kernel": (lambda: kernel(found, chosen), ["kernel: fused"]),
            "batch 1": (lambda: taps(found, chosen, 1), ["batch 1: fused"]),
            "batch 4": (lambda: taps(found, chosen, 4), ["batch 4: fused"]),
            "pipeline": (lambda: model.append(small_pipeline(folder, chosen)), []),
            "capture": (lambda: whole_capture(found, chosen, folder, model[0]), ["capture: capture"]),
            "placed": (lambda: placed(found, chosen, folder, model[0]), [f"placed: {name}" for name in PLACES]),
            "analysis": (lambda: analysis(found, chosen, folder), ["analysis: GPU"]),
        }
        for name, (section, rows) in sections.items():
            if time.monotonic() - started > chosen.limit:
                found.leave_out(rows, "out of time")
                continue
            if name == "placed" and not HAS_GPU:
                found.leave_out(rows, "no GPU")
                continue
            try:
                section()
            except Exception as error:  # one run on a GPU is precious: the other sections go on
                if not HAS_GPU:
                    raise
                traceback.print_exc()
                found.leave_out(rows, f"{type(error).__name__}")
            _free()
            if name == "analysis" and not HAS_GPU:
                found.leave_out(rows, "no GPU")
    where = torch.cuda.get_device_name() if HAS_GPU else "no GPU"
    print(f"{where}, {time.monotonic() - started:.0f} s")
    save(chosen, ("torch", "diffusers"), found.rows, table(found))


if __name__ == "__main__":
    main()
