"""Layers, steps, tokens and controls, parsed from the texts that select them."""

import re
from collections.abc import Sequence

from fewchannels.errors import InputError, unknown
from fewchannels.models.family import Block
from fewchannels.settings.indices import counts_from_end, parse_indices
from fewchannels.settings.ranges import Whole, shown

_MOST_DRAWS = 1_000


def choose_pool_side(text: str) -> int:
    """The side of the squares of tokens that are pooled: 1 for ``all``, N for ``pool:N``.

    Raises:
        InputError: the text is neither.
    """
    if text == "all":
        return 1
    side = text.removeprefix("pool:")
    if side == text or not re.fullmatch(r"[0-9]{1,6}", side) or int(side) < 2:
        raise InputError(
            f"tokens is {text!r}; it must be 'all', or 'pool:N' with N of at least 2: the mean over squares of N x N "
            "tokens."
        )
    return int(side)


def choose_controls(text: str) -> tuple[str, ...]:
    """Selections named by ``none``, or a list of ``bottom`` and ``random:N`` (N draws of random channels).

    Raises:
        InputError: the text is neither.
    """
    if text == "none":
        return ()
    chosen: list[str] = []
    rule = Whole(1, _MOST_DRAWS)
    for part in text.split(","):
        word, colon, number = part.strip().partition(":")
        if word == "bottom" and not colon:
            chosen.append("bottom")
        elif word == "random" and not rule.fault(n := rule.parse(number)):
            chosen += [f"random_{i}" for i in range(n)]
        else:
            raise InputError(
                f"controls is {shown(text)}; give none, or a list of bottom and random:N with N of {rule.in_short()}, "
                "such as bottom,random:3."
            )
    if len(set(chosen)) < len(chosen):
        raise InputError(f"controls is {text!r}; name each once.")
    return tuple(chosen)


def choose_words(kind: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Words of a comma-separated list, in the order in which they are known.

    Raises:
        InputError: an unknown word.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            raise unknown(kind, word, known)
    return tuple(word for word in known if word in words)


def choose_layers(text: str, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Layers named by ``all``, ``dual``, ``single`` or indices such as ``0,5``, ``2-4`` or ``-1``.

    Raises:
        InputError: an unknown word, or an index that the model does not have.
    """
    kinds = sorted({block.kind for block in blocks})
    if text == "all":
        return tuple(blocks)
    if text in kinds:
        return tuple(block for block in blocks if block.kind == text)
    if text[:1].isalpha() and not text.startswith("last"):
        raise unknown("layers", text, ["all", *kinds, f"indices 0 to {len(blocks) - 1} such as 0,{len(blocks) - 1}"])
    return tuple(blocks[i] for i in parse_indices("layer", text, range(len(blocks))))


def choose_steps(text: str, n_steps: int, *, same_for_all: bool = True) -> tuple[int, ...]:
    """Step indices named by ``all``, ``last`` or indices such as ``0,9,19``, ``2-4`` or ``-1``.

    Args:
        text: the choice.
        n_steps: denoising steps of the longest sample.
        same_for_all: whether every sample has ``n_steps``; what counts from the end needs it.

    Raises:
        InputError: an unknown word, a step that never runs, or ``last`` if samples differ in their steps.
    """
    if text == "all":
        return tuple(range(n_steps))
    if not same_for_all and counts_from_end(text):
        raise InputError(
            f"steps is {shown(text)}, but the samples have different numbers of steps. Give all, or indices from the "
            "first step on."
        )
    if text[:1].isalpha() and not text.startswith("last"):
        raise unknown("steps", text, ["all", "last", f"indices 0 to {n_steps - 1} such as 0,{n_steps - 1}"])
    return parse_indices("step", text, range(n_steps))
