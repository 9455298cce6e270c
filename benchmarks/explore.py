"""Response times of the explorer on 10,000 samples: ``python benchmarks/explore.py``.

A run of FLUX.1's shape is created without a model: 57 layers and 4 steps, four statistics of 3,072 channels and the
maps of the top 12 channels over 4,096 tokens, in 625 tasks of 16 samples, each with its part of ``cells`` and
``samples`` with images of 512 x 512 pixels. All tasks share the first one's shards through hard links, since a full
store would take 1 TB; each is read under its own name. It takes several GB in a temporary folder.

A headless Chromium opens pages and moves sliders; times are measured in the page, from the key or the navigation until
Plotly has drawn. ``by hand`` is the same move in a notebook: the map read by Xarray from an open store, drawn over the
image by Matplotlib and encoded as PNG. The goal is 200 ms for a move.
"""

import argparse
import io
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from measurement import Rows, options, ratio, save
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from fewchannels.models.family import Block
from fewchannels.runs.arrays import NAME, Store, lay_out
from fewchannels.runs.description import write_description
from fewchannels.runs.layout import Layout
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.parts import part
from fewchannels.runs.storage import open_storage
from fewchannels.tables import schema, to_parquet
from fewchannels.views.explore.opened import OpenedRun, open_places
from fewchannels.views.explore.server import Bound, bind

GOAL_MS = 200
FINGERPRINT = "0123456789abcdef"
STEPS, N_CHANNELS, N_TOKENS, K, SHARD_SAMPLES, SIDE = (6, 13, 20, 27), 3072, 4096, 12, 16, 512
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run")


def make(path: Path, n_samples: int, n_layers: int) -> Layout:
    """Write a finished run with this number of samples."""
    random = np.random.default_rng(0)
    blocks = tuple(Block(i, f"blocks.{i}", "dual" if i < 19 else "single") for i in range(n_layers))
    layout = Layout(n_samples, STEPS, blocks, N_CHANNELS, N_TOKENS, K, SHARD_SAMPLES)
    storage = open_storage(path)
    ids = [f"{i:016x}" for i in random.integers(0, 2**63, n_samples)]
    lay_out(storage, layout, ids)
    arrays = {}
    for plan in layout.arrays():
        shape = (SHARD_SAMPLES, *plan.shape[1:])
        if plan.dtype == "int32":
            drawn = random.permuted(np.tile(np.arange(N_CHANNELS, dtype=np.int32), (SHARD_SAMPLES, 1)), axis=1)[:, :K]
            arrays[plan.name] = np.broadcast_to(drawn[:, None, None], shape).copy()
        else:
            arrays[plan.name] = random.standard_normal(shape, np.float32)
    Store(storage, layout).write(0, arrays)
    images = [_image(random) for _ in range(SHARD_SAMPLES)]
    ledger = Ledger(storage)
    for task in range(layout.n_tasks):
        rows = layout.rows(task)
        if task:
            for plan in layout.arrays():
                os.link(path / NAME / plan.key(0), path / NAME / plan.key(task))
        tables = {"cells": _cells(random, ids, rows, layout), "samples": _samples("samples", ids, rows, images)}
        objects = {part(name, task): storage.put(part(name, task), [to_parquet(name, t)]) for name, t in tables.items()}
        finished = "2026-01-02T03:04:05+00:00"
        record = Record(
            task, rows.start, rows.stop, FINGERPRINT, 1, len(rows), 0, 1.0, finished, "here", "cpu", objects
        )
        ledger.write(record)
    storage.put("manifest.parquet", [to_parquet("manifest", _samples("manifest", ids, range(n_samples), []))])
    config = {"model": "made up", "score": "mean_abs", "top_k": K, "steps": list(STEPS), "tokens": "all"}
    config |= {"value_precision": "float32", "dtype": "float32"}
    geometry = {"n_samples": n_samples, "n_steps": len(STEPS), "n_layers": n_layers, "n_channels": N_CHANNELS}
    geometry |= {"n_tokens": N_TOKENS, "blocks": [{"layer": b.layer, "path": b.path, "kind": b.kind} for b in blocks]}
    description = {"format_version": 2, "fingerprint": FINGERPRINT, "config": config, "geometry": geometry}
    description |= {"n_tasks": layout.n_tasks, "shard_samples": SHARD_SAMPLES, "objects": {}}
    description |= {"identity": {}, "manifest": {"n_samples": n_samples, "sha256": ""}, "versions": {}, "created": ""}
    description |= {"model": {"name": "made up", "family": "", "weights_sha256": ""}}
    write_description(storage, description)
    return layout


