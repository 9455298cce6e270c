"""The path of a hidden state on a GPU, on a pretended one: streams that only keep the order of what is done in them.

Work is done at once on the CPU. What a GPU would guarantee is known from the events: of two operations, one is before
the other if they are in one stream, or if an event that was recorded after the first was waited for before the second.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from interpreted import interpreted
from torch import Tensor

from fewchannels.captures import aside, recorder, transfer
from fewchannels.captures.recorder import Recorder
from fewchannels.measures.kernels import kernels_for
from fewchannels.measures.scores import take_channels
from fewchannels.models.family import Block
from fewchannels.runs.layout import Layout

pytest.importorskip("triton")

Clock = dict[str, int]
"""The number of operations of each stream that are known to be over."""
IDS = ["0a", "0b", "0c"]
GRID = (6, 4)


class Stream:
    """A stream of the pretended GPU."""

    def __init__(self, name: str) -> None:
        self.name, self.clock, self.device = name, Clock(), torch.device("cpu")

    def does(self) -> Clock:
        self.clock[self.name] = self.clock.get(self.name, 0) + 1
        return dict(self.clock)

    def wait(self, clock: Clock) -> None:
        for name, n in clock.items():
            self.clock[name] = max(n, self.clock.get(name, 0))

    def wait_event(self, event: "Event") -> None:
        self.wait(event.clock)

    def wait_stream(self, other: "Stream") -> None:
        self.wait(other.clock)


class Event:
    """An event, with what is over when it is."""

    def __init__(self) -> None:
        self.clock = Clock()

    def record(self, stream: Stream) -> None:
        self.clock = dict(stream.clock)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


@dataclass
class Gpu:
    """A pretended GPU: its streams, and who used which memory."""

    kernels: ModuleType
    model: Stream = field(default_factory=lambda: Stream("model"))
    current: list[Stream] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    uses: dict[int, list[tuple[str, str, Clock]]] = field(default_factory=dict)
    pages: list[int] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)

    def stream(self, device: object = None) -> Stream:
        self.streams.append(Stream(f"second {len(self.streams)}"))
        return self.streams[-1]

    @contextmanager
    def within(self, stream: Stream) -> Iterator[None]:
        self.current.append(stream)
        yield
        self.current.pop()

    def used(self, how: str, *tensors: Tensor | None) -> None:
        stream = self.current[-1]
        for tensor in tensors:
            if tensor is not None:
                place = tensor.untyped_storage().data_ptr()
                self.uses.setdefault(place, []).append((how, stream.name, stream.does()))

    def read(self, x: Tensor, partial: Any, copy: Tensor | None) -> None:
        self.used("reads", x)
        self.used("writes", partial.channels, copy)
        self.kernels.read(x, partial, copy)

    def finish(self, partial: Any) -> tuple[Tensor, Tensor]:
        self.used("reads", partial.channels)
        return self.kernels.finish(partial)

    def take(self, x: Tensor, channels: Tensor) -> Tensor:
        self.used("reads", x)
        return take_channels(x, channels)

    def check(self) -> None:
        """No memory is written while somebody else still reads it, or read before it is written."""
        for uses in self.uses.values():
            for i, (how, by, clock) in enumerate(uses):
                for before, other, earlier in uses[:i]:
                    if "writes" in (how, before):
                        assert clock.get(other, 0) >= earlier[other], f"{other} {before}, {by} {how} meanwhile"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    fused = interpreted()
    found = Gpu(fused)
    found.current.append(found.model)
    shown = SimpleNamespace(
        partial_shapes=fused.partial_shapes, Partial=fused.Partial, read=found.read, finish=found.finish
    )
    monkeypatch.setattr(aside, "kernels_for", lambda device: shown)
    monkeypatch.setattr(aside, "on", lambda device: nullcontext())
    monkeypatch.setattr(transfer, "has_streams", lambda device: True)
    monkeypatch.setattr(torch.cuda, "Stream", found.stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: found.current[-1])
    monkeypatch.setattr(torch.cuda, "stream", found.within)
    monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: found.kept.append(x))
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: x)
    monkeypatch.setattr(recorder, "take_channels", lambda x, channels: found.take(x, channels))
    leave = transfer._Page.leave
    monkeypatch.setattr(transfer._Page, "leave", lambda page: (found.pages.append(page.n_bytes), leave(page), None)[-1])
    return found


def layout(**how: Any) -> Layout:
    blocks = tuple(Block(i, f"blocks.{i}", "dual") for i in range(3))
    return Layout(len(IDS), (0, 1), blocks, 40, 24, 5, len(IDS), **how)


def site(what: Layout, step: int, layer: int, stream: str, branch: str, lengths: Sequence[int] | None) -> Any:
    forward = SimpleNamespace(step=step, leads=True, token_grid=GRID)
    return SimpleNamespace(
        block=what.blocks[layer], stream=stream, branch=branch, forward=forward, lengths=lengths and tuple(lengths)
    )


def recorded(what: Layout, spoils: bool = False) -> dict[str, np.ndarray]:
    """The arrays of two batches; the model may overwrite each state as soon as the tap returns."""
    taken = Recorder(what, "rms", IDS)
    random = np.random.default_rng(5)
    for rows in (slice(0, 2), slice(2, 3)):
        tap = taken.tap(rows)
        for step in range(2):
            for layer in range(3):
                for track in what.tracks:
                    n_tokens, lengths = (24, None) if track.stream == "image" else (9, [9, 4][: rows.stop - rows.start])
                    x = torch.from_numpy(random.normal(2, 5, (rows.stop - rows.start, n_tokens, 40)))
                    x = x.bfloat16()
                    tap(site(what, step, layer, track.stream, track.branch, lengths), x)
                    if spoils:
                        x.fill_(77)
        if rows.stop == 2:
            assert taken.nonfinite_cells(0) == 0
    return taken.arrays()


KINDS: dict[str, dict[str, Any]] = {
    "image": {},
    "everything": {"streams": ("image", "text"), "branches": ("cond", "uncond"), "controls": ("bottom", "random_0")},
    "pooled": {"pool": 2, "rounded": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_records_what_a_cpu_does_although_the_model_overwrites_its_states(kind: str, gpu: Gpu) -> None:
    what = layout(**KINDS[kind])
    found = recorded(what, spoils=True)
    gpu.check()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(aside, "kernels_for", kernels_for)
        patched.setattr(transfer, "has_streams", lambda device: device.type == "cuda")
        plain = recorded(what)
    assert found.keys() == plain.keys()
    for name, values in plain.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-2 if what.rounded else 3e-6, atol=3e-6, err_msg=name)
        assert np.isfinite(values).any()


def test_one_copy_leaves_the_gpu_each_step(gpu: Gpu) -> None:
    what = layout()
    recorded(what)
    n_values = 4 * 40 + 5 + 2 + 5 * 24 + 24
    assert gpu.pages == [4 * 3 * n_values * n for n in (2, 2, 1, 1)], "two steps of each batch"


def test_a_step_that_arrived_is_put_in_place_block_by_block(gpu: Gpu) -> None:
    what = layout()
    taken = Recorder(what, "rms", IDS)
    tap = taken.tap(slice(0, 1))
    stored = []
    for step in range(2):
        for layer in range(3):
            tap(site(what, step, layer, "image", "cond", None), torch.full((1, 24, 40), 3.0))
            rms = taken._tracks["image", "cond"].arrays()["rms"][0, 0]
            stored.append(int((rms == 3).all(axis=-1).sum()))
    assert stored == [0, 0, 0, 1, 2, 3], "layers of the first step, after each block"


def test_a_page_holds_no_more_than_its_limit(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PAGE_BYTES", 1)
    before = recorded(layout())
    assert len(gpu.pages) == 2 * 2 * 3
    monkeypatch.setattr(transfer, "_PAGE_BYTES", 2**20)
    for name, values in recorded(layout()).items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)


def test_the_model_does_not_wait_for_the_second_stream(gpu: Gpu) -> None:
    taken = Recorder(layout(), "rms", IDS)
    tap = taken.tap(slice(0, 1))
    for layer in range(2):
        tap(site(layout(), 0, layer, "image", "cond", None), torch.ones(1, 24, 40))
    assert set(gpu.model.clock) == {"model"}
    tap(site(layout(), 0, 2, "image", "cond", None), torch.ones(1, 24, 40))
    assert set(gpu.model.clock) == {"model", "second 0"}, "the third copy goes where the first one was"
    taken.arrays()


def test_a_failed_batch_leaves_nothing_behind(gpu: Gpu) -> None:
    what = layout()
    taken = Recorder(what, "rms", IDS)
    tap = taken.tap(slice(0, 2))
    for layer in range(3):
        tap(site(what, 0, layer, "image", "cond", None), torch.ones(2, 24, 40))
    taken.discard(slice(0, 2))
    assert gpu.pages == []
    assert np.isnan(taken.arrays()["rms"]).all()
    assert (taken.arrays()["massive_channel"] == -1).all()


def test_a_failed_batch_takes_nothing_of_the_one_before(gpu: Gpu) -> None:
    what = layout()
    taken = Recorder(what, "rms", IDS)
    taken.tap(slice(0, 1))(site(what, 0, 0, "image", "cond", None), torch.full((1, 24, 40), 3.0))
    taken.tap(slice(1, 2))(site(what, 0, 0, "image", "cond", None), torch.full((1, 24, 40), 5.0))
    taken.discard(slice(1, 2))
    assert (taken.arrays()["rms"][0, 0, 0] == 3).all()
    assert np.isnan(taken.arrays()["rms"][1]).all()
