"""The versions that the project names in several places."""

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from versions import lowest, pinned, plain

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_pin_is_within_its_bounds() -> None:
    pins = pinned()
    dependencies = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    wrong = [
        line
        for line, need in ((line, Requirement(line)) for line in dependencies)
        if not need.specifier.contains(pins[plain(need.name)].split("==")[1])
    ]
    assert wrong == []


def test_the_lowest_set_has_every_dependency_but_pytorch_at_its_bound() -> None:
    exact = {plain(need.name): str(need.specifier) for need in map(Requirement, lowest())}
    names = {plain(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert set(exact) == names - {"torch"}
    assert all(f">={version.removeprefix('==')}" in "".join(PROJECT["dependencies"]) for version in exact.values())
    assert "ray[default]==2.60" in lowest()


def test_the_citation_has_the_projects_version_and_license() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
