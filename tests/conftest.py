"""Shared parts: a tiny FLUX checkpoint on disk, and a manifest made by hand."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if lane := os.environ.get("PYTEST_XDIST_WORKER"):
    # Of all clusters below one folder, Ray gives a job the address of the one that was started last.
    os.environ["RAY_TMPDIR"] = f"/tmp/fewchannels-{lane}"
os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15 an actor starts for minutes beside two busy tests

import numpy as np
import pytest
import torch
from lanes import CLUSTERS, LANES, LANES_OF, NEEDS, TESTS, lanes, needs
from tiny import TINY

from fewchannels import manifest
from fewchannels.cluster.session import ray_session
from fewchannels.cluster.sizing import choose_pool
from fewchannels.demo.build import build_pipeline

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in (NEEDS | LANES).items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups, and before anything is deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what each test needs, its lane, and what xdist hands out together: a file, or what needs several nodes."""
    found = config.stash[LANES_OF] = {}
    for item in items:
        needed, found[item.nodeid] = needs(item), lanes(item)
        for name in needed | found[item.nodeid]:
            item.add_marker(name)
        item.add_marker(pytest.mark.xdist_group("clusters" if needed & CLUSTERS else str(item.path.relative_to(TESTS))))
        if "exhaustive" in found[item.nodeid]:
            item.add_marker(pytest.mark.timeout(0))
    # What takes longest comes first; in one process, as two clusters at once are slower than one after the other.
    items.sort(key=lambda item: not CLUSTERS & {mark.name for mark in item.own_markers})


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _subnormal_numbers_are_left_alone() -> Iterator[None]:
    yield
    assert np.float32(1e-40) / np.float32(2) > 0, "numbers below the smallest normal one are zero after this test"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX pipeline folder with random weights: 4 layers, 32 channels, 16 x 16 pixels, 4 x 4 image tokens."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_pipeline(TINY, seed=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A real headless Chromium."""
    from browser import chromium

    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def one_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a Ray that the commands of this process share, where each would start its own."""
    folder = tmp_path_factory.mktemp("ray")
    with ExitStack() as stack:
        with chdir(folder):
            stack.enter_context(ray_session(choose_pool(1, None)))
        yield folder


@pytest.fixture
def manifest_of(tmp_path: Path):
    """A function that ingests CSV text and returns the manifest's path."""

    def make(text: str, name: str = "manifest", **options) -> Path:
        source, path = tmp_path / f"{name}.csv", tmp_path / f"{name}.parquet"
        source.write_text(text, encoding="utf-8")
        manifest.ingest([str(source)], path, **options)
        return path

    return make


@pytest.fixture
def make(tmp_path: Path):
    """A function that ingests the bytes of a file and returns the report."""

    def ingest(name: str, content: str | bytes, **options: Any) -> manifest.IngestReport:
        source = tmp_path / name
        source.write_bytes(content.encode() if isinstance(content, str) else content)
        return manifest.ingest([source], tmp_path / "manifest.parquet", **options)

    return ingest
