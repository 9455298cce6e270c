"""Listeners on a pipeline's own calls; a call that does not run as its family describes fails."""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

from fewchannels.api.calls.batch import Batch, batch_of
from fewchannels.api.calls.call import Call, described
from fewchannels.models.compiled import eager, warn_if_compiled
from fewchannels.models.family import Family, ModelGeometry
from fewchannels.models.geometry import Configuration, geometry_from
from fewchannels.models.sampler import Sampler


class Listener(Protocol):
    """Protocol of an object that records or edits each call of a pipeline."""

    def sources(self, call: Call) -> Sequence[str]:
        """Prompts whose hidden states the listener needs, generated from each sample's noise."""

    def needs_unedited(self, call: Call) -> bool:
        """Return whether the listener needs the hidden states of the call without edits."""

    def changes(self) -> tuple[str, ...]:
        """What the listener changes in each call, as text that is equal only for equal changes."""

    def during(self, call: Call, batch: Batch, sampler: Sampler) -> AbstractContextManager[None]:
        """Return a context with the listener's taps on the model. It is exited with the call's error, if any."""

    def ended(self, call: Call, sampler: Sampler, images: Any) -> None:
        """Handle the end of the call.

        Args:
            call: the call.
            sampler: sampler with the steps that ran.
            images: output of the pipeline for the call's samples: images, an array, or latents.
        """


class Watched:
    """One pipeline with its open contexts, in the order in which they were entered.

    Args:
        pipeline: the pipeline.
        family: family of the transformer class, in addition to the known families.

    Raises:
        InputError: the pipeline is not a diffusion transformer of a known family.

    Attributes:
        geometry: geometry of the pipeline's model.
    """

    def __init__(self, pipeline: Any, family: tuple[str, Family] | None = None) -> None:
        self.geometry: ModelGeometry = geometry_from(Configuration.of(pipeline), family)
        self.pipeline = pipeline
        self.listeners: list[Listener] = []
        self._sampler = Sampler(pipeline, self.geometry)
        self._running, self._one_at_a_time = threading.local(), threading.Lock()

    @property
    def is_running(self) -> bool:
        """Return whether a call is running in this thread, so that another call is part of it."""
        return getattr(self._running, "value", False)

    def call(self, original: Callable[..., Any], positional: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """Run one call with all taps on the model, and return the pipeline's output.

        Calls of several threads run one after the other: they share the model's hooks.
        """
        with self._one_at_a_time:
            return self._call(original, positional, keywords)

    def _call(self, original: Callable[..., Any], positional: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        listeners, sampler = tuple(self.listeners), self._sampler
        call = described(self.pipeline, self.geometry, positional, keywords)
        call = replace(call, changes=lambda: tuple(text for each in listeners for text in each.changes()))
        self.geometry.token_grid(call.settings.height, call.settings.width)
        sources = list(dict.fromkeys(text for each in listeners for text in each.sources(call)))
        batch = batch_of(call, sources, needs_unedited=any(each.needs_unedited(call) for each in listeners))
        self._running.value = True
        try:
            with ExitStack() as stack:
                warn_if_compiled(self.pipeline)
                stack.enter_context(eager(self.pipeline))
                stack.enter_context(sampler.declaring(batch.n_rows, call.settings))
                for each in listeners:
                    stack.enter_context(each.during(call, batch, sampler))
                if batch.arguments is None:
                    result = original(self.pipeline, *positional, **keywords)
                else:
                    result = original(self.pipeline, **batch.arguments)
                sampler.check_steps(
                    call.settings, call.n_run, may_stop=bool(getattr(self.pipeline, "interrupt", False))
                )
        finally:
            self._running.value = False
        if batch.arguments is not None:
            _advance(call, batch)
            result = _of_rows(result, batch.own)
        for each in listeners:
            each.ended(call, sampler, result[0])
        return result


_LOCK = threading.Lock()
_WATCHED: dict[int, Watched] = {}


@contextmanager
def watching(pipeline: Any, listener: Listener, family: tuple[str, Family] | None = None) -> Iterator[Watched]:
    """Attach a listener to every call of a pipeline for the duration of the context. Contexts may be nested.

    Args:
        pipeline: a loaded diffusers pipeline.
        listener: listener that acts in each call.
        family: family of the transformer class, in addition to the known families.

    Raises:
        InputError: the pipeline is not a diffusion transformer of a known family.
    """
    with _LOCK:
        watched = _WATCHED.get(id(pipeline)) or Watched(pipeline, family)
        if not watched.listeners:
            _WATCHED[id(pipeline)] = watched
            _patch(type(pipeline))
        watched.listeners.append(listener)
    try:
        yield watched
    finally:
        with _LOCK:
            watched.listeners.remove(listener)
            if not watched.listeners:
                del _WATCHED[id(pipeline)]
                _unpatch(type(pipeline))


def is_watched(pipeline: Any) -> bool:
    """Return whether a pipeline is inside a context of :func:`watching`."""
    with _LOCK:
        return id(pipeline) in _WATCHED


_OWN_CALL = "_fewchannels_own_call"
"""Attribute of a patched class that stores its own call method; None if the method was inherited."""


def _patch(cls: Any) -> None:
    """Redirect a class's calls to the watched pipeline: Python looks up a call only in the class."""
    if _OWN_CALL in vars(cls):
        return
    original = cls.__call__

    @functools.wraps(original)
    def call(self: Any, *positional: Any, **keywords: Any) -> Any:
        watched = _WATCHED.get(id(self))
        if watched is None or watched.is_running:
            return original(self, *positional, **keywords)
        return watched.call(original, positional, keywords)

    setattr(cls, _OWN_CALL, vars(cls).get("__call__"))
    cls.__call__ = call


def _unpatch(cls: Any) -> None:
    if any(type(each.pipeline) is cls for each in _WATCHED.values()):
        return
    own = vars(cls)[_OWN_CALL]
    if own is None:
        del cls.__call__
    else:
        cls.__call__ = own
    delattr(cls, _OWN_CALL)


def _advance(call: Call, batch: Batch) -> None:
    """Advance the caller's generators as the pipeline's own call would have done."""
    assert batch.arguments is not None
    given, copies = call.arguments.get("generator"), batch.arguments.get("generator")
    if copies is None:
        return
    for generator, row in zip(given if isinstance(given, (list, tuple)) else [given], batch.own, strict=True):
        generator.set_state(copies[row].get_state())


def _of_rows(result: Any, rows: Sequence[int]) -> Any:
    """A pipeline's result with only the images of these rows."""
    if isinstance(result, tuple):
        return (_taken(result[0], rows), *result[1:])
    first = next(iter(result.keys()))
    return replace(result, **{first: _taken(result[first], rows)})


def _taken(images: Any, rows: Sequence[int]) -> Any:
    return [images[i] for i in rows] if isinstance(images, list) else images[list(rows)]
