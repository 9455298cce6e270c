"""Choosing what to keep, and what it will take: pooled tokens, statistics only, rounded values, a budget."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewchannels import manifest, open_run
from fewchannels.analyses.figures.contact_sheet import contact_sheet
from fewchannels.captures.begin import begin
from fewchannels.captures.budget import check_budget, expected_bytes, options
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.estimate import estimate
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.tasks import pending_tasks
from fewchannels.errors import InputError
from fewchannels.measures.scores import pool_tokens
from fewchannels.models.family import Block
from fewchannels.runs.choices import choose_pool_side
from fewchannels.runs.layout import Layout, default_shard_samples
from fewchannels.runs.storage import open_storage
from fewchannels.runs.upkeep.verify import verify
from fewchannels.settings.units import parse_size, size

SHAPES = {"num_inference_steps": 3, "top_k": 4, "batch_size": 3, "shard_samples": 3}
FLUX = Layout(
    n_samples=1000,
    steps=tuple(range(28)),
    blocks=tuple(Block(i, f"b.{i}", "dual") for i in range(57)),
    n_channels=3072,
    n_tokens=4096,
    top_k=12,
    shard_samples=1,
)
GRID, PIXELS = (64, 64), 1024**2


@pytest.fixture(scope="module")
def captured(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """A function that captures 6 samples with more settings, once for each."""
    folder = tmp_path_factory.mktemp("selection")
    manifest.ingest(["demo:6"], folder / "manifest.parquet")
    known: dict[tuple, Job] = {}

    def work(**more: object) -> Job:
        key = tuple(sorted(more.items()))
        if key not in known:
            config = CaptureConfig(**{"model": str(tiny_model), **SHAPES, **more})
            job = prepare(folder / "manifest.parquet", folder / str(len(known)), config)
            begin(job, folder / "manifest.parquet")
            worker = CaptureWorker(job, 1)
            for task in pending_tasks(job):
                worker(task)
            known[key] = job
        return known[key]

    return work


def test_pooled_maps_are_means_over_squares_of_the_full_ones(captured) -> None:
    full, pooled = (open_run(captured(**more).run).activations for more in ({}, {"tokens": "pool:2"}))
    assert pooled.sizes["token"] == 4
    for name in ("massive_value", "token_norm"):
        values = full[name].values
        squares = values.reshape(*values.shape[:-1], 2, 2, 2, 2)  # two rows of squares of two rows of tokens
        np.testing.assert_allclose(pooled[name], squares.mean(axis=(-3, -1)).reshape(pooled[name].shape), rtol=1e-5)
    for name in ("mean_abs", "rms", "massive_channel"):
        np.testing.assert_array_equal(pooled[name], full[name])


def test_pooling_leaves_the_tables_as_they_are(captured) -> None:
    """Register tokens and bad tokens are told from the full hidden state, whatever is kept of it."""
    question = "select * exclude (sample_id) from cells order by sample, step, layer"
    full = open_run(captured().run).sql(question).fetchall()
    assert open_run(captured(tokens="pool:2").run).sql(question).fetchall() == full
    assert open_run(captured(value_precision="bfloat16").run).sql(question).fetchall() == full


def test_statistics_only_keeps_no_maps_and_still_ranks_twelve_channels(captured) -> None:
    job = captured(top_k=0)
    run = open_run(job.run)
    assert set(run.activations.data_vars) == {"mean_abs", "abs_mean", "max_abs", "rms"}
    assert "token" not in run.activations.dims
    full = open_run(captured().run)
    np.testing.assert_array_equal(run.activations["rms"], full.activations["rms"])
    ranked, top = (
        each.sql("select top_channels from cells order by sample, step, layer").fetchall() for each in (run, full)
    )
    assert all(len(channels) == 12 for (channels,) in ranked)
    assert [channels[:4] for (channels,) in ranked] == [channels for (channels,) in top]
    assert verify(open_storage(job.run)).problems == ()
    with pytest.raises(InputError, match="has no token maps"):
        contact_sheet(run, Path(job.run) / "sheet.png")


def test_rounded_maps_are_torchs_bfloat16_of_the_full_ones(captured) -> None:
    full, rounded = (open_run(captured(**more).run).activations for more in ({}, {"value_precision": "bfloat16"}))
    expected = torch.from_numpy(full["massive_value"].values).bfloat16().float().numpy()
    np.testing.assert_array_equal(rounded["massive_value"], expected)
    np.testing.assert_array_equal(rounded["token_norm"], full["token_norm"])


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_pooling_equals_arithmetic_by_hand(side: int, rows: int, columns: int) -> None:
    grid = np.random.default_rng(0).normal(size=(rows * side, columns * side))
    expected = [
        grid[r * side : (r + 1) * side, c * side : (c + 1) * side].mean()
        for r, c in itertools.product(range(rows), range(columns))
    ]
    found = pool_tokens(torch.from_numpy(grid).flatten()[None], grid.shape, side)
    np.testing.assert_allclose(found[0], expected)


@pytest.mark.parametrize("text", ["pool", "pool:1", "pool:x", "pool:-2", "subject", ""])
def test_a_wrong_choice_of_tokens_names_the_rule(text: str) -> None:
    with pytest.raises(InputError, match="it must be 'all', or 'pool:N' with N of at least 2"):
        choose_pool_side(text)


def test_squares_that_do_not_cover_the_grid_are_refused(manifest_of, tiny_model: Path, tmp_path: Path) -> None:
    config = CaptureConfig(model=str(tiny_model), tokens="pool:4", **SHAPES)
    path = manifest_of("prompt,width,height\na,16,16\nb,24,16\n")
    with pytest.raises(InputError, match="16 x 24 pixels has 4 x 6 tokens, which 4 does not divide"):
        prepare(path, tmp_path / "run", config)


def test_a_task_of_a_large_model_is_one_sample_and_of_a_small_one_sixteen() -> None:
    assert default_shard_samples(FLUX) == 1
    small = dataclasses.replace(FLUX, n_channels=128, n_tokens=64, steps=tuple(range(20)), blocks=FLUX.blocks[:6])
    assert default_shard_samples(small) == 16


@pytest.mark.parametrize(
    "more",
    [{}, {"tokens": "pool:2"}, {"top_k": 0}, {"value_precision": "bfloat16"}, {"layers": "1,3", "steps": "last"}],
)
def test_the_estimate_is_within_5_percent_of_the_arrays_and_tables(captured, more: dict) -> None:
    job = captured(**more)
    expected = estimate(job, Path(job.run) / "manifest.parquet", 1, 1)
    stored = open_storage(job.run).list()
    arrays = sum(n for key, n in stored.items() if "/c." in key)
    assert sum(expected.array_bytes.values()) == pytest.approx(arrays, rel=0.05)
    tables = sum(n for key, n in stored.items() if key.startswith(("cells/", "samples/")))
    assert expected.table_bytes["cells"] + expected.table_bytes["samples"] == pytest.approx(tables, rel=0.3)
    assert expected.n_files == len(stored)


@given(st.floats(0.001, 1.2))
def test_every_option_of_a_refused_budget_fits_it(share: float) -> None:
    budget = int(expected_bytes(FLUX, PIXELS) * share)
    found = options(FLUX, GRID, PIXELS, budget)
    assert len(found) == 3
    assert all(option.n_bytes <= budget for option in found)
    assert len({option.flags for option in found}) == 3
    if share >= 1:
        check_budget(FLUX, GRID, PIXELS, budget)
    else:
        with pytest.raises(InputError, match="Options that fit:\n  ") as refusal:
            check_budget(FLUX, GRID, PIXELS, budget)
        assert str(refusal.value).count("\n  ") == 3


def test_the_options_give_up_as_little_as_they_can() -> None:
    budget = expected_bytes(FLUX, PIXELS) * 13 // 20
    cell = 4 * 0.88 * 57 * 28  # bytes of one number in each layer and step
    most_k = next(
        k for k in range(12, 0, -1) if 1000 * (cell * (4 * 3072 + k * 4097 + 4096) + 1.4 * PIXELS) < budget * 0.997
    )
    assert [option.flags for option in options(FLUX, GRID, PIXELS, budget)] == [
        "--value-precision bfloat16",
        "--tokens pool:2",
        f"--top-k {most_k}",
    ]
    statistics = dataclasses.replace(FLUX, top_k=0)
    steps = options(statistics, GRID, PIXELS, expected_bytes(statistics, PIXELS) // 2)[0]
    chosen = [int(step) for step in steps.flags.split()[-1].split(",")]
    assert chosen[-1] == 27
    assert max(np.diff(chosen)) - min(np.diff(chosen)) <= 1


def test_not_even_one_sample_is_said() -> None:
    with pytest.raises(InputError, match="Not even a single sample would fit"):
        check_budget(FLUX, GRID, PIXELS, 10)


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("500MB", 500_000_000), ("2 TB", 2 * 10**12), ("1e9", 10**9), ("12", 12), ("1.5kb", 1500)]
)
def test_sizes_are_read_in_powers_of_ten(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "many", "1 XB", "1.2.3MB", "-4"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="it must be bytes up to 1e18, or kB, MB, GB, TB"):
        parse_size(text)


def test_sizes_for_people() -> None:
    assert [size(n) for n in (999, 1500, 167_000_000, 4.2e11, 6.1e13)] == [
        "999 bytes",
        "1.5 kB",
        "167 MB",
        "420 GB",
        "61 TB",
    ]


def test_the_table_of_sizes_in_the_docs_is_what_its_script_prints() -> None:
    root = Path(__file__).parents[2]
    script = [sys.executable, str(root / "benchmarks" / "sizes.py")]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert printed in (root / "docs" / "sizes.md").read_text(encoding="utf-8")
