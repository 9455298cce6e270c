"""What Ray's launcher sends of this checkout to a node, by the files for clusters."""

import shutil
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def send(node: Path, name: str = "cluster.yaml", checkout: Path = ROOT) -> None:
    """Copy what a cluster's file mounts below ``~/fewchannels`` to a folder, as rsync would.

    Args:
        node: the folder, which is made.
        name: of the cluster's file.
        checkout: whose files are sent.
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
