"""Masks from files that a manifest's ``mask`` column names."""

from fewchannels.analyses.masks.base import OneByOne, SampleImage, SubjectMask
from fewchannels.analyses.masks.mask_file import read_mask
from fewchannels.errors import InputError


def manifest_masks() -> OneByOne:
    """Masks from the files that the manifest names, read by :func:`fewchannels.analyses.masks.mask_file.read_mask`."""
    return OneByOne(_find, {"source": "manifest"})


def _find(sample: SampleImage) -> SubjectMask:
    if sample.mask is None:
        raise InputError("the sample's manifest row has no mask; fill its mask column or use another source.")
    read = read_mask(sample.mask)
    mask = read.at(*sample.size, f"the mask {sample.mask!r}")
    height, width = read.pixels.shape
    resized_from = None if (height, width) == sample.size else (height, width)
    return SubjectMask(mask.pixels, resized_from=resized_from, rule=mask.rule, known=mask.known)
