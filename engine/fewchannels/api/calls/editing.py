"""Edit the hidden states of a pipeline's own calls, with the editing tap of a sweep."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fewchannels.api.calls.batch import Batch
from fewchannels.api.calls.call import Call
from fewchannels.api.calls.edits import Edit, Edits, Function, name_of
from fewchannels.api.calls.recorded import Recorded
from fewchannels.api.calls.replay import replaying
from fewchannels.api.calls.watched import watching
from fewchannels.errors import InputError, warn
from fewchannels.interventions.conditions import MEASURES, Condition
from fewchannels.interventions.editor import Editor, Given
from fewchannels.interventions.rows import Item, Row, pair_id
from fewchannels.manifest import Sample
from fewchannels.models.family import BRANCHES, ModelGeometry
from fewchannels.models.family_file import read_family
from fewchannels.models.sampler import Sampler
from fewchannels.models.taps import Site, Tap, tapped
from fewchannels.settings.arguments import checked

if TYPE_CHECKING:
    import pandas as pd

_CLUSTER_K = 12


@checked
@contextmanager
def edit(
    pipe: Any,
    edits: Edit | Edits | Function,
    *,
    score: str = "mean_abs",
    family: str | Path | None = None,
) -> "Iterator[Editing]":
    """Edit hidden states in every call of a pipeline inside the context.

    Edits that rank channels by the unedited image, or copy from a source prompt, also generate the unedited or source
    image, in the same batch and from the same noise, and need a generator for each image. Other edits leave the call's
    arguments and batch unchanged. The same condition gives the same image as in a sweep.

    Args:
        pipe: a loaded diffusers pipeline of a known model family.
        edits: an edit, several joined by ``+``, or your own function ``(hidden_states, site) -> hidden_states``.
        score: statistic that ranks channels.
        family: path of a family file, for an unknown transformer class.

    Yields:
        The sizes of the edits in each call: see :attr:`Editing.measures`.

    Raises:
        InputError: the pipeline has no diffusion transformer of a known family, an edit does not fit the model, or,
            inside the context, two edits change the same values.

    Example:
        >>> noise = lambda: torch.Generator().manual_seed(0)
        >>> with fc.edit(pipe, fc.zero([46], layers=range(2, 5))) as editing:
        ...     image = pipe("a small red star", num_inference_steps=2, generator=noise()).images[0]
        >>> editing.measures.n_channels.tolist()
        [1.0]
    """
    parts = edits.parts if isinstance(edits, Edits) else (edits,)
    for part in parts:
        if not isinstance(part, Edit) and not callable(part):
            raise InputError(f"{part!r:.80} is not an edit. Pass fc.zero(...) or another edit, or a function.")
    editing = Editing(parts, score)
    with watching(pipe, editing, read_family(Path(family)) if family else None) as watched:
        editing.check(watched.geometry)
        yield editing


class Editing:
    """The edits of a context, and the sizes of these edits.

    Args:
        parts: edits and functions.
        score: statistic that ranks channels.
    """

    def __init__(self, parts: Sequence[Edit | Function], score: str) -> None:
        self._edits = [part for part in parts if isinstance(part, Edit)]
        self._functions = [part for part in parts if not isinstance(part, Edit)]
        self._score = score
        self._rows: list[dict[str, Any]] = []
        self._n_calls = self._n_applied = 0
        self._editors: list[tuple[Edit, Editor]] = []
        self._own: tuple[int, ...] = ()

    def __repr__(self) -> str:
        parts: list[Edit | Function] = [*self._edits, *self._functions]
        return f"Editing({' + '.join(map(name_of, parts))}, calls={self._n_calls})"

    @property
    def measures(self) -> "pd.DataFrame":
        """The size of each edit: one row per call, sample and edit.

        ``n_channels`` is the mean number of edited channels, ``energy_share`` their share of the squared values,
        ``token_share`` the share of tokens, and ``change`` the norm of the change divided by that of the hidden state.
        """
        import pandas as pd

        return pd.DataFrame(self._rows, columns=["call", "sample", "edit", *MEASURES])

    def check(self, geometry: ModelGeometry) -> None:
        """Reject edits that do not fit the model, before any call, except for errors that depend on the call.

        Raises:
            InputError: an edit does not fit the model.
        """
        for each in self._edits:
            steps = "all" if not isinstance(each.steps, str) else each.steps
            replace(each, steps=steps).condition(geometry.blocks, 2, geometry.n_channels)
            if isinstance(each.source, Recorded):
                each.source.activations  # noqa: B018  # raises if nothing was recorded

    def sources(self, call: Call) -> Sequence[str]:
        """Prompts of the transports' sources."""
        return [each.source for each in self._edits if isinstance(each.source, str)]

    def needs_unedited(self, call: Call) -> bool:
        """Return whether an edit needs the unedited image."""
        return any(each.needs_unedited for each in self._edits if not isinstance(each.source, Recorded))

    def changes(self) -> tuple[str, ...]:
        """The edits, with the statistic that ranks channels."""
        return self._as_texts

    @cached_property
    def _as_texts(self) -> tuple[str, ...]:
        parts: list[Edit | Function] = [*self._edits, *self._functions]
        return tuple(f"{self._score} {_as_text(each)}" for each in parts)

    @contextmanager
    def during(self, call: Call, batch: Batch, sampler: Sampler) -> Iterator[None]:
        """Edit the call's own rows."""
        geometry, self._n_applied = sampler.geometry, 0
        conditions = [each.condition(geometry.blocks, call.n_run, geometry.n_channels) for each in self._edits]
        self._own, taps = batch.own, []
        self._editors = []
        for each, condition in zip(self._edits, conditions, strict=True):
            if isinstance(each.source, Recorded):
                taps.append((each, replaying(each.source, condition, call, batch, geometry)))
                continue
            given = Given(self._score, _CLUSTER_K, {}, _inside(each, call, geometry), {}, call.n_run)
            editor = Editor(_rows(each, condition, call, batch), given, geometry.n_channels)
            self._editors.append((each, editor))
            taps.append((each, editor.tap))
        streams = sorted({stream for each in self._edits for stream in each.streams})
        with ExitStack() as stack:
            if taps:
                stack.enter_context(tapped(sampler, geometry.blocks, _together(taps), streams, BRANCHES))
            for function in self._functions:
                own = self._applied(function, batch)
                stack.enter_context(tapped(sampler, geometry.blocks, own, geometry.family.streams, BRANCHES))
            yield

    def ended(self, call: Call, sampler: Sampler, images: Any) -> None:
        """Store the sizes of the edits, and warn of edits that changed nothing."""
        for i, (each, editor) in enumerate(self._editors):
            measures = [editor.measures(row) for row in self._own]
            if not any(measure["n_channels"] for measure in measures) and each.amount:
                warn(
                    f"the {each.action} edit number {i} changed nothing in this call: it reached none of its layers, "
                    "steps and tokens. Check its layers, steps and tokens."
                )
            for sample, measure in enumerate(measures):
                self._rows.append({"call": self._n_calls, "sample": sample, "edit": i} | measure)
        if self._functions and not self._n_applied:
            warn("the functions changed no hidden states in this call. Check which layers and steps they select.")
        self._n_calls += 1

    def _applied(self, function: Function, batch: Batch) -> Tap:
        """A user's function as a tap on the call's own rows."""
        rows = list(batch.own)
        is_all = batch.arguments is None

        def tap(site: Site, x: Tensor) -> Tensor | None:
            own = x if is_all else x[rows]
            edited = function(own, site)
            if edited is None:
                return None
            if not isinstance(edited, Tensor) or edited.shape != own.shape:
                shape = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
                raise InputError(
                    f"the function returned {shape} at layer {site.block.layer}; it must return a tensor of shape "
                    f"{tuple(own.shape)}, (sample, token, channel), or None to change nothing."
                )
            self._n_applied += 1
            if is_all:
                return edited.to(x.dtype)
            whole = x.clone()
            whole[rows] = edited.to(x.dtype)
            return whole

        return tap


