"""Folders of models whose weights have other names, or are not all there: seen before anything starts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.errors import InputError
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.settings import SweepSettings
from fewchannels.interventions.sweep import prepare_sweep
from fewchannels.models.generation import Generation
from fewchannels.models.load import load
from fewchannels.models.load_options import Loading
from fewchannels.models.source import find, geometry

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def as_half_precision(model: Path) -> None:
    for path in model.glob("*/*.safetensors"):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))


def without_a_shard(model: Path) -> None:
    path = model / TRANSFORMER
    index = {"metadata": {}, "weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    path.rename(path.with_name("part-1.safetensors"))
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))


def with_a_second_transformer(model: Path) -> None:
    shutil.copytree(model / "transformer", model / "transformer_2")
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(
        json.dumps(index | {"transformer_2": ["diffusers", "FluxTransformer2DModel"]})
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (as_half_precision, r"has no \w+/\w+\.safetensors, only those of the variant 'fp16', such as \w+\.fp16\.safet"),
        (without_a_shard, r"lacks 1 of the 2 files that transformer/.*index\.json names, such as 'part-2"),
        (lambda model: (model / TRANSFORMER).unlink(), r"has no transformer/.*\.safetensors and no other weights"),
        (with_a_second_transformer, "has a second transformer, transformer_2"),
    ],
)
def test_a_model_that_lacks_files_or_has_too_many_is_refused_before_anything_starts(
    change: Callable[[Path], None], says: str, model: Path, manifest_of, tmp_path: Path
) -> None:
    change(model)
    manifest = manifest_of("prompt\na small red star\n")
    with pytest.raises(InputError, match=says):
        prepare(manifest, tmp_path / "run", CaptureConfig(model=str(model)))
    settings = SweepSettings("disruption", Generation(model=str(model)), (Grid(selections=("listed",), channels=(1,)),))
    with pytest.raises(InputError, match=says):
        prepare_sweep(manifest, tmp_path / "sweep", settings)


def test_weights_in_bin_files_are_read_and_are_part_of_the_fingerprint(
    model: Path, tiny_model: Path, manifest_of, tmp_path: Path
) -> None:
    def job() -> Job:
        return prepare(manifest_of("prompt\na small red star\n"), tmp_path / "run", CaptureConfig(model=str(model)))

    file, as_bin = model / TRANSFORMER, (model / TRANSFORMER).with_suffix(".bin")
    weights = load_file(file)
    torch.save(weights, as_bin)
    both = job().fingerprint
    as_bin.unlink()
    assert job().fingerprint == both, "the .bin file is not read beside the other"
    file.unlink()
    torch.save(weights, as_bin)
    first = job().fingerprint
    source = find(str(model))
    state = load(source, geometry(source), Loading(), "cpu").transformer.state_dict()
    for name, value in weights.items():
        np.testing.assert_array_equal(state[name], value)
    torch.save({name: value * 1.3 for name, value in weights.items()}, as_bin)
    assert job().fingerprint != first


def test_a_single_file_takes_the_place_of_a_transformers_own_weights(
    model: Path, tiny_model: Path, manifest_of, tmp_path: Path
) -> None:
    (model / TRANSFORMER).unlink()
    config = CaptureConfig(model=str(model), transformer_file=str(tiny_model / TRANSFORMER))
    assert prepare(manifest_of("prompt\na small red star\n"), tmp_path / "run", config).fingerprint
