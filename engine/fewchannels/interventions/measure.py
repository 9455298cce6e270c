"""Measurements of a sweep's images: each edited one against its unedited one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewchannels.analyses.masks.mask_file import Mask, read_mask
from fewchannels.files.images import read_image
from fewchannels.interventions.metrics.images import compare
from fewchannels.interventions.metrics.learned import LearnedMetrics
from fewchannels.interventions.metrics.world import judged, scene_of, shown
from fewchannels.interventions.rows import Item, Row
from fewchannels.runs.images import pixels


@dataclass(frozen=True)
class Measured:
    """One image of a batch.

    Attributes:
        row: description of the row.
        image: the image.
        columns: known columns of ``edits``.
    """

    row: Row
    image: Image.Image
    columns: dict[str, Any]


class Measures:
    """The metrics of a sweep, their models loaded once.

    Args:
        learned: specifications of metrics that need weights, such as ``clip=FOLDER``.
        device: device of these metrics.

    Raises:
        InputError: one cannot be loaded.
    """

    def __init__(self, learned: Sequence[str], device: str) -> None:
        self._learned = LearnedMetrics.of(learned, device) if learned else None

    def of(self, made: Sequence[Measured]) -> list[Measured]:
        """Measure a batch's images; those with nothing to measure get no metrics.

        Args:
            made: images of the batch, including each item's unedited one.
        """
        images = torch.stack([pixels(each.image) for each in made])
        undisturbed = {each.row.item.item: i for i, each in enumerate(made) if each.row.role == "undisturbed"}
        beside = torch.tensor([undisturbed[each.row.item.item] for each in made])
        scenes = [scene_of(each.row.item.target.prompt) for each in made]
        verdicts, subjects = judged(images, scenes)
        masks, has_mask, known = self._masks(made, subjects, beside)
        columns: dict[str, Any] = compare(images, images[beside], masks, has_mask, known)
        if self._learned is not None:
            prompts = [each.row.item.target.prompt for each in made]
            sources = [each.row.item.source.prompt if each.row.item.source else None for each in made]
            columns |= self._learned.measure(images, images[beside], prompts, sources)
        broken = {(each.row.item.item, each.row.role) for each in made if each.columns.get("nonfinite_steps")}
        found = []
        for i, each in enumerate(made):
            edited = each.row.role == "edited"
            if not self._is_measured(each, broken):
                found.append(each)
                continue
            measured = {name: _plain(values[i]) for name, values in columns.items() if edited or name in _OF_ITSELF}
            source = scene_of(each.row.item.source.prompt) if each.row.item.source else None
            found.append(replace(each, columns=each.columns | measured | shown(verdicts[i], scenes[i], source)))
        return found

    @staticmethod
    def _is_measured(made: Measured, broken: set[tuple[int, str]]) -> bool:
        """Return whether an image is usable: it was edited, and its latents are finite."""
        item, condition = made.row.item.item, made.row.condition
        if made.columns.get("nonfinite_steps"):
            return False
        if condition is None or condition.is_nothing:
            return (item, "undisturbed") not in broken
        if made.columns.get("n_channels") == 0:
            return False
        blends_source = condition.action == "pixels" and (item, "source") in broken
        return (item, "undisturbed") not in broken and not blends_source

    def _masks(self, made: Sequence[Measured], subjects: Tensor, beside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each image's mask of the unedited subject ``(image, y, x)``, whether there is one, and its known pixels."""
        masks, has_mask = subjects[beside], subjects[beside].flatten(1).any(dim=1)
        known = torch.ones_like(masks)
        for i, each in enumerate(made):
            item = each.row.item
            if item.mask is not None and item.image is None:
                mask = mask_of(item, each.image.height, each.image.width)
                masks[i], has_mask[i] = torch.from_numpy(mask.pixels), True
                if mask.known is not None:
                    known[i] = torch.from_numpy(mask.known)
        return masks, has_mask, known


_OF_ITSELF = ("clip_score", "clip_source_score", "aesthetic", "pickscore")


def mask_of(item: Item, height: int, width: int) -> Mask:
    """An item's mask at the size of its images. The mask of a reference image is resized like the image.

    Args:
        item: item with a mask.
        height: height of the images that are generated, pixels.
        width: width of the images that are generated, pixels.

    Raises:
        InputError: the file is not a mask, or its aspect ratio differs from its image's.
    """
    assert item.mask is not None, "prepare_sweep() has refused it"
    mask, name = read_mask(item.mask), f"the mask {item.mask!r}"
    if item.image is None:
        return mask.at(height, width, name)
    image = read_image(item.image)
    return mask.at(image.height, image.width, name).squeezed(height, width)


def _plain(value: Any) -> Any:
    """Convert a metric for Arrow: null if there is none."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
