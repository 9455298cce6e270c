"""Masks of images of the shapes world, by the demo's own judge."""

import numpy as np

from fewchannels.analyses.masks.base import OneByOne, SampleImage, SubjectMask
from fewchannels.errors import InputError


def demo_masks() -> OneByOne:
    """The judge's subjects, by geometry alone; the score is the overlap with the best shape, in [0, 1]."""
    return OneByOne(_find, {"source": "demo"})


def _find(sample: SampleImage) -> SubjectMask:
    import torch  # takes a second to import, and naming a source does not need it

    from fewchannels.demo.judge import judge

    height, width = sample.size
    if height != width or height < 16:
        raise InputError(
            f"the image is {height} x {width} pixels; the source 'demo' segments images of the demo model, which "
            "are square and at least 16 pixels wide. Use another source."
        )
    pixels = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1)[None].float() / 255
    (verdict,), masks = judge(pixels)
    return SubjectMask(masks[0].numpy(), score=verdict.template_iou)
