"""Edits of hidden states, defined in Python: what replaces the selected channels, where and when."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any, Self

import numpy as np
from torch import Tensor

from fewchannels.api.calls.indices import Indices, as_text, kept
from fewchannels.api.calls.recorded import Recorded
from fewchannels.errors import InputError, unknown
from fewchannels.interventions.conditions import Condition, Grid, expand
from fewchannels.models.family import BRANCHES, STREAMS, Block
from fewchannels.models.taps import Site
from fewchannels.runs.choices import choose_layers, choose_steps, choose_words

Function = Callable[[Tensor, Site], Tensor | None]
"""A custom edit: a function of hidden states ``(sample, token, channel)`` and the site. It returns edited hidden
states, or None to leave them unchanged."""
_SIZED = ("top", "bottom", "random", "redrawn", "matched", "scaled")
_DRAWN = ("random", "redrawn", "scaled")
_TRAJECTORIES = ("undisturbed", "own", "source", "target", "union", "intersection")
_CLUSTERS = ("foreground", "background", "target_foreground")


@dataclass(frozen=True, eq=False)
class Edit:
    """One edit. Create it with :func:`zero`, :func:`mean`, :func:`shuffle`, :func:`scale` or :func:`transport`.

    Attributes:
        action: ``zero``, ``mean``, ``shuffle`` or ``transport``.
        amount: strength, 0 (none) to 1 (full replacement).
        selection: how channels are selected: ``listed``, ``all``, ``top``, ``bottom``, ``random``, ``redrawn``,
            ``matched`` or ``scaled``, as in a sweep.
        k: number of channels of the selection.
        channels: channel indices of a ``listed`` selection.
        trial: index of the random draw.
        layers: layers to edit.
        steps: denoising steps to edit.
        tokens: ``all``, ``foreground``, ``background``, ``target_foreground``, or a mask over the grid of image tokens.
        streams: streams to edit.
        branches: guidance branches to edit.
        scores_from: trajectory whose scores rank channels: ``undisturbed``, ``own``, or for a transport ``source``,
            ``target``, ``union`` or ``intersection``.
        source: prompt or recording whose hidden states a transport copies.
    """

    action: str
    amount: float = 1.0
    selection: str = "listed"
    k: int = 0
    channels: tuple[int, ...] = ()
    trial: int = 0
    layers: Indices = "all"
    steps: Indices = "all"
    tokens: "str | np.ndarray" = "all"
    streams: tuple[str, ...] = ("image",)
    branches: tuple[str, ...] = BRANCHES
    scores_from: str = "undisturbed"
    source: "str | Recorded | None" = None

    def __repr__(self) -> str:
        """The call that makes it, without settings at their defaults."""
        chosen = {"all": repr("all"), "listed": repr(list(self.channels))}.get(self.selection)
        shown = [chosen or f"{self.selection}={self.k}"]
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, np.ndarray):
                shown.append(f"{each.name}=<mask of {value.shape[0]} x {value.shape[1]} tokens>")
            elif each.name not in ("action", "selection", "k", "channels") and value != each.default:
                shown.append(f"{each.name}={value!r}")
        return f"fc.{self.action}({', '.join(shown)})"

    def __add__(self, other: "Edit | Edits | Function") -> "Edits":
        """Combine the edits, to apply them in the same call."""
        return Edits((self,)) + other

    def __radd__(self, other: Function) -> "Edits":
        """Combine the edits, to apply them in the same call."""
        return Edits((other,)) + self

    @property
    def needs_unedited(self) -> bool:
        """Return whether the edit needs the hidden states of the unedited image."""
        ranked = self.selection in ("top", "bottom", "matched", "scaled")
        of_target = self.scores_from in ("undisturbed", "target", "union", "intersection")
        if isinstance(self.tokens, str) and self.tokens in _CLUSTERS:
            return self.action != "transport" or self.tokens == "target_foreground" or (ranked and of_target)
        return ranked and of_target

    def condition(self, blocks: Sequence[Block], n_steps: int, n_channels: int) -> Condition:
        """Convert the edit to a condition of a sweep.

        Args:
            blocks: blocks of the model.
            n_steps: number of denoising steps.
            n_channels: width of the hidden state.

        Raises:
            InputError: the model does not have these layers, steps or channels.
        """
        layers = choose_layers(as_text("layers", self.layers, len(blocks)), blocks)
        steps = choose_steps(as_text("steps", self.steps, n_steps), n_steps)
        grid = Grid(
            actions=(self.action,),
            amounts=(self.amount,),
            selections=(self.selection,),
            trials=1,
            k=(self.k,),
            scores_from=(self.scores_from,),
            channels=self.channels,
            layers=(",".join(str(block.layer) for block in layers),),
            steps=(",".join(map(str, steps)),),
            streams=(",".join(self.streams),),
            tokens=(self.tokens if isinstance(self.tokens, str) else "inside",),
        )
        (condition,) = expand([grid], blocks, n_steps, n_channels)
        return replace(condition, trial=self.trial) if self.selection in _DRAWN else condition


@dataclass(frozen=True, eq=False)
class Edits:
    """Several edits that are applied in the same call; they may not change the same values.

    Attributes:
        parts: the edits, and custom functions, which are called after the edits in their order.
    """

    parts: tuple[Edit | Function, ...] = field(default=())

    def __repr__(self) -> str:
        return " + ".join(map(name_of, self.parts))

    def __add__(self, other: "Edit | Edits | Function") -> Self:
        """Combine the edits, to apply them in the same call."""
        if not isinstance(other, (Edit, Edits)) and not callable(other):
            return NotImplemented
        return type(self)((*self.parts, *(other.parts if isinstance(other, Edits) else (other,))))

    def __radd__(self, other: Function) -> Self:
        """Combine the edits, to apply them in the same call."""
        return type(self)((other, *self.parts)) if callable(other) else NotImplemented


def name_of(part: Edit | Function) -> str:
    """An edit as a call, or a function's name."""
    return repr(part) if isinstance(part, Edit) else str(getattr(part, "__qualname__", repr(part)))


