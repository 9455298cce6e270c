"""A loaded pipeline as a model: its geometry, and the weights and settings in memory that determine its images."""

import hashlib
import inspect
import json
from typing import Any

import torch
from torch import nn

from fewchannels.errors import InputError
from fewchannels.models.family import Family
from fewchannels.models.family_file import as_fields
from fewchannels.models.geometry import Configuration, geometry_from, uncompiled
from fewchannels.models.model import Model


def from_pipeline(pipeline: Any, family: tuple[str, Family] | None = None) -> Model:
    """The model of a loaded pipeline.

    Args:
        pipeline: the pipeline.
        family: family of the transformer class, in addition to the known families.

    Raises:
        InputError: it is not a diffusion transformer of a known family.
    """
    geometry = geometry_from(Configuration.of(pipeline), family)
    encoders = tuple(
        name for name, each in pipeline.components.items() if name.startswith("text_encoder") and each is not None
    )

    def identity() -> dict[str, Any]:
        own = {"family": {family[0]: as_fields(family[1])}} if family else {}
        return pipeline_identity(pipeline) | own

    return Model(geometry, encoders, identity)


def name_of(pipeline: Any) -> str:
    """The name of a loaded pipeline's model: the folder or hub id it was loaded from, otherwise its class."""
    return str(getattr(pipeline.config, "_name_or_path", "") or type(pipeline).__name__)


def dtype_of(pipeline: Any) -> str:
    """The data type of a loaded pipeline's transformer, such as ``bfloat16``."""
    return str(uncompiled(pipeline.transformer).dtype).removeprefix("torch.")


def device_of(pipeline: Any) -> str:
    """The kind of device that a loaded pipeline computes on, wherever offload keeps its weights."""
    return torch.device(getattr(pipeline, "_execution_device", None) or uncompiled(pipeline.transformer).device).type


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
    settings["pipeline"] = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(pipeline).__mro__]
    settings["methods"] = _own_functions(pipeline)
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


_LIBRARIES = ("accelerate", "diffusers", "peft", "torch", "transformers", "fewchannels")
"""Libraries whose hooks and wrappers place weights and adapters, which the weights and settings above cover."""


def _own_functions(owner: Any) -> list[str]:
    """Functions that a user has set as an attribute of an object or as a hook of a module."""
    own = getattr(owner, "__dict__", {})
    found = [value for value in own.values() if inspect.isroutine(value)]
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        found += own.get(hooks, {}).values()
    named = [(getattr(each, "__module__", "") or "", getattr(each, "__qualname__", repr(each))) for each in found]
    return sorted(f"{module}.{name}" for module, name in named if module.split(".")[0] not in _LIBRARIES)


def _module(module: nn.Module) -> dict[str, Any]:
    """Settings of a module that are in no configuration: plain attributes, its attention processor, its hooks."""
    found: dict[str, Any] = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and isinstance(value, bool | int | float | str)
    }
    if (processor := getattr(module, "processor", None)) is not None:
        found["processor"] = f"{type(processor).__module__}.{type(processor).__qualname__}"
    if functions := _own_functions(module):
        found["functions"] = functions
    return found


def _settings(component: Any) -> Any:
    """A component's class and settings as plain values, with a tokenizer's vocabulary and a model's adapters."""
    config = getattr(component, "config", None)
    found: dict[str, Any] = {"class": type(component).__name__}
    if config is not None:
        plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        found["config"] = {key: value for key, value in plain.items() if key != "_name_or_path"}
        # Settings of a scheduler that were changed after its creation, such as by set_shift().
        held = getattr(component, "__dict__", {})
        own = {key: held.get(f"_{key}", held.get(key)) for key in found["config"]}
        found["set"] = {key: value for key, value in own.items() if isinstance(value, bool | int | float | str)}
    if (backend := getattr(component, "backend_tokenizer", None)) is not None:
        # Settings that a call of the pipeline makes for its prompts are left out.
        found["tokenizer"] = {
            name: value for name, value in json.loads(backend.to_str()).items() if name not in ("truncation", "padding")
        }
    found["methods"] = _own_functions(component)
    if isinstance(component, nn.Module):
        found["modules"] = {
            name: about for name, module in uncompiled(component).named_modules() if (about := _module(module))
        }
        scaling = {
            name: (module.scaling, getattr(module, "active_adapters", None), getattr(module, "disable_adapters", None))
            for name, module in component.named_modules()
            if getattr(module, "scaling", None) and hasattr(module, "lora_A")
        }
        found |= {"adapters": scaling} if scaling else {}
    return found
