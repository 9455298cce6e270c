"""A sweep as Python sees it."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_sweep import make_sweep
from planted_edits import planted

import fewchannels as fc
from fewchannels.errors import InputError
from fewchannels.interventions.begin import begin_sweep
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.sweep import SweepSettings, prepare_sweep
from fewchannels.interventions.worker import SweepWorker
from fewchannels.models.generation import Generation


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    edits = planted([{"selection": word, "k": 4} for word in ("top", "random")], {"top": 0.012, "random": 0.0})
    return make_sweep(tmp_path_factory.mktemp("sweeps") / "SWEEP", edits)


def test_its_tables_are_attributes(path: Path) -> None:
    sweep = fc.open_sweep(path)
    rows = sweep.sql("select count(*), count(distinct condition) from edits").fetchone()
    assert (len(sweep.edits), sweep.edits.condition.nunique()) == rows
    assert "image" not in sweep.edits
    assert sweep.conditions.selection.tolist() == ["top", "random"]
    assert sweep.query("best_settings").df().selection.tolist()[0] == "top"
    assert repr(sweep) == f"Sweep({str(path)!r})"
    assert "<th>conditions</th><td>2</td>" in sweep._repr_html_()
    json.dumps(sweep.description)


def test_a_run_is_no_sweep_nor_the_other_way_round(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run.*It holds a sweep: .*, or fewchannels\.open_sweep in Python"):
        fc.open_run(path)
    with pytest.raises(InputError, match=r"is not a sweep: it has no sweep\.json"):
        fc.open_sweep(tmp_path)


def test_an_image_that_there_is_not_is_named(path: Path) -> None:
    sweep = fc.open_sweep(path)
    with pytest.raises(InputError, match="there is no image of item 999 with role = 'edited' and condition = 0"):
        sweep.image(999, 0)
    with pytest.raises(InputError, match="role is 'edited'; without a condition it is undisturbed or source"):
        sweep.image(0)


def test_images_are_those_of_the_table(tmp_path: Path, tiny_model: Path, manifest_of) -> None:
    table = manifest_of("prompt,seed\na small red star,1\n")
    settings = SweepSettings("disruption", Generation(model=str(tiny_model), num_inference_steps=1), (Grid(trials=1),))
    prepared = prepare_sweep(table, tmp_path / "SWEEP", settings)
    begin_sweep(prepared)
    SweepWorker(prepared.sweep, 1)(0)
    sweep = fc.open_sweep(tmp_path / "SWEEP")
    plain = np.asarray(sweep.image(0, role="undisturbed"))
    for condition in sweep.conditions.condition:
        image = np.asarray(sweep.image(0, int(condition)))
        mse = np.square(image / 255 - plain / 255).mean()
        stored = sweep.sql(f"select mse from edits where condition = {condition}").fetchone()[0]
        assert mse == pytest.approx(stored, rel=1e-5)
    with pytest.raises(InputError, match="has no effects yet"):
        _ = sweep.effects
