"""Requests of pages: Dash's callbacks, which run only if everything posted could come from the page itself."""

import functools
from collections.abc import Callable
from typing import Any

from dash import Dash
from flask import Flask, abort, request
from pydantic import ValidationError, validate_call

from fewchannels.errors import FewchannelsError

_PATH = "/_dash-update-component"
MOST_BYTES = 16 * 2**20
"""Of a post: a plot takes the rows of its table along."""


class CheckedDash(Dash):
    """Dash with callbacks that accept only values of their annotated types; others get status 400 and the reason."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, on_error=_refuse, **settings)
        self.server.config["MAX_CONTENT_LENGTH"] = MOST_BYTES

    def callback(self, *arguments: Any, **settings: Any) -> Callable[..., Any]:
        """Dash's decorator, for functions whose every argument is annotated."""
        register = super().callback(*arguments, **settings)
        return lambda function: register(_checked(function))


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    valid = validate_call(function)

    @functools.wraps(function)
    def call(*values: Any) -> Any:
        try:
            return valid(*values)
        except ValidationError as error:
            if error.title != function.__qualname__:
                raise  # the function itself validates it
            found = error.errors(include_input=False, include_url=False)[0]
            abort(400, f"A posted value is not valid: {found['msg']}.")

    return call


def _refuse(error: Exception) -> None:
    if isinstance(error, FewchannelsError):
        abort(400, str(error))
    raise error


def check_posts(server: Flask, callbacks: dict[str, Any]) -> None:
    """Refuse posts that Dash's own pages would not send, before Dash trusts them.

    Args:
        server: server of the application.
        callbacks: Dash's description of each callback, by its output.
    """

    @server.before_request
    def check() -> None:
        if request.path != _PATH or request.method != "POST":
            return
        try:
            body = request.get_json(silent=True)
        except RecursionError:
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("output"), str):
            abort(400, "This request was not posted by a page of the explorer.")
        known = callbacks.get(body["output"], {})
        if "callback" not in known:
            abort(400, "No page of the explorer has the output that was posted.")
        changed = body.get("changedPropIds", [])
        outputs = known["output"] if isinstance(known["output"], list) else [known["output"]]
        given = body.get("outputs") if isinstance(known["output"], list) else [body.get("outputs")]
        if not (
            _fit(body.get("inputs", []), known["inputs"])
            and _fit(body.get("state", []), known["state"])
            and _fit(given, [{"id": each.component_id, "property": each.component_property} for each in outputs])
            and isinstance(changed, list)
            and all(isinstance(each, str) for each in changed)
        ):
            abort(400, "The inputs, states and outputs that were posted are not those of the page.")


def _fit(given: object, expected: list[dict[str, Any]]) -> bool:
    """Return whether a list has the expected items, in order."""
    return isinstance(given, list) and len(given) == len(expected) and all(map(_fits, given, expected))


def _fits(given: object, expected: dict[str, Any]) -> bool:
    if str(expected["id"]).startswith("{"):  # for every component with such an id
        return isinstance(given, list) and all(
            isinstance(each, dict)
            and isinstance(each.get("id"), dict)
            and all(isinstance(part, str | int) for part in each["id"].values())
            and each.get("property") == expected["property"]
            for each in given
        )
    if not isinstance(given, dict) or given.get("id") != expected["id"]:
        return False
    return str(given.get("property")).partition("@")[0] == expected["property"].partition("@")[0]
