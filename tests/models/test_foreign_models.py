"""A model folder that somebody else made: no code of it runs, whatever is in it, and what is wrong is said in words."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from fewchannels.errors import InputError
from fewchannels.models.family_file import read_family
from fewchannels.models.load import load, open_pipeline
from fewchannels.models.load_options import Loading
from fewchannels.models.source import find, geometry, text_encoders

CONFIGS = ["model_index.json", "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
CONFIGS += ["text_encoder/config.json", "text_encoder_2/config.json"]
TORN: dict[str, bytes] = {
    "empty": b"",
    "list": b"[]",
    "null": b"null",
    "number": b"1",
    "text": b'"x"',
    "nested": b"[" * 3000 + b"]" * 3000,
    "nested fields": b'{"_class_name": ' * 3000 + b"1" + b"}" * 3000,
    "bytes": b"\xff\xfe\x00",
}


class Canary:
    """A value whose unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def code(path: Path) -> str:
    """A module that makes a folder when it is imported, and whose attributes are all harmless classes."""
    return (
        f"import os\nos.mkdir({str(path)!r})\nclass Evil:\n    from_pretrained = from_config = lambda *a, **k: Evil()\n"
    )


def pickled(value: Any, how: str) -> bytes:
    if how == "plain":
        return pickle.dumps(value)
    data = io.BytesIO()
    torch.save({"weight": value}, data, _use_new_zipfile_serialization=how == "zip")
    return data.getvalue()


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "code-ran"
    yield path
    assert not path.exists(), "code of the model's folder ran"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def opened(model: Path, **how: Any) -> None:
    """Do with a model's folder what every command does."""
    source = find(str(model))
    text_encoders(source)
    load(source, geometry(source), Loading(**how), "cpu")


def refused(model: Path, **how: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(model, **how)
    return str(caught.value)


def test_the_canary_sings(tmp_path: Path) -> None:
    pickle.loads(pickled(Canary(tmp_path / "a"), "plain"))
    torch.load(io.BytesIO(pickled(Canary(tmp_path / "b"), "zip")), weights_only=False)
    exec(code(tmp_path / "c"))
    assert [(tmp_path / name).is_dir() for name in "abc"] == [True] * 3


@pytest.mark.parametrize("how", ["plain", "zip", "legacy"])
@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_no_pickle_of_a_component_runs(model: Path, canary: Path, component: str, how: str) -> None:
    for path in (model / component).glob("*.safetensors*"):
        path.unlink()
    name = "pytorch_model.bin" if component.startswith("text") else "diffusion_pytorch_model.bin"
    (model / component / name).write_bytes(pickled(Canary(canary), how))
    assert "cannot open" in refused(model)
    with pytest.raises(InputError):
        open_pipeline(find(str(model)), "cpu")


def test_weights_of_tensors_alone_may_be_pickled(model: Path) -> None:
    """As older checkpoints are: PyTorch reads them without running anything."""
    source = find(str(model))
    weights = load(source, geometry(source), Loading(), "cpu").transformer.state_dict()
    for path in (model / "transformer").glob("*.safetensors*"):
        path.unlink()
    torch.save(weights, model / "transformer" / "diffusion_pytorch_model.bin")
    again = load(source, geometry(source), Loading(), "cpu").transformer.state_dict()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize("how", ["plain", "zip", "legacy"])
@pytest.mark.parametrize("suffix", ["bin", "pt", "ckpt", "safetensors", "gguf"])
@pytest.mark.parametrize("option", ["lora", "transformer_file"])
def test_no_pickle_of_an_adapter_or_a_transformer_file_runs(
    tiny_model: Path, tmp_path: Path, canary: Path, option: str, suffix: str, how: str
) -> None:
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(pickled(Canary(canary), how))
    refused(tiny_model, **{option: str(path)})


@pytest.mark.parametrize("where", ["component", "root", "current folder"])
@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "scheduler"])
def test_no_module_of_a_components_own_is_imported(
    model: Path, canary: Path, name: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = {"component": model / name, "root": model, "current folder": tmp_path}[where]
    (folder / "evil.py").write_text(code(canary))
    monkeypatch.syspath_prepend(tmp_path)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {name: ["evil", "Evil"]}))
    assert "evil" in refused(model)
    with pytest.raises(InputError, match="evil"):
        open_pipeline(find(str(model)), "cpu")


@pytest.mark.parametrize("kind", [["evil", "Evil"], ["evil"], "evil", {"evil": 1}, None, 1, [], True])
@pytest.mark.parametrize("key", CONFIGS)
def test_a_class_name_of_another_kind_runs_nothing(model: Path, canary: Path, key: str, kind: Any) -> None:
    for folder in (model, (model / key).parent):
        (folder / "evil.py").write_text(code(canary))
    config = json.loads((model / key).read_text()) | {"_class_name": kind, "auto_map": {"AutoModel": "evil.Evil"}}
    (model / key).write_text(json.dumps(config | {"architectures": kind, "custom_pipelines": {"evil": kind}}))
    if key.split("/")[0] in ("model_index.json", "transformer"):
        assert refused(model)
        return
    with suppress(InputError):
        opened(model)


@pytest.mark.parametrize("torn", TORN)
@pytest.mark.parametrize("key", CONFIGS)
def test_a_configuration_that_is_torn_is_refused_in_words(model: Path, key: str, torn: str) -> None:
    (model / key).write_bytes(TORN[torn])
    assert refused(model)


VALUES: list[Any] = [None, "x", -1, 0, 10**12, 1e300, [], {}, [[]], True, "\0", "../../x"]


@pytest.mark.parametrize("key", CONFIGS)
def test_a_configuration_with_any_value_in_any_field_ends_in_words(model: Path, key: str) -> None:
    """Geometry only: no weights are read, and nothing is as large as a field says."""
    whole = (model / key).read_text()
    for name in json.loads(whole):
        for value in VALUES:
            (model / key).write_text(json.dumps(json.loads(whole) | {name: value}))
            with suppress(InputError):
                source = find(str(model))
                text_encoders(source)
                geometry(source)


@pytest.mark.parametrize(
    "text", ["[" * 3000, "a: " * 3000, "{a: " * 3000, "- " * 3000, "&a [*a]", "!!python/name:os.x"]
)
def test_a_family_file_that_is_hostile_is_refused_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "family.yaml").write_text(text)
    with pytest.raises(InputError, match="family"):
        read_family(tmp_path / "family.yaml")


def test_a_family_file_that_grows_when_it_is_shown_is_refused_in_a_few_lines(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (tmp_path / "family.yaml").write_text("Evil:\n" + "\n".join(f"  {line}" for line in lines))
    with pytest.raises(InputError) as caught:
        read_family(tmp_path / "family.yaml")
    assert len(str(caught.value)) < 10_000
