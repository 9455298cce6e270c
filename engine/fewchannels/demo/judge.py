"""A judge for images of the shapes world: says what an image shows, by geometry alone.

Nothing here is learned. The background is a plane fitted to the colors near the border's median, the subject is what
stands out from it, its outline is compared with every shape rendered at many radii and rotations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from fewchannels.demo.world import COLOURS, POSITIONS, SHAPES, SIZES, Scene, coverage

ATTRIBUTES = ("shape", "colour", "size", "position", "background")

MIN_CONTRAST = 0.15  # RGB distance from the background; the world's closest pair of colours is 0.34 apart
MIN_AREA = 0.01  # share of the image; the world's smallest subject covers 0.03
MIN_IOU = 0.7  # below this a subject is no shape of the world
MAX_OFFSET = 0.15  # share of the side; farther than this from every position is no position of the world

_BATCH = 256
_BORDER = 2  # pixels
_PART = 0.25  # pieces at least this large against the largest belong to the subject: two stars are not one star
_SOFTNESS = 1 / 64  # share of the side
_WORK_SIDE = 64  # larger images are matched at this size
_RADII = torch.logspace(math.log10(0.12), math.log10(0.32), 25)  # shares of the side, 4 % apart
_ANGLES = torch.linspace(-0.2, 0.2, 7)  # radians; the world turns its subjects by up to 0.15


@dataclass(frozen=True)
class Verdict:
    """What one image shows, in the world's own words; None for what it does not show.

    Attributes:
        shape: None if no subject stands out or it is like no shape of the world.
        color: None if no subject stands out.
        size: None if ``shape`` is None.
        position: None if no subject stands out or its center is near no position of the world.
        background: nearest color of the border; always given.
        template_iou: intersection over union with the best rendered shape, both softened, in [0, 1]; 0 with no
            subject.
        area: share of the image that the subject covers, in [0, 1].
    """

    shape: str | None
    colour: str | None
    size: str | None
    position: str | None
    background: str
    template_iou: float
    area: float


def judge(images: Tensor) -> tuple[list[Verdict], Tensor]:
    """Say what each image shows.

    Args:
        images: ``(sample, rgb, y, x)`` floating point in [0, 1], square.

    Returns:
        One verdict an image, and the subjects' masks ``(sample, y, x)`` bool, empty if there is no subject.

    Raises:
        ValueError: the images have another shape, are not floating point, not finite or not in [0, 1].
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or images.shape[2] < 16:
        raise ValueError(
            f"images of shape {tuple(images.shape)}; the judge needs (sample, 3, side, side), with a side of at least "
            f"16"
        )
    if not images.is_floating_point():
        raise ValueError(f"images of {images.dtype}; the judge needs floating point in [0, 1]")
    if not images.isfinite().all():
        bad = (~images.isfinite().flatten(1).all(1)).sum().item()
        raise ValueError(f"{bad} of {len(images)} images have values that are not finite")
    if len(images) and (images.min() < -1e-3 or images.max() > 1 + 1e-3):
        raise ValueError(f"images in [{images.min():.3g}, {images.max():.3g}]; the judge needs [0, 1]")
    verdicts: list[Verdict] = []
    masks = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    for first in range(0, len(images), _BATCH):
        batch = images[first : first + _BATCH].detach().to("cpu", torch.float32)
        found, masks[first : first + _BATCH] = _judge_batch(batch)
        verdicts.extend(found)
    return verdicts, masks


