"""The shapes world: captions, held-out pairs, and images whose masks are exact."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from fewchannels.demo import world
from fewchannels.demo.world import COLOURS, POSITIONS, SHAPES, SIZES, Scene, all_scenes, choose_scenes, coverage, draw

scenes = st.builds(
    Scene,
    shape=st.sampled_from(SHAPES),
    colour=st.sampled_from(tuple(COLOURS)),
    size=st.sampled_from(tuple(SIZES)),
    position=st.sampled_from(tuple(POSITIONS)),
    background=st.sampled_from(tuple(COLOURS)),
)

# Areas of the shapes of circumradius 1, worked out by hand.
AREAS = {
    "circle": math.pi,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "star": 10 * 0.5 * 0.42 * math.sin(math.pi / 5),
    "diamond": 2 * 0.72,
    "cross": 2 * (1.90 * 0.62) - 0.62**2,
    "heart": 180 * math.pi / 17**2,  # the curve's own area is 180 pi, in a world scaled by 1 / 17
    "ring": math.pi * (1 - 0.56**2),
}


def one_shape(shape: str, center: tuple[float, float], radius: float, angle: float, side: int) -> torch.Tensor:
    """Coverage ``(y, x)`` of a single shape."""
    index = torch.tensor([SHAPES.index(shape)])
    return coverage(index, torch.tensor([center]), torch.tensor([radius]), torch.tensor([angle]), side)[0]


def covered_by_counting(
    shape: str, center: tuple[float, float], radius: float, angle: float, side: int, per_pixel: int = 8
) -> np.ndarray:
    """The same by asking, for 8 x 8 points in each pixel, whether they lie inside the turned outline."""
    axis = (np.arange(side * per_pixel) + 0.5) / per_pixel
    x, y = np.meshgrid(axis, axis)
    points = np.stack([x.ravel(), y.ravel()], axis=-1)
    if shape in ("circle", "ring"):
        far = np.hypot(*(points - center).T) / radius
        inside = (far < 1) & (far > (0.56 if shape == "ring" else 0))
    else:
        cos, sin = math.cos(angle), math.sin(angle)
        corners = world._polygon(shape).numpy() @ np.array([[cos, sin], [-sin, cos]]) * radius + center
        inside = Outline(np.concatenate([corners, corners[:1]])).contains_points(points)
    return inside.reshape(side, per_pixel, side, per_pixel).mean((1, 3))


def test_every_caption_of_the_world_parses_back_and_no_two_scenes_share_one():
    assert [Scene.from_caption(scene.caption) for scene in all_scenes()] == list(all_scenes())
    assert len({scene.caption for scene in all_scenes()}) == len(all_scenes()) == 8 * 12 * 2 * 5 * 11


@given(scenes)
def test_a_caption_parses_back_in_any_case_and_between_spaces(scene):
    assert Scene.from_caption(f"  {scene.caption.upper()}\n") == scene


@given(scenes)
def test_a_caption_reads_as_english(scene):
    words = scene.caption.split()
    for article, word in itertools.pairwise(words):
        if article in ("a", "an"):
            assert (article == "an") == (word[0] in "aeiou")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a small pink star",
        "a small pink star at the left on a gray background, please",
        "a medium pink star at the left on a gray background",
        "a small pink hexagon at the left on a gray background",
    ],
)
def test_text_that_no_scene_would_write_is_refused_and_quoted(text):
    with pytest.raises(ValueError, match="is not a caption") as refusal:
        Scene.from_caption(text)
    assert repr(text) in str(refusal.value)


def test_twelve_of_the_96_pairs_are_held_out_and_each_colour_is_held_out_once():
    pairs = {(scene.shape, scene.colour) for scene in all_scenes()}
    held_out = {(scene.shape, scene.colour) for scene in all_scenes() if scene.held_out}
    assert (len(pairs), len(held_out)) == (96, 12)
    assert sorted(colour for _, colour in held_out) == sorted(COLOURS)
    assert {shape for shape, _ in held_out} == set(SHAPES)


def test_training_scenes_are_distinct_and_never_of_a_held_out_pair():
    n = sum(not scene.held_out for scene in all_scenes())
    chosen = choose_scenes(n, 3, held_out=False)
    assert len(set(chosen)) == n
    assert not any(scene.held_out for scene in chosen)


def test_held_out_scenes_are_all_of_held_out_pairs_and_begin_again_only_when_used_up():
    n = sum(scene.held_out for scene in all_scenes())
    chosen = choose_scenes(n + 5, 3, held_out=True)
    assert all(scene.held_out for scene in chosen)
    assert len(set(chosen[:n])) == n == len(set(chosen))


def test_a_choice_of_scenes_repeats_with_its_seed_and_changes_with_another():
    assert choose_scenes(50, 7) == choose_scenes(50, 7) != choose_scenes(50, 8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("radius", "angle"), [(10.2, 0.15), (16.6, -0.1)])
def test_a_mask_has_the_pixels_that_lie_inside_the_outline(shape, radius, angle):
    center = (30.3, 33.6)
    cover = one_shape(shape, center, radius, angle, 64).numpy()
    counted = covered_by_counting(shape, center, radius, angle, 64)
    mask, expected = cover > 0.5, counted > 0.5
    assert (mask & expected).sum() / (mask | expected).sum() > 0.97
    assert np.abs(cover - counted).max() < 0.4
    assert np.abs(cover - counted).mean() < 0.003


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_its_area(shape):
    radius = 40.0
    area = one_shape(shape, (64.0, 64.0), radius, 0.0, 128).sum().item()
    assert area == pytest.approx(AREAS[shape] * radius**2, rel=0.01)


def test_a_drawing_repeats_with_its_seed_whatever_the_global_random_state():
    chosen = choose_scenes(8, 0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    images, masks = draw(chosen, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, masks_again = draw(chosen, 5)
    assert torch.equal(images, again)
    assert torch.equal(masks, masks_again)


def test_drawings_of_one_scene_differ_in_place_size_turn_light_and_noise():
    circles, crosses = ([Scene(shape, "red", "large", "in the center", "gray")] * 60 for shape in ("circle", "cross"))
    images, masks = draw(circles, 1)
    areas = masks.float().mean((1, 2))
    assert 0.05 < areas.std() / areas.mean() < 0.15
    middles = (masks * torch.arange(64.0)).sum((1, 2)) / masks.sum((1, 2))
    assert 0.5 < middles.std() < 1.6
    assert images[:, :, :6, :6].mean((1, 2, 3)).std() > 0.01
    assert 0.008 < (images[:, :, 0, :6] - images[:, :, 1, :6]).std() / math.sqrt(2) < 0.02
    _, masks = draw(crosses, 1)
    unlike_its_mirror = (masks ^ masks.flip(2)).float().mean((1, 2))
    assert unlike_its_mirror.max() > 0.02
    assert not torch.equal(draw(circles, 1)[0], draw(circles, 2)[0])


@pytest.mark.parametrize("side", [32, 64])
def test_images_have_the_promised_shape_type_and_range(side):
    images, masks = draw(choose_scenes(40, 1), 0, side=side)
    assert (images.shape, images.dtype) == ((40, 3, side, side), torch.float32)
    assert (masks.shape, masks.dtype) == ((40, side, side), torch.bool)
    assert images.min() >= 0
    assert images.max() <= 1


def test_subject_and_background_pixels_are_near_their_palette_colours():
    chosen = choose_scenes(120, 2)
    images, masks = draw(chosen, 3)
    for scene, image, mask in zip(chosen, images, masks, strict=True):
        for name, pixels in ((scene.colour, image[:, mask]), (scene.background, image[:, ~mask])):
            palette = torch.tensor(COLOURS[name])
            assert (pixels.median(dim=1).values - palette).abs().max() < 0.25
            # Nearer than to any colour of another name but for shading: the world's closest pair is 0.34 apart.
            assert (pixels.mean(dim=1) - palette).norm() < 0.34


def test_the_mask_lies_where_the_caption_says_and_is_as_large_as_it_says():
    chosen = choose_scenes(300, 4)
    _, masks = draw(chosen, 3)
    axis = (torch.arange(64) + 0.5) / 64
    for scene, mask in zip(chosen, masks, strict=True):
        center = torch.stack([axis[mask.any(0)].mean(), axis[mask.any(1)].mean()])
        assert (center - torch.tensor(POSITIONS[scene.position])).abs().max() < 0.08
        area = AREAS[scene.shape] * SIZES[scene.size] ** 2
        assert area * 0.82 < mask.float().mean() < area * 1.18
