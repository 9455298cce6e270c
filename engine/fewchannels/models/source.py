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
from fewchannels.models.families import FAMILIES, NOISED_VAES, VAE_FACTORS
from fewchannels.models.family import Family, ModelGeometry, Pipeline
from fewchannels.models.load_options import Loading
from fewchannels.models.weight_files import check_weight_files

# As diffusers finds the class of a checkpoint from before each had its own, such as DiT's and the first PixArt's.
_FORMERLY = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
_READ_WEIGHTS = (".safetensors", ".bin")
_WEIGHTS = (*_READ_WEIGHTS, ".msgpack", ".h5", ".onnx", ".onnx_data", ".pth", ".pt", ".ckpt", ".gguf")
_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")
_MOST = 2**20  # of a width, a side: far above any model's


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
    """Find a model by name, downloading a hub model's files if they are not here.

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
                f"the folder {str(folder)!r} holds no model_index.json; a model is a folder that "
                "diffusers.DiffusionPipeline.from_pretrained can open."
            )
        return ModelSource(name, folder)
    looks_like_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not looks_like_hub_id:
        raise unknown("model", name, ["demo", "a folder with a model_index.json", "a hub id such as owner/model"])
    from diffusers import DiffusionPipeline  # seconds to import, and a folder does not need it
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
    """Refuse a model of which a weight file is not there, before anything starts.

    Raises:
        InputError: naming the file.
    """
    replaced = frozenset({"transformer"} if loading.transformer_file else ())
    check_weight_files(source.name, source.folder, read_config(source, "model_index.json"), replaced)


def file_digests(source: ModelSource) -> dict[str, str]:
    """SHA-256, 16 hex digits, of every file but ``*/*.safetensors`` that loading a model reads, by its place in it.

    Of each component these are its configuration, its tokenizer or scheduler, and, where it has no safetensors, its
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
    """Names of the components that a model's index says it has."""
    index = read_config(source, "model_index.json")
    # Others lead out of the model's folder, and are nothing that a pipeline could have.
    return [name for name, kind in index.items() if isinstance(kind, list) and any(kind[:1]) and name.isidentifier()]


def _variant(name: str) -> str:
    """The variant of a file of weights, such as ``fp16``; empty where it has none."""
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
        InputError: it is not there, or holds no fields.
    """
    try:
        config = json.loads((source.folder / key).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{source.name!r} has no readable {key}: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{source.name!r} has no readable {key}: it holds {type(config).__name__}, not fields.")
    return config


def _named_class(source: ModelSource, key: str, config: dict[str, Any]) -> str:
    name = config.get("_class_name", "")
    if not isinstance(name, str):  # diffusers takes a pair for a module of the folder's own
        raise InputError(f"{source.name!r}: _class_name in {key} is {name!r:.60}; it must be the name of a class.")
    return name


def geometry(source: ModelSource, family: tuple[str, Family] | None = None) -> ModelGeometry:
    """Read a model's geometry from its configuration files; no weights are loaded.

    Args:
        source: the model.
        family: family of the transformer class with this name, beside :data:`FAMILIES`.

    Raises:
        InputError: the transformer's or the pipeline's class is in neither, or a file is missing.
    """
    keys = "model_index.json", "transformer/config.json", "vae/config.json"
    index, config, vae = (read_config(source, key) for key in keys)
    pipeline_class, name, _ = (_named_class(source, *each) for each in zip(keys, (index, config, vae), strict=True))
    families = FAMILIES | dict([family] if family else [])
    if name == "Transformer2DModel":
        name = _FORMERLY.get(str(config.get("norm_type", "")), name)
    if name not in families:
        raise InputError(
            f"the transformer class {name!r} is not supported; supported are {', '.join(families)}. 'fewchannels "
            f"models inspect {source.name}' locates its image stream and writes a family file for --family."
        )
    found = families[name]
    if pipeline_class not in found.pipelines:
        raise InputError(
            f"{name} is supported in {' and '.join(found.pipelines)}; {source.name!r} is a {pipeline_class!r}, "
            "which may apply guidance differently. Describe it in a family file (--family)."
        )
    pipeline = found.pipelines[pipeline_class]
    if any(index.get("transformer_2") or []):
        raise InputError(
            f"{source.name!r} has a second transformer, transformer_2, which runs some of the steps; only one can be "
            "recorded, so these steps would be missing. Use a model with one transformer."
        )
    try:
        factor = _whole("the VAE's factor", _pixels_per_cell(vae))
        sides = {"vae": lambda: vae["sample_size"], "transformer": lambda: config["sample_size"] * factor}
        return ModelGeometry(
            transformer=name,
            pipeline_class=pipeline_class,
            family=found,
            pipeline=pipeline,
            blocks=found.blocks(config),
            n_channels=_whole("the width", found.n_channels(config)),
            pixels_per_token=_whole("a token's side", found.cells_per_token(config)) * factor,
            default_side=found.default_side
            if isinstance(found.default_side, int)
            else _whole("the default side", sides[found.default_side]()),
            embeds_guidance=pipeline.embedded is not None
            and bool(config.get("guidance_embeds", found.embeds_guidance)),
            can_be_guided=_can_be_guided(pipeline, index),
            takes_images=vae.get("_class_name") in NOISED_VAES
            and not pipeline.needs_reference
            and _is_flow(read_config(source, "scheduler/scheduler_config.json")),
        )
    except KeyError as error:
        raise InputError(f"{source.name!r}: the transformer's or the VAE's config.json has no {error}.") from None
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(f"{source.name!r}: a field of its configuration has an unexpected type: {error}") from None


def _whole(what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST:
        raise ValueError(f"{what} is {value!r:.60}; it must be a whole number, 1 to {_MOST:,}")
    return value


def _can_be_guided(pipeline: Pipeline, index: dict[str, Any]) -> bool:
    if pipeline.guidance == "component":
        return bool((index.get("guider") or [None])[0])
    return pipeline.guidance != "none" and not index.get("is_distilled", False)


def _is_flow(scheduler: dict[str, Any]) -> bool:
    flow = scheduler.get("use_flow_sigmas") or scheduler.get("prediction_type") == "flow_prediction"
    return str(scheduler.get("_class_name", "")).startswith("FlowMatch") or bool(flow)


def _pixels_per_cell(vae: dict[str, Any]) -> int:
    value = vae[VAE_FACTORS.get(vae.get("_class_name", ""), "block_out_channels")]
    if isinstance(value, int):
        return value
    if len(value) > _MOST.bit_length():
        raise ValueError(f"the VAE has {len(value)} widths")
    # One halving between each two widths; the one list of another kind holds the halvings themselves.
    return 2 ** (len(value) - (vae.get("_class_name") != "AutoencoderKLQwenImage"))