def agreement(verdicts: Sequence[Verdict], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of verdicts that agree with the scenes, for each attribute and, under ``all``, for all five at once.

    Raises:
        ValueError: the two differ in length or are empty.
    """
    if len(verdicts) != len(scenes) or not scenes:
        raise ValueError(
            f"{len(verdicts)} verdicts for {len(scenes)} scenes; the numbers must be equal, and at least 1"
        )
    right = {
        name: [getattr(v, name) == getattr(s, name) for v, s in zip(verdicts, scenes, strict=True)]
        for name in ATTRIBUTES
    }
    right["all"] = [all(row) for row in zip(*right.values(), strict=True)]
    return {name: sum(values) / len(scenes) for name, values in right.items()}


def _judge_batch(images: Tensor) -> tuple[list[Verdict], Tensor]:
    side = images.shape[-1]
    border = _border_median(images)
    ground = _ground(images, border)
    distance = (images - ground).norm(dim=1)
    # The level that one image's clearest pixels reach, as many as MIN_AREA asks for: fewer are specks.
    clear = distance.flatten(1).topk(math.ceil(MIN_AREA * side * side)).values[:, -1]
    rough = _main_parts(distance > (clear / 2).clamp_min(MIN_CONTRAST / 2)[:, None, None])
    subject = _median_colour(images, rough)
    # Projected on the way from background to subject, a pixel's colour tells how much of it the subject covers.
    way = subject[:, :, None, None] - ground
    cover = ((images - ground) * way).sum(1) / way.square().sum(1).clamp_min(1e-6)
    mask = _main_parts(cover > 0.5)
    area = mask.flatten(1).float().mean(1)
    seen = (clear > MIN_CONTRAST) & (area > MIN_AREA)
    mask &= seen[:, None, None]
    near = functional.max_pool2d(mask[:, None].float(), 3, stride=1, padding=1)[:, 0]
    centroid, shape, radius, iou = _best_template(cover.clamp(0, 1) * near)
    places = torch.tensor(list(POSITIONS.values()))
    offset, place = torch.cdist(centroid / side, places).min(1)
    sizes = torch.tensor(list(SIZES.values())).log()
    size = (radius.log()[:, None] - sizes).abs().argmin(1)
    colour, background = _nearest_colour(subject), _nearest_colour(border)
    shapes_like, position_like = seen & (iou > MIN_IOU), seen & (offset < MAX_OFFSET)

    def words(names: Sequence[str], index: Tensor, known: Tensor) -> list[str | None]:
        return [names[i] if k else None for i, k in zip(index.tolist(), known.tolist(), strict=True)]

    columns = (
        words(SHAPES, shape, shapes_like),
        words(tuple(COLOURS), colour, seen),
        words(tuple(SIZES), size, shapes_like),
        words(tuple(POSITIONS), place, position_like),
        words(tuple(COLOURS), background, torch.ones_like(seen)),
        torch.where(seen, iou, 0.0).tolist(),
        torch.where(seen, area, 0.0).tolist(),
    )
    return [Verdict(*row) for row in zip(*columns, strict=True)], mask


def _border_median(images: Tensor) -> Tensor:
    """Median color of the outermost pixels, ``(sample, rgb)``."""
    inner = torch.zeros(images.shape[2:], dtype=torch.bool)
    inner[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
    return images[:, :, ~inner].median(-1).values


def _ground(images: Tensor, border: Tensor) -> Tensor:
    """The smoothly shaded background under the subject too: planes ``(sample, rgb, y, x)`` through like pixels."""
    n, _, side, _ = images.shape
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    basis = torch.stack([torch.ones_like(x), x, y], dim=-1).reshape(-1, 3)
    residual = (images - border[:, :, None, None]).flatten(2).transpose(1, 2)
    planes = torch.zeros_like(residual)
    for tolerance in (0.18, 0.10):
        like = ((residual - planes).norm(dim=-1) < tolerance).float()
        # A little of the identity keeps the fit solvable, and flat, where hardly a pixel is like the border.
        normal = torch.einsum("np,pi,pj->nij", like, basis, basis) + torch.eye(3)
        planes = basis @ torch.linalg.solve(normal, torch.einsum("np,pi,npc->nic", like, basis, residual))
    return border[:, :, None, None] + planes.transpose(1, 2).reshape(n, 3, side, side)


def _main_parts(mask: Tensor) -> Tensor:
    """Keep each mask's largest connected part and the parts of comparable size."""
    structure = np.zeros((3, 3, 3), dtype=bool)
    structure[1] = True
    labels, count = ndimage.label(mask.numpy(), structure)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    sizes_here = torch.from_numpy(sizes[labels])
    return mask & (sizes_here >= _PART * sizes_here.amax((1, 2), keepdim=True))


def _median_colour(images: Tensor, mask: Tensor) -> Tensor:
    """Median color ``(sample, rgb)`` inside the mask and off its edge where it is thick enough; black where empty."""
    eroded = -functional.max_pool2d(-mask[:, None].float(), 3, stride=1, padding=1) > 0.5
    inside = torch.where(eroded.any((2, 3), keepdim=True), eroded, mask[:, None])
    return torch.where(inside, images, torch.nan).flatten(2).nanmedian(-1).values.nan_to_num()


def _lab(rgb: Tensor) -> Tensor:
    """sRGB in [0, 1] to CIE L*a*b* (white D65); both ``(..., 3)``."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp_min(0) + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / torch.tensor([0.9505, 1.0, 1.089])
    f = torch.where(xyz > 0.008856, xyz.clamp_min(0) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def _nearest_colour(rgb: Tensor) -> Tensor:
    """Index ``(sample,)`` into :data:`COLOURS` of the color that looks nearest to ``(sample, rgb)``."""
    return torch.cdist(_lab(rgb), _lab(torch.tensor(list(COLOURS.values())))).argmin(1)


@lru_cache(maxsize=4)
def _templates(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every shape at every radius and angle with its centroid in the middle of an odd window.

    Returns:
        Softened coverages ``(template, pixel)``, shape indices, and radii as shares of the side.
    """
    index, radius, angle = torch.cartesian_prod(torch.arange(float(len(SHAPES))), _RADII, _ANGLES).T
    shape = index.long()
    window = 2 * math.ceil(1.05 * _RADII.max().item() * side) + 1
    middle = torch.full((len(shape), 2), window / 2)
    aside = _centroid(coverage(shape, middle, radius * side, angle, window)) - middle
    drawn = _soften(coverage(shape, middle - aside, radius * side, angle, window), side)
    return drawn.flatten(1), shape, radius


def _soften(cover: Tensor, side: int) -> Tensor:
    """Blur coverages ``(sample, y, x)`` so that a ragged outline weighs less than the shape as a whole."""
    sigma = _SOFTNESS * side
    return torch.from_numpy(ndimage.gaussian_filter(cover.numpy(), (0, sigma, sigma), mode="constant"))


def _centroid(cover: Tensor) -> Tensor:
    """Centers of gravity ``(sample, xy)`` in pixels; the middle where there is nothing."""
    axis = torch.arange(cover.shape[-1]) + 0.5
    mass = cover.sum((1, 2))
    xy = torch.stack([(cover.sum(1) * axis).sum(1), (cover.sum(2) * axis).sum(1)], dim=-1)
    return torch.where(mass[:, None] > 0, xy / mass[:, None].clamp_min(1e-6), cover.shape[-1] / 2)


def _best_template(cover: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Match coverages ``(sample, y, x)`` with the templates.

    Returns:
        Centroids ``(sample, xy)`` in pixels, shape indices, radii as shares of the side, and soft IoUs.
    """
    side = cover.shape[-1]
    work = min(side, _WORK_SIDE)
    drawn, shape, radius = _templates(work)
    window = math.isqrt(drawn.shape[1])
    centroid = _centroid(cover)
    cover = _soften(cover, side)
    axis = (torch.arange(window) + 0.5 - window / 2) * side / work
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = (centroid[:, None, None] + torch.stack([x, y], dim=-1)) / side * 2 - 1
    crop = functional.grid_sample(cover[:, None], grid, align_corners=False).flatten(1)
    shared = crop @ drawn.T
    whole = cover.square().sum((1, 2)) * (work / side) ** 2  # the window alone would forgive what lies outside it
    iou = shared / (whole[:, None] + drawn.square().sum(1) - shared).clamp_min(1e-6)
    value, best = iou.max(1)
    return centroid, shape[best], radius[best], value
