"""Load a model in the same way as the commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewchannels.api.messages import in_python
from fewchannels.errors import InputError, unknown
from fewchannels.models.generation import DTYPES
from fewchannels.models.load import load as load_pipeline
from fewchannels.models.load_options import Loading
from fewchannels.models.loaded import default_device
from fewchannels.models.source import check_files, find, geometry
from fewchannels.settings.file import settled

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load(
    model: str | Path, *, revision: str | None = None, device: str | None = None, **how: Any
) -> "DiffusionPipeline":
    """Load a pipeline in the same way as the commands, which reject models with missing files.

    By default, its calls generate images of the model's own size.

    Args:
        model: ``demo``, a folder, or a hub id.
        revision: branch, tag or commit of a hub id.
        device: ``cuda`` or ``cpu``; None for a GPU if one is available.
        **how: fields of :class:`fewchannels.models.load_options.Loading`, such as ``dtype="bfloat16"`` or
            ``offload="model"``.

    Raises:
        InputError: the model does not exist, or cannot be loaded in this way.

    Example:
        >>> fc.load("demo").transformer.config.num_layers
        2
    """
    if not isinstance(model, str | Path):
        raise InputError(f"model is {type(model).__name__}; it must be demo, a folder, or a hub id.")
    with in_python():
        chosen = {name: str(value).removeprefix("torch.") if name == "dtype" else value for name, value in how.items()}
        loading = Loading(**settled(Loading, chosen, "fc.load"))
        if loading.dtype not in DTYPES:
            raise unknown("dtype", loading.dtype, DTYPES)
        source = find(str(model), revision)
    shape = geometry(source)
    check_files(source, loading)
    pipeline = load_pipeline(source, shape, loading, device or default_device())
    if hasattr(pipeline, "default_sample_size"):
        pipeline.default_sample_size = shape.default_side // pipeline.vae_scale_factor
    pipeline.set_progress_bar_config(disable=False)
    return pipeline
