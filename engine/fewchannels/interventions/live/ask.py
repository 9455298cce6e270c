"""Requests to a live session: a prompt, a seed, and optionally an edit; to and from flat text. Pure."""

import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fewchannels.errors import InputError, unknown
from fewchannels.interventions.conditions import SELECTIONS, Condition, Grid, expand
from fewchannels.interventions.rows import Item, pair_id
from fewchannels.manifest import Sample, sample_id
from fewchannels.manifest.rows import MAX_SEED, canonical, is_unicode
from fewchannels.models.family import Block

ACTIONS = ("zero", "mean", "shuffle", "scale", "transport")
TOKENS = ("all", "foreground", "background")
MOST_CHARACTERS = 2_000
MOST_STEPS = 200
MOST_SIDE = 16_384
_MOST_CHANNELS = 16_384
_MOST_GUIDANCE = 1_000
_SHORT = reprlib.Repr()  # repr would print a whole value, which may come from anywhere
_SHORT.maxstring = 60


@dataclass(frozen=True)
class Edit:
    """One edit, with the settings of a sweep's condition.

    Attributes:
        action: one of :data:`ACTIONS`.
        factor: factor that ``scale`` multiplies by; None for other actions.
        alpha: strength of the other actions, 0 (none) to 1 (full replacement).
        source: prompt whose hidden states ``transport`` moves, from the same noise; None for other actions.
        selection: one of :data:`fewchannels.interventions.conditions.SELECTIONS`: of the unedited image's channels, or
            of the source's for a transport.
        k: number of channels; ignored by ``listed`` and ``all``.
        channels: channels of ``listed``.
        layers: ``all``, a kind of blocks such as ``dual``, or indices such as ``0,5``.
        steps: ``all``, ``last``, or indices.
        tokens: values of :data:`TOKENS`.

    Raises:
        InputError: a value is not one of these, or does not go with another.
    """

    action: str
    factor: float | None = None
    alpha: float = 1.0
    source: str | None = None
    selection: str = "top"
    k: int = 8
    channels: tuple[int, ...] = ()
    layers: str = "all"
    steps: str = "all"
    tokens: str = "all"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("action", self.action, ACTIONS),
            ("selection", self.selection, SELECTIONS),
            ("tokens", self.tokens, TOKENS),
        ):
            if value not in known:
                raise _unknown(name, value, known)
        for name, setting, owner, value in (
            ("factor", self.factor, "scale", self.action),
            ("source", self.source, "transport", self.action),
            ("channels", self.channels or None, "listed", self.selection),
        ):
            kind = "selection" if owner == "listed" else "action"
            if (setting is None) == (value == owner):
                remedy = f"Give {name}" if setting is None else f"Leave {name} out"
                raise InputError(
                    f"{name} is {'missing' if setting is None else _SHORT.repr(setting)} and {kind} is {value!r}; "
                    f"{name} belongs to the {kind} {owner}, which needs it. {remedy}, or choose another {kind}."
                )
        if self.action == "scale" and self.alpha != 1:
            raise InputError(f"alpha is {self.alpha:g}, but the factor of scale already sets the strength. Omit alpha.")
        for name, number in (("factor", self.factor), ("alpha", self.alpha)):
            if number is not None and not math.isfinite(number):
                raise InputError(f"{name} is {number}; it must be a finite number. Give one, such as 0.5.")
        if self.source is not None:
            _check_prompt("source", self.source)
        _check_whole("k", self.k, 0, _MOST_CHANNELS)
        if len(self.channels) > _MOST_CHANNELS:
            raise InputError(f"channels lists {len(self.channels)}; it takes at most {_MOST_CHANNELS}. List fewer.")
        for channel in self.channels:
            _check_whole("channels", channel, 0, 10**6)
        for name, text in (("layers", self.layers), ("steps", self.steps)):
            if not re.fullmatch(r"[a-z]{1,20}|[0-9]{1,5}(,[0-9]{1,5}){0,999}", text):
                raise InputError(
                    f"{name} is {_SHORT.repr(text)}; it must be a word or indices. Give all, or indices such as 0,3."
                )

    def condition(self, blocks: Sequence[Block], n_steps: int, n_channels: int) -> Condition:
        """Convert the edit to a sweep's condition.

        Args:
            blocks: blocks of the model.
            n_steps: denoising steps.
            n_channels: width of the hidden state.

        Raises:
            InputError: the model does not have these layers, steps or channels.
        """
        grid = Grid(
            actions=(self.action if self.factor is None else f"scale:{self.factor!r}",),
            amounts=(self.alpha,),
            selections=(self.selection,),
            trials=1,
            k=(self.k,),
            scores_from=("source" if self.action == "transport" else "undisturbed",),
            channels=self.channels,
            layers=(self.layers,),
            steps=(self.steps,),
            tokens=(self.tokens,),
        )
        for name, text in (("layers", self.layers), ("steps", self.steps)):
            if text in ("each", "thirds"):
                raise InputError(
                    f"{name} is {text!r}, which means several edits; a live page makes only one. Give all."
                )
        (condition,) = expand([grid], blocks, n_steps, n_channels)
        return condition