def zero(channels: Iterable[int] | int | str | None = None, *, amount: float = 1.0, **where: Any) -> Edit:
    """Set channels to zero: zero-ablation.

    Args:
        channels: channels to edit, by index, or ``"all"``; omit them to select channels by keyword, as in ``top=12``.
        amount: strength, 0 (none) to 1 (full replacement).
        **where: keywords that select channels, places and times, see below.

    Keywords of all edits:
        top, bottom, random, redrawn, matched, scaled: number of channels to select, as in a sweep: the largest, the
        smallest, a random draw per sample, a new random draw in each layer and step, other channels that together hold
        the energy of the top ones, or random other channels whose change is scaled to the norm of the top ones' change.
        trial: index of the random draw.
        layers, steps: ``"all"``, one index, or several; negative ones count from the end.
        tokens: ``"all"``, ``"foreground"``, ``"background"``, or a boolean mask ``(y, x)`` over image tokens.
        streams: ``"image"``, ``"text"``, or both.
        branches: ``"cond"``, ``"uncond"``, or both, the default.
        scores_from: trajectory that ranks channels: ``"undisturbed"``, that of the unedited image, which runs in the
        same batch, or ``"own"``, that of the edited image.

    Raises:
        InputError: the arguments do not select channels, or cannot be combined.

    Example:
        >>> fc.zero([46], layers=range(2, 5)).channels
        (46,)
    """
    return _edit("zero", channels, amount, where)


def mean(channels: Iterable[int] | int | str | None = None, *, amount: float = 1.0, **where: Any) -> Edit:
    """Set channels to their mean over the tokens: mean-ablation. Arguments are those of :func:`zero`.

    Example:
        >>> fc.mean(top=4).selection
        'top'
    """
    return _edit("mean", channels, amount, where)


def shuffle(channels: Iterable[int] | int | str | None = None, *, amount: float = 1.0, **where: Any) -> Edit:
    """Permute the tokens of channels at random: resample-ablation. Arguments are those of :func:`zero`.

    Example:
        >>> fc.shuffle(random=4, trial=1).trial
        1
    """
    return _edit("shuffle", channels, amount, where)


def scale(channels: Iterable[int] | int | str | None = None, *, factor: float, **where: Any) -> Edit:
    """Multiply channels by a factor. Other arguments are those of :func:`zero`.

    Args:
        channels: channels to edit, by index, or ``"all"``.
        factor: the factor; 1 changes nothing, 0 is :func:`zero`.
        **where: keywords of :func:`zero`.

    Example:
        >>> fc.scale([46], factor=0.5).amount
        0.5
    """
    if isinstance(factor, bool) or not isinstance(factor, Real) or not math.isfinite(factor):
        raise InputError(f"factor is {factor!r}; it must be a finite number. Pass a number such as 0.5.")
    return _edit("zero", channels, 1 - factor, where)  # f x = x + (1 - f) (0 - x)


