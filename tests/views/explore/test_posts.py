"""Posts that no page makes: each is answered in words, and nothing is written to the log."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from asked import Asked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_sweep import make_sweep
from planted_edits import planted
from posted import body

from fewchannels.views.explore.posts import MOST_BYTES
from fewchannels.views.explore.site import Site

PATH = "/_dash-update-component"
NAMES = ("run", "a sweep", "sample_id", "mse", "k", "selection", "none", "all", "cond", "channel", "top_k", "prompt")
NUMBERS = st.integers() | st.integers(-3, 40) | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | st.sampled_from(NAMES)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
KNOWN = {
    "sample-which": {"run": "run", "id": "3e86c52b5b1b8a3c"},
    "find-run": "run",
    "found-place": "run",
    "sweep-name": "a sweep",
    "console-place": {"name": "run", "path": "/run/run", "page": "0"},
    "sample-shown": {"channel": 0, "layer": 0, "step": 0, "branch": "cond", "show": "channel"},
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    folder = tmp_path_factory.mktemp("posted")
    kept = Path(__file__).parents[2] / "data" / "kept_runs" / "format_2"
    shutil.copytree(kept, folder / "run")
    edits = [{"selection": word, "k": k} for k in (4, 8) for word in ("top", "random")]
    make_sweep(folder / "a sweep", planted(edits, {"top": 0.012, "random": 0.0}, n_prompts=2, with_images=True))
    return Asked([folder / "run", folder / "a sweep"], Site(8050))


@pytest.fixture(scope="module")
def callbacks(asked: Asked) -> list[dict[str, Any]]:
    """What the server says of its callbacks, as pages are told."""
    found = asked.ask("/_dash-dependencies", headers=asked.own).json
    assert len(found) > 15
    return [each for each in found if each["clientside_function"] is None]


def post(asked: Asked, data: bytes, kind: str = "application/json") -> tuple[int, str]:
    answer = asked.post(PATH, data, kind)
    return answer.status_code, answer.text


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_values_are_answered(
    data: st.DataObject, asked: Asked, callbacks: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    callback = data.draw(st.sampled_from(callbacks))
    parts = callback["inputs"] + callback["state"]
    usual = [KNOWN[part["id"]] if part["id"] in KNOWN else data.draw(VALUES) for part in parts]
    values = usual if data.draw(st.booleans()) else [data.draw(st.just(value) | VALUES) for value in usual]
    changed = [f"{part['id']}.{part['property']}" for part in callback["inputs"][:1]]
    status, text = post(asked, json.dumps(body(callback, values, changed)).encode())
    assert status in (200, 204, 400), text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_other_shape_is_refused(
    data: st.DataObject, asked: Asked, callbacks: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    callback = data.draw(st.sampled_from(callbacks))
    good = body(callback, [None] * len(callback["inputs"] + callback["state"]), [])
    name = data.draw(st.sampled_from(sorted(good)))
    # [[]] is right where a pattern of ids finds no element.
    bad = good | {name: data.draw(VALUES.filter(lambda value: value not in (good[name], [], None, [[]])))}
    status, text = post(asked, json.dumps(data.draw(st.just(bad) | VALUES)).encode())
    assert status == 400 or (status in (200, 204) and name == "changedPropIds"), text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"\xff\xfe{}", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"output":' * 100_000, "application/json", 400),
        (b"{}", "text/plain", 400),
        (b"a=1", "application/x-www-form-urlencoded", 400),
        (b'{"output": "page.children"}', "application/json", 400),
        (b'{"output": "theme.data", "inputs": []}', "application/json", 400),
        (b" " * (MOST_BYTES + 1), "application/json", 413),
    ],
)
def test_what_is_no_post_of_a_page_is_refused(
    data: bytes, kind: str, expected: int, asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    assert post(asked, data, kind)[0] == expected
    assert caplog.records == []


def test_a_page_that_opens_asks_nothing(asked: Asked, callbacks: list[dict[str, Any]]) -> None:
    """Neither the console nor the live page has a button pressed; a gallery says all that it shows as changed."""
    (console,) = (each for each in callbacks if "console-answer" in each["output"])
    n = len(console["inputs"] + console["state"])
    states = ["(free SQL)", "select 1 as planted", [], [], KNOWN["console-place"]]
    answers = []
    for clicks in (None, 0, 1):
        said = body(console, [clicks, *states], [])
        said["state"][2:4] = [[], []]
        assert len(said["inputs"] + said["state"]) == n
        answers.append("planted" in post(asked, json.dumps(said).encode())[1])
    assert answers == [False, False, True]
