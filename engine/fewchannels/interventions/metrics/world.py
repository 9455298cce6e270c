"""The shapes world's exact metrics: which attributes of its prompt an image shows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewchannels.demo.judge import ATTRIBUTES, Verdict, judge
from fewchannels.demo.world import Scene


def scene_of(prompt: str) -> Scene | None:
    """The scene that a prompt describes; None if it is not a caption of the shapes world."""
    try:
        return Scene.from_caption(prompt)
    except ValueError:
        return None


def judged(images: Tensor, scenes: Sequence[Scene | None]) -> tuple[list[Verdict | None], Tensor]:
    """Verdicts on images whose prompts are captions of the shapes world, and their subjects' masks.

    Args:
        images: ``(image, rgb, y, x)`` float32 in [0, 1].
        scenes: scenes that their prompts describe; None if they are not captions of the shapes world.

    Returns:
        A verdict or None for each, and masks ``(image, y, x)`` bool, empty if there is no verdict or no subject.
    """
    masks = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    verdicts: list[Verdict | None] = [None] * len(images)
    known = [i for i, scene in enumerate(scenes) if scene is not None]
    if known and images.shape[2] == images.shape[3]:
        found, masks[known] = judge(images[known])
        for i, verdict in zip(known, found, strict=True):
            verdicts[i] = verdict
    return verdicts, masks


def shown(verdict: Verdict | None, target: Scene | None, source: Scene | None) -> dict[str, Any]:
    """Attributes of the target and the source that an image shows, as columns of ``edits``.

    Args:
        verdict: verdict of the judge; None if there is none.
        target: scene that the prompt describes; None if it is not a caption of the shapes world.
        source: same as above, for the source.
    """
    if verdict is None or target is None:
        return {}
    right = {name: getattr(verdict, name) == getattr(target, name) for name in ATTRIBUTES}
    columns: dict[str, Any] = {f"shows_{name}": value for name, value in right.items()}
    columns["n_shown"] = sum(right.values())
    if source is None:
        return columns
    differ = [name for name in ATTRIBUTES if getattr(target, name) != getattr(source, name)]
    taken = {name: getattr(verdict, name) == getattr(source, name) for name in differ}
    columns |= {f"source_{name}": value for name, value in taken.items()}
    if differ:
        columns["target_kept"] = sum(right[name] for name in differ) / len(differ)
        columns["source_taken"] = sum(taken.values()) / len(differ)
    return columns
