"""Check that a model's folder has the required weight files, without reading them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewchannels.errors import InputError

_STEMS = {"diffusers": ("diffusion_pytorch_model",), "transformers": ("model", "pytorch_model")}
_ENDINGS = ("safetensors", "bin")


def check_weight_files(name: str, folder: Path, index: Mapping[str, Any], without: frozenset[str]) -> None:
    """Refuse a model with a missing weight file.

    Args:
        name: name of the model, for messages.
        folder: folder in which its files are.
        index: its ``model_index.json``.
        without: components whose weights are not read.

    Raises:
        InputError: a file is missing; the message names it, and the files found instead.
    """
    for component, kind in index.items():
        is_there = isinstance(kind, list) and bool(kind) and kind[0] in _STEMS
        # A component with weights has a config.json; schedulers, tokenizers and processors have other files.
        if not is_there or component in without or not (folder / component / "config.json").is_file():
            continue
        _check(name, folder / component, _STEMS[kind[0]])


def _check(name: str, folder: Path, stems: tuple[str, ...]) -> None:
    for ending in _ENDINGS:
        for stem in stems:
            if (shards := folder / f"{stem}.{ending}.index.json").is_file():
                _check_shards(name, shards)
                return
            if (folder / f"{stem}.{ending}").is_file():
                return
    looked_for = f"{folder.name}/{stems[0]}.safetensors"
    variants = sorted(path.name for stem in stems for path in folder.glob(f"{stem}.*") if path.suffix[1:] in _ENDINGS)
    if variants:
        variant = variants[0].split(".")[1].split("-")[0]
        raise InputError(
            f"{name!r} has no {looked_for}, only those of the variant {variant!r}, such as {variants[0]}. Load it with "
            f"diffusers' from_pretrained(..., variant={variant!r}) and save it with save_pretrained(FOLDER), or remove "
            f"{variant!r} from the file names."
        )
    raise InputError(f"{name!r} has no {looked_for} and no other weights. Download the model again.")


def _check_shards(name: str, index: Path) -> None:
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name!r} has no readable {index.parent.name}/{index.name}: {error!r:.80}") from None
    if missing := sorted(str(shard) for shard in shards if not (index.parent / str(shard)).is_file()):
        raise InputError(
            f"{name!r} lacks {len(missing)} of the {len(shards)} files that {index.parent.name}/{index.name} names, "
            f"such as {missing[0]!r}. Download the model again."
        )
