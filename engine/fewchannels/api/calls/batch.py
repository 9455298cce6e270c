"""Rows that the transformer runs for a call: the call's own, and unedited or source rows that an edit needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fewchannels.api.calls.call import PER_PROMPT, Call
from fewchannels.errors import InputError

_PROMPTS = ("prompt", "prompt_2", "prompt_3", "prompt_4", "class_labels")
_NEGATIVE = ("negative_prompt", "negative_prompt_2", "negative_prompt_3", "negative_prompt_4")


@dataclass(frozen=True)
class Batch:
    """Rows of the transformer's batch.

    Attributes:
        arguments: arguments of the pipeline's call; None if those of the caller are used unchanged.
        of: index of the call's sample that each row belongs to.
        own: row of each of the call's samples: the row whose image is returned to the caller.
        unedited: row of each sample without any edit; its own row if no separate one was needed.
        sources: rows of each source prompt, one per sample.
    """

    arguments: Mapping[str, Any] | None
    of: tuple[int, ...]
    own: tuple[int, ...]
    unedited: tuple[int, ...]
    sources: Mapping[str, tuple[int, ...]]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.of)


def batch_of(call: Call, sources: Sequence[str], *, needs_unedited: bool) -> Batch:
    """Build the batch of a call, with additional rows if edits need them.

    Rows are in the same order as in a sweep: for each sample the unedited row, the sources, and the edited row.

    Args:
        call: the call.
        sources: prompts whose hidden states are copied, each generated from the noise of the sample.
        needs_unedited: whether edits need the hidden states of the unedited sample.

    Raises:
        InputError: an argument of the call cannot be repeated for additional rows.
    """
    n = call.n_samples
    if not sources and not needs_unedited:
        every = tuple(range(n))
        return Batch(None, every, every, every, {})
    roles: list[str | None] = [*([None] if needs_unedited else []), *sources, None]
    width = len(roles)
    texts = [text for _ in range(n) for text in roles]
    of = tuple(i for i in range(n) for _ in roles)
    own = tuple(i * width + width - 1 for i in range(n))
    unedited = tuple(i * width for i in range(n)) if needs_unedited else own
    first = int(needs_unedited)
    places = {text: tuple(i * width + first + j for i in range(n)) for j, text in enumerate(sources)}
    return Batch(_arguments(call, of, texts), of, own, unedited, places)


def _arguments(call: Call, of: Sequence[int], texts: Sequence[str | None]) -> dict[str, Any]:
    """Arguments for all rows, one prompt and one generator each."""
    arguments: dict[str, Any] = {}
    for name, value in call.arguments.items():
        if value is None:
            arguments[name] = None
        elif name in PER_PROMPT:
            arguments[name] = 1
        elif name in _PROMPTS:
            listed = _listed(value, call.n_samples)
            arguments[name] = [listed[i] if text is None else text for i, text in zip(of, texts, strict=True)]
        elif name in _NEGATIVE:
            listed = _listed(value, call.n_samples)
            arguments[name] = [listed[i] for i in of]
        elif name == "latents":
            arguments[name] = value[list(of)]
        elif name == "generator":
            continue
        elif _is_shared(value) or name.endswith("tensor_inputs"):
            arguments[name] = value
        else:
            raise InputError(
                f"{name} cannot be repeated for the additional rows of this edit (the unedited image or a source). "
                "Omit it, or edit listed channels, or channels with scores_from='own'."
            )
    if call.arguments.get("latents") is None:
        arguments["generator"] = _generators(call, of)
    return arguments


def _listed(value: Any, n: int) -> list[Any]:
    """One value per sample, repeated like prompts in diffusers: all images of one prompt before those of the next."""
    each = list(value) if isinstance(value, (list, tuple)) else [value]
    return [text for text in each for _ in range(n // len(each))]


def _is_shared(value: Any) -> bool:
    """Whether a value belongs to the call as a whole: numbers, text, and lists and mappings of them."""
    if isinstance(value, Mapping):
        return all(map(_is_shared, value.values()))
    if isinstance(value, (list, tuple)):
        return all(isinstance(each, (int, float)) for each in value)
    return isinstance(value, (int, float, str))


def _generators(call: Call, of: Sequence[int]) -> list[torch.Generator]:
    """Copies of each sample's generator, in its current state."""
    given = call.arguments.get("generator")
    each: list[torch.Generator] = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    if len(each) != call.n_samples:
        raise InputError(
            f"generators: {len(each)}, images: {call.n_samples}. This edit runs additional rows from the noise of each "
            "image, so each image needs its own generator. Pass generator=torch.Generator().manual_seed(0), or a list."
        )
    return [torch.Generator(each[i].device).set_state(each[i].get_state()) for i in of]
