"""The shipped model is what its card says, and its training can be interrupted."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY
from diffusers import DiffusionPipeline, FluxPipeline
from safetensors.torch import load_file

from engine.demo import train
from engine.demo.evaluate import TARGETS, evaluate, weights_sha256

DEMO = Path(train.__file__).parent
RECIPE = train.Recipe(
    vae_steps=6, vae_batch=2, flow_steps=6, flow_batch=4, distil_steps=6, distil_batch=4, n_scenes=16, seed=3
)


def test_the_model_is_small_and_holds_no_code() -> None:
    files = [path for path in (DEMO / "model").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") <= 25e6
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_the_model_opens_as_a_flux_pipeline() -> None:
    pipeline = DiffusionPipeline.from_pretrained(DEMO / "model")
    assert type(pipeline) is FluxPipeline
    assert pipeline.transformer.config.guidance_embeds


def test_the_cards_figures_belong_to_these_weights_and_meet_the_targets() -> None:
    figures = json.loads((DEMO / "evaluation.json").read_text(encoding="utf-8"))
    assert figures["weights_sha256"] == weights_sha256(DiffusionPipeline.from_pretrained(DEMO / "model"))
    assert figures["held_out"]["all"]["n"] >= 500
    assert all(share >= 0.99 for share in figures["judge"]["shares"].values())
    card = (DEMO / "README.md").read_text(encoding="utf-8")
    for attribute, target in TARGETS.items():
        share = figures["held_out"][attribute]["share"]
        assert share >= target
        assert f"| {attribute} | {100 * share:.1f} %" in card


def test_a_few_held_out_prompts_are_drawn_right() -> None:
    figures = evaluate(DiffusionPipeline.from_pretrained(DEMO / "model"), 32, n_trained=1)
    for attribute in ("colour", "background", "position"):
        assert figures["held_out"][attribute]["share"] >= 0.85


class InterruptedTrainingError(Exception):
    """Raised by the test in the middle of a training."""


@pytest.mark.parametrize("stage", train.STAGES)
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    n_threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(n_threads))
    torch.set_num_threads(1)  # gradients summed by several threads differ in their last bits from run to run
    device = torch.device("cpu")
    train.Trainer(tmp_path / "whole", RECIPE, TINY, device).run()

    broken = train.Trainer(tmp_path / "broken", RECIPE, TINY, device)
    loss_of, steps = getattr(broken, f"_{stage}_loss"), iter(range(100))

    def interrupted_at_5(generator: torch.Generator) -> torch.Tensor:
        if next(steps) == 5:
            raise InterruptedTrainingError
        return loss_of(generator)

    monkeypatch.setattr(broken, f"_{stage}_loss", interrupted_at_5)
    with pytest.raises(InterruptedTrainingError):
        broken.run()
    assert not (tmp_path / "broken" / "model").exists()
    train.Trainer(tmp_path / "broken", RECIPE, TINY, device).run()
    for weights in sorted((tmp_path / "whole" / "model").glob("*/*.safetensors")):
        again = load_file(tmp_path / "broken" / weights.relative_to(tmp_path / "whole"))
        for name, tensor in load_file(weights).items():
            assert torch.equal(tensor, again[name]), f"{weights.parent.name} {name}"
    log = [json.loads(line) for line in (tmp_path / "whole" / "train.jsonl").read_text().splitlines()]
    assert {record["stage"] for record in log} == set(train.STAGES)
