"""Options of ``fewchannels explore`` that load a model for its live page."""

from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from fewchannels.cli import app
from fewchannels.cli.explore import LOADING, _session
from fewchannels.errors import InputError
from fewchannels.models.families import FAMILIES
from fewchannels.models.family_file import as_fields
from fewchannels.models.load_options import Loading


def test_a_model_is_loaded_as_its_options_say(tiny_model: Path, tmp_path: Path) -> None:
    family = tmp_path / "family.yaml"
    family.write_text(yaml.safe_dump({"FluxTransformer2DModel": as_fields(FAMILIES["FluxTransformer2DModel"])}))
    live = _session(str(tiny_model), None, family, Loading(dtype="bfloat16"))
    try:
        assert live.model.model.sampler.transformer.dtype == torch.bfloat16
    finally:
        live.model.close()
    with pytest.raises(InputError, match=r"revision is 'main', but .* is a folder"):
        _session(str(tiny_model), "main", None, Loading())


@pytest.mark.parametrize("flag", [*LOADING.flags(), "--revision", "--family"])
def test_options_of_a_model_are_refused_without_one(flag: str, tmp_path: Path) -> None:
    value = [] if flag == "--compile" else ["x"]
    answer = CliRunner().invoke(app, ["explore", str(tmp_path), flag, *value])
    assert isinstance(answer.exception, InputError)
    assert str(answer.exception) == f"{flag} would have no effect: there is no --model to load. Omit it."
