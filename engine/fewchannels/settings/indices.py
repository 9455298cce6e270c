"""Indices of layers and steps as people write them, both ways: ``0,5``, ``2-4``, ``2:5``, ``last``, ``-1``."""

import re
from collections.abc import Sequence

from fewchannels.errors import InputError
from fewchannels.settings.ranges import shown

GRAMMAR = "0,5, 2-4 (both ends), 2:5 (without its end), last, -1 (from the end)"
"""Ways to write indices, for messages and help."""
_NUMBER = "([0-9]{1,18})"
_SIGNED = "(-?[0-9]{1,18})"
_FROM_END = re.compile(r"last|(^|[,:])\s*-|:\s*(,|$)")
_ONE, _CLOSED, _OPEN = (re.compile(text) for text in (_SIGNED, f"{_NUMBER}-{_NUMBER}", f"{_SIGNED}?:{_SIGNED}?"))


def parse_indices(kind: str, text: str, among: Sequence[int], lacking: str = "") -> tuple[int, ...]:
    """The indices that a text names, ascending, each once.

    A single index must be among those that exist; a range stands for those of them that it contains. Negative numbers
    count from the end: -1 is the last of them.

    Args:
        kind: name of one of them, ``layer`` or ``step``.
        text: comma-separated indices, ranges such as ``2-4`` and ``2:5``, and ``last``.
        among: the indices that exist, ascending.
        lacking: end of the message about one that does not exist; if empty, the valid ones.

    Raises:
        InputError: the text is none of these, or names an index that does not exist.
    """
    chosen: set[int] = set()
    for part in (each.strip() for each in text.split(",")):
        if part == "last":
            chosen.add(among[-1])
        elif match := _ONE.fullmatch(part):
            chosen.add(_existing(kind, int(match[1]), among, lacking))
        elif match := _CLOSED.fullmatch(part):
            first, last = (_existing(kind, int(each), range(among[-1] + 1), lacking) for each in match.groups())
            chosen |= _inside(kind, part, range(first, last + 1), among)
        elif match := _OPEN.fullmatch(part):
            ends = [each if each is None else int(each) for each in match.groups()]
            if ends[1] is not None and ends[1] > among[-1] + 1:
                _existing(kind, ends[1] - 1, range(among[-1] + 1), lacking)
            chosen |= _inside(kind, part, range(among[-1] + 1)[slice(*ends)], among)
        else:
            raise InputError(
                f"{kind} {shown(part)} is not an index; give e.g. {among[0]},{among[-1]}, each {_valid(among)}. "
                f"Indices are written as {GRAMMAR}."
            )
    return tuple(sorted(chosen))


def counts_from_end(text: str) -> bool:
    """Return whether a text names indices from the end, which differ where samples have different numbers of steps."""
    return bool(_FROM_END.search(text))


def _existing(kind: str, index: int, among: Sequence[int], lacking: str) -> int:
    """The index itself, or the one that a negative number means."""
    if index < 0 and -index <= len(among):
        return among[index]
    if index not in among:
        raise InputError(f"{kind} {index} {lacking or f'does not exist; the valid ones are {_valid(among)}'}.")
    return index


def _inside(kind: str, part: str, wanted: range, among: Sequence[int]) -> set[int]:
    found = {index for index in among if index in wanted}
    if not found:
        raise InputError(f"{kind}s {shown(part)} is empty: it contains none of {in_short(among)}.")
    return found


def _valid(among: Sequence[int]) -> str:
    return f"{among[0]} to {among[-1]}" if len(among) == among[-1] - among[0] + 1 else in_short(among)


def in_short(numbers: Sequence[int], between: str = "-") -> str:
    """Ascending numbers with their runs drawn together: ``0-5,8``.

    Args:
        numbers: the numbers.
        between: text between the ends of a run.
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}{between}{run[-1]}" for run in runs)
