"""Metrics that need weights: CLIP, DINO, aesthetic and preference models, LPIPS; each by folder or hub id."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from engine.errors import InputError, unknown

KINDS = ("clip", "dino", "pickscore", "aesthetic", "lpips")


class LearnedMetrics:
    """Metrics whose models are loaded.

    Args:
        clip: folder or hub id of a CLIP model, for ``clip_score``, ``clip_source_score`` and ``clip_image``.
        dino: of a vision transformer whose first token says what a picture is.
        pickscore: of a CLIP-like preference model.
        aesthetic: of a CLIP model, a comma, and a safetensors file with a linear head on its unit embeddings.
        lpips: ``alex``, ``vgg`` or ``squeeze``.
        device: where they run.

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
        self._clip = _Clip(clip, device) if clip else None
        self._pickscore = _Clip(pickscore, device) if pickscore else None
        self._dino = _Dino(dino, device) if dino else None
        self._aesthetic = _Aesthetic(aesthetic, device) if aesthetic else None
        self._lpips = _lpips(lpips, device) if lpips else None

    @classmethod
    def of(cls, specifications: Sequence[str], device: str) -> "LearnedMetrics":
        """From texts such as ``clip=FOLDER``.

        Raises:
            InputError: one is not of that form or cannot be loaded.
        """
        return cls(device, **read_specifications(specifications))

    @torch.inference_mode()
    def measure(
        self, edited: Tensor, undisturbed: Tensor, prompts: Sequence[str], sources: Sequence[str | None]
    ) -> dict[str, np.ndarray]:
        """Each picture's metrics, ``(picture,)`` float64; NaN where a picture has no source.

        Args:
            edited: ``(picture, rgb, y, x)`` float32 in [0, 1].
            undisturbed: likewise.
            prompts: what each was asked for.
            sources: the prompt of each one's source, or None.
        """
        columns: dict[str, Tensor] = {}
        if self._clip is not None:
            pictures, others = self._clip.pictures(edited), self._clip.pictures(undisturbed)
            columns["clip_score"] = 100 * (pictures * self._clip.texts(prompts)).sum(dim=-1).clamp_min(0)
            columns["clip_image"] = (pictures * others).sum(dim=-1)
            scores = 100 * (pictures * self._clip.texts([text or "" for text in sources])).sum(dim=-1).clamp_min(0)
            known = torch.tensor([text is not None for text in sources], device=scores.device)
            columns["clip_source_score"] = torch.where(known, scores, torch.nan)
        if self._dino is not None:
            columns["dino"] = (self._dino.pictures(edited) * self._dino.pictures(undisturbed)).sum(dim=-1)
        if self._pickscore is not None:
            cosine = (self._pickscore.pictures(edited) * self._pickscore.texts(prompts)).sum(dim=-1)
            columns["pickscore"] = self._pickscore.scale * cosine
        if self._aesthetic is not None:
            columns["aesthetic"] = self._aesthetic.score(edited)
        if self._lpips is not None:
            columns["lpips"] = self._lpips(edited.to(self._device), undisturbed.to(self._device))
        return {name: values.double().cpu().numpy() for name, values in columns.items()}

    @torch.inference_mode()
    def embeddings(self, pictures: Tensor) -> dict[str, np.ndarray]:
        """Unit embeddings ``(picture, feature)`` float32 by model, for distances between sets.

        Args:
            pictures: ``(picture, rgb, y, x)`` float32 in [0, 1].
        """
        models = {"clip": self._clip, "dino": self._dino}
        return {name: model.pictures(pictures).cpu().numpy() for name, model in models.items() if model is not None}


def read_specifications(specifications: Sequence[str]) -> dict[str, str]:
    """``clip=FOLDER`` and the like, by kind.

    Raises:
        InputError: an unknown kind, or one without a value, or twice.
    """
    found: dict[str, str] = {}
    for text in specifications:
        kind, equals, value = text.partition("=")
        if kind not in KINDS:
            raise unknown("metric", kind, KINDS)
        if not equals or not value:
            raise InputError(f"metric is {text!r}; give {kind}=FOLDER or a hub id.")
        if kind in found:
            raise InputError(f"metric {kind} is given twice; give it once.")
        found[kind] = value
    return found


