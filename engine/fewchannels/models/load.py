"""Load a pipeline from a located model, with the usual options for large models."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, attention_backend

from fewchannels.errors import InputError
from fewchannels.files.durable import expanded
from fewchannels.models.adapters import add_adapters
from fewchannels.models.completeness import check_single_file, checked_single_file, file_keys, recorded
from fewchannels.models.family import Block, ModelGeometry
from fewchannels.models.load_options import Loading
from fewchannels.models.quiet import quietly
from fewchannels.models.source import ModelSource, read_config


@contextmanager
def _opening(source: ModelSource) -> Iterator[None]:
    """Load quietly, and report diffusers' errors about a model as errors of the user's input.

    No code from a model's folder runs: configurations can name only classes of the libraries, and pickled weights are
    read only as tensors, which is the default of PyTorch and diffusers.
    """
    try:
        with quietly("diffusers", "transformers"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated", category=FutureWarning)
            _check_components(source)
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # weight formats raise their own errors, without a common base class
        raise InputError(f"diffusers cannot open {source.name!r}: {error or type(error).__name__}") from error


def _check_components(source: ModelSource) -> None:
    for name, kind in read_config(source, "model_index.json").items():
        if not isinstance(kind, list) or not kind or kind[0] is None:
            continue
        library = kind[0]
        known = library in ("diffusers", "transformers") or hasattr(diffusers.pipelines, str(library))
        if not known:
            raise InputError(
                f"{source.name!r}: its {name} is from the module {library!r:.60}, which is neither diffusers nor "
                "transformers. Code that comes with a model is not run."
            )


def load(
    source: ModelSource,
    geometry: ModelGeometry,
    loading: Loading,
    device: str,
    components: Mapping[str, torch.nn.Module | None] | None = None,
) -> DiffusionPipeline:
    """Load a pipeline's weights onto a device, with its own progress bars off.

    Args:
        source: the model.
        geometry: geometry of the model.
        loading: loading options.
        device: device on which its components run.
        components: components that replace the model's own, which are not read; None omits a component.

    Raises:
        InputError: diffusers cannot open the model, or cannot load it in this way on this machine.
    """
    loading.check_here()
    if device == "cpu" and (loading.offload in ("model", "sequential") or loading.device_map):
        name = f"offload {loading.offload!r}" if loading.offload != "none" else f"device_map {loading.device_map!r}"
        raise InputError(
            f"{name} moves weights between a GPU and memory, and this process has no GPU (--gpus-per-actor)."
        )
    with _opening(source):
        pipeline = _pipeline(source, geometry, loading, components or {})
        add_adapters(pipeline, loading.adapters())
        if loading.attention:
            with attention_backend(loading.attention):  # it would affect every other model in the process, too
                pipeline.transformer.set_attention_backend(loading.attention)
        _place(pipeline, loading, device)
    if loading.compile:
        _compile(pipeline.transformer, geometry.blocks)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def open_pipeline(source: ModelSource, device: str) -> DiffusionPipeline:
    """Load a pipeline of any class, float32 on the CPU and bfloat16 elsewhere.

    Raises:
        InputError: diffusers cannot open the model.
    """
    with _opening(source):
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        pipeline = _complete(source, torch_dtype=dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _pipeline(
    source: ModelSource,
    geometry: ModelGeometry,
    loading: Loading,
    components: Mapping[str, torch.nn.Module | None],
) -> DiffusionPipeline:
    dtype = getattr(torch, loading.dtype)
    more: dict[str, Any] = {}
    if loading.quantization != "none":
        more["quantization_config"] = diffusers.PipelineQuantizationConfig(
            quant_mapping={"transformer": _quantization(loading.quantization, dtype)}
        )
    if loading.device_map:
        more["device_map"] = loading.device_map
    if loading.transformer_file:
        path = expanded(loading.transformer_file)
        if path.suffix == ".gguf":
            more["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
        transformer = _single_file(getattr(diffusers, geometry.transformer), path, source, torch_dtype=dtype, **more)
        more = {"transformer": transformer} | ({"device_map": loading.device_map} if loading.device_map else {})
    pipeline = _complete(source, torch_dtype=dtype, **more, **components)
    for name in [name for name, component in components.items() if component is None]:
        setattr(pipeline, name, None)  # HunyuanDiTPipeline reads it anyway
    return pipeline


def _complete(source: ModelSource, **how: Any) -> DiffusionPipeline:
    """Load a pipeline whose models are complete in their own files."""
    with recorded(diffusers.ModelMixin, transformers.PreTrainedModel) as found:
        pipeline = DiffusionPipeline.from_pretrained(source.folder, **how)
    names = {id(component): name for name, component in pipeline.components.items()}
    for each in found:
        each.check(f"{names.get(id(each.model), 'a component')} of {source.name!r}")
    return pipeline


def _single_file(kind: Any, path: Path, source: ModelSource, **how: Any) -> torch.nn.Module:
    """Load a transformer with the weights of a single file."""
    with torch.device("meta"):
        empty = kind.from_config(kind.load_config(source.folder, subfolder="transformer"))
    check_single_file(repr(str(path)), file_keys(path), empty)
    with checked_single_file(repr(str(path))):
        transformer: torch.nn.Module = kind.from_single_file(
            str(path), config=str(source.folder), subfolder="transformer", **how
        )
    return transformer


def _quantization(name: str, dtype: torch.dtype) -> Any:
    if name == "bitsandbytes-8bit":
        return diffusers.BitsAndBytesConfig(load_in_8bit=True)
    if name == "bitsandbytes-4bit":
        return diffusers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    from torchao import quantization as torchao

    kinds = {
        "torchao-int8": torchao.Int8WeightOnlyConfig,
        "torchao-int4": torchao.Int4WeightOnlyConfig,
        "torchao-float8": torchao.Float8WeightOnlyConfig,
    }
    return diffusers.TorchAoConfig(kinds[name]())


def _place(pipeline: DiffusionPipeline, loading: Loading, device: str) -> None:
    if loading.device_map:
        return
    if loading.offload == "model":
        pipeline.enable_model_cpu_offload()
    elif loading.offload == "sequential":
        pipeline.enable_sequential_cpu_offload()
    elif loading.offload == "group":
        pipeline.enable_group_offload(
            onload_device=torch.device(device),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=device == "cuda",
        )
    else:
        pipeline.to(device)


def _compile(transformer: torch.nn.Module, blocks: tuple[Block, ...]) -> None:
    # Compile the forward, not the module: hooks then stay outside of the compiled code.
    for block in blocks:
        module = transformer.get_submodule(block.path)
        module.forward = torch.compile(module.forward)
