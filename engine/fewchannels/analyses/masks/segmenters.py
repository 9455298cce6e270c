"""Masks from a segmentation model: how each kind of model is run, and how the subject is chosen from its output."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from fewchannels.analyses.masks.base import OneByOne, SampleImage, SubjectMask
from fewchannels.analyses.masks.checkpoints import CUSTOM_CODE, Checkpoint, find, load, weights_digest
from fewchannels.analyses.settings import MaskSettings
from fewchannels.errors import InputError, unknown
from fewchannels.models.quiet import quietly
from fewchannels.settings.ranges import check_given

BACKGROUND = ("background", "bg", "void", "unlabeled", "unlabelled")  # codespell:ignore unlabelled
"""Labels that are never the subject, compared without case, ``_`` and surrounding spaces."""

SIDE = 1024
"""Input height and width in pixels for a model with its own code, as in the training of BiRefNet."""

MAX_BORDER = 0.25
"""Share of an image's outermost pixels above which a mask of a mask generator is taken for background."""

# The mean and standard deviation of ImageNet's colours, in RGB of [0, 1].
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Segment:
    """One segment that a model that predicts labels found.

    Attributes:
        label: the model's label.
        pixels: ``(y, x)`` bool.
        score: score in [0, 1]; None from a semantic model.
    """

    label: str
    pixels: NDArray[np.bool_]
    score: float | None


def model_masks(
    name: str,
    device: str = "cpu",
    *,
    labels: Sequence[str] = (),
    trust_remote_code: bool = False,
    revision: str | None = None,
    side: int | None = None,
) -> OneByOne:
    """Masks from a segmentation model, loaded by transformers in float32.

    Three kinds of model are distinguished by their ``config.json``:

    - a model with its own code under ``AutoModelForImageSegmentation``, such as BiRefNet and RMBG-2.0: see
      :func:`foreground`;
    - an architecture of the ``image-segmentation`` pipeline (semantic, instance or panoptic): see :func:`subject_of`;
    - an architecture of the ``mask-generation`` pipeline, such as SAM: see :func:`main_object`.

    Args:
        name: a folder or a hub id.
        device: device on which it runs.
        labels: labels of the subject, for a model that predicts labels; empty for the rule of :func:`subject_of`.
        trust_remote_code: whether Python code that comes with the model may run on this machine.
        revision: revision of a hub model; None for its newest.
        side: input side of a model with its own code, in pixels; None for :data:`SIDE`.

    Raises:
        InputError: there is no such model, it is of none of these kinds, it needs a package that is not installed, or
            an option does not apply to it.
    """
    from transformers.models.auto import modeling_auto as auto  # slow to import, and not needed by other sources

    checkpoint = find(name, revision)
    kind = checkpoint.config.get("model_type")
    labelling = [
        each
        for each, names in (
            (auto.AutoModelForUniversalSegmentation, auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES),
            (auto.AutoModelForInstanceSegmentation, auto.MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES),
            (auto.AutoModelForImageSegmentation, auto.MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES),
            (auto.AutoModelForSemanticSegmentation, auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES),
        )
        if kind in names
    ]
    if kind == "oneformer" and checkpoint.code is None:
        raise InputError(f"{name!r} is a OneFormer, which needs its task as text. Use a Mask2Former or a MaskFormer.")
    if labels and not (labelling and checkpoint.code is None):
        raise InputError(f"labels are {', '.join(labels)}, but {name!r} does not predict labels. Omit them.")
    if side is not None and checkpoint.code is None:
        raise InputError(f"side is {side}, but {name!r} has its own input size. Omit it.")
    if checkpoint.code is not None:
        return _custom(checkpoint, device, trust_remote_code, SIDE if side is None else side)
    if labelling:
        return _labelling(labelling[0], checkpoint, device, labels)
    if kind in auto.MODEL_FOR_MASK_GENERATION_MAPPING_NAMES:
        return _generating(checkpoint, device)
    raise InputError(
        f"the model type {kind!r} of {name!r} does not predict masks. Use one of transformers' image-segmentation or "
        f"mask-generation pipelines, or one whose auto_map has {CUSTOM_CODE}."
    )


