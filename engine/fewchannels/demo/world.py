"""The shapes world: captioned scenes drawn by code, each with the exact mask of its subject.

A scene is five attributes (shape, color, size, position, background). Everything else that varies between two
images of the same scene (jitter, rotation, shading, noise) is drawn from a seed.
"""

import math
import re
from dataclasses import astuple, dataclass
from functools import lru_cache

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "ring")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.14, 0.16),
    "orange": (0.97, 0.55, 0.08),
    "yellow": (0.97, 0.88, 0.18),
    "green": (0.18, 0.62, 0.24),
    "cyan": (0.20, 0.80, 0.84),
    "blue": (0.16, 0.30, 0.84),
    "purple": (0.53, 0.20, 0.70),
    "pink": (0.97, 0.60, 0.77),
    "brown": (0.45, 0.26, 0.12),
    "white": (0.96, 0.96, 0.96),
    "gray": (0.52, 0.52, 0.52),
    "black": (0.06, 0.06, 0.06),
}
SIZES = {"small": 0.17, "large": 0.26}  # circumradius as a share of the image's side
POSITIONS = {  # phrase -> center as (x, y) shares of the image's side
    "in the center": (0.5, 0.5),
    "at the left": (0.27, 0.5),
    "at the right": (0.73, 0.5),
    "at the top": (0.5, 0.27),
    "at the bottom": (0.5, 0.73),
}

_CAPTION = re.compile(
    rf"^an? ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) ({'|'.join(POSITIONS)})"
    rf" on an? ({'|'.join(COLOURS)}) background$"
)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


@dataclass(frozen=True, order=True)
class Scene:
    """One captioned scene. Attributes are the world's own words, e.g. ``Scene("star", "pink", "small", ...)``."""

    shape: str
    colour: str
    size: str
    position: str
    background: str

    @property
    def caption(self) -> str:
        """The scene in words, e.g. ``a small pink star at the left on a gray background``."""
        return (
            f"{_article(self.size)} {self.size} {self.colour} {self.shape} {self.position}"
            f" on {_article(self.background)} {self.background} background"
        )

    @property
    def held_out(self) -> bool:
        """True if this (shape, color) pair is never shown in training.

        Each color is kept from one shape, 12 of the 96 pairs, so that the evaluation asks for combinations whose
        parts are known and whose whole is new.
        """
        return SHAPES.index(self.shape) == (5 * list(COLOURS).index(self.colour) + 3) % len(SHAPES)

    @classmethod
    def from_caption(cls, caption: str) -> "Scene":
        """Parse a caption of this world.

        Raises:
            ValueError: the text is not a caption that :attr:`caption` could have written.
        """
        match = _CAPTION.match(caption.strip().lower())
        if match is None:
            raise ValueError(f"{caption!r} is not a caption of the shapes world")
        size, colour, shape, position, background = match.groups()
        return cls(shape, colour, size, position, background)


@lru_cache(maxsize=1)
def all_scenes() -> tuple[Scene, ...]:
    """Every scene of the world, in a fixed order; a subject never has its background's color."""
    return tuple(
        Scene(shape, colour, size, position, background)
        for shape in SHAPES
        for colour in COLOURS
        for size in SIZES
        for position in POSITIONS
        for background in COLOURS
        if background != colour
    )


def choose_scenes(n: int, seed: int, *, held_out: bool | None = None) -> list[Scene]:
    """Draw ``n`` scenes uniformly; distinct as long as there are enough of them.

    Args:
        n: how many.
        seed: random seed of the drawing; the same seed gives the same scenes.
        held_out: only scenes that are (True) or are not (False) held out of training; None for both.
    """
    pool = [scene for scene in all_scenes() if held_out is None or scene.held_out == held_out]
    generator = torch.Generator().manual_seed(seed)
    chosen: list[Scene] = []
    while len(chosen) < n:
        order = torch.randperm(len(pool), generator=generator)[: n - len(chosen)]
        chosen.extend(pool[i] for i in order.tolist())
    return chosen


_FIELD = 129  # samples along a side of one shape's distance field
_REACH = 1.5  # the field covers [-_REACH, _REACH] circumradii


def _polygon(shape: str) -> Tensor:
    """Corners of a shape, ``(corner, xy)``, within the unit circle, y down."""
    up = -math.pi / 2

    def around(n: int, start: float = up) -> list[tuple[float, float]]:
        return [(math.cos(start + 2 * math.pi * i / n), math.sin(start + 2 * math.pi * i / n)) for i in range(n)]

    if shape in ("circle", "ring"):
        corners = around(96)
    elif shape == "square":
        corners = around(4, math.pi / 4)
    elif shape == "diamond":
        corners = [(0.72 * x, y) for x, y in around(4)]
    elif shape == "triangle":
        corners = around(3)
    elif shape == "star":
        corners = [(x * r, y * r) for (x, y), r in zip(around(10), (1.0, 0.42) * 5, strict=True)]
    elif shape == "cross":
        a, b = 0.95, 0.31
        corners = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b)]
        corners += [(-b, -b)]
    elif shape == "heart":
        angles = [2 * math.pi * i / 96 for i in range(96)]
        corners = [
            (
                16 * math.sin(t) ** 3 / 17,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2.5) / 17,
            )
            for t in angles
        ]
    else:
        raise ValueError(f"unknown shape {shape!r}; the shapes are {', '.join(SHAPES)}")
    return torch.tensor(corners, dtype=torch.float64)


