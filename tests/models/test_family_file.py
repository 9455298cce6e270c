"""Families that users describe themselves, on a real pipeline that the package does not know."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from checkpoints import CASES
from command import command
from diffusers import DiffusionPipeline
from outsider import FAMILY, build
from torch import Tensor

from fewchannels import open_run
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.recompute import recompute
from fewchannels.errors import InputError
from fewchannels.models.families import FAMILIES
from fewchannels.models.family_file import as_fields, family_of, read_family
from fewchannels.models.inspection import UnsettledError, inspect_pipeline
from fewchannels.models.source import find, geometry
from fewchannels.runs.storage import open_storage

SIZE = {"height": 16, "width": 16, "num_inference_steps": 2, "top_k": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outsider") / "bria"
    build().save_pretrained(folder)
    return folder


@pytest.fixture
def family_file(tmp_path: Path) -> Path:
    path = tmp_path / "bria.yaml"
    path.write_text(FAMILY, encoding="utf-8")
    return path


def direct_run(folder: Path) -> np.ndarray:
    """The conditional rows of every block's image stream, ``(step, layer, sample, token, channel)``."""
    pipeline, states = DiffusionPipeline.from_pretrained(folder), []
    pipeline.set_progress_bar_config(disable=True)
    blocks = [*pipeline.transformer.transformer_blocks, *pipeline.transformer.single_transformer_blocks]
    for block in blocks:
        block.register_forward_hook(lambda module, inputs, output: states.append(output[1][1:].numpy().copy()))
    with torch.inference_mode():
        pipeline(
            ["a small red star"],
            negative_prompt=[""],
            height=16,
            width=16,
            num_inference_steps=2,
            guidance_scale=4.0,
            max_sequence_length=16,
            generator=[torch.Generator().manual_seed(3)],
        )
    return np.stack(states).reshape(2, 3, *states[0].shape)


def test_a_class_that_is_not_known_is_refused_with_what_to_do(model: Path) -> None:
    with pytest.raises(InputError, match=r"'BriaTransformer2DModel' is not supported.*--family"):
        geometry(find(str(model)))


def test_a_described_class_is_captured_by_the_command_and_recomputed(
    model: Path, family_file: Path, manifest_of, tmp_path: Path
) -> None:
    manifest, run = manifest_of("prompt,seed\na small red star,3\n"), tmp_path / "run"
    flags = [part for name, value in SIZE.items() for part in (f"--{name.replace('_', '-')}", value)]
    out = ["--manifest", manifest, "--out", run, "--guidance-scale", "4", "--actors", "1", "--json"]
    done = command("capture", "--model", model, "--family", family_file, *flags, *out)
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["n_done"] == 1
    stored = open_run(run).activations["max_abs"].values
    expected = np.abs(direct_run(model)).max(axis=3).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(stored, expected, rtol=1e-5)  # an actor has other threads, and so other last bits
    assert recompute(open_storage(run), 1, 1)[0].difference < 1e-4


def test_the_description_is_part_of_the_fingerprint(
    model: Path, family_file: Path, manifest_of, tmp_path: Path
) -> None:
    manifest, config = manifest_of("prompt\na small red star\n"), CaptureConfig(model=str(model), **SIZE)
    name, family = read_family(family_file)
    fields = as_fields(family)
    fields["lists"][0]["image"], fields["lists"][0]["text"] = fields["lists"][0]["text"], fields["lists"][0]["image"]
    mine, other = (
        prepare(manifest, tmp_path / "run", config, (name, each)) for each in (family, family_of(fields, "test"))
    )
    assert mine.fingerprint != other.fingerprint


def test_a_description_that_the_forwards_do_not_fit_ends_the_run(
    model: Path, family_file: Path, manifest_of, tmp_path: Path
) -> None:
    family_file.write_text(FAMILY.replace("batched", "sequential"), encoding="utf-8")
    manifest, run = manifest_of("prompt\na small red star\n"), tmp_path / "run"
    flags = [part for name, value in SIZE.items() for part in (f"--{name.replace('_', '-')}", value)]
    out = ["--manifest", manifest, "--out", run, "--actors", "1"]
    done = command("capture", "--model", model, "--family", family_file, *flags, *out)
    assert done.code == 2
    assert "BriaPipeline ran 2 rows for 1 samples" in done.stderr
    assert not (run / "ledger").exists()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_known_family_can_be_written_down_and_read_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "family.yaml"
    path.write_text(yaml.safe_dump({name: as_fields(FAMILIES[name])}), encoding="utf-8")
    assert read_family(path) == (name, FAMILIES[name])


