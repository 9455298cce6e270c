"""A live session: one loaded model; a user requests images, watches channels form step by step, and edits them.

The rows of a request are those of a sweep with one item and one condition, edited by the same tap, and recorded by the
tap of a capture: a live edit is the same as the one that ``probe disruption`` or ``transport text`` would store.
"""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fewchannels.captures.recorder import Recorder
from fewchannels.errors import FewchannelsError, InputError, unknown
from fewchannels.interventions.blends import stepped
from fewchannels.interventions.conditions import MEASURES, Condition
from fewchannels.interventions.editor import Editor, Given
from fewchannels.interventions.live.ask import MOST_STEPS, Ask
from fewchannels.interventions.live.trajectory import CancelledError, RowStep, Step, Trajectory
from fewchannels.interventions.rows import Item, Row, batches
from fewchannels.measures import STATISTICS
from fewchannels.models.embeddings import Recent, remembering
from fewchannels.models.family import BRANCHES, Family
from fewchannels.models.generation import Generation, Settings
from fewchannels.models.load_options import Loading
from fewchannels.models.loaded import LoadedModel
from fewchannels.models.sampler import Sampler
from fewchannels.models.source import find, geometry
from fewchannels.models.taps import Site, tapped
from fewchannels.runs.images import png
from fewchannels.runs.layout import Layout
from fewchannels.settings.units import size

_CLUSTER_K = 12
_MOST_RECENT = 16
_MOST_AREA = 4
_MAP_VALUE_BYTES = 4


@dataclass(frozen=True)
class _Settled:
    """A request with all defaults resolved: the same for all requests with the same effect.

    Attributes:
        item: item to generate.
        condition: condition of the edit; None for no edit.
        settings: settings of the pipeline.
    """

    item: Item
    condition: Condition | None
    settings: Settings

    @property
    def rows(self) -> tuple[Row, ...]:
        """Rows of the batch."""
        if self.condition is None:
            return (Row(self.item, "undisturbed", None, -1, 0, None),)
        (batch,) = batches([self.item], [self.condition], 3)
        return batch.rows

    @property
    def places(self) -> dict[str, int]:
        """Each role's row of the batch. An edit that changes nothing has no row of its own, but the unedited one."""
        places = {row.role: i for i, row in enumerate(self.rows)}
        return places | ({"edited": places.get("edited", 0)} if self.condition else {})


