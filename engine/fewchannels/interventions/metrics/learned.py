"""Metrics that need weights: CLIP, DINO, aesthetic and preference models, LPIPS; each by folder or hub id."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewchannels.errors import InputError, unknown
from fewchannels.files.durable import expanded
from fewchannels.interventions.metrics.encoders import Clip, Dino, opening
from fewchannels.interventions.metrics.specifications import read_specifications


class LearnedMetrics:
    """Metrics whose models are loaded.

    Args:
        clip: folder or hub id of a CLIP model, for ``clip_score``, ``clip_source_score`` and ``clip_image``.
        dino: folder or hub id of a vision transformer whose first token represents the image.
        pickscore: folder or hub id of a CLIP-like preference model.
        aesthetic: folder or hub id of a CLIP model, a comma, and the file of one of LAION's predictors on its unit
            embeddings.
        lpips: ``alex``, ``vgg`` or ``squeeze``.
        device: device on which they run.

    Raises:
        InputError: one cannot be loaded.
    """

    def __init__(
        self,
        device: str,
        clip: str | None = None,
        dino: str | None = None,
        pickscore: str | None = None,
        aesthetic: str | None = None,
        lpips: str | None = None,
    ) -> None:
        self._device = device
        self._clip = Clip(clip, device) if clip else None
        self._pickscore = Clip(pickscore, device) if pickscore else None
        self._dino = Dino(dino, device) if dino else None
        self._aesthetic = _Aesthetic(aesthetic, device) if aesthetic else None
        self._lpips = _lpips(lpips, device) if lpips else None

    @classmethod
    def of(cls, specifications: Sequence[str], device: str) -> "LearnedMetrics":
        """Create them from texts such as ``clip=FOLDER``.

        Raises:
            InputError: one does not have this form, or cannot be loaded.
        """
        return cls(device, **read_specifications(specifications))

    @torch.inference_mode()
    def measure(
        self, edited: Tensor, undisturbed: Tensor, prompts: Sequence[str], sources: Sequence[str | None]
    ) -> dict[str, np.ndarray]:
        """Each image's metrics, ``(image,)`` float64; NaN if an image has no source.

        Args:
            edited: ``(image, rgb, y, x)`` float32 in [0, 1].
            undisturbed: unedited images of the same shape.
            prompts: prompt of each image.
            sources: prompt of each image's source, or None.
        """
        columns: dict[str, Tensor] = {}
        if self._clip is not None:
            images, others = self._clip.images(edited), self._clip.images(undisturbed)
            columns["clip_score"] = 100 * (images * self._clip.texts(prompts)).sum(dim=-1).clamp_min(0)
            columns["clip_image"] = (images * others).sum(dim=-1)
            scores = 100 * (images * self._clip.texts([text or "" for text in sources])).sum(dim=-1).clamp_min(0)
            known = torch.tensor([text is not None for text in sources], device=scores.device)
            columns["clip_source_score"] = torch.where(known, scores, torch.nan)
        if self._dino is not None:
            columns["dino"] = (self._dino.images(edited) * self._dino.images(undisturbed)).sum(dim=-1)
        if self._pickscore is not None:
            cosine = (self._pickscore.images(edited) * self._pickscore.texts(prompts)).sum(dim=-1)
            columns["pickscore"] = self._pickscore.scale * cosine
        if self._aesthetic is not None:
            columns["aesthetic"] = self._aesthetic.score(edited)
        if self._lpips is not None:
            columns["lpips"] = self._lpips(edited.to(self._device), undisturbed.to(self._device))
        return {name: values.double().cpu().numpy() for name, values in columns.items()}

    @torch.inference_mode()
    def embeddings(self, images: Tensor) -> dict[str, np.ndarray]:
        """Unit embeddings ``(image, feature)`` float32 by model, for distances between sets.

        Args:
            images: ``(image, rgb, y, x)`` float32 in [0, 1].
        """
        models = {"clip": self._clip, "dino": self._dino}
        return {name: model.images(images).cpu().numpy() for name, model in models.items() if model is not None}


class _Aesthetic:
    """One of LAION's predictors on CLIP's unit vectors."""

    def __init__(self, text: str, device: str) -> None:
        name, _, head = text.rpartition(",")
        if not name:
            raise InputError(f"metric is aesthetic={text}; it must be a CLIP model, a comma and the head's file.")
        self._clip = Clip(name, device)
        weight, bias = as_one_map(read_head(expanded(head)), self._clip.n_features)
        self._weight, self._bias = weight.to(device), bias.to(device)

    def score(self, images: Tensor) -> Tensor:
        """Scores ``(image,)`` float64."""
        return self._clip.images(images).double() @ self._weight[0] + self._bias[0]


_LINEAR = ("",)
_IMPROVED = tuple(f"layers.{i}." for i in (0, 2, 4, 6, 7))


def read_head(path: Path) -> dict[str, Tensor]:
    """The weights in a head's file, by name.

    Args:
        path: a safetensors file, or a file that ``torch.load`` reads without running code.

    Raises:
        InputError: it cannot be read.
    """
    with opening("aesthetic", path, "Give a safetensors file, or a .pth file of weights alone"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))


def as_one_map(weights: Mapping[str, Tensor], n_features: int) -> tuple[Tensor, Tensor]:
    """A predictor as one linear map: weight ``(1, feature)`` and bias ``(1,)``, float64.

    LAION's first predictor is one layer; its improved one has five with only dropout between them, so it is a linear
    map, too. A variant with ReLUs between layers has other names and is refused.

    Args:
        weights: ``weight`` and ``bias``, or those of ``layers`` 0, 2, 4, 6 and 7.
        n_features: number of features of the embeddings.

    Raises:
        InputError: weights have other names, or shapes that do not connect ``n_features`` to 1.
    """
    layers = _LINEAR if "weight" in weights else _IMPROVED
    if set(weights) != {layer + part for layer in layers for part in ("weight", "bias")}:
        raise InputError(
            f"the aesthetic head has {', '.join(sorted(weights))}; it must have weight and bias, or those of "
            f"{', '.join(layer.rstrip('.') for layer in _IMPROVED)}."
        )
    whole, offset = torch.eye(n_features, dtype=torch.float64), torch.zeros(n_features, dtype=torch.float64)
    for layer in layers:
        weight, bias = weights[f"{layer}weight"].double(), weights[f"{layer}bias"].double().flatten()
        if weight.shape != (len(bias), len(whole)):
            raise InputError(
                f"the aesthetic head's {layer}weight is of shape {tuple(weight.shape)}; on {len(whole)} features and "
                f"with a bias of {len(bias)} it must be ({len(bias)}, {len(whole)}). Is it the head of this CLIP model?"
            )
        whole, offset = weight @ whole, weight @ offset + bias
    if len(whole) != 1:
        raise InputError(f"the aesthetic head outputs {len(whole)} values per image; it must output one score.")
    return whole, offset


def _lpips(network: Any, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    from torchmetrics.utilities.imports import _TORCHVISION_AVAILABLE

    if network not in ("alex", "vgg", "squeeze"):
        raise unknown("LPIPS network", network, ("alex", "vgg", "squeeze"))
    if not _TORCHVISION_AVAILABLE:
        raise InputError(
            "metric lpips needs torchvision, which is not installed. Install the version that matches your torch."
        )
    from torchmetrics.functional.image.lpips import _LPIPS

    with opening("LPIPS", network, "Its weights are downloaded once: let this machine reach download.pytorch.org"):
        model = _LPIPS(pretrained=True, net=network, pnet_rand=False).to(device).eval()
    return lambda edited, undisturbed: model(edited, undisturbed, normalize=True).flatten()
