"""Digests of the models that learned metrics load."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from fewchannels.contents import digests
from fewchannels.interventions.metrics.learned import read_specifications

_READ = (".safetensors", ".bin", ".json", ".txt", ".model", ".pth")


def metric_digests(specifications: Sequence[str]) -> dict[str, str]:
    """SHA-256, 16 hex digits, of the files of every learned metric that are on this machine, by kind.

    Of a hub id it is the digest of the snapshot that was downloaded before; a kind without any is left out.

    Args:
        specifications: such as ``clip=FOLDER``.

    Raises:
        InputError: one is not of that form.
    """
    found = {}
    for kind, value in read_specifications(specifications).items():
        model, _, head = value.rpartition(",") if kind == "aesthetic" else (value, "", "")
        paths = [*_files(model), *([Path(head).expanduser()] if head else [])]
        if paths:
            known, whole = digests(paths), hashlib.sha256()
            for path in paths:
                whole.update(f"{path.name}\0{known[str(path)]}\0".encode())
            found[kind] = whole.hexdigest()[:16]
    return found


def _files(model: str) -> list[Path]:
    """What loading reads of a folder; nothing where it is none."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _READ)
