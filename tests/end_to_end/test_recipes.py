"""docs/recipes.md, followed to the letter in a copy of the project: what it adds passes the tests that it names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from recipes import RECIPES, blocks

ROOT = Path(__file__).parents[2]
COPIED = ("benchmarks", "docs", "engine", "queries", "schemas", "tests")
TESTS = (
    "tests/runs/test_queries.py",
    "tests/measures/test_gaps.py",
    "tests/analyses/test_gap_analysis.py",
    "tests/families/test_families.py",
    "tests/interventions/test_metrics.py",
    "tests/test_structure.py",
)
# Of these what knows the examples, and of the last what holds for any module, table and document.
CHOSEN = "slowest_samples or gap or cogview3 or mean_absolute or every_metric or one_way or exists or documented"


def run(root: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(root / "engine")}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}{done.stderr[-2000:]}"


def test_what_the_recipes_add_passes_the_tests_that_they_name(tmp_path: Path) -> None:
    root = tmp_path / "project"
    for folder in COPIED:
        shutil.copytree(ROOT / folder, root / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy(path, root)
    for block in blocks():
        block.put(root)
    code = sorted({block.path for block in blocks() if block.path.endswith(".py")})
    run(root, "ruff", "check", *code)
    run(root, "ruff", "format", "--check", *code)
    run(root, "pytest", "-p", "no:cacheprovider", *TESTS, "-k", CHOSEN)


def test_every_recipe_has_an_example() -> None:
    headings = [line for line in RECIPES.read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    assert list(dict.fromkeys(f"## {block.recipe}" for block in blocks())) == headings


def test_the_line_above_each_block_names_its_file() -> None:
    lines = RECIPES.read_text(encoding="utf-8").splitlines()
    fences = [i for i, line in enumerate(lines) if line.lstrip().startswith("```") and " title=" in line]
    assert len(fences) == len(list(blocks()))
    for i, block in zip(fences, blocks(), strict=True):
        assert lines[i - 2].strip().startswith(f"`{block.path}`, "), lines[i]
        assert block.how in ("new", "at") or f"`{block.line.strip()}`" in lines[i - 2], lines[i]
