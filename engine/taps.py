"""Taps: the only code that hooks a model. A tap sits on blocks' image streams and reads or edits them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from engine.models.families import Block

Tap = Callable[[Block, Tensor], Tensor | None]
"""Called with a block and its output image stream ``(sample, token, channel)``. A tap that returns None reads; one that
returns a tensor of the same shape edits: later blocks see that tensor instead."""


@contextmanager
def tapped(transformer: nn.Module, blocks: Sequence[Block], tap: Tap) -> Iterator[None]:
    """Put a tap on blocks' outputs for as long as the context lasts; it is removed whatever happens inside.

    Contexts may nest: taps on one block run in the order in which their contexts were entered.

    Args:
        transformer: the model that holds the blocks.
        blocks: which blocks.
        tap: what to call.
    """

    def hook_for(block: Block) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            edited = tap(block, output[block.image_output])
            if edited is None:
                return None
            return (*output[: block.image_output], edited, *output[block.image_output + 1 :])

        return hook

    with ExitStack() as stack:
        for block in blocks:
            handle = transformer.get_submodule(block.path).register_forward_hook(hook_for(block))
            stack.callback(handle.remove)
        yield