class LiveModel:
    """A model that answers one request at a time, the latest; a context manager, which closes it.

    Args:
        model: ``demo``, a folder, or a hub id.
        n_threads: CPU threads for PyTorch.
        revision: revision of a hub id.
        family: family of the model's transformer class, in addition to the known families.
        loading: loading options.
        n_steps: denoising steps of requests without their own number.
        score: the statistic that ranks channels.
        top_k: channels whose token maps are kept.
        most_bytes: maximum size in bytes of token maps, of one generation and of all remembered finished ones.

    Raises:
        InputError: the model cannot be loaded or needs more than a prompt, or a setting cannot work.

    Attributes:
        model: the loaded model; all of PyTorch's work runs in its thread.
        geometry: geometry of the model.
    """

    def __init__(
        self,
        model: str,
        n_threads: int,
        *,
        revision: str | None = None,
        family: tuple[str, Family] | None = None,
        loading: Loading | None = None,
        n_steps: int = 20,
        score: str = "mean_abs",
        top_k: int = 8,
        most_bytes: int = 2**30,
    ) -> None:
        if score not in STATISTICS:
            raise unknown("score", score, STATISTICS)
        if not 1 <= n_steps <= MOST_STEPS:
            raise InputError(f"n_steps is {n_steps}; it must be from 1 to {MOST_STEPS}. Give one of those, such as 20.")
        self.geometry = geometry(find(model, revision), family)
        if self.geometry.pipeline.needs_reference:
            raise InputError(
                f"{self.geometry.pipeline_class} of {model!r} needs a reference image, but a live session has only a "
                "prompt. Choose a text-to-image model."
            )
        if not 1 <= top_k <= self.geometry.n_channels:
            raise InputError(
                f"top_k is {top_k}; it must be from 1 to the model's {self.geometry.n_channels} channels. Give one of "
                "those, such as 8."
            )
        self._n_steps, self._score, self._most_bytes = n_steps, score, most_bytes
        blocks, n_channels = self.geometry.blocks, self.geometry.n_channels
        self._layout = Layout(1, (0,), blocks, n_channels, n_tokens=0, top_k=top_k, shard_samples=1)
        how = Generation(model=model, revision=revision, **asdict(loading or Loading()))
        self.model = LoadedModel(how, self.geometry, n_threads)
        self._embeddings = Recent()
        self._changed = threading.Condition()
        self._waiting: tuple[_Settled, Trajectory] | None = None
        self._running: tuple[_Settled, Trajectory] | None = None
        self._recent: OrderedDict[_Settled, Trajectory] = OrderedDict()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="live", daemon=True)
        self._thread.start()

    def begin(self, ask: Ask) -> Trajectory:
        """Begin a generation, and return at once.

        A request that is running, or among the latest finished ones, is answered by that generation. Any other request
        ends the running generation, and the one that waits for it.

        Raises:
            InputError: the model cannot handle the request, or its maps would take too much memory.
            RuntimeError: the session is closed.
        """
        settled = self._settle(ask)
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the live session is closed")
            if settled in self._recent:
                self._recent.move_to_end(settled)
                return self._recent[settled]
            under_way = [each for each in (self._running, self._waiting) if each is not None]
            for known, generation in under_way:
                if known == settled and not generation.is_cancelled:
                    return generation
            for _, generation in under_way:
                generation.cancel("a newer request replaced it")
            grid = self.geometry.token_grid(settled.settings.height, settled.settings.width)
            n_run = self.geometry.n_run(settled.settings.steps)
            begun = Trajectory(ask, n_run, grid, self.geometry.blocks, tuple(settled.places))
            self._waiting = (settled, begun)
            self._changed.notify_all()
            return begun

    def close(self) -> None:
        """End the running and the waiting generation, and wait for their end. Safe to repeat."""
        with self._changed:
            self._is_closed = True
            for each in (self._running, self._waiting):
                if each is not None:
                    each[1].cancel("the live session was closed")
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _settle(self, ask: Ask) -> _Settled:
        how, side = self.geometry.pipeline, self.geometry.default_side
        if ask.guidance is not None and not self.geometry.takes_guidance:
            raise InputError(
                f"guidance is {ask.guidance:g}; with this model, the guidance scale of {self.geometry.pipeline_class} "
                "has no effect. Omit guidance."
            )
        settings = Settings(
            height=ask.height or side,
            width=ask.width or side,
            steps=ask.n_steps or self._n_steps,
            guidance=how.default_guidance if ask.guidance is None else ask.guidance,
            true_cfg_scale=how.default_true_cfg,
        )
        height, width = self.geometry.token_grid(settings.height, settings.width)
        if settings.height * settings.width > _MOST_AREA * side**2:
            raise InputError(
                f"height and width are {settings.height} and {settings.width}; a live image has at most {_MOST_AREA} "
                f"times the pixels of the model's own {side} x {side}. Choose a smaller one."
            )
        blocks, n_channels = self.geometry.blocks, self.geometry.n_channels
        n_run = self.geometry.n_run(settings.steps)
        condition = ask.edit.condition(blocks, n_run, n_channels) if ask.edit else None
        settled = _Settled(ask.item, condition, settings)
        cells = len(settled.rows) * n_run * len(blocks)
        n_bytes = cells * self._layout.top_k * height * width * _MAP_VALUE_BYTES
        if n_bytes > self._most_bytes:
            raise InputError(
                f"the token maps of this generation would take {size(n_bytes)}; at most {size(self._most_bytes)} are "
                f"kept. Use fewer than {settings.steps} steps or a smaller image, or keep fewer than "
                f"{self._layout.top_k} channels."
            )
        return settled

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._waiting is not None)
                if self._waiting is None or self._is_closed:
                    return
                settled, generation = self._running = self._waiting
                self._waiting = None
                generation.begin()
            end = self.model.run(self._generate, settled, generation)
            with self._changed:  # so that no caller sees its end and starts another before it is remembered
                end()
                self._running = None
                if generation.snapshot().state == "done":
                    self._remember(settled, generation)

    def _remember(self, settled: _Settled, generation: Trajectory) -> None:
        self._recent[settled] = generation
        while len(self._recent) > _MOST_RECENT or (
            len(self._recent) > 1 and sum(each.snapshot().n_bytes for each in self._recent.values()) > self._most_bytes
        ):
            self._recent.popitem(last=False)

    def _generate(self, settled: _Settled, generation: Trajectory) -> Callable[[], None]:
        """Run a generation; return a function, to be called by the caller, that records how it ended."""
        try:
            return functools.partial(generation.finish, *self._run(settled, generation))
        except CancelledError as cancelled:
            return functools.partial(generation.end, "cancelled", str(cancelled))
        except FewchannelsError as error:
            return functools.partial(generation.end, "failed", str(error))
        except Exception as error:  # whatever the model raises, including out of memory, fails only this generation
            self.model.let_go()
            return functools.partial(generation.end, "failed", f"{type(error).__name__}: {error}")

    def _run(self, settled: _Settled, generation: Trajectory) -> tuple[Mapping[str, bytes], Mapping[str, float | None]]:
        """Every role's image, and the size of the edit."""
        generation.check()
        sampler, places, batch = self.model.sampler, settled.places, settled.rows
        editor = Editor(
            batch, Given(self._score, _CLUSTER_K, {}, {}, {}, settled.settings.steps), self.geometry.n_channels
        )
        watch = _Watch(sampler, self._layout, self._score, settled, generation)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(remembering(sampler.pipeline, self._embeddings))
            stack.enter_context(stepped(sampler.pipeline, watch.end_step))
            stack.enter_context(tapped(sampler, self.geometry.blocks, editor.tap, branches=BRANCHES))
            stack.enter_context(tapped(sampler, self.geometry.blocks, watch.tap))
            images = sampler.generate([row.sample for row in batch], settled.settings)
        encoded = {i: png(image) for i, image in enumerate(images)}
        measures: Mapping[str, float | None] = {}
        if settled.condition is not None:
            is_nothing = settled.condition.is_nothing
            measures = dict.fromkeys(MEASURES, 0.0) if is_nothing else editor.measures(places["edited"])
        return {role: encoded[place] for role, place in places.items()}, measures


