"""Compare two images, or two lists of images, with the metrics of a sweep."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from fewchannels.errors import InputError
from fewchannels.interventions.metrics.images import compare
from fewchannels.interventions.metrics.learned import LearnedMetrics
from fewchannels.models.loaded import default_device
from fewchannels.runs.images import pixels

if TYPE_CHECKING:
    import pandas as pd


def compare_images(
    before: Image.Image | Sequence[Image.Image],
    after: Image.Image | Sequence[Image.Image],
    *,
    prompts: str | Sequence[str] | None = None,
    metrics: Sequence[str] = (),
) -> "pd.DataFrame":
    """Compare pairs of images: one row of metrics per pair.

    Pixel metrics do not measure semantic changes. For those, add a learned metric, such as
    ``metrics=["clip=FOLDER"]`` with prompts.

    Args:
        before: unedited image, or a list of images.
        after: edited image, or a list of the same length.
        prompts: prompt of each pair, for metrics that compare an image with its prompt.
        metrics: learned metrics, as for ``--metric``: ``clip=``, ``dino=``, ``pickscore=``, ``aesthetic=`` or
            ``lpips=``, each followed by a folder or a hub id.

    Returns:
        Columns of :data:`fewchannels.interventions.metrics.METRICS` that need no mask; NaN if a metric has no value.

    Raises:
        InputError: the images differ in number or size, or a metric cannot be loaded.

    Example:
        >>> from PIL import Image
        >>> black, gray = Image.new("RGB", (32, 32)), Image.new("RGB", (32, 32), (51, 51, 51))
        >>> fc.compare_images(black, gray).mse.round(3).tolist()
        [0.04]
    """
    import pandas as pd

    first, second = _listed("before", before), _listed("after", after)
    if len(first) != len(second):
        raise InputError(f"before has {len(first)} images, but after has {len(second)}. Pass lists of the same length.")
    texts = [prompts] if isinstance(prompts, str) else list(prompts or [""] * len(first))
    if len(texts) != len(first):
        raise InputError(
            f"prompts has {len(texts)} texts, but there are {len(first)} pairs of images. Pass one prompt per pair."
        )
    learned = LearnedMetrics.of(metrics, default_device()) if metrics else None
    rows = []
    for one, other, text in zip(first, second, texts, strict=True):
        if one.size != other.size:
            raise InputError(
                f"the images have different sizes, {one.size} and {other.size} pixels. Resize one of them."
            )
        tensors: tuple[Tensor, Tensor] = pixels(other)[None], pixels(one)[None]
        columns = {name: values for name, values in compare(*tensors).items() if name not in _OF_MASKS}
        if learned is not None:
            columns |= learned.measure(*tensors, [text], [None])
            if prompts is None:
                columns = {name: values for name, values in columns.items() if name not in _OF_PROMPTS}
        rows.append({name: float(torch.as_tensor(values)[0]) for name, values in columns.items()})
    return pd.DataFrame(rows)


_OF_MASKS = ("mse_inside", "mse_outside", "change_iou")
_OF_PROMPTS = ("clip_score", "clip_source_score", "pickscore")


def _listed(name: str, images: Image.Image | Sequence[Image.Image]) -> list[Image.Image]:
    found = list(images) if isinstance(images, Iterable) else [images]
    if not found or not all(isinstance(each, Image.Image) for each in found):
        raise InputError(f"{name} must be a PIL image, or a list of them. Convert arrays with PIL.Image.fromarray.")
    return [each.convert("RGB") if each.mode != "RGB" else each for each in found]
