"""The ways to load a large model, each with taps on it, against a plain load of the same weights."""

import hashlib
import re
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from huggingface_hub.errors import GatedRepoError
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.errors import InputError
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.settings import SweepSettings
from fewchannels.interventions.sweep import prepare_sweep
from fewchannels.manifest import Sample
from fewchannels.models.families import FAMILIES
from fewchannels.models.generation import Generation, Settings
from fewchannels.models.load import load
from fewchannels.models.load_options import Loading
from fewchannels.models.sampler import Sampler
from fewchannels.models.source import find, geometry
from fewchannels.models.taps import tapped

SETTINGS = Settings(height=16, width=16, steps=2, guidance=3.5, true_cfg_scale=1.0)
SAMPLES = [Sample("0", "a small red star", 7), Sample("1", "a large blue ring", 8)]


def sampler_of(model: Path, **how: Any) -> Sampler:
    source = find(str(model))
    shape = geometry(source)
    return Sampler(load(source, shape, Loading(**how), "cpu"), shape)


def run(sampler: Sampler) -> tuple[np.ndarray, list[Tensor]]:
    """Images, and the image stream behind every block at every step."""
    states: list[Tensor] = []
    with tapped(sampler, sampler.geometry.blocks, lambda site, x: states.append(x.clone())):
        images = np.stack([np.asarray(image) for image in sampler.generate(SAMPLES, SETTINGS)])
    return images, states


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> tuple[np.ndarray, list[Tensor]]:
    return run(sampler_of(tiny_model))


def test_blocks_that_are_offloaded_give_the_same_states_and_images(tiny_model: Path, plain) -> None:
    images, states = run(sampler_of(tiny_model, offload="group"))
    np.testing.assert_array_equal(images, plain[0])
    assert len(states) == len(plain[1]) == 2 * 4
    assert all(torch.equal(a, b) for a, b in zip(states, plain[1], strict=True))


@pytest.fixture(scope="module")
def compiled(tiny_model: Path) -> Sampler:
    """Compiled before any tap is there, which must not hide a later one."""
    sampler = sampler_of(tiny_model, compile=True)
    sampler.generate(SAMPLES, SETTINGS)
    return sampler


def test_taps_see_every_compiled_block_at_every_step(compiled: Sampler, plain) -> None:
    _, states = run(compiled)
    assert len(states) == 2 * 4
    for state, expected in zip(states, plain[1], strict=True):
        torch.testing.assert_close(state, expected, rtol=1e-3, atol=1e-4)


def test_an_edit_reaches_what_follows_a_compiled_block(compiled: Sampler) -> None:
    _, before = run(compiled)
    with tapped(compiled, compiled.geometry.blocks[:1], lambda site, x: torch.zeros_like(x)):
        _, after = run(compiled)
    assert not after[0].any()
    assert not torch.allclose(after[1], before[1], atol=1e-2)


def test_taps_see_the_states_of_quantised_blocks(tiny_model: Path, plain) -> None:
    pytest.importorskip(
        "torchao", reason="torchao warns at every import of diffusers, so it is no part of the tests' set"
    )
    quantized = sampler_of(tiny_model, quantization="torchao-int8")
    # By hand: each row of a weight is rounded to 255 steps of its largest magnitude.
    kept = sampler_of(tiny_model)
    for module in kept.pipeline.transformer.modules():
        if isinstance(module, torch.nn.Linear):
            step = module.weight.data.abs().amax(dim=1, keepdim=True) / 127.5
            module.weight.data = (module.weight.data / step).round().clamp(-128, 127) * step
    _, states = run(quantized)
    _, expected = run(kept)
    scale = expected[0].abs().max()
    assert 0 < (states[0] - plain[1][0]).abs().max() < 0.05 * scale
    assert (states[0] - expected[0]).abs().max() < 0.5 * (states[0] - plain[1][0]).abs().max()


def test_another_attention_backend_gives_the_same_states_to_the_last_bits(tiny_model: Path, plain) -> None:
    other = sampler_of(tiny_model, attention="_native_math")
    names = {block.attn.processor._attention_backend.value for block in other.pipeline.transformer.transformer_blocks}
    assert names == {"_native_math"}
    assert _AttentionBackendRegistry.get_active_backend()[0].value == "native", "of the models that did not ask for it"
    for state, expected in zip(run(other)[1], plain[1], strict=True):
        torch.testing.assert_close(state, expected, rtol=1e-3, atol=1e-4)


def test_an_adapter_is_added_with_its_strength(tiny_model: Path, tmp_path: Path) -> None:
    adapted = sampler_of(tiny_model).pipeline
    adapted.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["attn.to_q"], init_lora_weights=False)
    )
    state = get_peft_model_state_dict(adapted.transformer)
    adapted.save_lora_weights(tmp_path, transformer_lora_layers=state)
    (file,) = tmp_path.glob("*.safetensors")
    merged = sampler_of(tiny_model)
    n_merged = 0
    for name, module in merged.pipeline.transformer.named_modules():
        if name.endswith("attn.to_q"):
            down, up = (state[f"{name}.lora_{which}.weight"] for which in "AB")
            module.weight.data += 0.5 * up @ down
            n_merged += 1
    assert n_merged == 4
    _, states = run(sampler_of(tiny_model, lora=f"{file}@0.5"))
    _, expected = run(merged)
    for state_, expected_ in zip(states, expected, strict=True):
        torch.testing.assert_close(state_, expected_, rtol=1e-3, atol=1e-4)


