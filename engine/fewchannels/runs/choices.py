"""Layers, steps, tokens and controls, parsed from the texts that select them."""

import re
from collections.abc import Sequence

from fewchannels.errors import InputError, unknown
from fewchannels.models.family import Block
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


_PART = re.compile(r"(-?[0-9]{1,18})(?:([-:])([0-9]{1,18}))?")


def choose_numbers(kind: str, text: str, known: Sequence[int], absent: str) -> tuple[int, ...]:
    """Layers or steps of a list: ``3``; ``-1`` and ``last``, from the end; ``2-4``, both included; ``2:5``, 2 to 4.

    Args:
        kind: what they are, in the singular, for messages.
        text: the choice.
        known: the valid numbers, ascending.
        absent: the end of a message about a number that is not valid, such as ``does not exist; valid are 0 to 5``.

    Returns:
        The chosen numbers, ascending.

    Raises:
        InputError: a part is none of these, or one of its numbers is not valid.
    """
    chosen: set[int] = set()
    for part in (each.strip() for each in text.split(",")):
        found = _PART.fullmatch("-1" if part == "last" else part)
        if found is None:
            raise InputError(
                f"{kind} {shown(part)} is not an index; give e.g. {known[0]},{known[-1]}, a range such as 2-4, or last."
            )
        first = int(found[1])
        if first < 0 and not found[2]:
            if -first > len(known):
                raise InputError(f"{kind} {first} does not exist; -1 to -{len(known)} count from the end.")
            chosen.add(known[first])
            continue
        last = first if not found[2] else int(found[3]) - (found[2] == ":")
        if wrong := [each for each in (first, last) if each not in known]:
            raise InputError(f"{kind} {wrong[0]} {absent}.")
        if first > last:
            raise InputError(f"{kind}s {shown(part)} selects nothing. Give the smaller number first.")
        if missing := [each for each in range(first, last + 1) if each not in known]:
            raise InputError(f"{kind} {missing[0]} {absent}.")
        chosen |= set(range(first, last + 1))
    return tuple(sorted(chosen))


def choose_layers(text: str, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Layers named by ``all``, ``last``, ``dual``, ``single`` or indices such as ``0,5``, ``-1``, ``2-4`` and ``2:5``.

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
    return tuple(blocks[i] for i in choose_numbers("layer", text, range(len(blocks)), _absent(len(blocks))))


def choose_steps(text: str, n_steps: int, *, same_for_all: bool = True) -> tuple[int, ...]:
    """Step indices named by ``all``, ``last`` or indices such as ``0,9,19``, ``-1``, ``2-4`` and ``2:5``.

    Args:
        text: the choice.
        n_steps: denoising steps of the longest sample.
        same_for_all: whether every sample has ``n_steps``; what counts from the end needs it.

    Raises:
        InputError: an unknown word, a step that never runs, or ``last`` if samples differ in their steps.
    """
    if text == "all":
        return tuple(range(n_steps))
    if not same_for_all and any(part.strip() == "last" or part.strip().startswith("-") for part in text.split(",")):
        raise InputError(f"steps is {text!r}, but the samples have different numbers of steps. Give all, or indices.")
    if text[:1].isalpha() and not text.startswith("last"):
        raise unknown("steps", text, ["all", "last", f"indices 0 to {n_steps - 1} such as 0,{n_steps - 1}"])
    return choose_numbers("step", text, range(n_steps), _absent(n_steps))


def _absent(n: int) -> str:
    return f"does not exist; the valid ones are 0 to {n - 1}"
