"""Captures from Python: of a model by its name, and of a pipeline that is loaded already."""

import inspect
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from diffusers import DiffusionPipeline
from own_calls import noise
from peft import LoraConfig
from two_runs import ROWS, captured

import fewchannels as fc
from fewchannels.api.models import lent
from fewchannels.api.progress import RunBar
from fewchannels.cluster.tasks import Progress
from fewchannels.errors import FewchannelsWarning, IncompleteRunError, InputError, RunConflictError, StorageError
from fewchannels.runs.ledger import Ledger

SETTINGS: dict[str, Any] = {"num_inference_steps": 2, "top_k": 3, "batch_size": 4, "shard_samples": 3}
SIZE: dict[str, Any] = {"height": 16, "width": 16, "max_sequence_length": 16}
QUIET: dict[str, Any] = SETTINGS | {"progress": False}


@pytest.fixture
def prompts() -> fc.Prompts:
    rows = [row.split(",") for row in ROWS]
    return fc.prompts(pd.DataFrame({"prompt": [row[0] for row in rows], "seed": [int(row[1]) for row in rows]}))


def test_a_loaded_pipeline_is_captured_as_its_folder_is(
    pipe: DiffusionPipeline, prompts: fc.Prompts, tiny_model: Path, tmp_path: Path
) -> None:
    expected = fc.open_run(captured(tmp_path, "EXPECTED", tiny_model, ROWS))
    run = fc.capture(prompts, tmp_path / "RUN", model=pipe, workers=0, **QUIET)
    xr.testing.assert_identical(run.activations.load(), expected.activations.load())
    own = pipe("two blue rings", num_inference_steps=2, generator=noise(1), **SIZE)
    np.testing.assert_array_equal(np.asarray(run.image(2)), np.asarray(own.images[0]))


def test_a_model_by_its_name_is_captured_as_by_the_command(
    prompts: fc.Prompts, tiny_model: Path, tmp_path: Path
) -> None:
    expected = fc.open_run(captured(tmp_path, "EXPECTED", tiny_model, ROWS))
    run = fc.capture(prompts, tmp_path / "RUN", model=tiny_model, **QUIET)
    xr.testing.assert_identical(run.activations.load(), expected.activations.load())
    assert run.description["fingerprint"] == expected.description["fingerprint"]


def test_a_pipeline_is_left_as_it_was(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    pipe.set_progress_bar_config(disable=False, leave=False)
    pipe("a", num_inference_steps=1, **SIZE)
    before, scheduler = dict(vars(pipe)), pipe.scheduler.step
    fc.capture(["a"], tmp_path / "RUN", model=pipe, **QUIET)
    assert pipe._progress_bar_config == {"disable": False, "leave": False}
    assert set(vars(pipe)) == set(before)
    assert pipe.scheduler.step == scheduler
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.transformer.modules())


