"""Identity of a loaded pipeline: the weights and settings in memory that determine its images."""

import hashlib
import json
from typing import Any

import torch
from torch import nn

from fewchannels.errors import InputError
from fewchannels.models.geometry import uncompiled


def pipeline_identity(pipeline: Any) -> dict[str, Any]:
    """The model's fields of an identity (``schemas/store.md``), for a pipeline in memory: ``weights`` and ``files``.

    The weights include adapters, with their strengths. Reading all weights takes seconds per 10 GB.

    Args:
        pipeline: the pipeline.

    Raises:
        InputError: some weights are not in memory.
    """
    weights, settings = hashlib.sha256(), {}
    for name, component in sorted(pipeline.components.items()):
        if isinstance(component, nn.Module):
            module = uncompiled(component)
            for key, values in sorted(module.state_dict().items()):
                weights.update(f"{name}.{key} {_kind(values)}\0".encode())
                weights.update(_bytes(values, f"{name}.{key}"))
        settings[name] = _settings(component)
    plain = json.dumps(settings, sort_keys=True, default=str)
    files = {"pipeline in memory": hashlib.sha256(plain.encode()).hexdigest()[:16]}
    return {"weights": weights.hexdigest(), "files": files}


def _kind(values: Any) -> str:
    return f"{values.dtype} {tuple(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__


def _bytes(values: Any, name: str) -> bytes | memoryview:
    if not isinstance(values, torch.Tensor):
        return repr(values).encode()
    if values.is_meta:
        raise InputError(
            f"the weights {name} are not in memory (sequential offload), so a recording could not be distinguished "
            "from one with other weights. Use enable_model_cpu_offload() instead."
        )
    plain = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return plain.numpy().data


def _settings(component: Any) -> Any:
    """A component's class and settings as plain values, with a tokenizer's vocabulary and a model's adapters."""
    config = getattr(component, "config", None)
    found: dict[str, Any] = {"class": type(component).__name__}
    if config is not None:
        plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        found["config"] = {key: value for key, value in plain.items() if key != "_name_or_path"}
    if (backend := getattr(component, "backend_tokenizer", None)) is not None:
        found["tokenizer"] = backend.to_str()
    if isinstance(component, nn.Module):
        scaling = {
            name: (module.scaling, getattr(module, "active_adapters", None), getattr(module, "disable_adapters", None))
            for name, module in component.named_modules()
            if getattr(module, "scaling", None) and hasattr(module, "lora_A")
        }
        found |= {"adapters": scaling} if scaling else {}
    return found
