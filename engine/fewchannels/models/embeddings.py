"""Cached text embeddings: results of a pipeline's ``encode_prompt``, by its arguments."""

import functools
import hashlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch
from cachetools import LRUCache
from PIL import Image

from fewchannels.models.patching import replaced

_RECENT_BYTES = 256 * 2**20
_PLACES = ("device", "dtype")  # the destination of a result, not its content


class Kept(Protocol):
    """Results of ``encode_prompt`` by key: tensors in tuples and lists, as each pipeline returns them."""

    def find(self, key: str, device: torch.device) -> Any:
        """Return a result on a device; raises KeyError if there is none."""

    def put(self, key: str, result: Any) -> None:
        """Keep a result."""


class Recent:
    """In-memory cache of the latest results, up to 256 MiB."""

    def __init__(self) -> None:
        self._results: LRUCache[str, Any] = LRUCache(_RECENT_BYTES, getsizeof=_n_bytes)

    def find(self, key: str, device: torch.device) -> Any:
        """Return a result on a device; raises KeyError if there is none."""
        return moved(self._results[key], device)

    def put(self, key: str, result: Any) -> None:
        """Keep a result, and drop the oldest ones."""
        with suppress(ValueError):  # larger than the whole cache
            self._results[key] = result


@contextmanager
def remembering(pipeline: Any, kept: Kept, *, encodes: bool = True) -> Iterator[None]:
    """Inside the context, run the pipeline's ``encode_prompt`` once for equal arguments; do nothing if it has none.

    Args:
        pipeline: pipeline as loaded.
        kept: cache of results.
        encodes: whether there are text encoders for prompts that are not cached.

    Raises:
        LookupError: inside the context, if a prompt is not cached and there are no text encoders.
    """
    own = getattr(pipeline, "encode_prompt", None)
    if own is None:
        yield
        return
    signature = inspect.signature(own)

    @functools.wraps(own)  # wrappers inspect its signature
    def encode_prompt(*arguments: Any, **keywords: Any) -> Any:
        given = signature.bind(*arguments, **keywords)
        given.apply_defaults()
        device = torch.device(given.arguments.get("device") or pipeline._execution_device)
        asked = {name: value for name, value in given.arguments.items() if name not in _PLACES}
        key = digest(asked)
        try:
            return kept.find(key, device)
        except KeyError:
            if not encodes:
                raise LookupError("its text embeddings are missing; rerun to encode its prompt again") from None
        result = own(*arguments, **keywords)
        kept.put(key, result)
        return result

    with replaced(pipeline, "encode_prompt", encode_prompt):
        yield


def digest(value: Any) -> str:
    """A key for plain values, images and tensors in any nesting; equal for equal ones."""
    found = hashlib.sha256()

    def add(each: Any) -> None:
        found.update(type(each).__name__.encode() + b"(")
        if isinstance(each, dict):
            for name, inner in sorted(each.items()):
                add(name)
                add(inner)
        elif isinstance(each, (list, tuple)):
            for inner in each:
                add(inner)
        elif isinstance(each, Image.Image):
            found.update(f"{each.mode}{each.size}".encode() + each.tobytes())
        elif isinstance(each, torch.Tensor):
            values = each.detach().cpu().contiguous()
            found.update(f"{values.dtype}{tuple(values.shape)}".encode() + values.view(torch.uint8).numpy().tobytes())
        elif each is None or isinstance(each, (str, int, float, bool)):
            text = repr(each).encode()
            found.update(f"{len(text)}:".encode() + text)
        else:
            raise TypeError(f"encode_prompt was given a {type(each).__name__}, which makes no key")
        found.update(b")")

    add(value)
    return found.hexdigest()


def moved(result: Any, device: torch.device) -> Any:
    """A result with its tensors on a device."""
    if isinstance(result, torch.Tensor):
        return result.to(device)
    if isinstance(result, (list, tuple)):
        return type(result)(moved(each, device) for each in result)
    return result


def _n_bytes(result: Any) -> int:
    if isinstance(result, torch.Tensor):
        return result.nbytes
    return sum(map(_n_bytes, result)) if isinstance(result, (list, tuple)) else 0
