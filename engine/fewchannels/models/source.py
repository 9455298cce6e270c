"""From a model's name (``demo``, a folder, a hub id) to its files and its geometry; no weights are loaded."""

import hashlib
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fewchannels.errors import InputError, unknown
from fewchannels.files.contents import digests
from fewchannels.files.durable import expanded
from fewchannels.models.family import Family, ModelGeometry
from fewchannels.models.geometry import Configuration, geometry_from
from fewchannels.models.load_options import Loading
from fewchannels.models.weight_files import check_weight_files

_READ_WEIGHTS = (".safetensors", ".bin")
_WEIGHTS = (*_READ_WEIGHTS, ".msgpack", ".h5", ".onnx", ".onnx_data", ".pth", ".pt", ".ckpt", ".gguf")
_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")


@dataclass(frozen=True)
class ModelSource:
    """A model that was found.

    Attributes:
        name: name as the user wrote it.
        folder: folder in which its files are on this machine.
        revision: commit of a hub model; None for a folder.
    """

    name: str
    folder: Path
    revision: str | None = None


def find(name: str, revision: str | None = None) -> ModelSource:
    """Find a model by name; a hub model's files are downloaded if they are not on this machine.

    Raises:
        InputError: there is no such model, or its files cannot be downloaded.
    """
    bundled = Path(str(resources.files("fewchannels.demo").joinpath("model")))
    folder = bundled if name == "demo" else expanded(name)
    if folder.is_dir():
        if revision is not None:
            raise InputError(
                f"revision is {revision!r}, but {name!r} is a folder; only hub models have revisions. Omit it."
            )
        if not (folder / "model_index.json").is_file():
            raise InputError(
                f"the folder {str(folder)!r} has no model_index.json; a model is a folder that "
                "diffusers.DiffusionPipeline.from_pretrained can open."
            )
        return ModelSource(name, folder)
    looks_like_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not looks_like_hub_id:
        raise unknown("model", name, ["demo", "a folder with a model_index.json", "a hub id such as owner/model"])
    from diffusers import DiffusionPipeline  # takes seconds to import, and a folder does not need it
    from huggingface_hub.errors import GatedRepoError

    try:
        snapshot = Path(DiffusionPipeline.download(name, revision=revision))
    except Exception as error:  # the hub's own errors have no common base class
        if any(isinstance(each, GatedRepoError) for each in (error, error.__cause__, error.__context__)):
            raise InputError(
                f"the hub model {name!r} is gated: accept its license on https://huggingface.co/{name} with the "
                "account whose token 'hf auth login' stores on this machine, then try again."
            ) from None
        raise InputError(
            f"there is no folder {name!r}, and no model of that name could be downloaded from the Hub: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}. Use demo, a "
            "folder, or a hub id; with HF_HUB_OFFLINE=1, only cached models are available."
        ) from None
    return ModelSource(name, snapshot, snapshot.name)


def weights_digest(source: ModelSource) -> str:
    """SHA-256 over the names and contents of a model's ``*/*.safetensors``."""
    paths = sorted(source.folder.glob("*/*.safetensors"))
    found, digest = digests(paths), hashlib.sha256()
    for path in paths:
        digest.update(str(path.relative_to(source.folder)).encode())
        digest.update(bytes.fromhex(found[str(path)]))
    return digest.hexdigest()


def check_files(source: ModelSource, loading: Loading) -> None:
    """Refuse a model with a missing weight file, before anything starts.

    Raises:
        InputError: a file is missing; the message names it.
    """
    replaced = frozenset({"transformer"} if loading.transformer_file else ())
    check_weight_files(source.name, source.folder, read_config(source, "model_index.json"), replaced)


def file_digests(source: ModelSource) -> dict[str, str]:
    """SHA-256, 16 hex digits, of every file except ``*/*.safetensors`` that loading a model reads, by relative path.

    For each component, these are its configuration, its tokenizer or scheduler, and, if it has no safetensors, its
    pickled weights.
    """
    paths = {"model_index.json": source.folder / "model_index.json"}
    for name in components(source):
        folder = source.folder / name
        files = [each for each in sorted(folder.iterdir()) if each.is_file()] if folder.is_dir() else []
        has_safetensors = any(each.suffix == ".safetensors" and not _variant(each.name) for each in files)
        for path in files:
            place = path.relative_to(source.folder).as_posix()
            is_weights = path.suffix in _WEIGHTS or ".index." in path.name
            skipped = has_safetensors or path.suffix not in _READ_WEIGHTS or _variant(path.name)
            if path.name.startswith(".") or path.suffix == ".md" or (is_weights and skipped):
                continue
            paths[place] = path
    found = digests(paths.values())
    return {place: found[str(path)][:16] for place, path in paths.items()}


def components(source: ModelSource) -> list[str]:
    """Names of the components in a model's index."""
    index = read_config(source, "model_index.json")
    # Other names lead out of the model's folder, and cannot be components of a pipeline.
    return [name for name, kind in index.items() if isinstance(kind, list) and any(kind[:1]) and name.isidentifier()]


def _variant(name: str) -> str:
    """The variant of a file of weights, such as ``fp16``; empty if it has none."""
    if ".index." in name:
        return name.partition(".index.")[2].rpartition(".")[0]
    found = _SHARD.sub("", name.rpartition(".")[0])
    return found.partition(".")[2]


def text_encoders(source: ModelSource) -> list[str]:
    """Names of a model's text encoders among its components."""
    index = read_config(source, "model_index.json")
    return [
        name
        for name, kind in index.items()
        if name.startswith("text_encoder") and isinstance(kind, list) and any(kind[:1])
    ]


def transformer_config(source: ModelSource) -> dict[str, Any]:
    """The configuration of a model's transformer."""
    return read_config(source, "transformer/config.json")


def read_config(source: ModelSource, key: str) -> dict[str, Any]:
    """One of a model's configuration files.

    Raises:
        InputError: it does not exist, or contains no fields.
    """
    try:
        config = json.loads((source.folder / key).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{source.name!r} has no readable {key}: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{source.name!r} has no readable {key}: it contains {type(config).__name__}, not fields.")
    return config


def _named_class(source: ModelSource, key: str, config: dict[str, Any]) -> str:
    name = config.get("_class_name", "")
    if not isinstance(name, str):  # diffusers interprets a pair as a module in the folder
        raise InputError(f"{source.name!r}: _class_name in {key} is {name!r:.60}; it must be the name of a class.")
    return name


def geometry(source: ModelSource, family: tuple[str, Family] | None = None) -> ModelGeometry:
    """Read a model's geometry from its configuration files; no weights are loaded.

    Args:
        source: the model.
        family: name and family of a transformer class, in addition to the known families.

    Raises:
        InputError: the transformer's or the pipeline's class is in neither, or a file is missing.
    """
    keys = "model_index.json", "transformer/config.json", "vae/config.json"
    index, config, vae = (read_config(source, key) for key in keys)
    pipeline_class, name, _ = (_named_class(source, *each) for each in zip(keys, (index, config, vae), strict=True))
    scheduler = read_config(source, "scheduler/scheduler_config.json")
    described = Configuration(source.name, pipeline_class, name, index, config, vae, scheduler)
    return geometry_from(described, family)
