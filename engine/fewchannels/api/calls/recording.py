"""Record the hidden states of a pipeline's own calls in memory, with the reading tap of a capture."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any
from weakref import ref as weakref

import torch
from PIL import Image
from torch import Tensor

from fewchannels.api.calls.batch import Batch
from fewchannels.api.calls.call import Call
from fewchannels.api.calls.indices import Indices, as_text, kept
from fewchannels.api.calls.recorded import Recorded
from fewchannels.api.calls.recorded_call import MadeBy, RecordedCall
from fewchannels.api.calls.unusual import unusual
from fewchannels.api.calls.watched import watching
from fewchannels.captures.recorder import Recorder
from fewchannels.errors import InputError, unknown, warn
from fewchannels.measures import STATISTICS
from fewchannels.models.family import BRANCHES, STREAMS, ModelGeometry
from fewchannels.models.family_file import read_family
from fewchannels.models.in_memory import device_of, dtype_of
from fewchannels.models.loaded import device_in_words, peak_memory_bytes
from fewchannels.models.sampler import Sampler
from fewchannels.models.taps import Site, Tap, tapped
from fewchannels.runs.choices import choose_layers, choose_steps, choose_words
from fewchannels.runs.layout import Layout
from fewchannels.settings.arguments import checked


@checked
@contextmanager
def record(
    pipe: Any,
    *,
    layers: Indices = "all",
    steps: Indices = "all",
    top_k: int = 12,
    streams: str | Sequence[str] = "image",
    branches: str | Sequence[str] = "cond",
    score: str = "mean_abs",
    family: str | Path | None = None,
) -> Iterator[Recorded]:
    """Record the hidden states of every call of a pipeline inside the context.

    The calls return the same results as without the context. The recording contains the same data as a capture: the
    statistics of every channel, the norm of every image token, and the token maps of the largest channels.

    Args:
        pipe: a loaded diffusers pipeline of a known model family.
        layers: layers to record: ``"all"``, a kind of block such as ``"dual"``, one index, or several.
        steps: denoising steps to record: ``"all"``, ``"last"``, one index, or several.
        top_k: number of channels whose token maps are recorded; 0 records statistics only.
        streams: ``"image"``, ``"text"``, or both.
        branches: guidance branches, ``"cond"``, ``"uncond"``, or both.
        score: statistic that ranks channels: ``"mean_abs"``, ``"abs_mean"``, ``"max_abs"`` or ``"rms"``.
        family: path of a family file, for an unknown transformer class.

    Yields:
        The recording so far; it grows with every call and remains available after the context.

    Raises:
        InputError: the pipeline has no diffusion transformer of a known family, or a setting is not valid.
        FamilyMismatchError: inside the context, the pipeline did not run as its family describes; that call is not
            recorded.

    Example:
        >>> with fc.record(pipe, top_k=4) as recorded:
        ...     image = pipe("a small red star", num_inference_steps=2).images[0]
        >>> recorded.top(layer=3).channel.tolist()[0]
        46
    """
    if score not in STATISTICS:
        raise unknown("score", score, STATISTICS)
    if isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 0:
        raise InputError(f"top_k is {top_k!r}; it must be a whole number of at least 0. Pass a number such as 12.")
    top_k, recorded = int(top_k), Recorded(score)
    chosen = choose_words("streams", _joined(streams), STREAMS), choose_words("branches", _joined(branches), BRANCHES)
    listener = _Recording(recorded, layers, steps, top_k, *chosen)
    with watching(pipe, listener, read_family(Path(family)) if family else None) as watched:
        listener.check(watched.geometry)
        recorded.made_by = _made_by(pipe, watched.geometry)
        yield recorded


def _made_by(pipe: Any, geometry: ModelGeometry) -> MadeBy:
    device = device_in_words(device_of(pipe))
    return MadeBy(weakref(pipe), geometry, dtype_of(pipe), device, torch.get_num_threads())


def _joined(words: str | Sequence[str]) -> str:
    return words if isinstance(words, str) else ",".join(words)


class _Recording:
    """A listener that records each call of a pipeline.

    Args:
        recorded: recording to append to.
        layers: layers to record.
        steps: steps to record.
        top_k: number of channels whose maps are recorded.
        streams: streams to record.
        branches: branches to record.
    """

    def __init__(
        self,
        recorded: Recorded,
        layers: Indices,
        steps: Indices,
        top_k: int,
        streams: tuple[str, ...],
        branches: tuple[str, ...],
    ) -> None:
        self._recorded, self._top_k, self._streams, self._branches = recorded, top_k, streams, branches
        self._layers, self._steps = kept("layers", layers), kept("steps", steps)
        self._now: tuple[Recorder, Layout, float] | None = None

    def check(self, geometry: ModelGeometry) -> None:
        """Reject, before any call, settings that do not fit the model.

        Raises:
            InputError: the model does not support a setting.
        """
        blocks = choose_layers(as_text("layers", self._layers, len(geometry.blocks)), geometry.blocks)
        if self._top_k > geometry.n_channels:
            raise InputError(
                f"top_k is {self._top_k}; the model has {geometry.n_channels} channels. Pass a smaller number."
            )
        if "text" in self._streams and not geometry.family.has_text(blocks):
            raise InputError(
                f"streams includes text, but the selected blocks of {geometry.transformer} have no text stream. Pass "
                f"'image'."
            )
        if "uncond" in self._branches and not geometry.can_be_guided:
            raise InputError("branches includes uncond, but this model runs no unconditional branch. Pass 'cond'.")

    def sources(self, call: Call) -> Sequence[str]:
        """Return no prompts: a recording needs no source."""
        return ()

    def needs_unedited(self, call: Call) -> bool:
        """Return False: a recording needs no separate unedited image."""
        return False

    def changes(self) -> tuple[str, ...]:
        """Nothing: recording changes nothing."""
        return ()

    @contextmanager
    def during(self, call: Call, batch: Batch, sampler: Sampler) -> Iterator[None]:
        """Record the call's own rows."""
        layout = self._layout(call, sampler)
        # Ids determine the draws of random control channels, which are not recorded here.
        recorder = Recorder(layout, self._recorded.score, ["0"] * call.n_samples)
        tap = recorder.tap(slice(0, call.n_samples))
        started = time.monotonic()
        with tapped(sampler, layout.blocks, _of_rows(tap, batch), layout.streams, layout.branches):
            yield
        self._now = recorder, layout, time.monotonic() - started

    def ended(self, call: Call, sampler: Sampler, images: Any) -> None:
        """Append the call to the recording."""
        assert self._now is not None
        recorder, layout, seconds = self._now
        schedule, self._now = sampler.schedule(), None
        arrays = recorder.arrays()
        if bad := sum(recorder.nonfinite_cells(row) for row in range(call.n_samples)):
            warn(
                f"{bad} recorded cells contain a NaN or an infinity; see the column nonfinite of cells. Massive "
                "channels overflow float16: load such a model in bfloat16 or float32."
            )
        settings = call.settings
        self._recorded.add(
            RecordedCall(
                layout=layout,
                arrays=arrays,
                cells=[recorder.cells(row, *schedule) for row in range(call.n_samples)],
                ids=call.ids,
                prompts=call.prompts,
                negative_prompts=call.negative_prompts,
                seeds=call.seeds,
                images=_pictures(images, call.n_samples),
                unusual=unusual(call, sampler),
                token_grid=sampler.geometry.token_grid(settings.height, settings.width),
                size=(settings.height, settings.width),
                settings=(settings.steps, settings.guidance, settings.true_cfg_scale),
                n_run=call.n_run,
                prompt_tokens=_lengths(sampler, call),
                seconds=seconds,
                peak_memory_bytes=peak_memory_bytes(device_of(sampler.pipeline)),
            )
        )

    def _layout(self, call: Call, sampler: Sampler) -> Layout:
        geometry, settings = sampler.geometry, call.settings
        if "uncond" in self._branches and not geometry.is_guided(settings.guidance, settings.true_cfg_scale):
            raise InputError(
                f"branches includes uncond, but that branch does not run at guidance {settings.guidance:g} (true CFG "
                f"{settings.true_cfg_scale:g}). Raise the scale of the call, or record cond only."
            )
        height, width = geometry.token_grid(settings.height, settings.width)
        return Layout(
            n_samples=call.n_samples,
            steps=choose_steps(as_text("steps", self._steps, call.n_run), call.n_run),
            blocks=choose_layers(as_text("layers", self._layers, len(geometry.blocks)), geometry.blocks),
            n_channels=geometry.n_channels,
            n_tokens=height * width,
            top_k=self._top_k,
            shard_samples=call.n_samples,
            rounded=sampler.transformer.dtype == torch.bfloat16,
            streams=self._streams,
            branches=self._branches,
        )


def _of_rows(tap: Tap, batch: Batch) -> Tap:
    """A reading tap that sees only the call's own rows."""
    if batch.arguments is None:
        return tap
    rows = list(batch.own)

    def read(site: Site, x: Tensor) -> None:
        lengths = None if site.lengths is None else tuple(site.lengths[row] for row in rows)
        tap(Site(site.block, site.stream, site.branch, site.forward, lengths), x[rows])

    return read


def _lengths(sampler: Sampler, call: Call) -> tuple[tuple[int, bool], ...]:
    """Each prompt's number of tokens, and whether it is truncated; 0 and False for embeddings."""
    lengths = sampler.prompt_lengths([prompt or "" for prompt in call.prompts])
    return tuple((0, False) if text is None else each for text, each in zip(call.prompts, lengths, strict=True))


def _pictures(images: Any, n: int) -> tuple[Image.Image | None, ...]:
    if isinstance(images, list) and all(isinstance(each, Image.Image) for each in images):
        return tuple(images)
    return (None,) * n
