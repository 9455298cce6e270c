"""Subject masks: their sources, and the geometry that compares masks of pixels and of tokens.

A source takes images and returns one mask for each (:class:`MaskSource`); :func:`open_mask_source` finds one by name.
An error with one image becomes a :class:`NoMask` in its place, and does not affect others.
"""

from collections.abc import Callable, Sequence

from fewchannels.analyses.masks.base import MaskSource, NoMask, OneByOne, SampleImage, SubjectMask
from fewchannels.analyses.masks.given import manifest_masks
from fewchannels.analyses.masks.saliency import saliency_masks
from fewchannels.analyses.masks.shapes import demo_masks
from fewchannels.errors import InputError

__all__ = ["SOURCES", "MaskSource", "NoMask", "OneByOne", "SampleImage", "SubjectMask", "open_mask_source"]

SOURCES: dict[str, Callable[[], OneByOne]] = {
    "manifest": manifest_masks,
    "demo": demo_masks,
    "saliency": saliency_masks,
}
"""Names of the sources that are not models."""


def open_mask_source(
    text: str,
    device: str = "cpu",
    *,
    labels: Sequence[str] = (),
    trust_remote_code: bool = False,
    revision: str | None = None,
    side: int | None = None,
) -> MaskSource:
    """Open the source of masks with a name; a model is loaded.

    Args:
        text: ``manifest`` (files that the manifest's ``mask`` column names), ``demo`` (the judge of the shapes
            world), ``saliency`` (color contrast with the border), or a segmentation model's folder or hub id.
        device: device of the model.
        labels: labels of the subject, for a model that predicts labels.
        trust_remote_code: whether Python code that comes with a model may run on this machine.
        revision: revision of a hub model.
        side: input side of a model with its own code, in pixels.

    Raises:
        InputError: there is no such source, it cannot be opened, or an option does not fit it.
    """
    if text not in SOURCES:
        from fewchannels.analyses.masks.segmenters import model_masks  # PyTorch takes a second to import

        return model_masks(
            text, device, labels=labels, trust_remote_code=trust_remote_code, revision=revision, side=side
        )
    given = {"labels": labels, "revision": revision, "side": side, "trust_remote_code": trust_remote_code}
    for name, value in given.items():
        if value not in (None, (), False):
            raise InputError(f"{name} is {value!r}, but the source {text!r} does not use it. Omit it.")
    return SOURCES[text]()