@torch.inference_mode()
def foreground(model: Any, image: Image.Image, side: int = SIDE) -> NDArray[np.bool_]:
    """Foreground predicted by BiRefNet or a model with the same interface (arXiv 2401.03407, its model card).

    The image is resized to ``side`` x ``side`` (bilinear) and normalized by ImageNet's colors; the sigmoid of the
    model's last output, resized to the image (bilinear), is the foreground where it exceeds 0.5.

    Args:
        model: function of ``(1, rgb, y, x)`` float32 that returns logits ``(1, 1, y, x)``, or a list with these last.
        image: RGB.
        side: input side, in pixels.

    Returns:
        ``(y, x)`` bool of the image's size.

    Raises:
        InputError: the model returns something else.
    """
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    normal = (torch.from_numpy(pixels) - torch.tensor(_MEAN)) / torch.tensor(_STD)
    output = model(normal.permute(2, 0, 1)[None].to(next(model.parameters()).device))
    last = output[-1] if isinstance(output, list | tuple) else output
    shape = tuple(getattr(last, "shape", ()))
    if len(shape) != 4 or shape[:2] != (1, 1):
        raise InputError(
            f"the last output of {type(model).__name__} is {type(last).__name__} {shape}; a model like BiRefNet gives "
            "logits (1, 1, y, x). Use another model."
        )
    probability = functional.interpolate(
        last.float().sigmoid(), size=(image.height, image.width), mode="bilinear", antialias=True
    )
    return (probability[0, 0] > 0.5).cpu().numpy()


def subject_of(segments: Iterable[Segment], wanted: Sequence[str], size: tuple[int, int]) -> SubjectMask:
    """Choose the subject among the segments of a model that predicts labels.

    With ``wanted`` labels: all pixels of these labels. Without labels, if segments have scores (instance and panoptic
    models): the segment with the highest score that is not in :data:`BACKGROUND`, the largest one of several; a
    panoptic model may well be surest of the sky, so name labels for it. Without scores (semantic models): every pixel
    that is not in :data:`BACKGROUND`.

    Args:
        segments: segments of one image.
        wanted: labels, in any case.
        size: size of the image, height and width in pixels.

    Returns:
        The mask, empty if there is no such segment, and the score if a single segment was chosen.
    """
    names = {_plain(label) for label in wanted}
    kept = [each for each in segments if (_plain(each.label) in names if names else not is_background(each.label))]
    if not names and any(each.score is not None for each in kept):
        best = max(kept, key=lambda each: (each.score or 0, int(each.pixels.sum())))
        return SubjectMask(best.pixels, score=best.score)
    pixels = np.zeros(size, bool)
    for each in kept:
        pixels |= each.pixels
    return SubjectMask(pixels)


def main_object(masks: Iterable[tuple[NDArray[np.bool_], float]], size: tuple[int, int]) -> SubjectMask:
    """Choose the subject among the masks of a mask generator: the largest that is not background.

    A mask is background if it has more than :data:`MAX_BORDER` of the image's outermost pixels. The generator has
    already dropped uncertain masks. The largest rather than the surest is chosen, since parts of an object are found as
    surely as the whole.

    Args:
        masks: ``(y, x)`` bool and predicted IoU of each.
        size: size of the image, height and width in pixels.

    Returns:
        The mask, the surest one of several of equal size, and its predicted IoU; empty if there is none.
    """
    border = np.ones(size, bool)
    border[1:-1, 1:-1] = False
    best, rank = SubjectMask(np.zeros(size, bool)), (0, 0.0)
    for pixels, score in masks:
        here = (int(pixels.sum()), score)
        if here[0] and here > rank and pixels[border].mean() <= MAX_BORDER:
            best, rank = SubjectMask(pixels, score=score), here
    return best


def is_background(label: str) -> bool:
    """Return whether a label is one of :data:`BACKGROUND`."""
    return _plain(label).strip("_ ") in BACKGROUND


def _plain(label: str) -> str:
    return label.strip().casefold()


