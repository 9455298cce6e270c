"""Metrics of edited images: each one's direction, range and source, for tables, plots and docs."""

from dataclasses import dataclass
from math import inf
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One metric of an image.

    Attributes:
        about: description.
        unit: unit or range.
        more: meaning of a larger value: ``change`` from or ``likeness`` to the unedited image, ``fit`` to the prompt,
            ``source`` (fit to the source), or ``quality``.
        source: paper or library.
        least: smallest possible value.
        most: largest possible value.
    """

    about: str
    unit: str
    more: Literal["change", "likeness", "fit", "source", "quality"]
    source: str
    least: float = 0.0
    most: float = 1.0


_TORCHMETRICS = "torchmetrics"
_JUDGE = "the demo model's judge, by geometry"

METRICS: dict[str, Metric] = {
    "psnr": Metric("peak signal-to-noise ratio", "dB", "likeness", "10 log10(1 / mse)", least=-inf, most=inf),
    "mse": Metric("mean squared difference", "0 to 1", "change", "of values in [0, 1]"),
    "ssim": Metric(
        "structural similarity, borders mirrored",
        "at most 1",
        "likeness",
        f"Wang et al. 2004, {_TORCHMETRICS}",
        least=-1,
    ),
    "ssim_inner": Metric(
        "structural similarity without 5 pixels at each border",
        "at most 1",
        "likeness",
        "Wang et al. 2004, scikit-image",
        least=-1,
    ),
    "ms_ssim": Metric(
        "structural similarity over five scales",
        "at most 1",
        "likeness",
        f"Wang et al. 2003, {_TORCHMETRICS}",
        least=-1,
    ),
    "mse_low": Metric("difference in layout: low frequencies", "0 to 1", "change", "Gaussian, 1/16 of the side"),
    "mse_high": Metric("difference in detail: high frequencies", "0 to 1", "change", "the remaining frequencies"),
    "mse_inside": Metric("difference inside the subject", "0 to 1", "change", "mean over the mask's pixels"),
    "mse_outside": Metric("difference outside the subject", "0 to 1", "change", "mean over the other pixels"),
    "changed_share": Metric("share of pixels that changed visibly", "0 to 1", "change", "RGB distance above 0.1"),
    "change_iou": Metric("IoU of changed pixels and the subject", "0 to 1", "change", "of those pixels and the mask"),
    "shows_shape": Metric("shows the prompt's shape", "share", "fit", _JUDGE),
    "shows_colour": Metric("shows the prompt's colour", "share", "fit", _JUDGE),
    "shows_size": Metric("shows the prompt's size", "share", "fit", _JUDGE),
    "shows_position": Metric("shows the prompt's position", "share", "fit", _JUDGE),
    "shows_background": Metric("shows the prompt's background", "share", "fit", _JUDGE),
    "n_shown": Metric("attributes of the prompt that are shown", "of 5", "fit", _JUDGE, most=5),
    "target_kept": Metric("attributes that differ, still the target's", "share", "fit", _JUDGE),
    "source_taken": Metric("attributes that differ, now the source's", "share", "source", _JUDGE),
    "source_shape": Metric("shows the source's shape", "share", "source", _JUDGE),
    "source_colour": Metric("shows the source's colour", "share", "source", _JUDGE),
    "source_size": Metric("shows the source's size", "share", "source", _JUDGE),
    "source_position": Metric("shows the source's position", "share", "source", _JUDGE),
    "source_background": Metric("shows the source's background", "share", "source", _JUDGE),
    "clip_score": Metric(
        "CLIP similarity of image and prompt", "0 to 100", "fit", "Hessel et al. 2021, arXiv 2104.08718", most=100
    ),
    "clip_source_score": Metric(
        "CLIP similarity of image and the source's prompt", "0 to 100", "source", "Hessel et al. 2021", most=100
    ),
    "clip_image": Metric(
        "CLIP similarity to the compared image",
        "cosine",
        "likeness",
        "CLIP-I, Ruiz et al. 2022, arXiv 2208.12242",
        least=-1,
    ),
    "dino": Metric(
        "DINO similarity to the compared image",
        "cosine",
        "likeness",
        "DINO, Ruiz et al. 2022, arXiv 2208.12242",
        least=-1,
    ),
    "aesthetic": Metric(
        "aesthetic predictor on CLIP", "about 1 to 10", "quality", "LAION, Schuhmann 2022", least=-inf, most=inf
    ),
    "pickscore": Metric(
        "preference model", "logits", "quality", "Kirstain et al. 2023, arXiv 2305.01569", least=-inf, most=inf
    ),
    "lpips": Metric("perceptual distance", "0 upwards", "change", f"Zhang et al. 2018, {_TORCHMETRICS}", most=inf),
}