@dataclass(frozen=True)
class Ask:
    """Request for one generation. Equal requests have the same hash.

    Attributes:
        prompt: at most :data:`MOST_CHARACTERS` characters.
        seed: random seed of the noise.
        n_steps: denoising steps, at most :data:`MOST_STEPS`; None for the session's own.
        height: height of the image, pixels; None for the model's own size.
        width: width in pixels; same conventions as ``height``.
        guidance: the guidance scale that the model's pipeline takes; None for its default.
        edit: edit of an image next to the unedited one; None for no edit.

    Raises:
        InputError: a value is not one of these.
    """

    prompt: str
    seed: int = 0
    n_steps: int | None = None
    height: int | None = None
    width: int | None = None
    guidance: float | None = None
    edit: Edit | None = None

    def __post_init__(self) -> None:
        _check_prompt("prompt", self.prompt)
        _check_whole("seed", self.seed, 0, MAX_SEED)
        for name, value, most in (
            ("n_steps", self.n_steps, MOST_STEPS),
            ("height", self.height, MOST_SIDE),
            ("width", self.width, MOST_SIDE),
        ):
            if value is not None:
                _check_whole(name, value, 1, most)
        if self.guidance is not None and not 0 <= self.guidance <= _MOST_GUIDANCE:
            raise InputError(
                f"guidance is {self.guidance:g}; it must be a number from 0 to {_MOST_GUIDANCE}. Give one, such as 3.5."
            )

    @property
    def item(self) -> Item:
        """The item, the same as in a sweep of this sample, or of this pair with shared noise."""
        target = _sample(self.prompt, self.seed)
        if self.edit is None or self.edit.source is None:
            return Item(0, target.sample_id, target)
        source = _sample(self.edit.source, self.seed)
        return Item(0, pair_id(target.sample_id, source.sample_id, self.seed), target, source)

    def as_query(self) -> dict[str, str]:
        """Convert to flat text, without defaults; :func:`parse` is the inverse."""
        query: dict[str, str] = {}
        for part in (self, self.edit):
            for field in fields(part) if part is not None else ():
                value = getattr(part, field.name)
                if field.name != "edit" and value != field.default:
                    listed = isinstance(value, tuple)
                    query[field.name] = ",".join(map(str, value)) if listed else str(value)
        return query


def parse(query: Mapping[str, str]) -> Ask:
    """Parse a request from flat text, as in a URL: ``prompt=a star&seed=1&action=zero&k=8``.

    Args:
        query: attributes of :class:`Ask` and :class:`Edit` by name; with an ``action``, there is an edit.

    Raises:
        InputError: a name is unknown, or a value is not valid.
    """
    of_ask = [field.name for field in fields(Ask) if field.name != "edit"]
    of_edit = [field.name for field in fields(Edit)]
    for name in query:
        if name not in (*of_ask, *of_edit):
            raise _unknown("setting", name, [*of_ask, *of_edit])
        if name in of_edit and "action" not in query:
            raise InputError(
                f"{name} is {_SHORT.repr(query[name])}, but there is no action to apply it to. Give an "
                f"action ({', '.join(ACTIONS)}), or omit it."
            )
    if "prompt" not in query:
        raise InputError("prompt is missing; every image needs one. Give a text, such as prompt=a small red star.")
    values = {name: _READ.get(name, _text)(name, text) for name, text in query.items()}
    edit = Edit(**{name: values[name] for name in of_edit if name in values}) if "action" in query else None
    return Ask(**{name: values[name] for name in of_ask if name in values}, edit=edit)


def _text(name: str, text: str) -> str:
    return text


def _whole(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise InputError(f"{name} is {_SHORT.repr(text)}; it must be a whole number. Give only digits, such as 8.")
    return int(text)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{name} is {_SHORT.repr(text)}; it must be a number. Give one, such as 0.5.") from None


def _wholes(name: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9]{1,7}(,[0-9]{1,7})*", text):
        raise InputError(
            f"{name} is {_SHORT.repr(text)}; it must be whole numbers separated by commas. Give a list such as 3,7."
        )
    return tuple(map(int, text.split(",")))


_READ: dict[str, Callable[[str, str], Any]] = {
    **dict.fromkeys(("seed", "n_steps", "height", "width", "k"), _whole),
    **dict.fromkeys(("guidance", "factor", "alpha"), _number),
    "channels": _wholes,
}


def _unknown(kind: str, value: str, known: Sequence[str]) -> InputError:
    return unknown(kind, value if len(value) <= _SHORT.maxstring else f"{value[: _SHORT.maxstring]}...", known)


def _check_whole(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InputError(f"{name} is {value}; it must be a whole number from {least} to {most}. Give one of those.")


def _check_prompt(name: str, text: str) -> None:
    for is_wrong, rule, remedy in (
        (not text.strip(), "is empty; it needs a character that is not white space", "Write what to draw"),
        (len(text) > MOST_CHARACTERS, f"has {len(text)} characters; it takes {MOST_CHARACTERS}", "Shorten it"),
        (not is_unicode(text) or "\0" in text, "holds half a character or a NUL; it must be text", "Take those out"),
    ):
        if is_wrong:
            raise InputError(f"{name} {_SHORT.repr(text)} {rule}. {remedy}.")


def _sample(prompt: str, seed: int) -> Sample:
    """The sample that a manifest would have for a prompt."""
    text = canonical(prompt)
    return Sample(sample_id(text, seed), text, seed)