def _custom(checkpoint: Checkpoint, device: str, trust_remote_code: bool, side: int) -> OneByOne:
    from transformers import AutoModelForImageSegmentation

    if not trust_remote_code:
        raise InputError(
            f"{checkpoint.name!r} comes with its own Python code ({checkpoint.code}), which would run on this machine "
            "with your permissions. Read it, then allow it with trust_remote_code, preferably with a fixed revision."
        )
    check_given(MaskSettings, {"side": side})
    model = load(AutoModelForImageSegmentation, checkpoint, trust_remote_code=True).to(device)

    def one(sample: SampleImage) -> SubjectMask:
        return SubjectMask(foreground(model, sample.image, side))

    return OneByOne(one, _description(checkpoint, f"sigmoid > 0.5 at {side} x {side}", code=str(checkpoint.code)))


def _labelling(auto: Any, checkpoint: Checkpoint, device: str, labels: Sequence[str]) -> OneByOne:
    model = load(auto, checkpoint)
    names = list(model.config.id2label.values())
    for label in labels:
        if _plain(label) not in map(_plain, names):
            raise unknown(f"label of {checkpoint.name!r}", label, names)
    pipe = _pipeline("image-segmentation", model, checkpoint, device)
    counts_things = any(
        hasattr(pipe.image_processor, f"post_process_{kind}_segmentation") for kind in ("panoptic", "instance")
    )
    if not (labels or counts_things or any(map(is_background, names))):
        raise InputError(
            f"{checkpoint.name!r} labels every pixel and has no background label, so the whole image would be the "
            f"subject. Give the subject's labels, from {', '.join(names[:5])}, ..."
        )

    def one(sample: SampleImage) -> SubjectMask:
        # Not the pipeline's own call, which warns on a GPU and forms its own batches.
        with quietly("transformers"):
            found = pipe.postprocess(pipe.forward(pipe.preprocess(sample.image)))
        segments = [Segment(each["label"], np.asarray(each["mask"]) > 127, each["score"]) for each in found]
        return subject_of(segments, labels, sample.size)

    rule = f"labels {', '.join(labels)}" if labels else "surest thing" if counts_things else "all but background"
    return OneByOne(one, _description(checkpoint, rule))


def _generating(checkpoint: Checkpoint, device: str) -> OneByOne:
    from transformers import AutoModelForMaskGeneration

    pipe = _pipeline("mask-generation", load(AutoModelForMaskGeneration, checkpoint), checkpoint, device)

    def masks(image: Image.Image) -> Iterable[tuple[NDArray[np.bool_], float]]:
        # The pipeline's last part, which drops duplicates, needs torchvision, and never drops the mask chosen here.
        for chunk in pipe.preprocess(image):
            found = pipe.forward(chunk)
            for runs, score in zip(found["masks"], found["iou_scores"].tolist(), strict=True):
                yield _from_runs(runs), score

    def one(sample: SampleImage) -> SubjectMask:
        return main_object(masks(sample.image), sample.size)

    return OneByOne(one, _description(checkpoint, "largest mask off the border"))


def _from_runs(runs: Mapping[str, Any]) -> NDArray[np.bool_]:
    """A mask from the lengths of its alternating runs of False and True, in column-major order."""
    height, width = runs["size"]
    values = np.repeat(np.arange(len(runs["counts"])) % 2 == 1, runs["counts"])
    return values.reshape(width, height).T


def _pipeline(task: str, model: Any, checkpoint: Checkpoint, device: str) -> Any:
    from transformers import AutoImageProcessor, pipeline

    options = {"revision": checkpoint.revision} if checkpoint.revision else {}
    try:
        with quietly("transformers"):
            processor = AutoImageProcessor.from_pretrained(checkpoint.name, **options)
            return pipeline(task, model=model, image_processor=processor, device=device)
    except ImportError as error:
        raise InputError(f"{checkpoint.name!r} needs a library that is not installed: {error}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{checkpoint.name!r} has no image processor that transformers can use: {error}") from None


def _description(checkpoint: Checkpoint, rule: str, **more: str) -> dict[str, str]:
    if checkpoint.revision is None:
        more["digest"] = weights_digest(Path(checkpoint.name))
    else:
        more["revision"] = checkpoint.revision
    return {"source": checkpoint.name, "rule": rule, **more}
