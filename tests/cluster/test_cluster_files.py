"""cluster.yaml and its variants, against Ray's own schema and the rules of this project."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import hash_runtime_conf, prepare_config, validate_config
from sent import NEEDED, send

ROOT = Path(__file__).parents[2]
PINS = "constraints.txt"
FILES = ["cluster.yaml", "docs/cluster/gcp.yaml", "docs/cluster/on_premise.yaml"]


def filled(name: str) -> dict[str, Any]:
    """A file as it is after its lines were filled in."""
    config = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    if config["provider"]["type"] == "gcp":
        config["provider"]["project_id"] = "project"
    return config


@pytest.mark.parametrize("name", FILES)
def test_a_cluster_file_is_what_rays_launcher_takes(name: str) -> None:
    whole = prepare_config(filled(name))
    validate_config(whole | {"cluster_synced_files": []})
    assert whole["max_workers"] > 0


@pytest.mark.parametrize("name", FILES)
def test_a_misspelt_field_is_found(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(filled(name)) | {"cluster_synced_files": [], "idle_minutes": 1})


@pytest.mark.parametrize("name", FILES)
def test_three_lines_are_to_be_filled_in_and_marked(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    marked = [line for line in text.splitlines() if "# FILL IN: " in line]
    assert len(marked) == 3
    assert all("# FILL IN: " in line for line in text.splitlines() if re.search("[-A-Z]FILL-IN", line))


@pytest.mark.parametrize("name", FILES)
def test_the_head_takes_no_actor_and_ray_runs_where_the_project_is(name: str) -> None:
    config = filled(name)
    head = config.get("available_node_types", {}).get("head")
    assert head["resources"] == {"CPU": 0} if head else "--num-cpus=0" in config["head_start_ray_commands"][1]
    for command in (config["head_start_ray_commands"][1], config["worker_start_ray_commands"][1]):
        assert "ulimit -n 65536; " in command
        assert "ray start" in command


@pytest.mark.parametrize("has_pytorch", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_a_node_installs_what_is_pinned_and_keeps_a_pytorch_that_it_has(
    name: str, has_pytorch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, make, pick, install = filled(name)["setup_commands"][-4:]
    assert "export PATH=~/venv/bin:$PATH" in path
    assert make.endswith("python3.11 -m venv --system-site-packages ~/venv")
    assert install == "~/venv/bin/pip install --quiet --constraint ~/constraints.txt --editable ~/fewchannels"
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nexit {int(not has_pytorch)}\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    send(tmp_path / "fewchannels", name)
    subprocess.run(["bash", "-c", pick], check=True)
    pinned, kept = (file.read_text(encoding="utf-8").splitlines() for file in (ROOT / PINS, tmp_path / PINS))
    left_out = [line for line in pinned if line not in kept]
    assert kept == [line for line in pinned if line not in left_out]
    assert [line.split("==")[0] for line in left_out] == (["torch"] if has_pytorch else [])


@pytest.mark.parametrize("name", FILES)
def test_a_node_is_sent_what_it_needs_however_much_lies_beside_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, node = tmp_path / "checkout", tmp_path / "node"
    send(checkout, name)
    monkeypatch.chdir(checkout)
    mounts = filled(name)["file_mounts"]
    _, before = hash_runtime_conf(mounts, None, None, generate_file_mounts_contents_hash=True)
    for folder in ("runs", "RUN", ".venv"):
        (checkout / folder).mkdir()
        with (checkout / folder / "large").open("wb") as file:
            file.truncate(2**30)
    _, after = hash_runtime_conf(mounts, None, None, generate_file_mounts_contents_hash=True)
    assert after == before, "Ray would send something again"
    for folder in ("__pycache__", "fewchannels.egg-info"):
        (checkout / "engine" / folder).mkdir()
    send(node, name, checkout)
    assert {path.name for path in node.iterdir()} == NEEDED
    assert {path.name for path in (node / "engine").iterdir()} == {"fewchannels"}
    assert sum(path.stat().st_size for path in node.rglob("*") if path.is_file()) < 32 * 2**20
    assert (node / "engine" / "fewchannels" / "schemas" / "cells.yaml").is_file()


def test_the_launcher_is_the_one_that_is_pinned() -> None:
    assert f"ray=={ray.__version__}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert os.path.exists(Path(ray.autoscaler.__file__).parent / "ray-schema.json")
