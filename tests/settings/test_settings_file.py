"""Settings from a YAML file: what is given in it has kinds and ranges, whatever the file holds."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewchannels.captures.config import CaptureConfig
from fewchannels.errors import InputError
from fewchannels.interventions.settings import grids_of
from fewchannels.models.family_file import read_family


def read(folder: Path, text: str) -> CaptureConfig:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return CaptureConfig.from_sources(path, {}, besides=("grids",))


def test_what_means_the_same_is_taken(tmp_path: Path) -> None:
    found = read(tmp_path, "layers: 3\nsteps: [0, 9]\nguidance_scale: 4\nheight: null\nmodel: [a, b]\n")
    assert (found.layers, found.steps, found.guidance_scale, found.height) == ("3", "0,9", 4.0, None)
    assert found.model == "a,b"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("top_k: 12\nsteps: all\ntop_k: 4\n", "line 3 has 'top_k' a second time"),
        ("grids:\n- {k: 4, actions: zero, k: 8}\n", "line 2 has 'k' a second time"),
    ],
)
def test_a_setting_that_is_there_twice_is_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"cannot read the settings file '.*settings.yaml': {says}"):
        read(tmp_path, text)
    family = tmp_path / "family.yaml"
    family.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"cannot read the family file '.*family.yaml': {says}"):
        read_family(family)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("top_k: true", "top_k in '{}' is True; it must be int."),
        ("top_k: 12.0", "top_k in '{}' is 12.0; it must be int."),
        ("top_k: -1", "top_k in '{}' is -1; it must be 0 to 1,000,000."),
        ("num_inference_steps: 2147483648", "num_inference_steps in '{}' is 2147483648; it must be 1 to 10,000."),
        ("guidance_scale: .nan", "guidance_scale in '{}' is nan; it must be a finite number, 0 to 1,000."),
        ("guidance_scale: 1" + "0" * 400, "it must be float or null."),
        ("height: {a: 1}", "height in '{}' is {'a': 1}; it must be int or null."),
        ("layers: [[0]]", "layers in '{}' is [[0]]; it must be str."),
        ("layers: {}", "layers in '{}' is {}; it must be str."),
        ("model: null", "model in '{}' is None; it must be str."),
        ('model: "a\\0b"', "it must not contain control characters"),
        ("from_images: 1", "from_images in '{}' is 1; it must be bool."),
        ("topk: 1", "unknown setting in '{}' 'topk'. Did you mean 'top_k'?"),
        ("1: 2", "unknown setting in '{}' '1'."),
        ("2026-99-99: 1", "cannot read the settings file"),
        ("top_k: " + "9" * 5000, "cannot read the settings file"),
        ("top_k: 0x" + "f" * 5000, "is a number of thousands of digits; it must be 0 to 1,000,000."),
        ("- 1", "must contain a mapping such as 'top_k: 12', but it contains list."),
        ("layers: &a [*a]", "it must be str."),
        ("[" * 1200, "it is nested too deeply"),
        ("{a: " * 1200, "it is nested too deeply"),
        ("!!python/object/apply:os.getpid []", "cannot read the settings file"),
        ("# " + "x" * 2**20, "has more than 1,048,576 bytes"),
    ],
    ids=lambda text: text[:30],
)
def test_what_cannot_be_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert says.replace("{}'", f"{tmp_path}/settings.yaml'") in str(caught.value)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ("{k: [4, true]}", "it must be a list of int"),
        ("{k: 4.5}", "k in a grid of '{}' is 4.5; it must be a list of int."),
        ("{amounts: [1, .inf]}", "each must be a finite number, -1,000 to 1,000."),
        ("{amounts: [yes]}", "it must be a list of float"),
        ("{trials: 99999}", "trials in a grid of '{}' is 99999; it must be 1 to 1,000."),
        ("{layers: []}", "it must list 1 to 1,000 values."),
        ("{selections: [{a: 1}]}", "it must be a list of str"),
        ("{channels: [-1]}", "each must be 0 to 1,000,000."),
        ("[]", "must be a list of mappings"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(tmp_path: Path, grid: str, says: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"grids: [{grid}]", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        grids_of(path)
    assert says.replace("{}", str(path)) in str(caught.value)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "nothing", "a" * 300):
        with pytest.raises(InputError, match="settings file"):
            CaptureConfig.from_sources(tmp_path / name, {})
    with pytest.raises(InputError, match="there is no settings file '/dev/zero'"):
        CaptureConfig.from_sources(Path("/dev/zero"), {})


NAMES = st.one_of(st.sampled_from(sorted(vars(CaptureConfig()))), st.text(), st.integers(), st.booleans())
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.dates(), st.binary())
JUNK = st.recursive(PLAIN, lambda each: st.lists(each) | st.dictionaries(NAMES, each), max_leaves=8)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, JUNK, max_size=4))
def test_any_yaml_is_settings_or_refused(tmp_path: Path, content: dict[Any, Any]) -> None:
    with suppress(InputError):
        found = read(tmp_path, yaml.safe_dump(content, allow_unicode=True))
        assert set(content) <= set(vars(found))
        assert all(each is None or isinstance(each, str | int | float) for each in vars(found).values())