@contextmanager
def _opening(kind: str, name: str) -> Iterator[None]:
    """What transformers says against a model is about the user's input."""
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"the {kind} model {name!r} cannot be opened: {first}. Give a folder that transformers' from_pretrained "
            "opens, or a hub id that can be had."
        ) from None


def _processed(processor: Any, pictures: Tensor, device: str) -> Tensor:
    images = [Image.fromarray(each) for each in (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()]
    return processor(images=images, return_tensors="pt")["pixel_values"].to(device)


def _unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x.float(), dim=-1)


class _Clip:
    """A CLIP-like model: pictures and texts to unit vectors."""

    def __init__(self, name: str, device: str) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        with _opening("CLIP", name):
            self._model = AutoModel.from_pretrained(name).to(device).eval()
            self._processor = AutoImageProcessor.from_pretrained(name)
            self._tokenizer = AutoTokenizer.from_pretrained(name)
            self._features = {kind: getattr(self._model, f"get_{kind}_features") for kind in ("image", "text")}
            self.scale = float(self._model.logit_scale.exp())
        self._device = device

    def pictures(self, pictures: Tensor) -> Tensor:
        """``(picture, feature)`` unit vectors."""
        return _unit(
            _features(self._features["image"](pixel_values=_processed(self._processor, pictures, self._device)))
        )

    def texts(self, texts: Sequence[str]) -> Tensor:
        """``(text, feature)`` unit vectors, each of its own text whatever is beside it."""
        different = list(dict.fromkeys(texts))
        given = self._tokenizer(different, padding=True, truncation=True, return_tensors="pt").to(self._device)
        found = _unit(_features(self._features["text"](input_ids=given.input_ids, attention_mask=given.attention_mask)))
        return found[[different.index(text) for text in texts]]


def _features(result: Any) -> Tensor:
    """transformers 5 returns what is around the features as well."""
    return result if isinstance(result, Tensor) else result.pooler_output


class _Dino:
    """A vision transformer: pictures to unit vectors, of the first token."""

    def __init__(self, name: str, device: str) -> None:
        from transformers import AutoImageProcessor, AutoModel

        with _opening("DINO", name):
            self._model = AutoModel.from_pretrained(name).to(device).eval()
            self._processor = AutoImageProcessor.from_pretrained(name)
        self._device = device

    def pictures(self, pictures: Tensor) -> Tensor:
        """``(picture, feature)`` unit vectors."""
        given = _processed(self._processor, pictures, self._device)
        return _unit(self._model(pixel_values=given).last_hidden_state[:, 0])


class _Aesthetic:
    """A linear head on CLIP's unit vectors."""

    def __init__(self, text: str, device: str) -> None:
        from safetensors.torch import load_file

        name, _, head = text.rpartition(",")
        if not name:
            raise InputError(f"metric is aesthetic={text}; give a CLIP model, a comma and the head's safetensors file.")
        self._clip = _Clip(name, device)
        try:
            weights = load_file(Path(head).expanduser(), device=device)
        except (OSError, ValueError) as error:
            raise InputError(f"the aesthetic head {head!r} cannot be read: {error}.") from None
        if set(weights) != {"weight", "bias"} or weights["weight"].ndim != 2 or len(weights["weight"]) != 1:
            raise InputError(
                f"the aesthetic head {head!r} holds {', '.join(weights)}; it must hold weight (1, n) and bias."
            )
        self._weight, self._bias = weights["weight"], weights["bias"]

    def score(self, pictures: Tensor) -> Tensor:
        """``(picture,)``."""
        return nn.functional.linear(self._clip.pictures(pictures), self._weight.float(), self._bias.float())[:, 0]


def _lpips(network: Any, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    from torchmetrics.utilities.imports import _TORCHVISION_AVAILABLE

    if network not in ("alex", "vgg", "squeeze"):
        raise unknown("LPIPS network", network, ("alex", "vgg", "squeeze"))
    if not _TORCHVISION_AVAILABLE:
        raise InputError("metric lpips needs torchvision, which is not installed. Install the one of your torch.")
    from torchmetrics.functional.image.lpips import _LPIPS

    with _opening("LPIPS", network):
        model = _LPIPS(pretrained=True, net=network, pnet_rand=False).to(device).eval()
    return lambda edited, undisturbed: model(edited, undisturbed, normalize=True).flatten()
