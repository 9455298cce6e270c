"""The judge of the shapes world on images whose truth is known, and the figures made from its verdicts."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from fewchannels.demo import evaluate
from fewchannels.demo import judge as judging
from fewchannels.demo.build import Architecture, build_pipeline
from fewchannels.demo.judge import ATTRIBUTES, Verdict, agreement, judge
from fewchannels.demo.world import COLOURS, POSITIONS, SHAPES, Scene, choose_scenes, draw
from fewchannels.errors import FewchannelsError, InputError

N = 1000
CHANCE = {"shape": 1 / 8, "colour": 1 / 12, "size": 1 / 2, "position": 1 / 5, "background": 1 / 12}
SCENE = Scene("star", "pink", "small", "at the left", "gray")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Tensors here are so small that a second thread, where another process wants the core, only makes them wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def drawn():
    scenes = choose_scenes(N, 11)
    return scenes, *draw(scenes, 11)


@pytest.fixture(scope="module")
def judged(drawn):
    return judge(drawn[1])


def verdict_of(scene: Scene) -> Verdict:
    return Verdict(scene.shape, scene.colour, scene.size, scene.position, scene.background, 1.0, 0.1)


def blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest"))


def test_the_judge_is_right_on_drawn_scenes(drawn, judged):
    shares = agreement(judged[0], drawn[0])
    assert min(shares[name] for name in ATTRIBUTES) >= 0.99, shares


@pytest.mark.parametrize("sigma", [0.7, 1.5])
def test_the_judge_is_right_on_blurred_scenes(drawn, sigma):
    shares = agreement(judge(blurred(drawn[1][:300], sigma))[0], drawn[0][:300])
    assert min(shares[name] for name in ATTRIBUTES) >= 0.99, shares


@pytest.mark.parametrize("side", [32, 128])
def test_the_judge_takes_images_of_other_sides(side):
    scenes = choose_scenes(100, 2)
    shares = agreement(judge(draw(scenes, 2, side=side)[0])[0], scenes)
    assert min(shares[name] for name in ATTRIBUTES) >= 0.99, shares


def test_the_judge_overlooks_a_faint_stain_and_a_bright_speck():
    scenes = choose_scenes(200, 3)
    images, masks = draw(scenes, 3)
    images[:, :, 40:60, 40:60] = (images[:, :, 40:60, 40:60] + 0.03).clamp(0, 1)
    images[:, :, 4:7, 4:7] = 1 - images[:, :, 4:7, 4:7]
    clear = ~masks[:, 2:9, 2:9].flatten(1).any(1)
    kept = [scene for scene, keep in zip(scenes, clear, strict=True) if keep]
    assert len(kept) > 150
    shares = agreement(judge(images[clear])[0], kept)
    assert min(shares[name] for name in ATTRIBUTES) >= 0.98, shares


def test_masks_are_the_exact_masks(drawn, judged):
    exact, found = drawn[2], judged[1]
    iou = (exact & found).sum((1, 2)) / (exact | found).sum((1, 2))
    assert iou.mean() > 0.95
    assert iou.min() > 0.8


def test_confidence_figures_are_high_on_drawn_scenes(drawn, judged):
    assert min(verdict.template_iou for verdict in judged[0]) > 0.9
    areas = torch.tensor([verdict.area for verdict in judged[0]])
    torch.testing.assert_close(areas, drawn[2].float().mean((1, 2)), atol=0.02, rtol=0)


def test_batching_changes_no_verdict(drawn, judged):
    some = slice(250, 262)  # across the judge's own batches
    assert [replace(v, template_iou=0.0) for v in judge(drawn[1][some])[0]] == [
        replace(v, template_iou=0.0) for v in judged[0][some]
    ]


def test_a_neighbour_in_the_batch_changes_no_verdict():
    large_left = draw([Scene("square", "red", "large", "at the left", "white")], 0)[0]
    specked = draw([Scene("star", "red", "small", "at the right", "white")], 0)[0]
    specked[:, :, 30:33, 16:19] = torch.tensor(COLOURS["red"])[:, None, None]
    verdicts, masks = judge(torch.cat([large_left, specked, large_left]))
    assert (verdicts[1].shape, verdicts[1].position) == ("star", "at the right")
    assert not masks[1, :, :32].any()


def test_colours_are_compared_as_the_eye_does():
    # CIE L*a*b* of sRGB's red, of white and of mid gray, as published for the D65 white.
    rgb = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.5, 0.5, 0.5]])
    expected = torch.tensor([[53.24, 80.09, 67.20], [100.0, 0.0, 0.0], [53.39, 0.0, 0.0]])
    torch.testing.assert_close(judging._lab(rgb), expected, atol=0.1, rtol=0)
    # A yellow in the shade, which in RGB lies nearer to orange.
    assert list(COLOURS)[judging._nearest_colour(torch.tensor([COLOURS["yellow"]]) * 0.75)] == "yellow"


@pytest.mark.parametrize("name", COLOURS)
def test_a_blank_image_has_its_background_and_no_subject(name):
    image = torch.tensor(COLOURS[name])[None, :, None, None].expand(1, 3, 64, 64)
    noisy = image + 0.02 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    verdicts, masks = judge(torch.cat([image, noisy.clamp(0, 1)]))
    assert verdicts == [Verdict(None, None, None, None, name, 0.0, 0.0)] * 2
    assert not masks.any()


def test_noise_and_other_images_of_nothing_are_no_shape_and_do_not_crash():
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(8, 3, 64, 64, generator=generator)
    normal = (0.5 + 0.1 * torch.randn(8, 3, 64, 64, generator=generator)).clamp(0, 1)
    halves = torch.cat([torch.zeros(1, 3, 64, 32), torch.ones(1, 3, 64, 32)], dim=3)
    verdicts, _ = judge(torch.cat([uniform, normal, halves, halves.mT]))
    assert {verdict.shape for verdict in verdicts} == {None}
    assert {verdict.size for verdict in verdicts} == {None}


def test_two_subjects_are_not_one():
    left, right = (draw([replace(SCENE, position=place)], 0)[0] for place in ("at the left", "at the right"))
    both = torch.cat([left[..., :32], right[..., 32:]], dim=3)
    assert judge(both)[0][0].shape is None
    assert judge(left)[0][0].shape == "star"


def test_a_subject_in_a_corner_has_no_position():
    image, _ = draw([replace(SCENE, position="in the center")], 0)
    (verdict,), _ = judge(image.roll((-18, -18), dims=(2, 3)))
    assert (verdict.shape, verdict.position) == ("star", None)


@pytest.mark.parametrize(
    ("attribute", "other"),
    [
        ("shape", "heart"),
        ("colour", "green"),
        ("size", "large"),
        ("position", "at the top"),
        ("background", "white"),
    ],
)
def test_an_image_wrong_in_one_attribute_is_judged_wrong_in_that_one_only(attribute, other):
    (verdict,), _ = judge(draw([replace(SCENE, **{attribute: other})], 0)[0])
    shares = agreement([verdict], [SCENE])
    assert shares == dict.fromkeys(ATTRIBUTES, 1.0) | {attribute: 0.0, "all": 0.0}


def test_with_captions_swapped_agreement_falls_to_chance(drawn, judged):
    scenes = drawn[0]
    shares = agreement(judged[0], scenes[1:] + scenes[:1])
    for name, chance in CHANCE.items():
        assert shares[name] == pytest.approx(chance, abs=5 * math.sqrt(chance * (1 - chance) / N)), name
    assert shares["all"] < 0.01


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (torch.full((2, 3, 64, 64), torch.nan), "2 of 2 images .* not finite"),
        (torch.full((1, 3, 64, 64), torch.inf), "not finite"),
        (torch.zeros(1, 3, 64, 64) - 1, r"in \[-1, -1\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8"),
        (torch.zeros(3, 64, 64), r"\(3, 64, 64\)"),
        (torch.zeros(1, 3, 64, 32), r"\(1, 3, 64, 32\)"),
        (torch.zeros(1, 3, 8, 8), "at least 16"),
    ],
)
def test_images_that_break_the_rules_are_refused_with_the_rule(images, complaint):
    with pytest.raises(ValueError, match=complaint):
        judge(images)


def test_no_images_give_no_verdicts():
    verdicts, masks = judge(torch.zeros(0, 3, 64, 64))
    assert verdicts == []
    assert masks.shape == (0, 64, 64)


def test_agreement_is_the_share_right_for_each_attribute_and_for_all():
    right = verdict_of(SCENE)
    verdicts = [right, replace(right, colour="red"), replace(right, colour="blue", shape=None), right]
    assert agreement(verdicts, [SCENE] * 4) == {
        "shape": 0.75,
        "colour": 0.5,
        "size": 1.0,
        "position": 1.0,
        "background": 1.0,
        "all": 0.5,
    }


@pytest.mark.parametrize(("n_verdicts", "n_scenes"), [(1, 2), (2, 1), (0, 0)])
def test_agreement_wants_one_verdict_a_scene(n_verdicts, n_scenes):
    with pytest.raises(ValueError, match=f"{n_verdicts} verdicts for {n_scenes} scenes"):
        agreement([verdict_of(SCENE)] * n_verdicts, [SCENE] * n_scenes)


def test_a_round_counts_and_gives_wilson_intervals():
    wrong = replace(verdict_of(SCENE), shape="diamond")
    made = evaluate.Round([SCENE] * 10, torch.zeros(10, 3, 64, 64), [verdict_of(SCENE)] * 8 + [wrong] * 2)
    figure = made.figures()["shape"]
    # Wilson: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) for p = 0.8, n = 10, z = 1.96.
    assert figure == pytest.approx({"share": 0.8, "right": 8, "n": 10, "low": 0.49016, "high": 0.94332}, abs=1e-4)
    confusion = made.confusion()
    assert {judged: count for judged, count in confusion["star"].items() if count} == {"star": 8, "diamond": 2}
    assert sum(sum(row.values()) for row in confusion.values()) == 10


def test_the_contact_sheet_frames_right_and_wrong_in_different_colours():
    wrong = replace(verdict_of(SCENE), shape=None)
    sheets = [
        evaluate.contact_sheet(evaluate.Round([SCENE], torch.zeros(1, 3, 64, 64), [verdict]))
        for verdict in (verdict_of(SCENE), wrong)
    ]
    colours = [{colour for _, colour in sheet.getcolors(1 << 16)} for sheet in sheets]
    assert [evaluate._RIGHT in found for found in colours] == [True, False]
    assert [evaluate._WRONG in found for found in colours] == [False, True]


@pytest.fixture(scope="module")
def untrained():
    small = Architecture(grid=4, n_dual=1, n_single=1, n_heads=2, head_dim=16, text_dim=32, text_layers=1)
    return build_pipeline(small)


def test_the_batch_size_changes_no_image_and_the_seed_does(untrained):
    scenes = choose_scenes(4, 0)
    one, four = (evaluate.generate(untrained, scenes, range(4), steps=2, batch_size=size) for size in (1, 4))
    torch.testing.assert_close(one, four, atol=1e-4, rtol=0)
    other = evaluate.generate(untrained, scenes, range(10, 14), steps=2)
    assert (other - four).abs().mean() > 1e-3


def test_both_kinds_of_guidance_reach_the_model(untrained):
    scenes = choose_scenes(3, 0)
    plain = evaluate.generate(untrained, scenes, range(3), steps=2, guidance=1.0)
    for setting in ({"guidance": 4.0}, {"guidance": 1.0, "true_cfg": 4.0}):
        guided = evaluate.generate(untrained, scenes, range(3), steps=2, **setting)
        assert ((guided - plain).abs().amax((1, 2, 3)) > 1e-4).all(), setting


def test_an_untrained_model_misses_its_targets_and_its_figures_are_written(untrained, tmp_path):
    result = evaluate.evaluate(untrained, 6, n_trained=3, steps=1, true_cfg=2.0, out=tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result
    assert (result["held_out"]["shape"]["n"], result["trained"]["shape"]["n"]) == (6, 3)
    assert result["all_met"] is False
    assert set(result["weights_sha256"]) == {"transformer", "text_encoder", "text_encoder_2", "vae"}
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width > 8 * 128


@pytest.mark.parametrize(("missed", "exit_code"), [((), 0), (("shape",), 1), (("size",), 0)])
def test_the_exit_code_says_whether_every_target_is_met(untrained, monkeypatch, capsys, missed, exit_code):
    instead = {name: {"shape": "heart", "size": "large"}[name] for name in missed}

    def draws_what_is_asked_but_for_what_is_missed(pipeline, scenes, seeds, **settings):
        return draw([replace(scene, **instead) for scene in scenes], 0, side=32)[0]

    monkeypatch.setattr(evaluate, "generate", draws_what_is_asked_but_for_what_is_missed)
    monkeypatch.setattr(evaluate, "load", lambda folder, device: untrained)
    monkeypatch.setattr(evaluate, "check_judge", lambda **settings: dict.fromkeys(ATTRIBUTES, 1.0))
    assert evaluate.main(["--prompts", "40", "--json"]) == exit_code
    result = json.loads(capsys.readouterr().out)
    assert result["met"] == {name: name not in missed for name in evaluate.TARGETS}
    assert result["held_out"]["colour"]["share"] == 1.0
    assert all(result["held_out"][name]["share"] < 0.7 for name in missed)
    assert evaluate.main(["--prompts", "40"]) == exit_code
    assert ("Targets missed: shape." if exit_code else "Every target is met.") in capsys.readouterr().out


def test_a_judge_that_is_wrong_on_drawn_scenes_stops_the_evaluation(monkeypatch):
    monkeypatch.setattr(evaluate, "judge", lambda images: ([verdict_of(SCENE)] * len(images), None))
    with pytest.raises(FewchannelsError, match=r"too few of 50 scenes .*: shape"):
        evaluate.check_judge(50)


def test_a_missing_model_ends_with_the_remedy_and_no_traceback(tmp_path, capsys):
    assert evaluate.main(["--model", str(tmp_path / "none")]) == InputError.exit_code
    assert "python -m fewchannels.demo.train" in capsys.readouterr().err


def test_a_model_that_is_not_flux_is_refused_by_name(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(InputError, match="holds a StableDiffusionPipeline"):
        evaluate.load(tmp_path)


@pytest.mark.parametrize(
    "options", [["--prompts", "0"], ["--steps", "many"], ["--guidance", "nan"], ["--true-cfg", "0.5"]]
)
def test_a_bad_number_ends_with_a_message(options, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(options)
    assert stop.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_every_shape_is_judged_wherever_it_stands():
    scenes = [Scene(shape, "red", "large", position, "white") for shape in SHAPES for position in POSITIONS]
    assert agreement(judge(draw(scenes, 0)[0])[0], scenes)["all"] == 1.0