def _as_text(edit: Edit | Function) -> str:
    """An edit as text that is equal only for equal edits; a function by its name."""
    if not isinstance(edit, Edit):
        return f"{getattr(edit, '__module__', '')}.{getattr(edit, '__qualname__', repr(edit))}"
    found = hashlib.sha256()
    for each in fields(edit):
        value = getattr(edit, each.name)
        found.update(f"{each.name} ".encode())
        if isinstance(value, Recorded):
            for name, array in sorted(value.activations.items()):
                found.update(f"{name} {array.shape} ".encode() + array.values.tobytes())
        elif isinstance(value, np.ndarray):
            found.update(f"{value.shape} ".encode() + value.tobytes())
        else:
            found.update(f"{value!r} ".encode())
    return found.hexdigest()[:16]


def _together(taps: Sequence[tuple[Edit, Callable[[Site, Tensor], Tensor | None]]]) -> Tap:
    """Combine edits of the same hidden states; every edit sees the unedited values."""

    def tap(site: Site, x: Tensor) -> Tensor | None:
        found = [
            edited
            for edit, own in taps
            if site.branch in edit.branches and site.stream in edit.streams and (edited := own(site, x)) is not None
        ]
        if len(found) < 2:
            return found[0] if found else None
        result, changed_before = x, torch.zeros_like(x, dtype=torch.bool)
        for edited in found:
            changed = (edited != x) & ~(edited.isnan() & x.isnan())
            if bool((changed & changed_before).any()):
                raise InputError(
                    f"two edits change the same values at layer {site.block.layer} in step {site.forward.step}. Give "
                    "them different channels, layers, steps or tokens, or combine them in one edit."
                )
            result, changed_before = torch.where(changed, edited, result), changed | changed_before
        return result

    return tap


def _rows(edit: Edit, condition: Condition, call: Call, batch: Batch) -> list[Row]:
    """The batch's rows, in the format of a sweep."""
    items = [_item(edit, call, i) for i in range(call.n_samples)]
    sources = batch.sources[edit.source] if isinstance(edit.source, str) else None
    rows = []
    for row, i in enumerate(batch.of):
        source = sources[i] if sources else None
        if row == batch.own[i]:
            rows.append(Row(items[i], "edited", condition, 0, batch.unedited[i], source))
        else:
            rows.append(Row(items[i], "undisturbed", None, -1, row, source))
    return rows


def _item(edit: Edit, call: Call, i: int) -> Item:
    """A sample of the call, with the id that determines its random channels in a sweep."""
    target = Sample(call.ids[i], call.prompts[i] or "", call.seeds[i] or 0)
    if not isinstance(edit.source, str):
        return Item(i, target.sample_id, target)
    source = Sample(call.id_of(edit.source, i), edit.source, target.seed)
    return Item(i, pair_id(target.sample_id, source.sample_id, target.seed), target, source)


def _inside(edit: Edit, call: Call, geometry: ModelGeometry) -> dict[int, Tensor]:
    """The edit's own mask of tokens, by sample."""
    if isinstance(edit.tokens, str):
        return {}
    grid = geometry.token_grid(call.settings.height, call.settings.width)
    if edit.tokens.shape != grid:
        raise InputError(
            f"the mask of tokens has shape {edit.tokens.shape}; the images have {grid[0]} x {grid[1]} tokens (y, x)."
        )
    mask = torch.from_numpy(edit.tokens.reshape(-1).copy())
    return dict.fromkeys(range(call.n_samples), mask)
