"""Find and load a segmentation model by its name (a folder or a hub id), with transformers."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewchannels.errors import InputError
from fewchannels.files.contents import digests
from fewchannels.files.durable import expanded
from fewchannels.models.quiet import quietly

CUSTOM_CODE = "AutoModelForImageSegmentation"
"""The entry of a configuration's ``auto_map`` that BiRefNet and models like it have."""


@dataclass(frozen=True)
class Checkpoint:
    """A segmentation model that was found; only its ``config.json`` has been read.

    Attributes:
        name: a folder or a hub id, as accepted by transformers.
        revision: commit of a hub model; None for a folder.
        config: contents of its ``config.json``.
    """

    name: str
    revision: str | None
    config: Mapping[str, Any]

    @property
    def code(self) -> str | None:
        """Location of its own Python code, from its configuration; None for an architecture of transformers."""
        code = (self.config.get("auto_map") or {}).get(CUSTOM_CODE)
        return code[0] if isinstance(code, list) else code


def find(name: str, revision: str | None = None) -> Checkpoint:
    """Find a segmentation model by name; a hub model's configuration is downloaded if it is not on this machine.

    Raises:
        InputError: there is no such model, or it is gated, or it has no configuration.
    """
    folder = expanded(name)
    if folder.is_dir():
        if revision is not None:
            raise InputError(
                f"revision is {revision!r}, but {name!r} is a folder; only hub models have revisions. Omit it."
            )
        if not (folder / "config.json").is_file():
            raise InputError(
                f"the folder {name!r} has no config.json; a segmentation model is a folder that "
                "transformers' from_pretrained can open."
            )
        return Checkpoint(str(folder), None, _read(folder / "config.json", name))
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(
            f"{name!r} is not a source of masks or a folder. Valid: manifest, demo, saliency, the folder of a "
            "segmentation model, or a hub id such as owner/model."
        )
    from huggingface_hub import hf_hub_download  # slow to import, and a folder does not need it
    from huggingface_hub.errors import GatedRepoError

    try:
        path = Path(hf_hub_download(name, "config.json", revision=revision))
    except GatedRepoError:
        raise InputError(
            f"the hub model {name!r} is gated: accept its license on https://huggingface.co/{name} with the "
            "account whose token 'hf auth login' stores on this machine, then try again."
        ) from None
    except Exception as error:  # the hub's own errors have no common base class
        raise InputError(
            f"there is no folder {name!r}, and no model of that name could be downloaded from the Hub: "
            f"{_brief(error)}. Use a folder or a hub id; with HF_HUB_OFFLINE=1, only cached models are available."
        ) from None
    return Checkpoint(name, path.parent.name, _read(path, name))


def load(auto: Any, checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Any:
    """Load a model in float32 for inference; an output with NaN values is refused.

    Args:
        auto: the class of transformers whose ``from_pretrained`` loads it.
        checkpoint: the model.
        trust_remote_code: whether its own Python code may run.

    Raises:
        InputError: it cannot be loaded, or its files lack weights or have unexpected ones.
    """
    from fewchannels.models.completeness import Loaded  # imports PyTorch, which is not needed to find a checkpoint

    options = {"revision": checkpoint.revision} if checkpoint.revision else {}
    try:
        with quietly("transformers"):
            model, loading = auto.from_pretrained(
                checkpoint.name, output_loading_info=True, trust_remote_code=trust_remote_code, **options
            )
    except ImportError as error:
        raise InputError(f"{checkpoint.name!r} needs a library that is not installed: {_brief(error)}") from None
    except Exception as error:  # broken checkpoints raise errors of many kinds
        raise InputError(f"{checkpoint.name!r} cannot be loaded: {_brief(error)}") from None
    Loaded(model, loading["missing_keys"], loading["unexpected_keys"]).check(
        repr(checkpoint.name), remedy="Use a checkpoint that was trained for segmentation."
    )
    model.float().eval()  # many checkpoints are stored in float16, with which a CPU is slow
    model.register_forward_hook(_refuse_nan)
    return model


def weights_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the weights, code and settings of a model's folder."""
    paths = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".bin", ".json", ".py")]
    found, digest = digests(paths), hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(bytes.fromhex(found[str(path)]))
    return digest.hexdigest()


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{name!r} has no readable config.json: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"the config.json of {name!r} is not a JSON object.")
    return config


def _brief(error: Exception) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
    return f"{type(error).__name__}: {text.strip()}"


def _refuse_nan(model: Any, inputs: Any, output: Any) -> None:
    if _has_nan(output):
        raise ValueError(f"{type(model).__name__} returned values that are not finite")


def _has_nan(output: Any) -> bool:
    from torch import Tensor

    if isinstance(output, Mapping):
        return any(map(_has_nan, output.values()))
    if isinstance(output, list | tuple):
        return any(map(_has_nan, output))
    return isinstance(output, Tensor) and output.is_floating_point() and bool(output.isnan().any())