def test_the_example_in_the_docs_is_stable_diffusion_3(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    (tmp_path / "sd3.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0], encoding="utf-8")
    assert read_family(tmp_path / "sd3.yaml") == ("SD3Transformer2DModel", FAMILIES["SD3Transformer2DModel"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A: {}\nB: {}\n", "must contain one family"),
        ("[", "cannot read the family file"),
        (FAMILY.replace("batched", "twice"), "pipelines.BriaPipeline.guidance: Input should be 'none', 'batched'"),
        (FAMILY.replace("packed", "paked"), "paked: Unexpected keyword argument"),
        (FAMILY.replace("count: num_layers, ", ""), "lists.0.count: Field required"),
        (FAMILY.replace("patch: 2", "patch: [2]"), "patch"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_the_name_of_the_field(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "family.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(says)):
        read_family(path)


def test_the_probe_finds_what_the_description_says(model: Path, tmp_path: Path) -> None:
    written = tmp_path / "found.yaml"
    command = [Path(sys.executable).parent / "fewchannels", "models", "inspect", model, "-o", written]
    done = subprocess.run(
        [*map(str, command), "--height", "24", "--width", "16", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert "tokens 0 to 23 of 24 are the image's 6 x 4, row by row" in about["evidence"][0]
    (name, found), (_, described) = read_family(written), read_family(_described(tmp_path))
    assert name == "BriaTransformer2DModel"
    assert [(each.path, each.count, each.image, each.text) for each in found.lists] == [
        (each.path, each.count, each.image, each.text) for each in described.lists
    ]
    (how,), (expected,) = found.pipelines.values(), described.pipelines.values()
    names = ("guidance", "order", "classifier_free", "default_guidance", "negative", "length")
    assert [getattr(how, each) for each in names] == [getattr(expected, each) for each in names]
    assert (found.patch, found.packed, found.text, found.width) == (2, True, described.text, described.width)


def _described(folder: Path) -> Path:
    path = folder / "described.yaml"
    path.write_text(FAMILY, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["sd3", "chroma", "sana", "flux2-klein"])
def test_the_probe_finds_what_the_table_says(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    pipeline = case.build()
    pipeline.set_progress_bar_config(disable=True)
    found = inspect_pipeline(pipeline, *(case.tall or case.square))
    known = FAMILIES[found.transformer]
    assert [(each.path, each.image) for each in found.family.lists] == [(each.path, each.image) for each in known.lists]
    (how,), expected = found.family.pipelines.values(), known.pipelines[type(pipeline).__name__]
    names = ("guidance", "order", "classifier_free", "default_guidance", "negative")
    assert [getattr(how, each) for each in names] == [getattr(expected, each) for each in names]
    assert found.family.packed == known.packed


def test_a_list_in_which_no_image_was_found_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = build()
    pipeline.set_progress_bar_config(disable=True)
    single = pipeline.transformer.single_transformer_blocks[0]
    own = single.forward

    def shuffled(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        text, image = own(*arguments, **keywords)
        return text, image.flip(1) + 0 * text.sum()

    monkeypatch.setattr(single, "forward", shuffled)
    found = inspect_pipeline(pipeline, 24, 16)
    assert [each.path for each in found.family.lists] == ["transformer_blocks"]
    assert any("single_transformer_blocks.0: changes with the noise" in doubt for doubt in found.doubts)


def test_a_model_whose_tokens_do_not_move_with_their_noise_is_not_guessed_at() -> None:
    pipeline = build()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.x_embedder.weight.data.zero_()
    with pytest.raises(UnsettledError, match="no list of blocks of BriaTransformer2DModel"):
        inspect_pipeline(pipeline, 24, 16)


def test_the_table_in_the_docs_is_what_its_script_prints() -> None:
    root = Path(__file__).parents[2]
    script = [sys.executable, str(root / "tests" / "helpers" / "families_table.py")]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert printed in (root / "docs" / "families.md").read_text(encoding="utf-8")


def test_known_models_are_listed_and_shown() -> None:
    command = str(Path(sys.executable).parent / "fewchannels")
    listed = subprocess.run([command, "models", "list", "--json"], capture_output=True, text=True, check=True)
    assert list(json.loads(listed.stdout)) == list(FAMILIES)
    table = subprocess.run([command, "models", "list"], capture_output=True, text=True, check=True).stdout
    assert all(pipeline in table for family in FAMILIES.values() for pipeline in family.pipelines)
    shown = subprocess.run([command, "models", "show", "demo", "--json"], capture_output=True, text=True, check=True)
    about = json.loads(shown.stdout)
    assert (about["n_layers"], about["n_channels"], about["default_grid"]) == (6, 128, [8, 8])
    assert about["layers"] == {"dual": 2, "single": 4}
