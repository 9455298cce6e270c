"""The Kubernetes manifest of docs/cluster: KubeRay's fields, a command that parses, one folder for every pod."""

import json
import re
import shlex
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from fewchannels.cli import app

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "cluster" / "rayjob.yaml").read_text(encoding="utf-8")
CLAIM, JOB = yaml.safe_load_all(TEXT)
SPEC = JOB["spec"]
CLUSTER = SPEC["rayClusterSpec"]
HEAD = CLUSTER["headGroupSpec"]
(WORKERS,) = CLUSTER["workerGroupSpecs"]
GROUPS = {"head": HEAD, "workers": WORKERS}


def command() -> dict[str, Any]:
    """What the CLI makes of the entrypoint; raises what it would say to a user."""
    program, *words = shlex.split(SPEC["entrypoint"])
    assert program == "fewchannels"
    group = typer.main.get_command(app)
    with group.make_context(program, words, resilient_parsing=False) as context:
        name, subcommand, rest = group.resolve_command(context, words)
        assert name == "capture"
        return subcommand.make_context(name, rest, parent=context, resilient_parsing=False).params


def container(group: str) -> dict[str, Any]:
    (only,) = GROUPS[group]["template"]["spec"]["containers"]
    return only


def volume_at(group: str, folder: str) -> dict[str, Any]:
    """The volume that a pod of a group has at a folder."""
    mounts = {mount["mountPath"]: mount["name"] for mount in container(group)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in GROUPS[group]["template"]["spec"]["volumes"]}
    return volumes[mounts[folder]]


def test_kuberay_knows_every_field_of_the_job() -> None:
    schema = json.loads((ROOT / "tests" / "data" / "rayjob_schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator
    validator.check_schema(schema)
    assert [f"{error.json_path}: {error.message}" for error in validator(schema).iter_errors(JOB)] == []


def test_the_entrypoint_is_a_capture_that_the_command_line_parses() -> None:
    given = command()
    assert (given["address"], given["model"]) == ("auto", "black-forest-labs/FLUX.1-dev")


def test_every_worker_is_one_actor_with_its_gpu_and_the_head_is_none() -> None:
    given = command()
    limits = container("workers")["resources"]["limits"]
    assert (given["gpus_per_actor"], given["cpus_per_actor"]) == (limits["nvidia.com/gpu"], limits["cpu"])
    assert (WORKERS["replicas"], WORKERS["minReplicas"], WORKERS["maxReplicas"]) == (0, 0, given["actors"])
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in container("head")["resources"]["limits"]


def test_at_most_three_lines_are_to_be_filled_in_and_each_is_marked() -> None:
    lines = TEXT.splitlines()
    marked = [line for line in lines if "# FILL IN: " in line]
    assert 1 <= len(marked) <= 3
    assert [line for line in lines if "FILL-IN" in line] == marked


@pytest.mark.parametrize("group", GROUPS)
def test_the_claim_is_mounted_where_the_entrypoint_reads_and_writes(group: str) -> None:
    given = command()
    out = PurePosixPath(given["out"])
    claimed = volume_at(group, str(out.parent))["persistentVolumeClaim"]["claimName"]
    assert (CLAIM["kind"], claimed) == ("PersistentVolumeClaim", CLAIM["metadata"]["name"])
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]
    assert PurePosixPath(given["manifest"]).parent == out.parent


@pytest.mark.parametrize("group", GROUPS)
def test_weights_are_kept_on_the_node_and_the_object_store_fits_in_shared_memory(group: str) -> None:
    env = {each["name"]: each for each in container(group)["env"]}
    assert "emptyDir" in volume_at(group, env["HF_HOME"]["value"])
    assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"]["optional"] is True
    shared = volume_at(group, "/dev/shm")["emptyDir"]
    assert shared["medium"] == "Memory"
    assert (
        int(GROUPS[group]["rayStartParams"]["object-store-memory"]) < int(shared["sizeLimit"].removesuffix("Gi")) << 30
    )


def test_ray_is_the_version_that_the_constraints_pin() -> None:
    pinned = re.search(r"(?m)^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert CLUSTER["rayVersion"] == pinned[1]


def test_all_pods_have_one_image() -> None:
    assert container("head")["image"] == container("workers")["image"]
