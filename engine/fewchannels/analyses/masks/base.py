"""Inputs and outputs of every source of subject masks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewchannels.errors import InputError


@dataclass(frozen=True)
class SampleImage:
    """An image whose subject is requested.

    Attributes:
        image: RGB.
        mask: path in the ``mask`` column of the sample's manifest row; None if there is none.

    Raises:
        ValueError: the image is not RGB.
    """

    image: Image.Image
    mask: str | None = None

    def __post_init__(self) -> None:
        if self.image.mode != "RGB":
            raise ValueError(f"an image of mode {self.image.mode!r}; sources of masks need RGB")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.height, self.image.width


@dataclass(frozen=True, eq=False)
class SubjectMask:
    """Mask of an image's subject.

    Attributes:
        pixels: ``(y, x)`` bool of the image's own size; all False if the source sees no subject.
        score: confidence of the source, on its own scale, larger is more confident; None if it reports none.
        resized_from: height and width of the mask in pixels before it was resized to the image's size; None if
            it had that size.
        rule: how a mask's file was read, of :data:`fewchannels.analyses.masks.mask_file.RULES`; None for a mask that
            is not from a file.
        known: ``(y, x)`` bool, False for pixels that the source marks as unknown; None if all are known.
    """

    pixels: NDArray[np.bool_]
    score: float | None = None
    resized_from: tuple[int, int] | None = None
    rule: str | None = None
    known: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class NoMask:
    """An image for which the source failed; others of its batch are not affected. ``reason`` is a message for users."""

    reason: str


class MaskSource(Protocol):
    """Protocol of a function that finds the subject of images.

    An image's mask depends on that image alone, never on the others of the call or on their order.
    """

    @property
    def description(self) -> Mapping[str, str]:
        """Everything that determines the masks (source, model, revision, rule), to be stored with them."""

    def __call__(self, samples: Sequence[SampleImage]) -> list[SubjectMask | NoMask]:
        """One result per image, in order; never raises an error about a single image."""


@dataclass(frozen=True)
class OneByOne:
    """A :class:`MaskSource` that processes one image at a time, so that its masks do not depend on the batch.

    Attributes:
        find: function that returns one image's mask, or raises.
        description: see :class:`MaskSource`.
    """

    find: Callable[[SampleImage], SubjectMask]
    description: Mapping[str, str]

    def __call__(self, samples: Sequence[SampleImage]) -> list[SubjectMask | NoMask]:
        """One result per image, in order; any error that ``find`` raises becomes a :class:`NoMask`."""
        return [self._one(sample) for sample in samples]

    def _one(self, sample: SampleImage) -> SubjectMask | NoMask:
        try:
            found = self.find(sample)
        except InputError as error:
            return NoMask(str(error))
        except Exception as error:  # a model's code may raise anything
            return NoMask(f"{type(error).__name__}: {str(error).partition(chr(10))[0] or 'no reason given'}")
        if found.pixels.shape != sample.size:
            return NoMask(f"the mask is {found.pixels.shape}, its image {sample.size}")
        return found