def transport(
    channels: Iterable[int] | int | str | None = None, *, source: "str | Recorded", amount: float = 1.0, **where: Any
) -> Edit:
    """Replace channels by those of a source, at the same layer, step and tokens: activation patching.

    Args:
        channels: channels to edit, by index, or ``"all"``.
        source: a prompt, which is generated in the same batch from the noise of each image; or a recording by
            :func:`fewchannels.record`, whose largest channels can be copied.
        amount: strength, 0 (none) to 1 (full replacement).
        **where: keywords of :func:`zero`; ``scores_from`` is ``"source"``, ``"target"``, ``"union"`` or
            ``"intersection"``, and ``tokens`` may also be ``"target_foreground"``.

    Example:
        >>> fc.transport(top=16, source="a large blue circle").source
        'a large blue circle'
    """
    if not isinstance(source, (str, Recorded)):
        raise InputError(f"source is {type(source).__name__}; it must be a prompt or a recording (fc.record).")
    edit = _edit("transport", channels, amount, {"scores_from": "source"} | where)
    if isinstance(source, Recorded) and (edit.selection not in ("top", "listed") or edit.scores_from != "source"):
        raise InputError(
            f"a recording has only the maps of its largest channels, so {edit.selection} channels by the scores of "
            f"{edit.scores_from} cannot be copied from it. Pass a prompt as the source, or top=k."
        )
    if isinstance(source, Recorded) and not (isinstance(edit.tokens, str) and edit.tokens == "all"):
        raise InputError("tokens cannot be selected if the source is a recording. Pass a prompt as the source.")
    return replace(edit, source=source)


def _edit(action: str, channels: Iterable[int] | int | str | None, amount: float, where: dict[str, Any]) -> Edit:
    known = (*_SIZED, "trial", "layers", "steps", "tokens", "streams", "branches", "scores_from")
    for name in where:
        if name not in known:
            raise unknown("argument", name, known)
    if isinstance(amount, bool) or not isinstance(amount, Real) or not math.isfinite(amount):
        raise InputError(f"amount is {amount!r}; it must be a finite number. Pass a number from 0 to 1.")
    sized = [name for name in _SIZED if where.get(name) is not None]
    if len(sized) + (channels is not None) != 1:
        given = ", ".join([*(["channels"] if channels is not None else []), *sized]) or "none"
        raise InputError(
            f"an edit takes exactly one selection of channels; it was given {given}. Pass channels, or one of {_SIZED}."
        )
    chosen: dict[str, Any] = {"selection": "listed", "channels": ()}
    if sized:
        chosen = {"selection": sized[0], "k": _whole(sized[0], where[sized[0]], 0)}
    elif isinstance(channels, str):
        if channels != "all":
            raise InputError(f"channels is {channels!r}; it must be indices or 'all'. Pass a list such as [46].")
        chosen = {"selection": "all"}
    else:
        assert channels is not None
        several = channels if isinstance(channels, Iterable) else [channels]
        chosen["channels"] = tuple(_whole("channels", each, 0) for each in several)
        if not chosen["channels"]:
            raise InputError("channels is empty. List at least one channel, such as [46].")
    trial = _whole("trial", where.get("trial", 0), 0)
    if trial and chosen["selection"] not in _DRAWN:
        raise InputError(f"trial is {trial}, but {chosen['selection']} channels are not drawn at random. Omit it.")
    streams, branches = _words(where, "streams", ("image",)), _words(where, "branches", BRANCHES)
    return Edit(
        action,
        float(amount),
        **chosen,
        trial=trial,
        layers=kept("layers", where.get("layers", "all")),
        steps=kept("steps", where.get("steps", "all")),
        tokens=_mask(where.get("tokens", "all")),
        streams=choose_words("streams", ",".join(streams), STREAMS),
        branches=choose_words("branches", ",".join(branches), BRANCHES),
        scores_from=_scores_from(where.get("scores_from", "undisturbed")),
    )


def _scores_from(value: Any) -> str:
    if value not in _TRAJECTORIES:
        raise unknown("scores_from", value, _TRAJECTORIES)
    return str(value)


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} is {value!r:.60}; it must be a whole number of at least {least}.")
    return int(value)


def _words(where: dict[str, Any], name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    value = where.get(name, default)
    words = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if not words or not all(isinstance(each, str) for each in words):
        raise InputError(f"{name} is {value!r:.80}; it must be one name, or several, such as {default[0]!r}.")
    return words


def _mask(tokens: Any) -> "str | np.ndarray":
    if isinstance(tokens, str):
        return tokens
    mask = np.asarray(tokens)
    if mask.dtype != bool or mask.ndim != 2:
        raise InputError(
            f"tokens is an array of {mask.dtype} with {mask.ndim} dimensions; a mask must be boolean, (y, x) over the "
            "grid of image tokens. Pass such a mask, or all, foreground or background."
        )
    return mask
