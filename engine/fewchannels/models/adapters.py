"""LoRA adapters, all of whose weights must fit: the libraries ignore others, with at most a line in a log."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from fewchannels.errors import InputError
from fewchannels.files.durable import expanded

# The end of the adapted module's name in a key, in the formats of diffusers, PEFT and LyCORIS.
_PART = re.compile(r"(?P<module>.+?)\.(processor\.)?(?P<part>lora\w*|lokr_\w+|alpha|dora_scale|diff\w*)(\..*)?")
_DOWN = re.compile(r"(^|\.)(lora_A|lora\.down|lora_down|down)(\.|$)")
_UP = re.compile(r"(^|\.)(lora_B|lora\.up|lora_up|up)(\.|$)")
_SHOWN = 60  # characters of a key in a message


def add_adapters(pipeline: DiffusionPipeline, adapters: Iterable[tuple[str, float]]) -> None:
    """Load adapters into a pipeline, each with its strength.

    Args:
        pipeline: pipeline to adapt.
        adapters: file and strength of each.

    Raises:
        InputError: the pipeline supports none, or some weights of a file do not fit; the message counts them.
    """
    strengths = {}
    for i, (path, strength) in enumerate(adapters):
        if not hasattr(pipeline, "load_lora_weights"):
            raise InputError(
                f"{type(pipeline).__name__} does not support LoRA adapters in diffusers; omit lora {path!r}."
            )
        name = f"lora_{i}"
        _add(pipeline, path, name)
        strengths[name] = strength
    if strengths:
        pipeline.set_adapters(list(strengths), list(strengths.values()))


def _add(pipeline: DiffusionPipeline, path: str, name: str) -> None:
    file = str(expanded(path))
    try:
        found = pipeline.lora_state_dict(file)  # in diffusers' names, whatever program trained it
        state: Mapping[str, Any] = found[0] if isinstance(found, tuple) else found
    except Exception as error:  # converters of other formats raise their own errors
        raise _unreadable(pipeline, path, error) from error
    weights = [key for key in state if not key.endswith(".alpha")]
    modules: dict[str, list[str]] = {}
    unfit = []
    for key in weights:
        if (module := _module(pipeline, key)) is None:
            unfit.append(key)
        elif module:
            modules.setdefault(module, []).append(key)
    if unfit or not weights:
        first = f", such as {unfit[0][:_SHOWN]!r}" if unfit else ""
        raise InputError(
            f"{len(unfit)} of {len(weights)} keys of the adapter {path!r} do not match {type(pipeline).__name__}"
            f"{first}; they would be ignored. Use an adapter that was trained for this model."
        )
    halves = [keys for keys in modules.values() if any(map(_DOWN.search, keys)) != any(map(_UP.search, keys))]
    if halves:
        raise InputError(
            f"{sum(map(len, halves))} of {len(weights)} keys of the adapter {path!r} are one factor of a product whose "
            f"other factor is missing, such as {halves[0][0][:_SHOWN]!r}. Use a complete adapter."
        )
    try:
        pipeline.load_lora_weights(file, adapter_name=name)
    except Exception as error:
        raise _unreadable(pipeline, path, error) from error
    n_adapted = sum(_has_adapter(module, name) for module in _modules(pipeline))
    if n_adapted < len(modules):
        raise InputError(
            f"{type(pipeline).__name__} did not apply the adapter {path!r} in {len(modules) - n_adapted} of "
            f"{len(modules)} layers. Use an adapter that was trained for this model."
        )


def _module(pipeline: DiffusionPipeline, key: str) -> str | None:
    """The module that a weight adapts, with its component; empty for an additional weight; None if there is none."""
    component, _, rest = key.partition(".")
    model = pipeline.components.get(component)
    if not isinstance(model, nn.Module):
        return None
    if (match := _PART.fullmatch(rest)) is None:
        return "" if rest in model.state_dict() else None
    there = {name for name, _ in model.named_modules()}
    path = match["module"]
    # transformers has removed the level 'text_model' from CLIP's text encoder; adapters exist for both versions.
    for name in (path, path.removeprefix("text_model."), f"text_model.{path}"):
        if name in there:
            return f"{component}.{name}"
    return None


def _modules(pipeline: DiffusionPipeline) -> Iterable[nn.Module]:
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            yield from component.modules()


def _has_adapter(module: nn.Module, name: str) -> bool:
    return any(name in getattr(module, part, {}) for part in getattr(module, "adapter_layer_names", ()))


def _unreadable(pipeline: DiffusionPipeline, path: str, error: Exception) -> InputError:
    reason = str(error).strip() or type(error).__name__
    return InputError(f"the adapter {path!r} cannot be loaded into {type(pipeline).__name__}: {reason.rstrip('.')}.")
