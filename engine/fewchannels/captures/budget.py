"""Expected size of a capture on disk, and options that reduce it to a limit. Pure functions.

Nothing is measured here: the compression ratios of arrays, images and tables are from ``benchmarks/README.md``. For a
measured estimate, see :mod:`fewchannels.captures.estimate`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from fewchannels.errors import InputError
from fewchannels.runs.layout import Layout
from fewchannels.settings.units import size

_IMAGE_BYTES_PER_PIXEL = 1.4
_CELL_BYTES, _RANKED_CHANNEL_BYTES = 25, 4
_N_OPTIONS = 3


@dataclass(frozen=True)
class Option:
    """A smaller capture: its options on the command line, and its expected size in bytes."""

    flags: str
    n_bytes: int


def expected_bytes(layout: Layout, image_pixels: int) -> int:
    """Bytes of a whole run: arrays, images and tables.

    Args:
        layout: layout of the run.
        image_pixels: number of pixels of one image.
    """
    cell = _CELL_BYTES + _RANKED_CHANNEL_BYTES * layout.n_ranked
    tables = _IMAGE_BYTES_PER_PIXEL * image_pixels + cell * len(layout.steps) * len(layout.blocks)
    return layout.expected_bytes + round(layout.n_samples * tables)


def check_budget(layout: Layout, grid: tuple[int, int], image_pixels: int, max_bytes: int) -> None:
    """Refuse a capture that is expected to take more than a budget.

    Args:
        layout: layout of the run.
        grid: tokens along height and width before pooling.
        image_pixels: number of pixels of one image.
        max_bytes: the budget.

    Raises:
        InputError: naming three smaller captures that would fit.
    """
    needed = expected_bytes(layout, image_pixels)
    if needed <= max_bytes:
        return
    found = options(layout, grid, image_pixels, max_bytes)
    lines = "".join(f"\n  {option.flags}: about {size(option.n_bytes)}" for option in found)
    raise InputError(
        f"this capture needs about {size(needed)}, but --max-bytes allows only {size(max_bytes)}. "
        + (f"Options that fit:{lines}" if found else "Not even a single sample would fit.")
    )


def options(layout: Layout, grid: tuple[int, int], image_pixels: int, max_bytes: int) -> list[Option]:
    """Up to three smaller captures that fit a budget, those that lose the least information first."""
    found: list[Option] = []
    for candidates in _candidates(layout, grid):
        for flags, smaller in candidates:
            if (n_bytes := expected_bytes(smaller, image_pixels)) <= max_bytes:
                found.append(Option(flags, n_bytes))
                break
        if len(found) == _N_OPTIONS:
            break
    return found


T = TypeVar("T")
Candidates = Iterator[tuple[str, Layout]]


def _candidates(layout: Layout, grid: tuple[int, int]) -> Iterator[Candidates]:
    """Ways to record less, each from a small reduction to a large one."""
    statistics_only = replace(layout, top_k=0, controls=())
    if layout.controls:
        yield iter([("--controls none", replace(layout, controls=()))])
    if layout.top_k:
        yield iter([("--value-precision bfloat16", replace(layout, rounded=True))])
        yield _pooled(layout, grid)
        yield ((f"--top-k {k}", replace(layout, top_k=k)) for k in range(layout.top_k - 1, 0, -1))
    yield _fewer_steps(layout, "")
    yield _fewer_layers(layout, "")
    if layout.top_k:
        yield iter([("--top-k 0", statistics_only)])
        yield _fewer_steps(statistics_only, "--top-k 0 ")
    last = replace(statistics_only, steps=layout.steps[-1:])
    yield _fewer_layers(last, f"--top-k 0 --steps {layout.steps[-1]} ")
    yield _fewer_samples(layout, "")
    yield _fewer_samples(statistics_only, "--top-k 0 and ")
    yield _fewer_samples(last, f"--top-k 0 --steps {layout.steps[-1]} and ")


def _pooled(layout: Layout, grid: tuple[int, int]) -> Candidates:
    height, width = grid
    for side in range(layout.pool + 1, min(grid) + 1):
        if height % side == 0 and width % side == 0:
            yield f"--tokens pool:{side}", replace(layout, pool=side, n_tokens=height * width // side**2)


def _fewer_steps(layout: Layout, before: str) -> Candidates:
    for chosen in _thinned(layout.steps):
        yield f"{before}--steps {','.join(map(str, chosen))}", replace(layout, steps=chosen)


def _fewer_layers(layout: Layout, before: str) -> Candidates:
    for chosen in _thinned(layout.blocks):
        names = ",".join(str(block.layer) for block in chosen)
        yield f"{before}--layers {names}", replace(layout, blocks=chosen)


def _fewer_samples(layout: Layout, before: str) -> Candidates:
    n = layout.n_samples
    while (n := n * 9 // 10) > 0:
        yield f"{before}a manifest of {n} samples", replace(layout, n_samples=n)


def _thinned(items: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    """Shrinking, evenly spaced subsets, which always include the last element."""
    n = len(items)
    for kept in range(n - 1, 0, -1):
        yield tuple(items[n - 1 - i * n // kept] for i in range(kept - 1, -1, -1))
