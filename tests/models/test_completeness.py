"""Checkpoints with a weight too few or too many, of every kind that is loaded, by safetensors' own list of keys."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewchannels.errors import InputError
from fewchannels.models.completeness import Loaded
from fewchannels.models.load import load, open_pipeline
from fewchannels.models.load_options import Loading
from fewchannels.models.source import find, geometry

COMPONENTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def opened(folder: Path | str, **how: Any) -> Any:
    source = find(str(folder))
    return load(source, geometry(source), Loading(**how), "cpu")


def weights_of(model: Path, component: str) -> Path:
    (file,) = (model / component).glob("*.safetensors")
    return file


def changed(model: Path, folder: Path, component: str, change: Change) -> Path:
    """A copy of a model with other weights in one component."""
    shutil.copytree(model, folder)
    file = weights_of(folder, component)
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def without_one(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(list(weights.items())[1:])


def with_one_more(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return weights | {"block_99.weight": torch.zeros(2)}


def with_one_renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    (name, first), *rest = weights.items()
    return {f"old_{name}": first} | dict(rest)


def all_renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As transformers 5.1 to 5.5 see CLIP's text encoder."""
    return {f"gone.{name}": value for name, value in weights.items()}


@pytest.mark.parametrize("name", ["demo", "tiny"])
def test_every_weight_of_a_whole_model_is_in_its_files_and_the_other_way_round(name: str, tiny_model: Path) -> None:
    folder = find("demo").folder if name == "demo" else tiny_model
    pipeline = opened("demo" if name == "demo" else tiny_model)
    for component in COMPONENTS:
        with safe_open(weights_of(folder, component), "pt") as file:
            stored = set(file.keys())
        state = getattr(pipeline, component).state_dict()
        tied = {"encoder.embed_tokens.weight"} & set(state)  # T5's other name of shared.weight
        assert set(state) - tied == stored, component


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_one, "lack 1 of the"),
        (with_one_renamed, "lack 1 of the"),
        (with_one_more, "contain 1 weights that .* does not have, such as 'block_99.weight'"),
    ],
)
def test_a_component_with_a_weight_too_few_or_too_many_is_refused(
    tiny_model: Path, tmp_path: Path, component: str, change: Change, says: str
) -> None:
    model = changed(tiny_model, tmp_path / "model", component, change)
    with pytest.raises(InputError, match=f"the files of {component} of '.*model' {says}"):
        opened(model)


def test_an_encoder_none_of_whose_weights_are_found_is_refused_with_their_number(
    tiny_model: Path, tmp_path: Path
) -> None:
    n = len(load_file(weights_of(tiny_model, "text_encoder")))
    model = changed(tiny_model, tmp_path / "model", "text_encoder", all_renamed)
    for open_it in (opened, lambda folder: open_pipeline(find(str(folder)), "cpu")):
        with pytest.raises(InputError, match=f"text_encoder of '.*' lack {n} of the {n} weights of CLIPTextModel"):
            open_it(model)


def test_buffers_that_a_class_computes_itself_may_be_in_the_files(tiny_model: Path, tmp_path: Path) -> None:
    model = changed(
        tiny_model,
        tmp_path / "model",
        "text_encoder",
        lambda weights: weights | {"text_model.embeddings.position_ids": torch.arange(16)[None]},
    )
    expected, found = (opened(folder).text_encoder.state_dict() for folder in (tiny_model, model))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_scales_of_quantized_weights_are_exceptions() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    Loaded(model, set(), {"0.weight.absmax", "0.weight.quant_state.bitsandbytes__nf4"}).check("x")
    for missing, unexpected in (({"1.weight"}, set()), ({"0.bias"}, set()), (set(), {"0.weights"})):
        with pytest.raises(InputError, match="the files of x"):
            Loaded(model, missing, unexpected).check("x")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_one, "lack 1 of the"),
        (with_one_renamed, "lack 1 of the"),
        (with_one_more, "contain 1 weights that FluxTransformer2DModel does not have"),
    ],
)
def test_a_single_file_with_a_weight_too_few_or_too_many_is_refused(
    tiny_model: Path, tmp_path: Path, change: Change, says: str
) -> None:
    file = tmp_path / "other.safetensors"
    save_file(change(load_file(weights_of(tiny_model, "transformer"))), file)
    with pytest.raises(InputError, match=f"the files of '.*other.safetensors' {says}"):
        opened(tiny_model, transformer_file=str(file))


