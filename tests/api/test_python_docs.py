"""The examples of docs/python.md and of docstrings, run as they stand."""

import doctest
import inspect
import shutil
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
    assert len(code) == 4
    for part in code:
        exec(compile(part, "docs/python.md", "exec"), space)
    assert (np.asarray(space["before"]) != np.asarray(space["after"])).any()
    assert space["before"].size == (64, 64)
    assert space["edited"].n_samples == 1
    assert space["editing"].measures.n_channels.tolist() == [1.0]


NAMED = {name: getattr(fc, name) for name in fc.__all__}
METHODS = {
    f"{name}.{key}": value
    for name, found in NAMED.items()
    if inspect.isclass(found)
    for key, value in vars(found).items()
    if inspect.isfunction(value)
}
EXAMPLES = {name: found for name, found in (NAMED | METHODS).items() if ">>>" in (inspect.getdoc(found) or "")}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what examples open: two runs and a sweep."""
    folder = tmp_path_factory.mktemp("kept")
    prompts = fc.prompts(["a small red star", "a large blue circle"], seeds=(0, 1))
    for name, steps in (("RUN", 2), ("RUN_B", 3)):
        fc.capture(prompts, folder / name, num_inference_steps=steps, steps=[0, 1], progress=False)
    fc.probe(prompts[:1], folder / "SWEEP", k=4, trials=1, num_inference_steps=2, progress=False)
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_docstrings_example_is_true(
    name: str, pipe: Any, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (test,) = doctest.DocTestFinder(recurse=False).find(
        EXAMPLES[name], name, globs={"fc": fc, "torch": torch, "pipe": pipe, "np": np}
    )
    code = "".join(example.source for example in test.examples)
    for made in ("RUN", "RUN_B", "SWEEP"):
        if f'"{made}"' in code and name not in ("capture", "probe"):
            shutil.copytree(kept / made, tmp_path / made)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test)
    assert runner.tries > 0
    assert runner.failures == 0


def test_every_function_of_the_public_page_has_an_example() -> None:
    assert {name for name, found in NAMED.items() if inspect.isfunction(found)} <= set(EXAMPLES)
