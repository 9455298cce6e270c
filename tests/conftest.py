"""Shared parts: a tiny FLUX checkpoint on disk, and a manifest made by hand."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if lane := os.environ.get("PYTEST_XDIST_WORKER"):
    # Of all clusters below one folder, Ray gives a job the address of the one that was started last.
    os.environ["RAY_TMPDIR"] = f"/tmp/fewchannels-{os.environ['PYTEST_XDIST_TESTRUNUID'][:8]}-{lane}"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as commands have it: two tests at once leave no CPU to spin on
os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15 an actor starts for minutes beside two busy tests

# What takes seconds to import is imported where it is used: the process that hands out tests needs none of it.
import numpy as np
import pytest
from hypothesis import settings
from lanes import LANES, LANES_OF, NEEDS, NEEDS_OF, THIRDS, lanes, longest_first, needs, thirds, unit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from fewchannels.manifest import IngestReport

# How long an example takes depends on what else the machine does.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--third", type=int, choices=range(1, THIRDS + 1), help="run only this third of the slow lane")


def pytest_configure(config: pytest.Config) -> None:
    # A shell has what it starts in the background ignore interrupts, and so would the commands that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, meaning in (NEEDS | LANES).items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


@pytest.hookimpl(tryfirst=True)  # before anything is deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what each test needs, and its lane."""
    config.stash[NEEDS_OF] = {item.nodeid: needs(item) for item in items}
    config.stash[LANES_OF] = {item.nodeid: lanes(item) for item in items}
    for item in items:
        for name in config.stash[NEEDS_OF][item.nodeid] | config.stash[LANES_OF][item.nodeid]:
            item.add_marker(name)
        if item.get_closest_marker("exhaustive"):
            item.add_marker(pytest.mark.timeout(0))
    items.sort(key=lambda item: longest_first(item.nodeid))
    if third := config.getoption("third"):
        slow = [item.nodeid for item in items if config.stash[LANES_OF][item.nodeid] == {"slow"}]
        other = {name for name, its in thirds(slow).items() if its != third}
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in other])
        items[:] = [item for item in items if item.nodeid not in other]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out a file at a time, for its fixtures, but all that starts clusters to one process: ``--dist loadfile``.

    Groups of ``--dist loadgroup`` are not seen with pytest 9.2 and xdist 3.8: each of their tests is handed out alone.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    scheduler = LoadFileScheduling(config, log)
    scheduler._split_scope = unit
    return scheduler


def pytest_unconfigure() -> None:
    """Delete what Ray has left in this process' own folder."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _subnormal_numbers_are_left_alone() -> Iterator[None]:
    yield
    assert np.float32(1e-40) / np.float32(2) > 0, "numbers below the smallest normal one are zero after this test"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX pipeline folder with random weights: 4 layers, 32 channels, 16 x 16 pixels, 4 x 4 image tokens."""
    from tiny import TINY

    from fewchannels.demo.build import build_pipeline

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
    from fewchannels.cluster.session import ray_session
    from fewchannels.cluster.sizing import choose_pool

    folder = tmp_path_factory.mktemp("ray")
    with ExitStack() as stack:
        with chdir(folder):
            stack.enter_context(ray_session(choose_pool(1, None)))
        yield folder


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Figures are laid out as drawings and not rendered, which is most of the time of an analysis of a small run.

    Those of every analysis, comparison and sweep are rendered by the README's commands, and looked at where figures are
    the subject.
    """
    from fewchannels.analyses.figures import still

    kinds = {"png": b"\x89PNG, not rendered", "svg": b"<svg/>"}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(still, "_saved", lambda figure, wanted: {kind: kinds[kind] for kind in wanted})
        yield


@pytest.fixture
def manifest_of(tmp_path: Path):
    """A function that ingests CSV text and returns the manifest's path."""

    from fewchannels import manifest

    def make(text: str, name: str = "manifest", **options) -> Path:
        source, path = tmp_path / f"{name}.csv", tmp_path / f"{name}.parquet"
        source.write_text(text, encoding="utf-8")
        manifest.ingest([str(source)], path, **options)
        return path

    return make


@pytest.fixture
def make(tmp_path: Path):
    """A function that ingests the bytes of a file and returns the report."""

    from fewchannels import manifest

    def ingest(name: str, content: str | bytes, **options: Any) -> "IngestReport":
        source = tmp_path / name
        source.write_bytes(content.encode() if isinstance(content, str) else content)
        return manifest.ingest([source], tmp_path / "manifest.parquet", **options)

    return ingest