def test_a_single_file_of_another_format_is_checked_after_its_conversion(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(weights_of(tiny_model, "transformer"))
    monkeypatch.setitem(
        SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"],
        "checkpoint_mapping_fn",
        lambda checkpoint, **_: {name.removeprefix("original."): value for name, value in checkpoint.items()},
    )
    file = tmp_path / "original.safetensors"
    save_file({f"original.{name}": value for name, value in weights.items()}, file)
    state = opened(tiny_model, transformer_file=str(file)).transformer.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    for change, says in ((without_one, "lack 1 of"), (with_one_more, "contain 1 weights")):
        save_file({f"original.{name}": value for name, value in change(weights).items()}, file)
        with pytest.raises(InputError, match=says):
            opened(tiny_model, transformer_file=str(file))


@pytest.mark.parametrize("prefix", ["original.", "model.diffusion_model."])
def test_a_weight_that_a_converter_leaves_behind_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    """As diffusers' own converter of FLUX does: it takes the weights whose names it knows."""
    weights = load_file(weights_of(tiny_model, "transformer"))
    taken = list(weights)

    def convert(checkpoint: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        for key in [key for key in checkpoint if prefix in key]:
            checkpoint[key.replace(prefix, "")] = checkpoint.pop(key)
        return {name: checkpoint.pop(name) for name in taken}

    monkeypatch.setitem(SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"], "checkpoint_mapping_fn", convert)
    file = tmp_path / "original.safetensors"
    other = {"first_stage_model.weight": torch.zeros(2)} if prefix.startswith("model") else {}
    save_file({prefix + name: value for name, value in weights.items()} | other, file)
    state = opened(tiny_model, transformer_file=str(file)).transformer.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    more = weights | {f"{taken[0]}.scale_weight": torch.ones(1)}
    save_file({prefix + name: value for name, value in more.items()} | other, file)
    with pytest.raises(InputError, match=r"contain 1 weights that Flux.* such as '.*scale_weight'"):
        opened(tiny_model, transformer_file=str(file))


def test_a_gguf_file_with_a_weight_too_few_or_too_many_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="GGUF is an extra of the user's own")
    weights = load_file(weights_of(tiny_model, "transformer"))
    for change, says in ((lambda same: same, None), (without_one, "lack 1 of"), (with_one_more, "contain 1 weights")):
        file = tmp_path / "transformer.gguf"
        writer = gguf.GGUFWriter(file, "flux")
        for name, value in change(weights).items():
            writer.add_tensor(name, value.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if says is None:
            state = opened(tiny_model, transformer_file=str(file)).transformer.state_dict()
            assert torch.equal(state["proj_out.weight"], weights["proj_out.weight"])
        else:
            with pytest.raises(InputError, match=says):
                opened(tiny_model, transformer_file=str(file))


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """An adapter of the transformer's four to_q, eight weights, and of the text encoder's q_proj, two."""
    pipeline, folder = opened(tiny_model), tmp_path_factory.mktemp("adapter")
    states = []
    for model, target in ((pipeline.transformer, "attn.to_q"), (pipeline.text_encoder, "q_proj")):
        model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=[target], init_lora_weights=False))
        states.append(get_peft_model_state_dict(model))
    pipeline.save_lora_weights(folder, transformer_lora_layers=states[0], text_encoder_lora_layers=states[1])
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def adapted(pipeline: Any) -> set[str]:
    """The names of an adapter's weights in a pipeline, as they are in its file."""
    return {
        f"{component}.{name.replace('.lora_0', '')}"
        for component in ("transformer", "text_encoder")
        for name in getattr(pipeline, component).state_dict()
        if "lora_" in name
    }


@pytest.mark.parametrize("part", ["transformer.", "text_encoder.", ""])
def test_an_adapter_of_one_component_or_of_both_is_taken_whole(
    adapter: dict[str, Tensor], tiny_model: Path, tmp_path: Path, part: str
) -> None:
    chosen = {name: value for name, value in adapter.items() if name.startswith(part)}
    save_file(chosen, tmp_path / "lora.safetensors")
    assert adapted(opened(tiny_model, lora=f"{tmp_path / 'lora.safetensors'}@0.5")) == set(chosen)


def _half(name: str) -> str:
    return name.replace("transformer.", "lora_unet_") if "transformer_blocks.0" in name else name


@pytest.mark.parametrize(
    ("rename", "says"),
    [
        (_half, "4 of 10 keys of the adapter .* do not match FluxPipeline, such as 'lora_unet_"),
        (lambda name: name.replace("transformer.", "lora_unet_"), "8 of 10 keys of the adapter .* do not match"),
        (
            lambda name: name.replace("transformer.transformer_blocks.0.", "transformer.transformer_blocks.99."),
            "2 of 10 keys .* match FluxPipeline, such as 'transformer.transformer_blocks.99.attn.to_q.lora_A",
        ),
        (
            lambda name: name.replace("encoder.layers.0", "encoder.layers.7"),
            "2 of 10 keys of the adapter .* do not match",
        ),
        (lambda name: f"x.{name}", "10 of 10 keys of the adapter .* do not match"),
        (
            lambda name: name.replace("lora_B", "lost") if "layers" in name else name,
            "1 of 10 keys of the adapter .* do not match",
        ),
    ],
)
def test_an_adapter_of_which_some_keys_fit_nothing_is_refused_with_their_number(
    adapter: dict[str, Tensor], tiny_model: Path, tmp_path: Path, rename: Callable[[str], str], says: str
) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({rename(name): value for name, value in adapter.items()}, file)
    with pytest.raises(InputError, match=says):
        opened(tiny_model, lora=f"{file}@1")


def test_half_of_a_product_and_no_adapter_at_all_are_refused(
    adapter: dict[str, Tensor], tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({name: value for name, value in adapter.items() if "lora_A" in name}, file)
    with pytest.raises(InputError, match=r"5 of 5 keys of the adapter .* are one factor of a product"):
        opened(tiny_model, lora=f"{file}@1")
    save_file({"weights": torch.zeros(2)}, file)
    with pytest.raises(InputError, match=r"1 of 1 keys of the adapter .* do not match"):
        opened(tiny_model, lora=f"{file}@1")
    file.write_bytes(b"no weights" * 10)
    with pytest.raises(InputError, match=r"the adapter '.*lora.safetensors' cannot be loaded into FluxPipeline"):
        opened(tiny_model, lora=f"{file}@1")
