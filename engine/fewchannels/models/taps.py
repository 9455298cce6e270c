"""Taps: forward hooks on blocks that read or edit their streams. No other code hooks a model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fewchannels.models.family import Block, Place
from fewchannels.models.sampler import Forward, Sampler


@dataclass(frozen=True)
class Site:
    """The site of a tap's call: one stream of one branch, at one block's output, in one forward pass.

    Attributes:
        block: the layer.
        stream: ``image`` or ``text``.
        branch: ``cond`` or ``uncond``.
        forward: the current forward pass of the transformer.
        lengths: each sample's number of tokens, if samples differ in it and are padded; else None.
    """

    block: Block
    stream: str
    branch: str
    forward: Forward
    lengths: tuple[int, ...] | None


Tap = Callable[[Site, Tensor], Tensor | None]
"""A function of a site and its tokens ``(sample, token, channel)``, with samples in the order of the batch. The image
stream has the tokens of the generated image, row-major over its grid, without text, reference or padding tokens. A tap
that returns None only reads; one that returns a tensor of the same shape replaces the tokens for later blocks."""


@contextmanager
def tapped(
    sampler: Sampler,
    blocks: Sequence[Block],
    tap: Tap,
    streams: Sequence[str] = ("image",),
    branches: Sequence[str] = ("cond",),
) -> Iterator[None]:
    """Attach a tap to blocks' outputs for the duration of the context; it is always removed at the end.

    Contexts may nest: taps on one block run in the order in which their contexts were entered.

    Args:
        sampler: sampler that declares each forward pass.
        blocks: selected blocks.
        tap: the tap to attach.
        streams: values of :data:`fewchannels.models.family.STREAMS`. Blocks without this stream are skipped.
        branches: values of :data:`fewchannels.models.family.BRANCHES`. Branches that do not run are skipped.
    """
    transformer: nn.Module = sampler.transformer
    family = sampler.geometry.family
    now: list[Forward] = []
    by_text = "text" in streams or any(each.image.start == "after_own_text" for each in family.lists)

    def begin(module: nn.Module, arguments: Any, keywords: Any) -> None:
        now[:] = [sampler.forward_begins(arguments, keywords, text=by_text)]

    def hook_for(block: Block) -> Callable[[nn.Module, Any, Any], Any]:
        places = {stream: family.place(block, stream) for stream in streams}

        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            (forward,) = now
            for stream, place in places.items():
                if place is None:
                    continue
                tensor = output if place.output is None else output[place.output]
                if tensor is None:  # the last block of SD3 drops its text
                    continue
                for branch, rows in forward.rows.items():
                    if branch not in branches:
                        continue
                    spans = _spans(place, stream, forward, tensor.shape[1], rows)
                    end = max(stop for _, stop in spans)
                    if end > tensor.shape[1]:
                        raise RuntimeError(
                            f"{block.path} returned {tensor.shape[1]} tokens; its {stream} tokens were to end at {end}"
                        )
                    lengths = [stop - start for start, stop in spans]
                    ragged = tuple(lengths) if len(set(lengths)) > 1 else None
                    edited = tap(Site(block, stream, branch, forward, ragged), _take(tensor[rows], spans))
                    if edited is not None:
                        tensor = _put(tensor, rows, spans, edited)
                        output = tensor if place.output is None else _with(output, place.output, tensor)
            return output

        return hook

    with ExitStack() as stack:
        stack.callback(transformer.register_forward_pre_hook(begin, with_kwargs=True).remove)
        stack.callback(transformer.register_forward_hook(lambda *_: sampler.forward_ends()).remove)
        for block in blocks:
            handle = transformer.get_submodule(block.path).register_forward_hook(hook_for(block))
            stack.callback(handle.remove)
        yield


Prediction = Callable[[Forward, Tensor], Tensor]
"""A function of a forward pass and the transformer's output, ``(row, ...)``, with the rows of all its branches; it
returns the output that the pipeline receives."""


@contextmanager
def predicted(sampler: Sampler, edit: Prediction) -> Iterator[None]:
    """Edit the transformer's predictions for the duration of the context.

    Args:
        sampler: sampler that declares each forward pass.
        edit: function that edits the output; its result has one tensor per row of the batch.

    Raises:
        RuntimeError: inside the context, if the transformer returns its rows as a list.
    """
    now: list[Forward] = []

    def begin(module: nn.Module, arguments: Any, keywords: Any) -> None:
        now[:] = [sampler.forward_begins(arguments, keywords, text=False)]

    def end(module: nn.Module, inputs: Any, output: Any) -> Any:
        sampler.forward_ends()
        if not isinstance(output, tuple) or not isinstance(output[0], Tensor):
            raise RuntimeError(f"{type(module).__name__} returns {type(output).__name__}, not one tensor in a tuple")
        return _with(output, 0, edit(now[0], output[0]))

    transformer: nn.Module = sampler.transformer
    with ExitStack() as stack:
        stack.callback(transformer.register_forward_pre_hook(begin, with_kwargs=True).remove)
        stack.callback(transformer.register_forward_hook(end).remove)
        yield


def _spans(place: Place, stream: str, forward: Forward, n_tokens: int, rows: slice) -> list[tuple[int, int]]:
    """Start and end of each row's tokens."""
    n_rows = rows.stop - rows.start
    text = forward.n_text[rows] if forward.n_text else (0,) * n_rows
    if stream == "text":
        start = forward.n_before_text if place.start == "after_image" else 0
        return [(start, start + length) for length in text]
    if place.start == "after_own_text":
        return [(length, length + forward.n_image) for length in text]
    start = n_tokens - forward.n_before_text if place.start == "after_text" else 0
    return [(start, start + forward.n_image)] * n_rows


def _take(tensor: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    if len(set(spans)) == 1:
        start, stop = spans[0]
        return tensor[:, start:stop]
    return nn.utils.rnn.pad_sequence([row[start:stop] for row, (start, stop) in zip(tensor, spans, strict=True)], True)


def _put(tensor: Tensor, rows: slice, spans: Sequence[tuple[int, int]], edited: Tensor) -> Tensor:
    tensor = tensor.clone()
    for row, (start, stop), tokens in zip(tensor[rows], spans, edited, strict=True):
        row[start:stop] = tokens[: stop - start]
    return tensor


def _with(output: tuple[Any, ...], position: int, value: Any) -> tuple[Any, ...]:
    return (*output[:position], value, *output[position + 1 :])
