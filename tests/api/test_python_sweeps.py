"""Sweeps from Python, of a model by its name and of a loaded pipeline, beside those of the commands."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from diffusers import DiffusionPipeline
from matplotlib.figure import Figure
from typer.testing import CliRunner

import fewchannels as fc
from fewchannels.cli import app
from fewchannels.errors import InputError

pytestmark = pytest.mark.usefixtures("undrawn")
TWO = ["a red star", "two blue rings"]
QUIET: dict[str, Any] = {"num_inference_steps": 2, "height": 16, "width": 16, "progress": False}
OPTIONS = ["--num-inference-steps", "2", "--height", "16", "--width", "16", "--actors", "1"]


def commanded(folder: Path, *words: str) -> fc.Sweep:
    fc.ingest(TWO, folder / "manifest.parquet", progress=False)
    out = folder / "COMMANDED"
    whole = [*words, "--manifest", str(folder / "manifest.parquet"), "--out", str(out), *OPTIONS]
    answer = CliRunner().invoke(app, whole)
    assert answer.exit_code == 0, answer.output
    return fc.open_sweep(out)


def assert_same(mine: fc.Sweep, theirs: fc.Sweep) -> None:
    pd.testing.assert_frame_equal(mine.conditions, theirs.conditions)
    apart = ["seconds", "task", "attempt"]
    pd.testing.assert_frame_equal(mine.edits.drop(columns=apart), theirs.edits.drop(columns=apart))
    for item in range(2):
        for condition in mine.conditions.condition:
            images = (np.asarray(each.image(item, condition)) for each in (mine, theirs))
            np.testing.assert_array_equal(*images)


@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_probe_is_that_of_the_command(
    pipe: DiffusionPipeline, tiny_model: Path, tmp_path: Path, is_loaded: bool
) -> None:
    theirs = commanded(
        tmp_path,
        *["probe", "disruption", "--k", "2,4", "--trials", "1", "--action", "zero,mean", "--model"],
        str(tiny_model),
    )
    model = pipe if is_loaded else tiny_model
    mine = fc.probe(TWO, tmp_path / "MINE", model=model, k=[2, 4], trials=1, action=["zero", "mean"], **QUIET)
    assert_same(mine, theirs)


@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_transport_is_that_of_the_command(
    pipe: DiffusionPipeline, tiny_model: Path, tmp_path: Path, is_loaded: bool
) -> None:
    theirs = commanded(
        tmp_path, *["transport", "text", "--pairs", "all", "--k", "3", "--alpha", "0.5,1", "--model"], str(tiny_model)
    )
    model = pipe if is_loaded else tiny_model
    mine = fc.probe_transport(TWO, tmp_path / "MINE", model=model, pairs="all", k=3, alpha=(0.5, 1), **QUIET)
    assert_same(mine, theirs)
    pd.testing.assert_frame_equal(*(each.sql("select * from pairs order by pair").df() for each in (mine, theirs)))


def test_a_sweep_has_findings_and_figures(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    sweep = fc.probe(TWO, tmp_path / "SWEEP", model=pipe, k=[2, 4], trials=1, **QUIET)
    summary = (tmp_path / "SWEEP" / "results" / "effects" / "summary.md").read_text(encoding="utf-8")
    assert sweep.findings
    assert sweep.findings[0] in summary
    assert isinstance(sweep.plot(), Figure)
    assert isinstance(sweep.plot(item=0), Figure)
    (line, *_) = sweep.plot("ssim", axis="k").axes[0].lines
    assert line.get_xdata().tolist() == [2, 4]
    with pytest.raises(InputError, match="Pass only one of them"):
        sweep.plot("ssim", item=0)
    assert sweep.report(tmp_path / "r.md", progress=False).stat().st_size


def run_layers(pipe: DiffusionPipeline) -> list[object]:
    return [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]


def test_several_grids_and_protocols(pipe: DiffusionPipeline, tiny_model: Path, tmp_path: Path) -> None:
    grids = [{"k": 2, "selection": "top"}, {"selection": "listed", "channels": [1, 5], "layers": range(2)}]
    sweep = fc.probe(TWO[:1], tmp_path / "GRIDS", model=pipe, grids=grids, **QUIET)
    rows = sweep.conditions[["selection", "k", "layers_name"]].values.tolist()
    assert [row[0] for row in rows] == ["top", "listed"]
    assert rows[1][1:] == [2, "0-1"]
    each = fc.probe(TWO[:1], tmp_path / "EACH", model=pipe, k=2, selection="top", layers=[[0], [1, 2], "all"], **QUIET)
    assert each.conditions.layers.map(len).tolist() == [1, 2, len(run_layers(pipe))]
    ends = fc.probe(TWO[:1], tmp_path / "ENDS", model=pipe, k=2, selection="top", layers=[[-1], [0, -2]], **QUIET)
    assert ends.conditions.layers.map(list).tolist() == [[3], [0, 2]]  # of 4 layers
    run = fc.capture(TWO[:1], tmp_path / "RUN", model=pipe, top_k=2, **QUIET)
    fixed = fc.probe(TWO[:1], tmp_path / "GAN", model=pipe, protocol="gan2025", channels_from=run.storage.url, **QUIET)
    assert fixed.description["protocol"] == "gan2025"
    assert set(fixed.conditions.scores_from[fixed.conditions.selection == "top"]) == {"run"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"protocol": "turri"}, "unknown protocol 'turri'. Did you mean 'turri2026'"),
        ({"protocol": "gan2025"}, "takes fixed channels from a captured run; pass channels_from RUN"),
        ({"protocol": "turri2026", "k": 3}, "defines the edits, so k cannot be combined with it"),
        ({"grids": [{"k": 2}], "layers": "all"}, "grids and layers cannot be combined"),
        ({"grids": []}, "grids is empty"),
        ({"selection": "top", "trials": 4}, "trials would have no effect: the selection top is not random"),
        ({"channels": [3]}, "channels would have no effect"),
        ({"action": "transport"}, "with transport it must be target, source"),
        ({"k": 10**6}, "k"),
        ({"kk": 3}, "unknown setting in fc.probe 'kk'"),
        ({"workers": 3}, "workers=3 cannot be used with a loaded pipeline"),
    ],
)
def test_bad_arguments_of_a_probe_are_refused(
    pipe: DiffusionPipeline, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        fc.probe(TWO, tmp_path / "SWEEP", model=pipe, **QUIET | more)
    assert "--" not in str(raised.value)
    assert not (tmp_path / "SWEEP").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"pairs": 0}, "n in probe_transport is 0"),
        ({"pairs": "none.csv"}, "none.csv"),
        ({"within": "Category"}, "Category"),
        ({"noise": "other"}, "unknown noise 'other'"),
        ({"baselines": ["prompts"]}, "prompts"),
    ],
)
def test_bad_arguments_of_a_transport_are_refused(
    pipe: DiffusionPipeline, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        fc.probe_transport(TWO, tmp_path / "SWEEP", model=pipe, k=2, **QUIET | more)
    assert "--" not in str(raised.value)
    assert not (tmp_path / "SWEEP").exists()
