"""What a sweep measures of its pictures: an edited one against the undisturbed one beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewchannels.analyses.masks.given import read_mask
from fewchannels.interventions.metrics.learned import LearnedMetrics
from fewchannels.interventions.metrics.pictures import compare
from fewchannels.interventions.metrics.world import judged, scene_of, shown
from fewchannels.interventions.rows import Row
from fewchannels.runs.pictures import pixels


@dataclass(frozen=True)
class Measured:
    """One picture of a batch.

    Attributes:
        row: what it is.
        image: the picture.
        columns: of ``edits``, what is known of it so far.
    """

    row: Row
    image: Image.Image
    columns: dict[str, Any]


class Measures:
    """The metrics of a sweep, their models loaded once.

    Args:
        learned: specifications of metrics that need weights, such as ``clip=FOLDER``.
        device: where those run.

    Raises:
        InputError: one cannot be loaded.
    """

    def __init__(self, learned: Sequence[str], device: str) -> None:
        self._learned = LearnedMetrics.of(learned, device) if learned else None

    def of(self, made: Sequence[Measured]) -> list[Measured]:
        """A batch's pictures with all their columns.

        Args:
            made: each item's undisturbed picture among them.
        """
        pictures = torch.stack([pixels(each.image) for each in made])
        undisturbed = {each.row.item.item: i for i, each in enumerate(made) if each.row.role == "undisturbed"}
        beside = torch.tensor([undisturbed[each.row.item.item] for each in made])
        scenes = [scene_of(each.row.item.target.prompt) for each in made]
        verdicts, subjects = judged(pictures, scenes)
        masks, has_mask = self._masks(made, subjects, beside)
        columns: dict[str, Any] = compare(pictures, pictures[beside], masks, has_mask)
        if self._learned is not None:
            prompts = [each.row.item.target.prompt for each in made]
            sources = [each.row.item.source.prompt if each.row.item.source else None for each in made]
            columns |= self._learned.measure(pictures, pictures[beside], prompts, sources)
        found = []
        for i, each in enumerate(made):
            edited = each.row.role == "edited"
            measured = {name: _plain(values[i]) for name, values in columns.items() if edited or name in _OF_ITSELF}
            source = scene_of(each.row.item.source.prompt) if each.row.item.source else None
            found.append(replace(each, columns=each.columns | measured | shown(verdicts[i], scenes[i], source)))
        return found

    def _masks(self, made: Sequence[Measured], subjects: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
        """Each picture's mask of the undisturbed subject ``(picture, y, x)``, and whether there is one."""
        masks, known = subjects[beside], subjects[beside].flatten(1).any(dim=1)
        for i, each in enumerate(made):
            item = each.row.item
            if item.mask is not None and item.picture is None:
                masks[i], known[i] = torch.from_numpy(read_mask_at(item.mask, each.image.size)), True
        return masks, known


_OF_ITSELF = ("clip_score", "clip_source_score", "aesthetic", "pickscore")


def read_mask_at(path: str, size: tuple[int, int]) -> np.ndarray:
    """A mask's file at a picture's size (width, height): ``(y, x)`` bool."""
    return np.array(Image.fromarray(read_mask(path)).resize(size, Image.Resampling.NEAREST))


def _plain(value: Any) -> Any:
    """A metric as Arrow takes it: null where there is none."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