class _Watch:
    """The reading tap: records a step like a capture, and passes it on when the step ends."""

    def __init__(self, sampler: Sampler, layout: Layout, score: str, settled: _Settled, generation: Trajectory) -> None:
        self._sampler, self._score, self._generation, self._places = sampler, score, generation, settled.places
        self._ids = [row.sample.sample_id for row in settled.rows]
        self._layout = replace(
            layout, n_samples=len(self._ids), n_tokens=generation.token_grid[0] * generation.token_grid[1]
        )
        self._step = -1
        self._recorder: Recorder | None = None

    def tap(self, site: Site, x: Tensor) -> None:
        """Record one layer, unless the generation was cancelled."""
        self._generation.check()
        if site.forward.step != self._step:
            self._step = site.forward.step
            self._recorder = Recorder(replace(self._layout, steps=(self._step,)), self._score, self._ids)
        assert self._recorder is not None
        self._recorder.tap(slice(0, len(self._ids)))(site, x)

    def end_step(self, step: int, latents: Tensor) -> Tensor:
        """Pass the step on. A second-order scheduler calls twice; everything is recorded before the first call."""
        self._generation.check()
        if self._recorder is not None:
            recorder, self._recorder = self._recorder, None
            self._check_finite(recorder.arrays()["max_abs"], step)
            timesteps, sigmas = self._sampler.schedule()
            rows = {i: self._row(recorder, i) for i in set(self._places.values())}
            by_role = MappingProxyType({role: rows[place] for role, place in self._places.items()})
            self._generation.add(Step(step, timesteps[step], sigmas[step], by_role))
        for role, place in self._places.items():
            if not bool(latents[place].isfinite().all()):
                raise RuntimeError(
                    f"the latents of the {role} row contain a NaN or an infinity after step {step}. "
                    f"{self._remedy(role)}"
                )
        return latents

    def _row(self, recorder: Recorder, row: int) -> RowStep:
        cells = recorder.cells(row, *self._sampler.schedule())
        maps = recorder.arrays()["massive_value"][row, 0]
        return RowStep(
            channels=cells["top_channels"],
            scores=cells["top_scores"],
            median_score=cells["median_score"],
            ratio=cells["ratio"],
            energy_share=cells["energy_share"],
            maps=maps.reshape(*maps.shape[:2], *self._generation.token_grid).copy(),
        )

    def _check_finite(self, largest: np.ndarray, step: int) -> None:
        """Refuse to continue if the largest values ``(row, 1, layer, channel)`` are not finite."""
        for role, place in self._places.items():
            bad = np.flatnonzero(~np.isfinite(largest[place, 0]).all(axis=-1))
            if len(bad):
                block = self._layout.blocks[int(bad[0])]
                raise RuntimeError(
                    f"the hidden state of the {role} row contains a NaN or an infinity at the output of layer "
                    f"{block.layer} ({block.path}) in step {step}. {self._remedy(role)}"
                )

    def _remedy(self, role: str) -> str:
        if role == "edited":
            return "Weaken the edit: a smaller factor or alpha, fewer channels, layers or steps."
        return "Massive channels overflow float16: load such a model in bfloat16 or float32."
