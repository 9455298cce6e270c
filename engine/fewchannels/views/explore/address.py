"""Addresses of views, which can be shared. Convert an address to the requested view, and back."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from flask import current_app, request

from fewchannels.errors import InputError

KEYS = "fewchannels-keys"
"""Configuration key of the application's :class:`fewchannels.views.explore.keys.Keys`."""
SHOWN = {
    "channel": "one channel",
    "heat": "sum of the top k, each scaled to 0 to 1",
    "clusters": "foreground of two clusters by the top k",
    "picture": "image only",
}
"""Overlays of an image."""


def asked(search: str | None) -> dict[str, str]:
    """The last value of each name in an address' query."""
    found = parse_qs((search or "").removeprefix("?"), keep_blank_values=False)
    return {name: values[-1] for name, values in found.items()}


def address(path: str, values: Mapping[str, object]) -> str:
    """A path with a query of the given values; None and empty text are left out."""
    kept = {name: str(value) for name, value in values.items() if value not in (None, "")}
    return path + (f"?{urlencode(kept, quote_via=quote)}" if kept else "")


def page_path(*parts: str) -> str:
    """The path of a page, after the prefix of the explorer's URL."""
    return "/".join((request.script_root, *(quote(part, safe="") for part in parts or ("",))))


def run_path(name: str, *parts: str) -> str:
    """The path of a run's page."""
    return page_path("run", name, *parts)


def sweep_path(name: str, *parts: str) -> str:
    """The path of a sweep's page."""
    return page_path("sweep", name, *parts)


def image_path(name: str, sample: int, side: int | None = None) -> str:
    """The address of a sample's image, no larger than ``side`` pixels if that is given."""
    return _signed(address(f"/picture/{quote(name, safe='')}/{sample}.png", {"side": side}))


def edit_path(name: str, item: int, row: int, side: int | None = None) -> str:
    """The address of one image of a sweep's item, by its row."""
    return _signed(address(f"/edit/{quote(name, safe='')}/{item}/{row}.png", {"side": side}))


def download_path(name: str, kind: str, said: Mapping[str, object]) -> str:
    """The address for downloading an answer."""
    return _signed(address(f"/download/{quote(name, safe='')}/answer.{kind}", said))


def _signed(to: str) -> str:
    return request.script_root + str(current_app.extensions[KEYS].signed(to))


def number(given: Mapping[str, str], name: str, default: int | None = None) -> int | None:
    """A whole number of a query.

    Raises:
        InputError: it is not a whole number.
    """
    text = given.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name} is {text!r} in the URL; it must be a whole number.") from None


@dataclass(frozen=True)
class View:
    """View of a sample.

    Attributes:
        step: number of the step.
        layer: number of the layer.
        branch: branch of guidance.
        show: one of :data:`SHOWN`.
        channel: channel to show; None for that of ``rank``.
        rank: place of the channel among the largest, from 1.
        k: channels of ``heat`` and ``clusters``.
        opacity: opacity of the map over the image, 0 to 100 %.
        outline: whether the subject's mask is drawn.
    """

    step: int
    layer: int
    branch: str = "cond"
    show: str = "channel"
    channel: int | None = None
    rank: int = 1
    k: int = 12
    opacity: int = 75
    outline: bool = False

    @classmethod
    def of(cls, given: Mapping[str, str], usual: "View") -> "View":
        """The view that a query requests, with defaults for missing settings.

        Raises:
            InputError: a value is not valid.
        """
        values: dict[str, Any] = {}
        for each in fields(cls):
            if each.name not in given:
                continue
            text = given[each.name]
            if each.name in ("branch", "show"):
                values[each.name] = text
            elif each.name == "outline":
                values[each.name] = text == "1"
            else:
                values[each.name] = number(given, each.name)
        view = replace(usual, **values)
        if view.show not in SHOWN:
            raise InputError(f"show is {view.show!r} in the URL; it must be one of {', '.join(SHOWN)}.")
        for name, least, most in (("rank", 1, 10**6), ("k", 1, 10**6), ("opacity", 0, 100)):
            if not least <= getattr(view, name) <= most:
                raise InputError(f"{name} is {getattr(view, name)} in the URL; it must be {least} to {most}.")
        return view

    def as_query(self, usual: "View") -> dict[str, object]:
        """Non-default settings, and always step and layer, so that a link does not depend on defaults."""
        said = {each.name: getattr(self, each.name) for each in fields(self)}
        said["outline"] = int(self.outline)
        same = {each.name for each in fields(self) if getattr(self, each.name) == getattr(usual, each.name)}
        return {name: value for name, value in said.items() if name in ("step", "layer") or name not in same}
