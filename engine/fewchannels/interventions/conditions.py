"""A sweep's conditions: every way to edit, expanded from a small grid. Pure."""

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from fewchannels.errors import InputError, unknown
from fewchannels.models.family import STREAMS, Block
from fewchannels.runs.choices import choose_layers, choose_steps, choose_words
from fewchannels.settings.indices import counts_from_end
from fewchannels.settings.indices import in_short as runs_in_short
from fewchannels.settings.ranges import MOST_INDEX, Number, Text, Whole, check, parsed, several, shown, within

EDITS = ("zero", "mean", "shuffle", "transport")
"""Actions on hidden states: what the chosen values become."""
BASELINES = ("prompt", "latents", "pixels")
"""Actions that blend target and source elsewhere."""
GUIDE = "guide"
"""The action that guides by a prediction from zeroed values (detail guidance of arXiv 2510.11538)."""
SELECTIONS = ("top", "bottom", "random", "redrawn", "matched", "scaled", "all", "listed")
"""Selections of channels; the first is the effect, and all but it and ``listed`` are controls."""
SCORES = ("undisturbed", "own", "run", "target", "source", "union", "intersection")
TOKENS = ("all", "foreground", "background", "target_foreground", "inside", "outside")
PLACEMENTS = ("same", "aligned")
"""Placements of a source's tokens: the same positions, or moved and scaled onto the target's foreground."""
MEASURES = ("n_channels", "energy_share", "token_share", "change")
"""Measures of an edit's size: columns of ``edits``."""
LAST = -1
"""Among a condition's steps: the last one of each sample, where samples differ in their steps."""
AMOUNT = Number(-1000, 1000)
"""Maximum strength of an edit; beyond it, latents may become non-finite."""
_MOST_CONDITIONS = 100_000
_DRAWN = ("random", "redrawn", "scaled")
_OF_TWO = ("target", "source", "union", "intersection")


@dataclass(frozen=True)
class Condition:
    """One way to edit. The attributes are the columns of ``schemas/conditions.yaml``."""

    action: str
    amount: float
    selection: str
    trial: int
    k: int
    scores_from: str
    channels: tuple[int, ...]
    layers: tuple[int, ...]
    steps: tuple[int, ...]
    streams: tuple[str, ...]
    tokens: str
    placement: str

    @property
    def condition_id(self) -> str:
        """16 hex digits, the same for the same settings in any sweep."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def is_edit(self) -> bool:
        """Return whether hidden states are edited."""
        return self.action in EDITS or self.action == GUIDE

    @property
    def is_nothing(self) -> bool:
        """Return whether it leaves every image unchanged, because its strength or number of channels is 0."""
        return self.amount == 0 or (self.is_edit and self.k == 0 and self.selection != "all")

    @property
    def is_control(self) -> bool:
        """Return whether it is a control."""
        return self.selection not in ("top", "listed")

    def edits_in(self, step: int, n_steps: int) -> bool:
        """Return whether it edits a step, 0-based, of a sample with this number of steps."""
        return step in self.steps or (LAST in self.steps and step == n_steps - 1)

    def row(self, condition: int) -> dict[str, Any]:
        """The condition's row of ``conditions``."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return plain | {
            "condition_id": self.condition_id,
            "condition": condition,
            "layers_name": in_short(self.layers),
            "steps_name": in_short(self.steps),
            "streams": ",".join(self.streams),
            "is_control": self.is_control,
        }

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Condition":
        """Create a condition from a row of ``conditions``."""
        values: dict[str, Any] = {field.name: row[field.name] for field in fields(cls)}
        values["streams"] = row["streams"].split(",")
        for name in ("channels", "layers", "steps", "streams"):
            values[name] = tuple(values[name])
        return cls(**values)


