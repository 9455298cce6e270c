"""Models of learned metrics, and digests of their files; no weights are loaded."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from fewchannels.errors import InputError, unknown
from fewchannels.files.contents import digests
from fewchannels.files.durable import expanded

KINDS = ("clip", "dino", "pickscore", "aesthetic", "lpips")
_READ = (".safetensors", ".bin", ".json", ".txt", ".model", ".pth")


def read_specifications(specifications: Sequence[str]) -> dict[str, str]:
    """Parse specifications such as ``clip=FOLDER``, by kind.

    Raises:
        InputError: a kind is unknown, has no value, or is given twice.
    """
    found: dict[str, str] = {}
    for text in specifications:
        kind, equals, value = text.partition("=")
        if kind not in KINDS:
            raise unknown("metric", kind, KINDS)
        if not equals or not value:
            raise InputError(f"metric is {text!r}; it must be {kind}=FOLDER, or {kind}= and a hub id.")
        if kind in found:
            raise InputError(f"--metric has {kind} twice. Pass it once.")
        found[kind] = value
    return found


def pinned(specifications: Sequence[str]) -> tuple[str, ...]:
    """The same specifications, with the current commit of each hub model: ``clip=OWNER/MODEL@COMMIT``.

    Args:
        specifications: such as ``clip=FOLDER``.

    Raises:
        InputError: one does not have this form, or its model is not a folder and cannot be downloaded from the Hub.
    """
    found = []
    for kind, value in read_specifications(specifications).items():
        model, comma, head = _parts(kind, value)
        if model and kind != "lpips" and not expanded(model).is_dir():
            name, revision = at_commit(model)
            model = f"{name}@{_commit(kind, name, revision)}"
        found.append(f"{kind}={model}{comma}{head}")
    return tuple(found)


def at_commit(model: str) -> tuple[str, str | None]:
    """A hub model's name without its revision, and the revision; None if it has none."""
    name, at, revision = model.rpartition("@")
    return (name, revision) if at else (model, None)


def metric_digests(specifications: Sequence[str]) -> dict[str, str]:
    """Digest of every learned metric's files, by kind: SHA-256, 16 hex digits; for a hub model with its commit.

    LPIPS has none: the names of its weights on PyTorch's server contain their digests.

    Args:
        specifications: from :func:`pinned`.
    """
    found = {}
    for kind, value in read_specifications(specifications).items():
        if kind == "lpips":
            continue
        model, _, head = _parts(kind, value)
        paths = [*_files(model), *([expanded(head)] if head else [])]
        commit = at_commit(model)[1] if model and not expanded(model).is_dir() else None
        whole = hashlib.sha256(f"{commit}\0".encode() if commit else b"")
        known = digests(paths)
        for path in paths:
            whole.update(f"{path.name}\0{known[str(path)]}\0".encode())
        found[kind] = whole.hexdigest()[:16]
    return found


def _parts(kind: str, value: str) -> tuple[str, str, str]:
    """A model, a comma, and the file of an aesthetic predictor; the last two are empty for others."""
    return value.rpartition(",") if kind == "aesthetic" else (value, "", "")


def _files(model: str) -> list[Path]:
    """Files of a folder that loading reads; empty if it is not a folder."""
    folder = expanded(model)
    if not model or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _READ)


def _commit(kind: str, model: str, revision: str | None) -> str:
    """The commit of a hub model's revision, by its ``config.json``; if offline, that of an earlier download."""
    from huggingface_hub import hf_hub_download  # slow to import, and a folder does not need it

    try:
        return Path(hf_hub_download(model, "config.json", revision=revision)).parent.name
    except Exception as error:  # the Hub client's errors have no common base class
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise InputError(
            f"metric {kind}: there is no folder {model!r}, and no hub model of that name could be downloaded: "
            f"{type(error).__name__}: {first.rstrip('.')}. With HF_HUB_OFFLINE=1, only cached models are available."
        ) from None
