"""What a test must know of a tiny checkpoint, said by hand and not read off the package's family table."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One tiny checkpoint.

    Attributes:
        name: of the case, e.g. ``flux``.
        build: makes the pipeline, float32 on the CPU, with random weights that do not depend on the global state.
        blocks: every layer's module of the transformer, in running order.
        image_of: from a block's module path, its whole output and the number of image tokens to the image's tokens,
            ``(row, token, channel)``, with text, reference and padding taken off by hand.
        text_of: likewise the text stream, ``(row, token, channel)``; None where a block has none.
        square: height and width in pixels of a small square image.
        tall: of one that is not square; None where the pipeline makes square ones only.
        token_side: pixels of a token's side.
        guided: settings that run both branches; empty where the checkpoint never does.
        unguided: settings that run one branch only, where scales of 1 do not.
        always_guided: whether both branches run whatever the settings are, the conditional one first.
        batched: whether both branches are rows of one forward.
        uncond_first: whether the unconditional rows come first in it.
        prompts: three prompts.
        text_lengths: text tokens that are each prompt's own, in a batch of the three; None where that is all of them.
        reference: whether the pipeline takes a reference image: ``no``, ``may`` or ``must``.
        noise_axes: which axes of the initial noise, as ``randn_tensor`` makes it, are height and width.
    """

    name: str
    build: Callable[[], DiffusionPipeline]
    blocks: Callable[[nn.Module], list[tuple[str, nn.Module]]]
    image_of: Callable[[str, Any, int], Tensor]
    square: tuple[int, int]
    tall: tuple[int, int] | None
    token_side: int
    text_of: Callable[[str, Any, int], Tensor] | None = None
    guided: dict[str, float] = field(default_factory=dict)
    unguided: dict[str, float] = field(default_factory=dict)
    always_guided: bool = False
    batched: bool = False
    uncond_first: bool = True
    prompts: tuple[str, str, str] = ("a small red star", "a large blue ring on the left", "a")
    text_lengths: tuple[int, int, int] | None = None
    reference: str = "no"
    noise_axes: tuple[int, int] = (-2, -1)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Torch's random numbers begin at a seed inside, and are as before after it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def listed(*paths: str) -> Callable[[nn.Module], list[tuple[str, nn.Module]]]:
    """The blocks of lists, in the order in which they run."""

    def blocks(transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        return [
            (f"{path}.{i}", block)
            for path in paths
            for i, block in enumerate(transformer.get_submodule(path).children())
        ]

    return blocks


@contextmanager
def patched_forwards(blocks: list[tuple[str, nn.Module]], seen: list[tuple[str, Any]]) -> Iterator[None]:
    """Collect every block's whole output by replacing its forward: a route without hooks."""

    def copied(output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(map(copied, output))
        return output.clone() if isinstance(output, Tensor) else output

    with ExitStack() as stack:
        for path, block in blocks:

            def forward(*arguments: Any, _path: str = path, _own: Callable = block.forward, **keywords: Any) -> Any:
                output = _own(*arguments, **keywords)
                seen.append((_path, copied(output)))
                return output

            block.forward = forward
            stack.callback(delattr, block, "forward")
        yield