@dataclass(frozen=True)
class Grid:
    """Settings of which every combination is a condition. A sweep may have several grids.

    Attributes:
        actions: ``zero``, ``mean``, ``shuffle``, ``scale:F`` (by a factor), ``transport``, ``guide``, or a baseline.
        amounts: strengths of all actions except ``scale:F``.
        selections: values of :data:`SELECTIONS`.
        trials: draws of random channels.
        k: sizes of selections.
        scores_from: one of :data:`SCORES`.
        channels: channels of ``listed``.
        layers: ``all``, ``dual``, ``single``, ``each``, ``windows:N``, or indices such as ``0,5``, ``2-4`` or ``-1``.
        steps: ``all``, ``last``, ``each``, ``thirds``, ``windows:N``, or indices. If samples differ in their number of
            steps, ``last`` is each sample's own, and steps that not all of them have are refused.
        streams: ``image``, ``text`` or ``image,text``.
        tokens: values of :data:`TOKENS`.
        placements: values of :data:`PLACEMENTS`.
    """

    actions: tuple[str, ...] = field(
        default=("zero",),
        metadata=several(Text(), "Edits: zero, mean, shuffle (resample), scale:F, guide; comma-separated for more."),
    )
    amounts: tuple[float, ...] = field(
        default=(1.0,),
        metadata=several(AMOUNT, "Edit strengths, 0 (none) to 1 (full replacement); comma-separated for more."),
    )
    selections: tuple[str, ...] = field(
        default=("top", "bottom", "random", "matched", "scaled"),
        metadata=several(
            Text(), "Channels: top, bottom, random, redrawn, matched, scaled, all, listed; comma-separated."
        ),
    )
    trials: int = field(default=3, metadata=within(1, 1000, "Random draws of channels per sample."))
    k: tuple[int, ...] = field(
        default=(8,),
        metadata=several(Whole(0, MOST_INDEX), "Numbers of channels in a selection, comma-separated: 4,8,12."),
    )
    scores_from: tuple[str, ...] = field(
        default=("undisturbed",), metadata=several(Text(), "Trajectory whose scores rank channels.")
    )
    channels: tuple[int, ...] = field(
        default=(), metadata=several(Whole(0, MOST_INDEX), "Channel indices for --selection listed: 154,1446.", least=0)
    )
    layers: tuple[str, ...] = field(
        default=("all",),
        metadata=several(
            Text(),
            "Layers to edit: all, dual, single, each, windows:N, or indices 0,5 or 2-4; repeatable.",
            repeats=True,
        ),
    )
    steps: tuple[str, ...] = field(
        default=("all",),
        metadata=several(
            Text(), "Steps to edit: all, last, each, thirds, windows:N, or indices 0,9; repeatable.", repeats=True
        ),
    )
    streams: tuple[str, ...] = field(
        default=("image",),
        metadata=several(Text(), "Streams to edit: image, text or image,text; repeatable.", repeats=True),
    )
    tokens: tuple[str, ...] = field(default=("all",), metadata=several(Text(), "Tokens to edit."))
    placements: tuple[str, ...] = field(
        default=("same",), metadata=several(Text(), "Placement of the source's tokens.")
    )

    def __post_init__(self) -> None:
        check(self)
        for kind, words, known in (
            ("selection", self.selections, SELECTIONS),
            ("scores_from", self.scores_from, SCORES),
            ("tokens", self.tokens, TOKENS),
            ("placement", self.placements, PLACEMENTS),
        ):
            for word in words:
                if word not in known:
                    raise unknown(kind, word, known)
        if self.channels and "listed" not in self.selections:
            raise InputError(
                f"channels lists {len(self.channels)}, but no selection uses them. Add listed to the "
                "selections, or omit them."
            )


def expand(
    grids: Sequence[Grid], blocks: Sequence[Block], n_steps: int, n_channels: int, fewest_steps: int | None = None
) -> list[Condition]:
    """Every condition of grids, each once, in the order in which they first come.

    Args:
        grids: grids of the sweep.
        blocks: blocks of the model.
        n_steps: number of denoising steps of the sample with the most.
        n_channels: width of the hidden state.
        fewest_steps: number of steps of the sample with the fewest; None if all have the same.

    Raises:
        InputError: a setting does not exist in the model, or does not go with another one.
    """
    found: dict[Condition, None] = {}
    n = 0
    for grid in grids:
        layers = [each for text in grid.layers for each in _layers(text, blocks)]
        steps = [each for text in grid.steps for each in _steps(text, n_steps, fewest_steps or n_steps)]
        actions = [each for text in grid.actions for each in _amounts(text, grid.amounts)]
        streams = [choose_words("streams", text, STREAMS) for text in grid.streams]
        drawn = sum(grid.trials if word in _DRAWN else 1 for word in grid.selections)
        others = (actions, grid.k, grid.scores_from, layers, steps, streams, grid.tokens, grid.placements)
        n += drawn * math.prod(map(len, others))
        if n > _MOST_CONDITIONS:
            raise InputError(
                f"the grids have at least {n:,} conditions; a sweep can have at most {_MOST_CONDITIONS:,}. Give fewer "
                "trials, amounts, k, layers or steps, or run several sweeps."
            )
        for (action, amount), word, k, whose, at, when, stream, where, placement in itertools.product(
            actions, grid.selections, grid.k, grid.scores_from, layers, steps, streams, grid.tokens, grid.placements
        ):
            for trial in range(grid.trials if word in _DRAWN else 1):
                one = Condition(
                    action, amount, word, trial, k, whose, grid.channels, at, when, stream, where, placement
                )
                found.setdefault(_settled(one, blocks, n_channels))
    return list(found)


