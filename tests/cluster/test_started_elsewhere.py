"""Relative paths on a Ray that somebody started in another folder: they start from the folder of the command."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray.cluster_utils import Cluster

from fewchannels import open_run


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a Ray with two CPUs, started in a folder of its own."""
    (tmp_path / "started here").mkdir()
    monkeypatch.chdir(tmp_path / "started here")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield made.address
    made.shutdown()


def test_a_commands_relative_paths_are_those_of_its_own_folder(address: str, tmp_path: Path, tiny_model: Path) -> None:
    """The place, the model, and masks that the manifest names."""
    folder = tmp_path / "asked here"
    folder.mkdir()
    shutil.copytree(tiny_model, folder / "model")
    half = np.zeros((16, 16), np.uint8)
    half[:, :4] = 255  # a quarter
    Image.fromarray(half).save(folder / "mask.png")
    rows = "prompt,mask\na red circle,mask.png\na blue square,mask.png\n"
    (folder / "prompts.csv").write_text(rows, encoding="utf-8")

    def run(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "fewchannels", *words],
            cwd=folder,
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    run("manifest", "ingest", "prompts.csv", "-o", "manifest.parquet")
    one = ("--num-inference-steps", "2", "--actors", "1", "--address", address)
    generated = ("--manifest", "manifest.parquet", "--model", "model", *one)
    sized = ("--height", "16", "--width", "16")
    run("capture", *generated, *sized, "--out", "RUN", "--shard-samples", "1", "--encode-first")
    run("analyze", "masks", "RUN", "--from", "manifest", "--workers", "2", "--address", address)
    run("probe", "disruption", *generated, *sized, "--out", "SWEEP", "--k", "2")
    found = open_run(folder / "RUN")
    assert found.sql("select count(*) from samples where status = 'done'").fetchall() == [(2,)]
    assert found.sql("select area from masks_samples").fetchall() == [(0.25,), (0.25,)]
    assert (folder / "SWEEP" / "edits").is_dir()
    assert list((tmp_path / "started here").iterdir()) == []
