"""The tutorials, run from an empty folder to their ends; what is stored in them is what such a run shows."""

import json
from pathlib import Path
from typing import Any

import pytest
from notebooks import outputs_of

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
SMALLER = {
    "1_see_massive_channels": {},
    "2_a_study_over_a_thousand_prompts": {"N_PROMPTS = 1000": "N_PROMPTS = 40", "N_STEPS = 8": "N_STEPS = 4"},
    "3_edit_patch_transport": {"N_PROMPTS = 64": "N_PROMPTS = 4", "N_PAIRS = 48": "N_PAIRS = 2"},
    "4_your_own_model": {'"demo:16"': '"demo:8"'},
}


def kinds(outputs: list[dict[str, Any]]) -> list[list[str]]:
    """What a reader sees of each output."""
    return [sorted(output.get("data", {output.get("name"): None})) for output in outputs]


def test_every_tutorial_is_run() -> None:
    assert sorted(SMALLER) == sorted(path.stem for path in TUTORIALS.glob("*.ipynb"))


@pytest.mark.parametrize("name", SMALLER)
def test_a_tutorial_runs_from_its_first_cell_to_its_last(name: str, tmp_path: Path) -> None:
    path = TUTORIALS / f"{name}.ipynb"
    found = outputs_of(path, tmp_path, SMALLER[name])
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell, outputs in zip(cells, found, strict=True):
        if cell["cell_type"] == "code":
            assert kinds(cell["outputs"]) == kinds(outputs), "".join(cell["source"])
    assert sum(bool(outputs) for outputs in found) >= 5