def _settled(one: Condition, blocks: Sequence[Block], n_channels: int) -> Condition:
    """The condition without settings that have no effect in it, so that equivalent conditions are equal."""
    if one.action in BASELINES:
        everywhere = tuple(block.layer for block in blocks)
        steps = one.steps if one.action == "latents" else ()
        layers = everywhere if one.action == "prompt" else ()
        return Condition(one.action, one.amount, "none", 0, 0, "source", (), layers, steps, ("image",), "all", "same")
    if (one.action == "transport") != (one.scores_from in _OF_TWO):
        wanted = ", ".join(_OF_TWO) if one.action == "transport" else "undisturbed, own or run"
        raise InputError(f"scores_from is {one.scores_from!r}; with {one.action} it must be {wanted}.")
    if one.action == "transport" and one.streams != ("image",):
        raise InputError(
            "streams includes text, but a transport patches only image tokens: those of two texts do not correspond."
        )
    if one.action != "transport" and (one.tokens == "target_foreground" or one.placement != "same"):
        raise InputError(
            f"tokens is {one.tokens!r} and placement {one.placement!r}; only a transport has a source and a target. "
            "Give tokens foreground and placement same."
        )
    if one.placement == "aligned" and one.tokens not in ("foreground", "inside"):
        raise InputError(
            f"placement is 'aligned', which moves the source's foreground onto the target's; tokens is {one.tokens!r}. "
            "Give tokens foreground or inside."
        )
    if one.tokens != "all" and "text" in one.streams:
        raise InputError(
            f"tokens is {one.tokens!r}, but text tokens have no position in the image. Use --streams image."
        )
    if one.scores_from in ("union", "intersection") and one.selection not in ("top", "bottom"):
        one = replace(one, scores_from="source")
    if one.selection == "listed":
        wrong = [c for c in one.channels if not 0 <= c < n_channels]
        if wrong or not one.channels:
            raise InputError(
                f"channels is {','.join(map(str, one.channels)) or 'empty'}; list at least one of 0 to "
                f"{n_channels - 1}."
            )
        return replace(one, channels=tuple(sorted(set(one.channels))), k=len(set(one.channels)), trial=0)
    one = replace(one, channels=())
    if one.selection in ("all", "random", "redrawn"):  # the same channels for any ranking
        anyone = "source" if one.action == "transport" else "undisturbed"
        one = replace(one, scores_from=anyone)
    if one.selection == "all":
        return replace(one, k=0, trial=0)
    least = 0 if one.selection in ("top", "bottom", "random", "redrawn") else 1
    most = n_channels if one.selection in ("top", "bottom", "random", "redrawn") else n_channels // 2
    if not least <= one.k <= most:
        raise InputError(
            f"k is {one.k}; with {one.selection} it must be {least} to {most}, as the model has {n_channels} channels."
        )
    return one


def _amounts(text: str, amounts: Sequence[float]) -> list[tuple[str, float]]:
    word, colon, number = text.partition(":")
    if word == "scale" and colon:
        factor = parsed(f"F of action {shown(text)}", number, AMOUNT)
        return [("zero", 1 - factor)]  # f x = x + (1 - f) (0 - x)
    known = (*EDITS, GUIDE, *BASELINES)
    if text not in known:
        raise unknown("action", text, [*known, "scale:F"])
    return [(text, float(amount)) for amount in amounts]


def _windows(text: str, n: int) -> list[range] | None:
    """Ranges of ``each``, ``thirds`` and ``windows:N``; None for another text."""
    if text == "each":
        return [range(i, i + 1) for i in range(n)]
    if text == "thirds":
        ends = [round(n * i / 3) for i in range(4)]
        return [range(a, b) for a, b in itertools.pairwise(ends) if a < b]
    word, _, number = text.partition(":")
    if word != "windows":
        return None
    size = parsed(f"N of {shown(text)}", number, Whole(1, n))
    return [range(i, min(i + size, n)) for i in range(0, n, size)]


def _layers(text: str, blocks: Sequence[Block]) -> list[tuple[int, ...]]:
    windows = _windows(text, len(blocks))
    if windows is None:
        return [tuple(block.layer for block in choose_layers(text, blocks))]
    return [tuple(blocks[i].layer for i in window) for window in windows]


def _steps(text: str, n_steps: int, fewest: int) -> list[tuple[int, ...]]:
    if fewest < n_steps and text in ("last", "-1"):
        return [(LAST,)]
    if fewest < n_steps and text != "all":
        if text[:1].isalpha() or counts_from_end(text):
            raise InputError(
                f"steps is {shown(text)}; the samples have {fewest} to {n_steps} steps, so this choice differs "
                f"between them. Give all, last, or indices from 0 to {fewest - 1}."
            )
        n_steps = fewest
    windows = _windows(text, n_steps)
    return [choose_steps(text, n_steps)] if windows is None else [tuple(window) for window in windows]


def in_short(numbers: Sequence[int]) -> str:
    """Ascending numbers with ranges abbreviated: ``0-5,8``; ``last`` and ``none`` for these."""
    if list(numbers) == [LAST]:
        return "last"
    return runs_in_short(numbers) or "none"