def _image(random: np.random.Generator) -> bytes:
    noise = random.integers(0, 255, (SIDE // 8, SIDE // 8, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(data, "PNG")
    return data.getvalue()


def _filled(table: str, known: dict[str, object], n: int) -> dict[str, object]:
    """The known columns, and null or zero for the others."""
    naught = {"string": "", "bool": False}
    empty = {f.name: [None if f.nullable else naught.get(str(f.type), 0)] * n for f in schema(table)}
    return {name: known.get(name, values) for name, values in empty.items()}


def _samples(table: str, ids: list[str], rows: range, images: list[bytes]) -> dict[str, object]:
    n, side = len(rows), int(N_TOKENS**0.5)
    known: dict[str, object] = {
        "sample_id": [ids[i] for i in rows],
        "sample": list(rows),
        "task": [i // SHARD_SAMPLES for i in rows],
        "prompt": [f"prompt {i // 4}" for i in rows],
        "seed": [i % 4 for i in rows],
        "status": ["done"] * n,
        "image": images[:n],
        "grid_width": [side] * n,
        "grid_height": [side] * n,
    }
    return _filled(table, known, n)


def _cells(random: np.random.Generator, ids: list[str], rows: range, layout: Layout) -> dict[str, object]:
    n_layers = len(layout.blocks)
    step, layer = np.repeat(layout.steps, n_layers), np.tile(np.arange(n_layers), len(layout.steps))
    n = len(rows) * len(step)
    scores = np.sort(random.lognormal(0, 1, (n, K)).astype(np.float32), axis=1)[:, ::-1]
    known: dict[str, object] = {
        "sample_id": np.repeat([ids[i] for i in rows], len(step)),
        "sample": np.repeat(np.array(rows), len(step)),
        "step": np.tile(step, len(rows)),
        "layer": np.tile(layer, len(rows)),
        "stream": ["image"] * n,
        "branch": ["cond"] * n,
        "top_channels": random.integers(0, N_CHANNELS, (n, K), np.int32),
        "top_scores": np.ascontiguousarray(scores),
        "ratio": scores[:, 0],
    }
    return _filled("cells", known, n)


@contextmanager
def served(path: Path) -> Iterator[tuple[OpenedRun, Bound, float]]:
    """The explorer of a run while the context lasts, and the seconds that it took to open."""
    began = time.perf_counter()
    places = open_places([str(path)])
    bound = bind(places, 0)
    opened_s = time.perf_counter() - began
    threading.Thread(target=bound.server.serve_forever, daemon=True).start()
    run = places[path.name]
    assert isinstance(run, OpenedRun)
    yield run, bound, opened_s
    bound.server.shutdown()
    bound.server.server_close()


def moves(page: Page, slider: str, n: int) -> list[float]:
    """Milliseconds per move of a slider, back and forth, from the key until Plotly has drawn."""
    page.evaluate(
        """() => {
            window.taken = [];
            document.addEventListener("keydown", () => { window.since = performance.now(); }, true);
            document.querySelector("#sample-figure .js-plotly-plot").on("plotly_afterplot", () => {
                if (window.since) { window.taken.push(performance.now() - window.since); window.since = null; }
            });
        }"""
    )
    for i in range(n):
        page.locator(f"{slider} [role=slider]").press("ArrowRight" if i < n / 2 else "ArrowLeft")
        page.wait_for_function(f"window.taken.length > {i}")
        page.wait_for_timeout(150)
    return page.evaluate("window.taken")


def by_hand(path: Path, run: OpenedRun, chosen: argparse.Namespace) -> list[float]:
    """Milliseconds per view with Xarray and Matplotlib, with the store and the image already open."""
    taken = []
    data = xr.open_zarr(path / NAME, chunks=None)
    sample = chosen.samples // 2
    image = Image.open(io.BytesIO(run.image(sample) or b""))
    for i in range(chosen.moves):
        began = time.perf_counter()
        values = (
            data["massive_value"].isel(sample=sample, k=0).sel(step=27, layer=i % chosen.layers).values.reshape(64, 64)
        )
        figure = Figure(figsize=(6, 5), layout="constrained")
        axis = figure.subplots()
        axis.imshow(image, extent=(-0.5, 63.5, 63.5, -0.5))
        figure.colorbar(axis.imshow(values, alpha=0.75), ax=axis, label="signed value")
        figure.savefig(io.BytesIO(), format="png")
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def pages(run: OpenedRun, bound: Bound, chosen: argparse.Namespace) -> Rows:
    """Milliseconds of the first pages, once each, and of the moves, in a new browser."""
    times: dict[str, float] = {}
    n_pictures = min(48, chosen.samples)
    middle, sample = chosen.layers // 2, chosen.samples // 2
    one = "[...document.images].some(i => i.complete && i.naturalWidth)"

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chosen.chromium, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1366, "height": 900}, bypass_csp=True)
        page.goto(bound.address)
        page.wait_for_url(bound.base)
        began = time.perf_counter()
        page.goto(f"{bound.base}run/RUN")
        page.wait_for_function(one)
        times["gallery, first image"] = 1000 * (time.perf_counter() - began)
        every = "[...document.images].every(i => i.naturalWidth)"
        page.wait_for_function(f"document.images.length >= {n_pictures} && {every}")
        times["gallery, all images"] = 1000 * (time.perf_counter() - began)
        began = time.perf_counter()
        page.goto(f"{bound.base}run/RUN?by=ratio&order=largest&layer={middle}&step=27")
        page.wait_for_function(one)
        times["gallery by ratio, first image"] = 1000 * (time.perf_counter() - began)
        sample_id = run.catalog.sql(f"select sample_id from samples where sample = {sample}").fetchall()[0][0]
        began = time.perf_counter()
        page.goto(f"{bound.base}run/RUN/sample/{sample_id}?layer={min(10, middle)}&step=27")
        page.wait_for_selector("#sample-figure .hm image")
        times["sample, first map"] = 1000 * (time.perf_counter() - began)
        page.wait_for_timeout(1500)
        layer = moves(page, "#sample-layer", chosen.moves)
        browser.close()
    return {name: {"ms": [value]} for name, value in times.items()} | {"a slider's move": {"ms": layer}}


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("--samples", type=int, default=10_000)
    found.add_argument("--layers", type=int, default=57)
    found.add_argument("--moves", type=int, default=40)
    found.add_argument("--chromium", default=shutil.which("chromium"), help="the program")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table; ``--json FILE`` also writes it."""
    chosen = parser().parse_args(argv)
    if chosen.chromium is None:
        sys.exit("no Chromium is on the PATH; say where it is with --chromium.")
    with tempfile.TemporaryDirectory(prefix="explore-") as folder:
        path = Path(folder, "RUN")
        make(path, chosen.samples, chosen.layers)
        with served(path) as (run, bound, opened_s):
            rows = {"opened": {"ms": [1000 * opened_s]}} | pages(run, bound, chosen)
            rows["by hand"] = {"ms": by_hand(path, run, chosen)}
    ratios = [ratio(rows, name, "by hand", of="ms", by="median") for name in ("a slider's move", "by hand")]
    for name, row in rows.items():
        ordered = sorted(row["ms"])
        spread = f"  95 %: {ordered[int(0.95 * len(ordered))]:.0f}, most {ordered[-1]:.0f}" if len(ordered) > 1 else ""
        print(f"{name:32} {statistics.median(ordered):7.0f} ms{spread}")
    print(f"a move takes {ratios[0]['ratio']:.2f} of the time by hand; goal {GOAL_MS} ms")
    save(chosen, ("dash", "plotly", "playwright", "xarray", "matplotlib"), rows, ratios)


if __name__ == "__main__":
    main()
