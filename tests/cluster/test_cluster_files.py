"""cluster.yaml and its variants, against Ray's own schema and the rules of this project."""

import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
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
    assert (
        "~/venv/bin/pip install --quiet --constraint ~/fewchannels/constraints.txt --editable ~/fewchannels"
        in (config["setup_commands"])
    )


def test_the_launcher_is_the_one_that_is_pinned() -> None:
    assert f"ray=={ray.__version__}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert os.path.exists(Path(ray.autoscaler.__file__).parent / "ray-schema.json")
