"""Check that a checkpoint has exactly the weights of its model.

The libraries load the weights that fit: one that the files lack stays random, one that does not fit is ignored, and at
most a log mentions it. A run with such a model would not match its fingerprint, so both are refused.

Exceptions, by name: buffers that a class computes itself and that older files still contain (``position_ids``,
``inv_freq``, ``pos_embed``, ``relative_position_index``, ``num_batches_tracked``), and the scales of quantized weights.
The libraries themselves report neither tied weights, of which only one is stored, nor weights that a class declares
optional.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fewchannels.errors import InputError
from fewchannels.models.patching import replaced

_COMPUTED = re.compile(
    r"(^|\.)(position_ids|inv_freq|pos_embed\.pos_embed|relative_position_index|num_batches_tracked)$"
)
_REMEDY = "Give a complete checkpoint of this class, and versions of diffusers and transformers that read it."
_SCALES = re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)$|\.quant_state\.")


@dataclass(frozen=True)
class Loaded:
    """A loaded model, and differences between its weights and those in its files.

    Attributes:
        model: the loaded model.
        missing: weights of the model that no file has.
        unexpected: weights in the files that the model does not have.
    """

    model: nn.Module
    missing: Collection[str]
    unexpected: Collection[str]

    def check(self, name: str, *, without: str = r"(?!)", remedy: str = _REMEDY) -> None:
        """Refuse a model whose weights are not exactly those of its files.

        Args:
            name: name of the checkpoint, for the message.
            without: regular expression for further weights that may be missing or unexpected.
            remedy: remedy for the message.

        Raises:
            InputError: weights are missing or unexpected; the message counts them, and names the first of each.
        """
        optional = re.compile(without)
        missing = sorted(each for each in self.missing if self._counts(each, optional))
        unexpected = sorted(each for each in set(self.unexpected) - self._computed() if self._counts(each, optional))
        kind = type(self.model).__name__
        if missing:
            raise InputError(
                f"the files of {name} lack {len(missing):,} of the {len(self.model.state_dict()):,} weights of {kind}, "
                f"such as {missing[0]!r}; they would be initialized at random. {remedy}"
            )
        if unexpected:
            raise InputError(
                f"the files of {name} contain {len(unexpected):,} weights that {kind} does not have, such as "
                f"{unexpected[0]!r}; they would be ignored. {remedy}"
            )

    def _counts(self, weight: str, optional: re.Pattern[str]) -> bool:
        return not (_COMPUTED.search(weight) or _SCALES.search(weight) or optional.search(weight))

    def _computed(self) -> set[str]:
        """Buffers that are not stored, because the class computes them."""
        return {name for name, _ in self.model.named_buffers()} - set(self.model.state_dict())


@contextmanager
def recorded(*bases: Any) -> Iterator[list[Loaded]]:
    """Inside the context, record every model that a library loads.

    Args:
        bases: base classes of models in the libraries, whose ``from_pretrained`` can report the loaded weights.
    """
    found: list[Loaded] = []
    with ExitStack() as stack:
        for base in bases:
            stack.enter_context(replaced(base, "from_pretrained", _noting(base, found)))
        yield found


def _noting(base: Any, found: list[Loaded]) -> Any:
    own = vars(base)["from_pretrained"].__func__

    def from_pretrained(cls: Any, *arguments: Any, output_loading_info: bool = False, **keywords: Any) -> Any:
        model, info = own(cls, *arguments, output_loading_info=True, **keywords)
        found.append(Loaded(model, set(info["missing_keys"]), set(info["unexpected_keys"])))
        return (model, info) if output_loading_info else model

    return classmethod(from_pretrained)


@contextmanager
def checked_single_file(name: str) -> Iterator[None]:
    """Inside the context, refuse a single file whose weights, in diffusers' own format, are not exactly the model's.

    Converters of other formats take the weights that they know, and do not return the others.

    Args:
        name: name of the file, for the message.
    """
    from diffusers.loaders import single_file_model as loader

    read, fill = loader.load_single_file_checkpoint, loader.load_model_dict_into_meta
    files: list[_Taken] = []

    def reading(*arguments: Any, **keywords: Any) -> "_Taken":
        files.append(_Taken(read(*arguments, **keywords)))
        return files[-1]

    def load(model: nn.Module, state_dict: Mapping[str, Any], *arguments: Any, **keywords: Any) -> Any:
        weights, there = set(model.state_dict()), set(state_dict)
        left_over = {key for file in files if file is not state_dict for key in file.left_over()}
        Loaded(model, weights - there, there - weights | left_over - weights).check(name)
        return fill(model, state_dict, *arguments, **keywords)

    with replaced(loader, "load_single_file_checkpoint", reading), replaced(loader, "load_model_dict_into_meta", load):
        yield


_WITHIN = "model.diffusion_model."
"""Prefix of a transformer's weights in a file with several components."""


class _Taken(dict[str, Any]):
    """Weights of a file that track which of them were used."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        super().__init__(weights)
        own = [key for key in weights if key.startswith(_WITHIN)]
        self._own = {*own, *(key.removeprefix(_WITHIN) for key in own)}
        self._taken: set[str] = set()

    def left_over(self) -> set[str]:
        """The transformer's weights that were not used."""
        return {key for key in super().__iter__() if key not in self._taken and (not self._own or key in self._own)}

    def __getitem__(self, key: str) -> Any:
        self._taken.add(key)
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self._taken.discard(key)
        super().__setitem__(key, value)

    def __iter__(self) -> Iterator[str]:  # so that dict(...) requests each
        return super().__iter__()

    def get(self, key: str, default: Any = None) -> Any:
        """Same as for a dict."""
        self._taken.add(key)
        return super().get(key, default)

    def items(self) -> Any:
        """Same as for a dict; all weights count as used."""
        self._taken.update(super().__iter__())
        return super().items()

    def values(self) -> Any:
        """Same as for a dict; all weights count as used."""
        self._taken.update(super().__iter__())
        return super().values()

    def copy(self) -> dict[str, Any]:
        """Same as for a dict; all weights count as used."""
        return dict(self.items())


def file_keys(path: Path) -> set[str]:
    """The names of the weights in a safetensors or GGUF file."""
    if path.suffix == ".gguf":
        from gguf import GGUFReader

        return {tensor.name for tensor in GGUFReader(path).tensors}
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return set(file.keys())


def check_single_file(name: str, keys: Iterable[str], model: nn.Module) -> None:
    """Refuse a single file that is in a model's own format but does not have exactly its weights.

    Args:
        name: name of the file, for the message.
        keys: keys of its weights.
        model: model whose weights it replaces; may be without values.

    Raises:
        InputError: same cases as for :meth:`Loaded.check`. A file in another format, which must be converted, passes.
    """
    own, there = set(model.state_dict()), set(keys)
    if 2 * len(own & there) >= len(own):
        Loaded(model, own - there, there - own).check(name)
