"""Text embeddings in a run's storage, so that prompts are encoded before the transformer is loaded."""

import json
from typing import Any

import torch
from crc32c import crc32c
from safetensors import torch as safetensors

from fewchannels.models.embeddings import moved
from fewchannels.runs.description import EMBEDDINGS
from fewchannels.runs.storage import Storage

_CHECKSUM_BYTES = 4


class StoredEmbeddings:
    """Store of embeddings in a run, under ``embeddings/``, each with its checksum. Safe to put twice.

    Args:
        storage: storage of the run.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def find(self, key: str, device: torch.device) -> Any:
        """Return a result on a device; raises KeyError if it is missing or damaged. A damaged one is deleted."""
        try:
            data = self._storage.get(EMBEDDINGS + key)
        except FileNotFoundError:
            raise KeyError(key) from None
        payload, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if crc32c(payload).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
            self._storage.delete([EMBEDDINGS + key])
            raise KeyError(key)
        n = int.from_bytes(payload[:8], "little")
        shape = json.loads(json.loads(payload[8 : 8 + n])["__metadata__"]["shape"])
        return moved(_rebuilt(shape, safetensors.load(payload)), device)

    def put(self, key: str, result: Any) -> None:
        """Keep a result."""
        tensors: dict[str, torch.Tensor] = {}
        shape = _taken_apart(result, tensors)
        payload = safetensors.save(tensors, {"shape": json.dumps(shape)})
        self._storage.put(EMBEDDINGS + key, [payload, crc32c(payload).to_bytes(_CHECKSUM_BYTES, "little")])


def _taken_apart(result: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """A result's structure in plain values, with names in place of its tensors, which are stored under these names."""
    if isinstance(result, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = result.detach().cpu().clone(memory_format=torch.contiguous_format)
        return name
    if isinstance(result, (list, tuple)):
        return {type(result).__name__: [_taken_apart(each, tensors) for each in result]}
    if result is None:
        return None
    raise TypeError(f"encode_prompt returned a {type(result).__name__}, which cannot be stored")


def _rebuilt(shape: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(shape, str):
        return tensors[shape]
    if shape is None:
        return None
    ((kind, each),) = shape.items()
    parts = [_rebuilt(part, tensors) for part in each]
    return tuple(parts) if kind == "tuple" else parts
