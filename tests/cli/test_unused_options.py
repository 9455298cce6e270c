"""Options that would do nothing beside others are refused, by one sentence, before anything is read."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.cli import app
from fewchannels.errors import InputError
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.settings import PairRule, SweepSettings
from fewchannels.interventions.sweep import prepare_sweep

SWEEP = "--manifest none.parquet --out none"
PROBE, TEXT = f"probe disruption {SWEEP}", f"transport text {SWEEP}"
IMAGE = f"transport image {SWEEP} --references none.parquet"


def refused(command: str) -> str:
    """What a command says that ends with exit code 2."""
    outcome = CliRunner().invoke(app, command.split())
    assert isinstance(outcome.exception, InputError), outcome.output
    return str(outcome.exception)


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (f"{PROBE} --channels 5,6 --selection top", "--channels"),
        (f"{PROBE} --selection top,bottom --trials 5", "--trials"),
        (f"{PROBE} --selection listed --channels 5 --k 4", "--k"),
        (f"{PROBE} --selection all --k 8", "--k"),
        (f"{PROBE} --selection random --channels-from own", "--channels-from"),
        (f"{PROBE} --action scale:0.5 --amount 0.5", "--amount"),
        (f"{PROBE} --protocol turri2026 --k 4", "--k"),
        (f"{PROBE} --protocol turri2026 --steps last", "--steps"),
        (f"{PROBE} --protocol turri2026 --channels-from own", "--channels-from"),
        (f"{PROBE} --config grids.yaml --layers 0", "--layers"),
        (f"{PROBE} --config grids.yaml --channels-from own", "--channels-from"),
        (f"{TEXT} --pairs-file f.csv --within nonsense", "--within"),
        (f"{TEXT} --pairs-file f.csv --across colour", "--across"),
        (f"{TEXT} --pairs-file f.csv --pairs 3", "--pairs"),
        (f"{TEXT} --pairs-file f.csv --seed 3", "--seed"),
        (f"{TEXT} --pairs all --seed 3", "--seed"),
        (f"{TEXT} --selection top --trials 3", "--trials"),
        (f"{TEXT} --selection random --scores-from target", "--scores-from"),
        (f"{TEXT} --config grids.yaml --alpha 0.5", "--alpha"),
        (f"{IMAGE} --pairs all --seed 3", "--seed"),
        (f"{IMAGE} --config grids.yaml --placement same", "--placement"),
        ("plot none --of mse --out x.png --metric lpips=alex", "--metric"),
        ("plot none --item 0 --out x.png --json", "--json"),
        ("query --list failures --param top=3", "--param"),
        ("query --list --csv", "--csv"),
        ("query --list -o x.csv", "--output"),
        ("query --list --limit 3", "--limit"),
        ("query --list --timeout 3", "--timeout"),
        ("query --list --rows", "--rows"),
        ("query none layer_profile --rows", "--rows"),
        ("query none massive_channels --rows --json", "--rows"),
        ("analyze alignment none --selections top,bottom --trials 3", "--trials"),
        ("analyze alignment none --register-threshold 3", "--register-threshold"),
        ("analyze alignment none --registers drop --clip 0.1", "--clip"),
        ("capture --manifest none --out none --from-images --batch-size 4", "--batch-size"),
    ],
)
def test_an_option_that_nothing_uses_is_refused(
    command: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grids.yaml").write_text("grids:\n  - {k: 4}\n", encoding="utf-8")
    said = refused(command)
    assert said.startswith(f"{flag} would have no effect: ")
    assert said.endswith(". Omit it.")


def test_options_of_their_default_value_are_refused_too_and_unnamed_ones_are_not() -> None:
    assert refused(f"{PROBE} --selection top --trials 3").startswith("--trials would have no effect")
    assert "none.parquet" in refused(f"{PROBE} --selection top")


def test_two_queries_of_a_list_and_two_sources_of_grids_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grids.yaml").write_text("grids:\n  - {k: 4}\n", encoding="utf-8")
    assert "Pass only its name: query --list failures" in refused("query RUN failures --list")
    assert "define the edits" in refused(f"{PROBE} --protocol turri2026 --config grids.yaml")


def test_what_a_python_caller_gives_and_nothing_uses_is_refused(tiny_model: Path, manifest_of, tmp_path: Path) -> None:
    generation = CaptureConfig(model=str(tiny_model), num_inference_steps=2)
    manifest = manifest_of("prompt,seed\na star,1\na ring,2\n")
    with pytest.raises(InputError, match="channels lists 2, but no selection uses them"):
        Grid(selections=("top",), channels=(5, 6))
    for kind, more, says in (
        ("disruption", {"pairs": PairRule(n=3)}, "a disruption has no pairs"),
        ("disruption", {"references": tmp_path}, "references was given"),
        ("text", {"pairs_file": tmp_path, "pairs": PairRule(within=("colour",))}, "a rule for random pairs"),
        ("image", {"pairs_file": tmp_path}, "pairs with images are drawn"),
    ):
        with pytest.raises(InputError, match=says):
            SweepSettings(kind, generation, (Grid(),), **more)
    plain = SweepSettings("disruption", generation, (Grid(selections=("random",)),))
    for more, says in (
        ({"channels_run": "RUN"}, "channels_run is 'RUN', but would have no effect"),
        ({"cluster_k": 4}, "cluster_k is 4, but would have no effect"),
        ({"score": "rms"}, "score is 'rms', but would have no effect"),
    ):
        with pytest.raises(InputError, match=says):
            prepare_sweep(manifest, tmp_path / "sweep", replace(plain, **more))
    with pytest.raises(InputError, match="tokens is 'pool:2', but no token maps are recorded"):
        prepare(manifest, tmp_path / "run", replace(generation, top_k=0, tokens="pool:2"))
    with pytest.raises(InputError, match=r"revision is 'main', but .* is a folder"):
        prepare(manifest, tmp_path / "run", replace(generation, revision="main"))
