"""Models that embed images and texts as unit vectors: CLIP-like models and DINO; by folder or hub id."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fewchannels.errors import InputError
from fewchannels.files.durable import expanded
from fewchannels.interventions.metrics.specifications import at_commit
from fewchannels.models.completeness import Loaded
from fewchannels.models.quiet import quietly

# The part of a vision transformer after its tokens: it is not used here, and published models lack the pooler.
_BESIDE_TOKENS = r"^(\w+\.)?pooler\.|^(classifier|head|lm_head)\."


class Clip:
    """A CLIP-like model.

    Args:
        name: folder or hub id (``@COMMIT``), with its image processor and tokenizer.
        device: device on which it runs.

    Attributes:
        scale: factor from cosines to logits.
        n_features: length of its vectors.

    Raises:
        InputError: it cannot be opened, lacks weights, or embeds no texts.
    """

    def __init__(self, name: str, device: str) -> None:
        from transformers import AutoTokenizer

        self._device = device
        self._model, self._processor = _opened("CLIP", name, device)
        if not all(hasattr(self._model, part) for part in ("get_image_features", "get_text_features", "logit_scale")):
            raise InputError(
                f"{name!r} is a {type(self._model).__name__}, which does not compare images with texts. Give a CLIP "
                "model, such as openai/clip-vit-large-patch14."
            )
        with opening("CLIP", name):
            self._tokenizer = AutoTokenizer.from_pretrained(trust_remote_code=False, **_place(name))
            longest = self._model.config.text_config.max_position_embeddings
            self._n_tokens = min(self._tokenizer.model_max_length, longest)
            self.scale = self._model.logit_scale.detach().exp().item()
            self.n_features = self.texts([""]).shape[1]

    @torch.inference_mode()
    def images(self, images: Tensor) -> Tensor:
        """Unit vectors ``(image, feature)`` float32 of images ``(image, rgb, y, x)`` in [0, 1]."""
        given = _processed(self._processor, images, self._device)
        return _unit(_features(self._model.get_image_features(pixel_values=given)))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors ``(text, feature)`` float32; texts that are too long for the model are truncated."""
        different = list(dict.fromkeys(texts))
        # Always the maximum length: models with non-causal text were trained like this, others do not see the padding.
        given = self._tokenizer(
            different, padding="max_length", max_length=self._n_tokens, truncation=True, return_tensors="pt"
        )
        found = _unit(_features(self._model.get_text_features(**given.to(self._device))))
        return found[[different.index(text) for text in texts]]


class Dino:
    """A vision transformer whose first token represents the image.

    Args:
        name: folder or hub id (``@COMMIT``), with its image processor.
        device: device on which it runs.

    Raises:
        InputError: it cannot be opened, lacks weights, or has no such token.
    """

    def __init__(self, name: str, device: str) -> None:
        self._device = device
        self._model, self._processor = _opened("DINO", name, device, without=_BESIDE_TOKENS)
        if not any(weight.endswith("cls_token") for weight, _ in self._model.named_parameters()):
            raise InputError(
                f"{name!r} is a {type(self._model).__name__}, which has no class token. Give a DINO model, such as "
                "facebook/dino-vits16 or facebook/dinov2-base."
            )

    @torch.inference_mode()
    def images(self, images: Tensor) -> Tensor:
        """Unit vectors ``(image, feature)`` float32 of images ``(image, rgb, y, x)`` in [0, 1]."""
        given = _processed(self._processor, images, self._device)
        return _unit(self._model(pixel_values=given).last_hidden_state[:, 0])


@contextmanager
def opening(
    kind: str, name: object, remedy: str = "Give a folder that transformers' from_pretrained opens, or a hub id"
) -> Iterator[None]:
    """Report errors of a library about a model as errors of the user's input."""
    try:
        with quietly("transformers"):
            yield
    except InputError:
        raise
    except Exception as error:  # broken checkpoints raise errors of many kinds
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        reason = f"{type(error).__name__}: {first.rstrip('.')}"
        raise InputError(f"the {kind} model {str(name)!r} cannot be opened: {reason}. {remedy}.") from None


def _opened(kind: str, name: str, device: str, without: str = r"(?!)") -> tuple[Any, Any]:
    """A model in float32, all of whose weights come from its files, and its image processor."""
    from transformers import AutoImageProcessor, AutoModel

    with opening(kind, name):
        model, loading = AutoModel.from_pretrained(output_loading_info=True, trust_remote_code=False, **_place(name))
        Loaded(model, loading["missing_keys"], loading["unexpected_keys"]).check(
            f"the {kind} model {name!r}", without=without, remedy="Give a complete checkpoint."
        )
        processor = AutoImageProcessor.from_pretrained(trust_remote_code=False, **_place(name))
        return model.float().to(device).eval(), processor


def _place(name: str) -> dict[str, str]:
    """Path or id of a model for transformers' ``from_pretrained``."""
    folder = expanded(name)
    if folder.is_dir():
        return {"pretrained_model_name_or_path": str(folder)}
    model, revision = at_commit(name)
    return {"pretrained_model_name_or_path": model} | ({"revision": revision} if revision else {})


def _processed(processor: Any, pixels: Tensor, device: str) -> Tensor:
    images = [Image.fromarray(each) for each in (pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()]
    with quietly("transformers"):
        return processor(images=images, return_tensors="pt")["pixel_values"].to(device)


def _features(result: Any) -> Tensor:
    """The features themselves; transformers 5 returns them inside a larger output."""
    return result if isinstance(result, Tensor) else result.pooler_output


def _unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x.float(), dim=-1)
