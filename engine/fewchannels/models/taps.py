"""Taps: the only code that hooks a model. A tap sits on blocks' streams and reads or edits them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fewchannels.models.family import Block, Place
from fewchannels.models.sampler import Forward, Sampler


@dataclass(frozen=True)
class Site:
    """What a tap is called at: one stream of one branch, behind one block, in one forward.

    Attributes:
        block: the layer.
        stream: ``image`` or ``text``.
        branch: ``cond`` or ``uncond``.
        forward: the transformer's forward that runs.
        lengths: each sample's own tokens, where samples differ in them and what is behind those is padding; else None.
    """

    block: Block
    stream: str
    branch: str
    forward: Forward
    lengths: tuple[int, ...] | None


Tap = Callable[[Site, Tensor], Tensor | None]
"""Called with a site and its tokens ``(sample, token, channel)``, samples in the order of the batch: for the image
stream the tokens of the image that is generated, row-major over its grid, without text, reference or padding tokens.
A tap that returns None reads; one that returns a tensor of the same shape edits: later blocks see that instead."""


@contextmanager
def tapped(
    sampler: Sampler,
    blocks: Sequence[Block],
    tap: Tap,
    streams: Sequence[str] = ("image",),
    branches: Sequence[str] = ("cond",),
) -> Iterator[None]:
    """Put a tap on blocks' outputs for as long as the context lasts; it is removed whatever happens inside.

    Contexts may nest: taps on one block run in the order in which their contexts were entered.

    Args:
        sampler: declares what each forward is.
        blocks: selected blocks.
        tap: what to call.
        streams: values of :data:`fewchannels.models.family.STREAMS`. A block that has not the stream is passed over.
        branches: values of :data:`fewchannels.models.family.BRANCHES`. One that does not run is passed over.
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
                if tensor is None:  # the last block of SD3 lets its text go
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
"""Called with a forward and what the transformer returns, ``(row, ...)``, the rows of all its branches; returns what
the pipeline shall see instead."""


@contextmanager
def predicted(sampler: Sampler, edit: Prediction) -> Iterator[None]:
    """Edit what the transformer predicts, for as long as the context lasts.

    Args:
        sampler: declares what each forward is.
        edit: what to call; every row of a batch is one tensor of its result.

    Raises:
        RuntimeError: inside, where the transformer returns its rows as a list.
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
    """Where each row's tokens begin and end."""
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
