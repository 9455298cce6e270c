"""Which models learned metrics load, and what their files hold; no weights are loaded."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from fewchannels.errors import InputError, unknown
from fewchannels.files.contents import digests
from fewchannels.files.durable import expanded

KINDS = ("clip", "dino", "pickscore", "aesthetic", "lpips")
_READ = (".safetensors", ".bin", ".json", ".txt", ".model", ".pth")


def read_specifications(specifications: Sequence[str]) -> dict[str, str]:
    """``clip=FOLDER`` and the like, by kind.

    Raises:
        InputError: an unknown kind, or one without a value, or twice.
    """
    found: dict[str, str] = {}
    for text in specifications:
        kind, equals, value = text.partition("=")
        if kind not in KINDS:
            raise unknown("metric", kind, KINDS)
        if not equals or not value:
            raise InputError(f"metric is {text!r}; give {kind}=FOLDER or a hub id.")
        if kind in found:
            raise InputError(f"--metric has {kind} twice; give it once.")
        found[kind] = value
    return found


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
        paths = [*_files(model), *([expanded(head)] if head else [])]
        if paths:
            known, whole = digests(paths), hashlib.sha256()
            for path in paths:
                whole.update(f"{path.name}\0{known[str(path)]}\0".encode())
            found[kind] = whole.hexdigest()[:16]
    return found


def _files(model: str) -> list[Path]:
    """What loading reads of a folder; nothing where it is none."""
    folder = expanded(model)
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _READ)