@lru_cache(maxsize=1)
def _distance_fields() -> Tensor:
    """Signed distances to every shape's outline, ``(shape, y, x)`` float32, in circumradii, negative inside."""
    axis = torch.linspace(-_REACH, _REACH, _FIELD, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([x, y], dim=-1)[:, :, None]
    fields = []
    for shape in SHAPES:
        start = _polygon(shape)
        end = start.roll(-1, dims=0)
        edge = end - start
        along = ((points - start) * edge).sum(-1) / (edge * edge).sum(-1)
        nearest = start + along.clamp(0, 1)[..., None] * edge
        distance = (points - nearest).norm(dim=-1).amin(dim=-1)
        px, py = points[..., 0], points[..., 1]
        (x0, y0), (x1, y1) = start.T, end.T
        straddles = (y0 > py) != (y1 > py)
        crossing = x0 + (py - y0) * (x1 - x0) / torch.where(y1 == y0, torch.ones_like(y0), y1 - y0)
        inside = (straddles & (px < crossing)).sum(-1) % 2 == 1
        signed = torch.where(inside, -distance, distance)
        fields.append((signed + 0.22).abs() - 0.22 if shape == "ring" else signed)
    return torch.stack(fields).float()


def coverage(shape: Tensor, center: Tensor, radius: Tensor, angle: Tensor, side: int) -> Tensor:
    """How much of each pixel the shapes cover, anti-aliased.

    Args:
        shape: ``(scene,)`` int64 indices into :data:`SHAPES`.
        center: ``(scene, xy)`` in pixels.
        radius: ``(scene,)`` circumradius in pixels.
        angle: ``(scene,)`` clockwise rotation in radians.
        side: height and width of the image in pixels.

    Returns:
        ``(scene, y, x)`` float32 in [0, 1].
    """
    axis = torch.arange(side, dtype=torch.float32, device=shape.device) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    dx = (x - center[:, 0, None, None]) / radius[:, None, None]
    dy = (y - center[:, 1, None, None]) / radius[:, None, None]
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    local = torch.stack([cos * dx + sin * dy, cos * dy - sin * dx], dim=-1)
    fields = _distance_fields().to(shape.device)[shape][:, None]
    distance = torch.nn.functional.grid_sample(fields, local / _REACH, padding_mode="border", align_corners=True)[:, 0]
    return (0.5 - distance * radius[:, None, None]).clamp(0, 1)


def draw(
    scenes: list[Scene], seed: int, *, side: int = 64, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Draw scenes with jitter, rotation, shading and noise.

    Args:
        scenes: what to draw.
        seed: the same scenes, seed, side and device type give the same images.
        side: height and width in pixels.
        device: where to draw.

    Returns:
        Images ``(scene, rgb, y, x)`` float32 in [0, 1], and exact subject masks ``(scene, y, x)`` bool: the pixels
        that the subject covers by more than half.
    """
    n = len(scenes)
    generator = torch.Generator(device).manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator, device=device)

    def lookup(values: list, chosen: list[int]) -> Tensor:
        return torch.tensor(values, device=device)[torch.tensor(chosen, dtype=torch.int64, device=device)]

    names = (SHAPES, tuple(COLOURS), tuple(SIZES), tuple(POSITIONS), tuple(COLOURS))
    columns = [
        [name.index(value) for value in column]
        for name, column in zip(names, zip(*map(astuple, scenes), strict=True), strict=True)
    ]
    shape, colour, size, position, background = columns
    radius = lookup(list(SIZES.values()), size) * side * uniform(0.93, 1.07)
    center = lookup(list(POSITIONS.values()), position) * side + uniform(-0.025, 0.025, 2) * side
    cover = coverage(torch.tensor(shape, device=device), center, radius, uniform(-0.15, 0.15), side)

    axis = torch.linspace(-1, 1, side, device=device)

    def shaded(colours: list[int], strength: float) -> Tensor:
        direction = uniform(0, 2 * math.pi)[:, None, None]
        ramp = torch.cos(direction) * axis[None, None, :] + torch.sin(direction) * axis[None, :, None]
        light = uniform(0.97, 1.03)[:, None, None] + uniform(0, strength)[:, None, None] * ramp
        return lookup(list(COLOURS.values()), colours)[:, :, None, None] * light[:, None]

    subject, ground = shaded(colour, 0.20), shaded(background, 0.08)
    image = torch.lerp(ground, subject, cover[:, None])
    noise = torch.randn(image.shape, generator=generator, device=device) * 0.015
    return (image + noise).clamp(0, 1), cover > 0.5
