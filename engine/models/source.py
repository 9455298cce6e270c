"""From a model's name (``demo``, a folder, a hub id) to its files and its geometry; no weights are loaded."""

import hashlib
import json
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from engine.errors import InputError, unknown
from engine.models.families import FAMILIES, ModelGeometry


@dataclass(frozen=True)
class ModelSource:
    """A model that was found.

    Attributes:
        name: as the user wrote it.
        folder: where its files are on this machine.
        revision: commit of a hub model; None for a folder.
    """

    name: str
    folder: Path
    revision: str | None = None


def find(name: str, revision: str | None = None) -> ModelSource:
    """Find a model by name, downloading a hub model's files if they are not here.

    Raises:
        InputError: there is no such model, or its files cannot be had.
    """
    bundled = Path(str(resources.files("engine.demo").joinpath("model")))
    folder = bundled if name == "demo" else Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise InputError(
                f"the folder {str(folder)!r} holds no model_index.json; a model is a folder that "
                "diffusers.DiffusionPipeline.from_pretrained can open."
            )
        return ModelSource(name, folder)
    looks_like_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not looks_like_hub_id:
        raise unknown("model", name, ["demo", "a folder with a model_index.json", "a hub id such as owner/model"])
    try:
        from diffusers import DiffusionPipeline  # seconds to import, and a folder does not need it

        snapshot = Path(DiffusionPipeline.download(name, revision=revision))
    except Exception as error:  # the hub's own errors have no common base class
        raise InputError(
            f"there is no folder {name!r}, and the hub model of that name cannot be had: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}. Use demo, a "
            "folder, or a hub id; gated models need 'hf auth login' and an accepted licence."
        ) from None
    return ModelSource(name, snapshot, snapshot.name)


def weights_digest(source: ModelSource) -> str:
    """SHA-256 over the names and contents of a model's weight files."""
    digest = hashlib.sha256()
    for path in sorted(source.folder.glob("*/*.safetensors")):
        digest.update(str(path.relative_to(source.folder)).encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _component_config(source: ModelSource, component: str) -> dict[str, Any]:
    path = source.folder / component / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{source.name!r} has no readable {component}/config.json: {error}") from None


def geometry(source: ModelSource) -> ModelGeometry:
    """Read a model's geometry from its configuration files; no weights are loaded.

    Raises:
        InputError: the transformer's class is not in :data:`FAMILIES`, or a file is missing.
    """
    config, vae = _component_config(source, "transformer"), _component_config(source, "vae")
    name = config.get("_class_name", "")
    if name not in FAMILIES:
        raise unknown("transformer class", name, FAMILIES)
    family = FAMILIES[name]
    try:
        return ModelGeometry(
            family=name,
            blocks=family.blocks(config),
            n_channels=math.prod(config[key] for key in family.width),
            pixels_per_token=family.cells_per_token * 2 ** (len(vae["block_out_channels"]) - 1),
            default_side=vae["sample_size"],
            takes_guidance=bool(config.get("guidance_embeds", False)),
        )
    except KeyError as error:
        raise InputError(f"{source.name!r}: the transformer's or the VAE's config.json has no {error}.") from None
