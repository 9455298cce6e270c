"""The examples of docs/python.md and of docstrings, run as they stand."""

import doctest
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from two_runs import ROWS, captured

import fewchannels as fc

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def pipe() -> Any:
    loaded = fc.load("demo")
    loaded.set_progress_bar_config(disable=True)
    return loaded


def blocks(text: str) -> list[str]:
    """Indented blocks of a page of Markdown, as one piece of code for each heading."""
    return [
        "\n".join(line.removeprefix("    ") for line in part.splitlines() if line.startswith("    ") or not line)
        for part in text.split("\n## ")[1:]
    ]


def test_the_pages_code_runs_from_top_to_bottom(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured(tmp_path, "RUN", tiny_model, ROWS)
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    code = blocks((DOCS / "python.md").read_text(encoding="utf-8"))
    assert len(code) == 3
    for part in code:
        exec(compile(part, "docs/python.md", "exec"), space)
    assert (np.asarray(space["before"]) != np.asarray(space["after"])).any()
    assert space["before"].size == (64, 64)
    assert space["edited"].n_samples == 1
    assert space["editing"].measures.n_channels.tolist() == [1.0]


EXAMPLES = [name for name in fc.__all__ if ">>>" in (inspect.getdoc(getattr(fc, name)) or "")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_docstrings_example_is_true(name: str, pipe: Any) -> None:
    space = {"fc": fc, "torch": torch, "pipe": pipe, "np": np}
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(fc, name), name, globs=space)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test)
    assert runner.tries > 0
    assert runner.failures == 0


def test_every_function_of_the_public_page_has_an_example() -> None:
    functions = {name for name in fc.__all__ if inspect.isfunction(getattr(fc, name))}
    assert functions - {"open_run", "open_sweep"} <= set(EXAMPLES), "these two are on the page, with a run of its own"