def test_a_pipelines_own_adapter_is_captured_and_names_another_run(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    plain = fc.capture(["a"], tmp_path / "PLAIN", model=pipe, **QUIET)
    torch.manual_seed(0)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    with pytest.raises(RunConflictError, match="weights"):
        fc.capture(["a"], tmp_path / "PLAIN", model=pipe, **QUIET)
    adapted = fc.capture(["a"], tmp_path / "ADAPTED", model=pipe, **QUIET)
    image = pipe("a", num_inference_steps=2, generator=noise(0), **SIZE).images[0]
    np.testing.assert_array_equal(np.asarray(adapted.image(0)), np.asarray(image))
    assert (np.asarray(plain.image(0)) != np.asarray(image)).any()


def test_a_second_call_resumes_and_a_longer_one_grows_the_run(
    pipe: DiffusionPipeline, prompts: fc.Prompts, tmp_path: Path
) -> None:
    def finished(run: fc.Run) -> dict[int, str]:
        records = Ledger(run.storage).records(run.description["fingerprint"])
        return {task: record.finished for task, record in records.items()}

    first = finished(fc.capture(prompts[:3], tmp_path / "RUN", model=pipe, **QUIET))
    assert finished(fc.capture(prompts[:3], tmp_path / "RUN", model=pipe, **QUIET)) == first
    grown = fc.capture(prompts, tmp_path / "RUN", model=pipe, **QUIET)
    assert len(grown) == 8
    assert finished(grown)[0] == first[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"workers": 2}, "workers=2 cannot be used with a loaded pipeline"),
        ({"dtype": "bfloat16"}, "dtype cannot be applied to a pipeline that is already loaded"),
        ({"offload": "model"}, "offload cannot be applied to a pipeline"),
        ({"top_k": 500}, r"top_k is 500, .* Lower top_k\."),
        ({"layers": [9]}, "layer 9 does not exist; the valid ones are 0 to"),
        ({"layers": [-9]}, "layers includes -9; valid are"),
        ({"topk": 3}, r"unknown setting in fc.capture 'topk'. Did you mean 'top_k'\?"),
        ({"num_inference_steps": "many"}, "num_inference_steps in fc.capture is 'many'; it must be int"),
        ({"max_bytes": "1kB"}, "needs about .*, but max_bytes allows only 1 kB"),
    ],
)
def test_bad_arguments_are_refused_in_words_of_python(
    pipe: DiffusionPipeline, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        fc.capture(["a"], tmp_path / "RUN", **{"model": pipe} | QUIET | more)
    assert "--" not in str(raised.value)
    assert not (tmp_path / "RUN").exists()


def test_a_pipeline_that_is_being_edited_is_not_captured(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    with fc.edit(pipe, fc.zero([1])), pytest.raises(InputError, match=r"inside fc\.record or fc\.edit"):
        fc.capture(["a"], tmp_path / "RUN", model=pipe, **QUIET)


def test_an_interrupted_capture_resumes_and_the_pipeline_is_free(
    pipe: DiffusionPipeline, prompts: fc.Prompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(bar: RunBar, progress: Progress) -> None:
        if progress.n_done >= 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunBar, "show", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fc.capture(prompts, tmp_path / "RUN", model=pipe, **QUIET)
    assert not any(module._forward_hooks for module in pipe.transformer.modules())
    begun = len(fc.open_run(tmp_path / "RUN").samples)
    assert 3 <= begun < 8
    whole = fc.capture(prompts, tmp_path / "RUN", model=pipe, **QUIET)
    undisturbed = fc.capture(prompts, tmp_path / "UNDISTURBED", model=pipe, **QUIET)
    xr.testing.assert_identical(whole.activations.load(), undisturbed.activations.load())


def test_samples_that_fail_are_an_error_and_the_others_are_kept(
    pipe: DiffusionPipeline, prompts: fc.Prompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = type(pipe).encode_prompt

    def failing(self: Any, prompt: Any, *arguments: Any, **given: Any) -> Any:
        if "a heart" in prompt:
            raise RuntimeError("no hearts")
        return encode(self, prompt, *arguments, **given)

    failing.__signature__ = inspect.signature(encode)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(pipe), "encode_prompt", failing)
    said = r"6 of 8 samples are done, 2 failed individually.*Make the same call again to retry[\s\S]*no hearts"
    with pytest.raises(IncompleteRunError, match=said):
        fc.capture(prompts, tmp_path / "RUN", model=pipe, **QUIET)
    assert fc.open_run(tmp_path / "RUN").samples.status.tolist() == ["done"] * 4 + ["failed"] * 2 + ["done"] * 2


def test_layers_and_steps_count_from_the_end(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    last = len(fc.capture(["a"], tmp_path / "ALL", model=pipe, **QUIET).layers) - 1
    run = fc.capture(["a"], tmp_path / "RUN", model=pipe, layers=(0, -1), steps=-1, **QUIET)
    assert (run.layers, run.steps) == ([0, last], [1])
    other = fc.capture(["a"], tmp_path / "OTHER", model=pipe, layers=range(1, 3), streams=("image", "text"), **QUIET)
    assert other.layers == [1, 2]
    assert other.description["config"]["streams"] == "image,text"


def test_truncated_prompts_are_one_warning_and_the_libraries_print_nothing(
    pipe: DiffusionPipeline, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        pytest.warns(FewchannelsWarning, match="truncated 1 prompts: its limit is") as warned,
    ):
        run = fc.capture(["word " * 600, "a"], tmp_path / "RUN", model=pipe, **QUIET)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert run.samples.prompt_truncated.tolist() == [True, False]


def test_progress_is_shown_unless_it_is_unwanted(
    pipe: DiffusionPipeline, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fc.capture(["a", "b"], tmp_path / "RUN", model=pipe, **SETTINGS)
    said = capfd.readouterr()
    assert "2/2" in said.err
    assert not said.out
    fc.capture(["a", "b"], tmp_path / "QUIET", model=pipe, **QUIET)
    assert capfd.readouterr() == ("", "")


def test_the_manifests_columns_are_coordinates(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    table = pd.DataFrame({"prompt": list("abcd"), "Category": ["x", "y", "x", "y"], "layer": [7, 8, 9, 10]})
    with pytest.warns(FewchannelsWarning, match="In where, by and galleries layer is yours"):
        prompts = fc.prompts(table)
    run = fc.capture(prompts, tmp_path / "RUN", model=pipe, **QUIET)
    data = run.activations.mean_abs.isel(step=-1).load()
    mean = data.groupby("Category").mean()
    np.testing.assert_allclose(mean.sel(Category="y").values, (data.values[1] + data.values[3]) / 2, rtol=1e-6)
    assert data.manifest_layer.values.tolist() == [7, 8, 9, 10]
    assert data.layer.dims == ("layer",)


def test_other_columns_of_the_same_prompts_are_a_warning(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    table = pd.DataFrame({"prompt": ["a", "b"], "shape": ["x", "y"]})
    fc.capture(table, tmp_path / "RUN", model=pipe, **QUIET)
    fc.capture(table, tmp_path / "RUN", model=pipe, **QUIET)
    changed = table.assign(shape=["x", "z"], new=[1, 2])
    with pytest.warns(FewchannelsWarning, match="the columns new, shape of this manifest differ"):
        run = fc.capture(changed, tmp_path / "RUN", model=pipe, **QUIET)
    assert run.manifest["shape"].tolist() == ["x", "y"]


def test_a_run_is_itself_from_another_folder(
    pipe: DiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = fc.capture(["a", "b"], "RUN", model=pipe, **QUIET)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run.analyze("stability", k=2, progress=False).findings
    assert run.findings
    assert run.report("r.md", progress=False).absolute() == tmp_path / "elsewhere" / "r.md"
    run.explore().close()


def test_a_run_that_has_grown_is_seen_whole_after_reopening(
    pipe: DiffusionPipeline, prompts: fc.Prompts, tmp_path: Path
) -> None:
    run = fc.capture(prompts[:2], tmp_path / "RUN", model=pipe, **QUIET)
    assert run.activations.sizes["sample"] == 2
    fc.capture(prompts[:4], tmp_path / "RUN", model=pipe, **QUIET)
    run.reopen()
    assert (len(run), len(run.manifest), len(run.samples), run.activations.sizes["sample"]) == (4, 4, 4, 4)
    assert not np.isnan(run.activations.mean_abs.values).any()


def test_values_of_a_run_that_is_gone_are_an_error(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    data = fc.capture(["a"], tmp_path / "RUN", model=pipe, **QUIET).activations
    (tmp_path / "RUN").rename(tmp_path / "MOVED")
    with pytest.raises(StorageError, match="is gone"):
        data.mean_abs.load()


def test_a_pipeline_works_for_one_call_at_a_time(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    with lent(pipe), pytest.raises(InputError, match="in use by another call"):
        fc.capture(["a"], tmp_path / "RUN", model=pipe, **QUIET)
    assert len(fc.capture(["a"], tmp_path / "RUN", model=pipe, **QUIET)) == 1


@pytest.mark.parametrize("place", [None, 3, ""])
def test_what_is_no_place_makes_no_folder(
    pipe: DiffusionPipeline, tmp_path: Path, place: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for act in (
        lambda: fc.capture(["a"], place, model=pipe, **QUIET),
        lambda: fc.open_run(place),
        lambda: fc.report(place, out="r.html"),
        lambda: fc.explore(place),
    ):
        with pytest.raises(
            InputError, match=r"not a folder or URL|not a run, sweep or comparison|must be text or a path"
        ):
            act()
    assert not list(tmp_path.iterdir())
