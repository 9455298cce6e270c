"""One generation of an unknown pipeline, as its inspection saw it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """One generation: per forward of the transformer its arguments, and every block's output tensors by path."""

    forwards: list[Mapping[str, Any]]
    outputs: list[dict[str, dict[int | None, Tensor]]]

    def n_rows(self, latents: str) -> int:
        """Rows over all forwards.

        Args:
            latents: the transformer's argument that holds them.
        """
        return sum(len(forward[latents]) for forward in self.forwards)

    def in_words(self, latents: str) -> str:
        """Describe the number of forwards and their rows; same arguments as :meth:`n_rows`."""
        rows = [str(len(forward[latents])) for forward in self.forwards]
        return f"{len(rows)} forward{'s' * (len(rows) > 1)} of {' and '.join(rows)} rows"

    def states(self, path: str, output: int | None) -> list[Tensor]:
        """A block's output, ``(token, channel)``, for each row of each forward.

        Args:
            path: path of the block.
            output: position in what it returns; None if that is one tensor.
        """
        return [row for forward in self.outputs for row in forward[path][output]]


def branch_order(
    guided: Seen, alone: Seen | None, other: Seen | None, path: str, output: int | None
) -> tuple[tuple[str, str], float]:
    """Determine which of two branches comes first.

    Args:
        guided: output with both.
        alone: output of the same prompt and noise, with the conditional branch alone; None if there is no such run.
        other: if there is none, of another prompt with both: the unconditional branch moves less.
        path: path of the block to look at.
        output: see :meth:`Seen.states`.

    Returns:
        The order, and how ambiguous it is: 0 if the branches are clearly distinguished, 1 if not at all.
    """
    cond_first, uncond_first = ("cond", "uncond"), ("uncond", "cond")
    states = guided.states(path, output)
    if alone is not None:
        (conditional,) = alone.states(path, output)
        moved = [-float((state - conditional).norm()) for state in states]
    elif other is not None and all(a.shape == b.shape for a, b in zip(other.states(path, output), states, strict=True)):
        moved = [float((a - b).norm()) for a, b in zip(other.states(path, output), states, strict=True)]
    else:
        return cond_first, 1.0
    near, far = sorted(map(abs, moved))
    return (cond_first if moved[0] > moved[1] else uncond_first), near / far if far else 1.0
