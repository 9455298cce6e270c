"""Models and prompts that cannot work: a dry run says so, and a run says why at its end."""

import json
import shutil
from pathlib import Path

import pytest
from command import command
from diffusers import DDIMScheduler

from fewchannels.cluster.notes import Notes, note_cut_prompts, note_failures, noting
from fewchannels.cluster.tasks import Outcome
from fewchannels.errors import IncompleteRunError
from fewchannels.interventions.begin import begin_sweep
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.settings import SweepSettings
from fewchannels.interventions.sweep import prepare_sweep
from fewchannels.interventions.worker import SweepWorker
from fewchannels.models.generation import Generation

SIZE = ("--height", 16, "--width", 16, "--num-inference-steps", 2)


@pytest.fixture(scope="module")
def without_sigmas(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose scheduler the pipeline cannot use: every generation fails."""
    folder = tmp_path_factory.mktemp("failing") / "model"
    shutil.copytree(tiny_model, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "DDIMScheduler"]}))
    DDIMScheduler().save_pretrained(folder / "scheduler")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("capture",),
        ("probe", "disruption", "--selection", "listed", "--channels", "1"),
        ("transport", "text", "--k", "1", "--pairs", "2"),
    ],
)
def test_a_dry_run_whose_measured_sample_fails_says_so_and_why(
    words: tuple[str, ...], without_sigmas: Path, manifest_of, tmp_path: Path
) -> None:
    manifest = manifest_of("prompt\na small red star\na large blue ring\n")
    answer = command(
        *words, "--model", without_sigmas, "--manifest", manifest, "--out", tmp_path / "run", *SIZE, "--dry-run"
    )
    assert answer.code == 5, answer.stderr
    assert "were generated to estimate time and size failed" in answer.stderr
    assert "does not support custom sigmas" in answer.stderr
    assert not answer.stdout.strip()


def test_a_capture_quotes_the_first_error_of_each_kind(without_sigmas: Path, manifest_of, tmp_path: Path) -> None:
    manifest = manifest_of("prompt\na small red star\na large blue ring\n")
    answer = command(
        "capture", "--model", without_sigmas, "--manifest", manifest, "--out", tmp_path / "run", *SIZE, "--actors", 1
    )
    assert answer.code == 5
    assert "0 of 2 samples are done, 2 failed individually" in answer.stderr
    assert "\n  2 failed with ValueError: The current scheduler class" in answer.stderr


def test_a_sweeps_worker_notes_why_each_item_failed(without_sigmas: Path, manifest_of, tmp_path: Path) -> None:
    manifest = manifest_of("prompt\na small red star\na large blue ring\n")
    generation = Generation(model=str(without_sigmas), height=16, width=16, num_inference_steps=2)
    prepared = prepare_sweep(
        manifest,
        tmp_path / "sweep",
        SweepSettings("disruption", generation, (Grid(selections=("listed",), channels=(1,)),)),
    )
    begin_sweep(prepared)
    with noting() as notes:
        SweepWorker(prepared.sweep, 1)(0)
    ((first, n),) = notes.errors.values()
    assert n == 2
    assert first.startswith("ValueError: The current scheduler class")


def test_prompts_that_the_text_encoder_cuts_are_counted_at_a_captures_end(
    tiny_model: Path, manifest_of, tmp_path: Path
) -> None:
    manifest = manifest_of(f"prompt\na small red star\n{'red ' * 40}\n{'blue ' * 20}\n")
    answer = command(
        "capture", "--model", tiny_model, "--manifest", manifest, "--out", tmp_path / "run", *SIZE, "--actors", 1
    )
    assert answer.code == 0
    # Each word is a token, and the end is one more; the tiny model takes 16.
    assert "the text encoder truncated 2 prompts: its limit is 16 tokens, and the longest prompt has 41" in " ".join(
        answer.stderr.split()
    )


def test_errors_that_differ_in_numbers_are_of_one_kind() -> None:
    notes = Notes()
    for errors in (("OutOfMemoryError: 3 GB",), ("OutOfMemoryError: 4 GB", "ValueError: x"), ("bad in 7 cells",)):
        with noting() as task:
            note_failures(errors)
            note_failures(["bad in 9 cells"])
            note_cut_prompts([100, 90], 77)
        notes.add(task)
    assert notes.errors == {
        "OutOfMemoryError": ("OutOfMemoryError: 3 GB", 2),
        "ValueError": ("ValueError: x", 1),
        "bad in N cells": ("bad in 9 cells", 4),
    }
    assert (notes.n_cut, notes.longest, notes.limit) == (6, 100, 77)
    with pytest.raises(IncompleteRunError) as failure:
        Outcome(9, 2, 7, 0, {}, of_tasks=notes).check_complete()
    assert str(failure.value).splitlines()[1:] == [
        "  4 failed with bad in 9 cells",
        "  2 failed with OutOfMemoryError: 3 GB",
        "  1 failed with ValueError: x",
    ]
