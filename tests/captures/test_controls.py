"""Maps of further channels beside the top ones: which they are, what they hold, and that analyses use them."""

from pathlib import Path

import numpy as np
import pytest

from fewchannels import manifest, open_run
from fewchannels.analyses.alignment.units import Alignment
from fewchannels.analyses.analysis import analyze
from fewchannels.analyses.masks.units import SubjectMasks
from fewchannels.analyses.selection import select
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.recompute import recompute
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.shares import Pool
from fewchannels.errors import InputError
from fewchannels.runs.choices import choose_controls
from fewchannels.runs.storage import open_storage
from fewchannels.runs.upkeep.verify import verify

pytestmark = pytest.mark.usefixtures("undrawn")

K = 6
SETTINGS = {"num_inference_steps": 3, "steps": "2", "layers": "0,4", "shard_samples": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same 5 samples with control maps, and with every channel's map."""
    folder = tmp_path_factory.mktemp("controls")
    manifest.ingest(["demo:5"], folder / "manifest.parquet", seeds=[0])
    for name, kept in (("controls", {"top_k": K, "controls": "bottom,random:2"}), ("all", {"top_k": 128})):
        job = prepare(folder / "manifest.parquet", folder / name, CaptureConfig(**SETTINGS, **kept))
        begin(job, folder / "manifest.parquet")
        worker = CaptureWorker(job, 1)
        for task in range(job.layout.n_tasks):
            worker(task)
    return folder / "controls", folder / "all"


def test_control_maps_are_those_of_the_channels_they_name(runs: tuple[Path, Path]) -> None:
    controls, everything = (open_run(path).activations for path in runs)
    assert controls.control.values.tolist() == ["bottom", "random_0", "random_1"]
    ranked, maps = everything["massive_channel"].values, everything["massive_value"].values
    for cell in np.ndindex(5, 1, 2):
        by_channel = maps[cell][np.argsort(ranked[cell])]
        for i in range(3):
            channels = controls["control_channel"].values[(*cell, i)]
            assert len(set(channels.tolist())) == K
            np.testing.assert_array_equal(controls["control_value"].values[(*cell, i)], by_channel[channels])
        np.testing.assert_array_equal(controls["control_channel"].values[(*cell, 0)], ranked[cell][-K:])
    drawn = controls["control_channel"].values[:, :, :, 1:].reshape(-1, K)
    assert len({tuple(sorted(row)) for row in drawn.tolist()}) == len(drawn), "anew for each sample, layer and draw"


def test_a_run_with_controls_verifies_and_recomputes(runs: tuple[Path, Path]) -> None:
    storage = open_storage(str(runs[0]))
    assert not verify(storage).problems
    assert all(each.equal for each in recompute(storage, 5, n_threads=1))


def test_alignment_takes_the_controls_that_were_kept(runs: tuple[Path, Path]) -> None:
    found = {}
    for path in runs:
        selected = select(str(path))
        analyze(SubjectMasks("demo"), selected, "masks", Pool(1, 0, 1))
        analysis = Alignment(k=K, selections=("top", "bottom", "random"), trials=2, starts=20)
        analyze(analysis, selected, "alignment", Pool(1, 0, 1))
        rows = open_run(path).sql(
            "select selection, sample, layer, trial, iou, energy_share, n_constant from alignment_samples order by all"
        )
        found[path] = rows.df().set_index("selection")
    one, other = found.values()
    assert one.loc[["top", "bottom"]].equals(other.loc[["top", "bottom"]])
    assert len(one.loc["random"]) == 5 * 2 * 2
    assert one.loc["random", "iou"].between(0, 1).all()
    with pytest.raises(InputError, match=r"the maps of random channels are not in .*--controls bottom,random:3"):
        analyze(Alignment(k=K, selections=("top", "random"), trials=3), select(str(runs[0])), "x", Pool(1, 0, 1))
    with pytest.raises(InputError, match="the maps of matched, all, pca channels are not in"):
        analyze(Alignment(k=K, trials=2), select(str(runs[0])), "x", Pool(1, 0, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"controls": "top"}, "controls is 'top'; give none, or a list of bottom and random:N"),
        ({"controls": "random:0"}, "controls is 'random:0'"),
        ({"controls": "bottom,bottom"}, "name each once"),
        ({"controls": "bottom", "top_k": 0}, "no token maps are recorded"),
        ({"controls": "bottom", "top_k": 65}, "so fewer than k others remain"),
    ],
)
def test_controls_that_cannot_be_are_refused(manifest_of, tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(manifest_of("prompt\na red star\n"), tmp_path / "run", CaptureConfig(**settings))


def test_controls_are_named_as_they_are_stored() -> None:
    assert choose_controls("none") == ()
    assert choose_controls("random:2, bottom") == ("random_0", "random_1", "bottom")
