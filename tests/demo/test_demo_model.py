"""The shipped model is what its card says, and its training can be interrupted."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from tiny import TINY

from fewchannels.demo import train
from fewchannels.demo.build import build_tokenizers, world_words
from fewchannels.demo.evaluate import TARGETS, evaluate, weights_sha256

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


def traced(trainer: train.Trainer, seen: list[tuple[str, int, float]]) -> train.Trainer:
    """The trainer, which also writes down (stage, step, loss) of every step that it takes."""

    def trace(number: int, name: str) -> None:
        original = getattr(trainer, f"_{name}_loss")

        def loss_of(generator: torch.Generator) -> torch.Tensor:
            loss = original(generator)
            seen.append((name, generator.initial_seed() - (RECIPE.seed * 3 + number) * 10_000_000, loss.item()))
            return loss

        setattr(trainer, f"_{name}_loss", loss_of)

    for number, name in enumerate(train.STAGES):
        trace(number, name)
    return trainer


def test_every_build_gives_a_word_the_same_token() -> None:
    clip, t5 = build_tokenizers(16)
    for _ in range(5):
        again = build_tokenizers(16)
        assert again[0].get_vocab() == clip.get_vocab()
        assert again[0].backend_tokenizer.to_str() == clip.backend_tokenizer.to_str()
        assert again[1].backend_tokenizer.to_str() == t5.backend_tokenizer.to_str()
    assert all(len(clip(word).input_ids) == 3 and len(t5(word).input_ids) == 2 for word in world_words())


@pytest.mark.parametrize("stage", train.STAGES)
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    whole: list[tuple[str, int, float]] = []
    traced(train.Trainer(tmp_path / "whole", RECIPE, TINY, torch.device("cpu")), whole).run()

    seen: list[tuple[str, int, float]] = []
    broken = traced(train.Trainer(tmp_path / "broken", RECIPE, TINY, torch.device("cpu")), seen)
    trained = getattr(broken, f"_{stage}_loss")

    def interrupted_at_step_3(generator: torch.Generator) -> torch.Tensor:
        if seen and seen[-1][:2] == (stage, 2):
            raise InterruptedTrainingError
        return trained(generator)

    setattr(broken, f"_{stage}_loss", interrupted_at_step_3)
    with pytest.raises(InterruptedTrainingError):
        broken.run()
    assert not (tmp_path / "broken" / "model").exists()
    seen.clear()
    traced(train.Trainer(tmp_path / "broken", RECIPE, TINY, torch.device("cpu")), seen).run()
    first = [step[:2] for step in whole].index((stage, 2))  # the last checkpoint was after step 1
    assert [step[:2] for step in seen] == [step[:2] for step in whole[first:]]
    # Weights without a gradient take rounding for one, so it is the losses that must agree, to about the last bit.
    assert [loss for *_, loss in seen] == pytest.approx([loss for *_, loss in whole[first:]], rel=1e-4)
    assert (tmp_path / "broken" / "model" / "model_index.json").is_file()
    log = [json.loads(line) for line in (tmp_path / "whole" / "train.jsonl").read_text().splitlines()]
    assert {record["stage"] for record in log} == set(train.STAGES)