def test_a_single_file_replaces_the_transformers_weights(tiny_model: Path, tmp_path: Path) -> None:
    other = sampler_of(tiny_model)
    for weights in other.pipeline.transformer.parameters():
        weights.data *= 1.5
    save_file(other.pipeline.transformer.state_dict(), tmp_path / "other.safetensors")
    images, states = run(sampler_of(tiny_model, transformer_file=str(tmp_path / "other.safetensors")))
    expected_images, expected = run(other)
    np.testing.assert_array_equal(images, expected_images)
    assert all(torch.equal(a, b) for a, b in zip(states, expected, strict=True))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"offload": "disk"}, "none, model, sequential, group"),
        ({"offload": "model"}, "this process has no GPU"),
        ({"device_map": "balanced"}, "this process has no GPU"),
        ({"device_map": "balanced", "offload": "model"}, "device_map and offload cannot be combined"),
        ({"compile": True, "offload": "group"}, "compile and offload 'group' cannot be combined"),
        ({"quantization": "int3"}, "torchao-int8"),
        ({"attention": "quick"}, "quick"),
        ({"lora": "nowhere.safetensors"}, "no file 'nowhere.safetensors'"),
        (
            {"lora": "style.safetensors@much"},
            "strength of lora 'style.safetensors' is 'much'; it must be a number, -100 to",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_a_reason(tiny_model: Path, how: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        sampler_of(tiny_model, **how)


@pytest.mark.parametrize(
    ("how", "library", "extra"),
    [
        ({"quantization": "bitsandbytes-8bit"}, "bitsandbytes", "bitsandbytes"),
        ({"quantization": "torchao-int8"}, "torchao", "torchao"),
        ({"lora": "style.safetensors@0.5"}, "peft", "lora"),
        ({"transformer_file": "transformer.gguf"}, "gguf", "gguf"),
    ],
)
def test_an_option_whose_library_is_missing_names_the_extra_that_installs_it(
    how: dict[str, str], library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    says = rf'needs {library}, which is not installed: pip install "fewchannels\[{extra}\]"$'
    with pytest.raises(InputError, match=says):
        Loading(**how)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [re.split("[<>=]", line)[0] for line in project["optional-dependencies"][extra]] == [library]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_gated_model_says_where_its_licence_is_and_how_to_log_in(
    wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = SimpleNamespace(headers={}, request=None, status_code=403)

    def download(*arguments: Any, **keywords: Any) -> str:
        gated = GatedRepoError("403 Client Error. Cannot access gated repo", response=answer)
        if not wrapped:
            raise gated
        raise OSError("Cannot load model: it is not cached") from gated

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    with pytest.raises(
        InputError, match=r"is gated.*https://huggingface\.co/black-forest-labs/FLUX\.1-dev.*hf auth login"
    ):
        find("black-forest-labs/FLUX.1-dev")


def test_a_model_that_is_not_here_says_why_when_offline() -> None:
    with pytest.raises(InputError, match=r"no folder 'someone/model'.*HF_HUB_OFFLINE"):
        find("someone/model")


def test_files_that_change_the_weights_are_part_of_the_fingerprint(
    tiny_model: Path, manifest_of, tmp_path: Path
) -> None:
    manifest = manifest_of("prompt\na small red star\n")

    def fingerprint(**settings: Any) -> str:
        return prepare(manifest, tmp_path / "run", CaptureConfig(model=str(tiny_model), **settings)).fingerprint

    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_file({"weights": torch.zeros(2)}, first)
    save_file({"weights": torch.ones(2)}, second)
    shutil.copy(first, tmp_path / "moved.safetensors")
    moved = str(tmp_path / "moved.safetensors")
    assert fingerprint(transformer_file=str(first)) == fingerprint(transformer_file=moved) != fingerprint()
    assert fingerprint(transformer_file=str(first)) != fingerprint(transformer_file=str(second))
    assert fingerprint(offload="group") == fingerprint()
    assert fingerprint(attention="native") != fingerprint()


def test_captures_and_sweeps_know_a_model_by_the_same_digests(tiny_model: Path, manifest_of, tmp_path: Path) -> None:
    manifest, file = manifest_of("prompt\na small red star\n"), tmp_path / "other.safetensors"
    save_file({"weights": torch.zeros(2)}, file)
    weights = hashlib.sha256()
    for path in sorted(tiny_model.glob("*/*.safetensors")):
        weights.update(f"{path.parent.name}/{path.name}".encode() + hashlib.sha256(path.read_bytes()).digest())
    expected = {
        "weights": weights.hexdigest(),
        "weight_files": {"transformer_file": hashlib.sha256(file.read_bytes()).hexdigest()},
    }
    family, grids = ("MyTransformer", FAMILIES["FluxTransformer2DModel"]), (Grid(k=(2,)),)
    settings = {"model": str(tiny_model), "transformer_file": str(file), "num_inference_steps": 2}
    job = prepare(manifest, tmp_path / "run", CaptureConfig(**settings), family)
    sweeping = SweepSettings("disruption", Generation(**settings), grids)
    sweep = prepare_sweep(manifest, tmp_path / "sweep", sweeping, family).sweep
    for identity in (job.identity, sweep.identity):
        assert {name: identity[name] for name in expected} == expected
    assert list(job.identity["family"]) == ["MyTransformer"]
    assert job.identity["family"] == sweep.identity["family"]
