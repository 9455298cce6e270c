"""Copies what Ray's launcher sends to a node, according to a cluster file."""

import shutil
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
NEEDED = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "engine", "schemas", "queries"}
"""What a node needs of a checkout to install it."""


def send(node: Path, name: str = "cluster.yaml", checkout: Path = ROOT) -> None:
    """Copy what a cluster file mounts below ``~/fewchannels``, as rsync would.

    Args:
        node: folder to copy to; it is created.
        name: path of the cluster file in this project.
        checkout: folder whose files are sent.
    """
    config = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    for there, here in config["file_mounts"].items():
        target = node / there.removeprefix("~/fewchannels").lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if (checkout / here).is_dir():
            left_out = shutil.ignore_patterns(*config["rsync_exclude"])
            shutil.copytree(checkout / here, target, symlinks=True, ignore=left_out)
        else:
            shutil.copy(checkout / here, target)
