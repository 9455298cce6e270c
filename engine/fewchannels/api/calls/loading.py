"""Load a model in the same way as the commands."""

from typing import TYPE_CHECKING, Any

from fewchannels.models.load import load as load_pipeline
from fewchannels.models.load_options import Loading
from fewchannels.models.loaded import default_device
from fewchannels.models.source import check_files, find, geometry

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load(model: str, *, revision: str | None = None, device: str | None = None, **how: Any) -> "DiffusionPipeline":
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
    source, loading = find(model, revision), Loading(**how)
    shape = geometry(source)
    check_files(source, loading)
    pipeline = load_pipeline(source, shape, loading, device or default_device())
    if hasattr(pipeline, "default_sample_size"):
        pipeline.default_sample_size = shape.default_side // pipeline.vae_scale_factor
    pipeline.set_progress_bar_config(disable=False)
    return pipeline
