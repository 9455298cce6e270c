"""A contact sheet: each sample's image beside its top channel's token map."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fewchannels.errors import InputError
from fewchannels.files.durable import writing
from fewchannels.runs.choices import choose_pool_side

if TYPE_CHECKING:
    from fewchannels.runs.run import StoredRun


def contact_sheet(
    run: "StoredRun", path: Path, *, n_samples: int = 24, layer: int | None = None, step: int | None = None
) -> str:
    """Draw images beside the token map of their largest channel at one layer and step.

    Args:
        run: an open run.
        path: PNG or SVG to write.
        n_samples: images at most; the first finished ones are taken.
        layer: layer to show; None for the middle recorded one.
        step: step to show; None for the last recorded one.

    Returns:
        What is shown, for people.

    Raises:
        InputError: no sample is finished, or the layer or step was not kept.
        StorageError: writing failed.
    """
    data = run.activations
    if "massive_value" not in data:
        raise InputError(f"{run} has no token maps (top_k 0, or streams text), which a contact sheet needs.")
    layers, steps = data.layer.values.tolist(), data.step.values.tolist()
    layer = layers[len(layers) // 2] if layer is None else layer
    step = steps[-1] if step is None else step
    for name, value, kept in (("layer", layer, layers), ("step", step, steps)):
        if value not in kept:
            raise InputError(f"{name} {value} was not recorded by this run; it has {', '.join(map(str, kept))}.")
    rows = run.sql(
        "select sample, sample_id, prompt, grid_height, grid_width, top_channels[1], ratio "
        f"from samples join cells using (sample, sample_id) where step = {step:d} and layer = {layer:d} "
        f"and status = 'done' order by sample limit {n_samples:d}"
    ).fetchall()
    if not rows:
        raise InputError(f"{run} has no finished sample to show.")
    maps = data["massive_value"].sel(layer=layer, step=step).isel(k=0, sample=[row[0] for row in rows]).values
    images = [np.asarray(run.image(row[1])) for row in rows]
    pool = choose_pool_side(run.description["config"].get("tokens", "all"))
    rows = [(*row[:3], row[3] // pool, row[4] // pool, *row[5:]) for row in rows]
    grids = [values[: h * w].reshape(h, w) for values, (_, _, _, h, w, _, _) in zip(maps, rows, strict=True)]
    labels = [
        (row[2], f"channel {row[5]}, {row[6]:.0f} x median\n{np.nanmin(grid):.3g} to {np.nanmax(grid):.3g}")
        for row, grid in zip(rows, grids, strict=True)
    ]
    block = str(data.block.sel(layer=layer).item())
    heading = f"largest channel of layer {layer} ({block}) at step {step}, signed values, dark is each map's least"
    _draw(images, grids, labels, f"{run.storage.url.rsplit('/', 1)[-1]}: {heading}", path)
    return f"{len(rows)} samples, {heading}"


def _draw(
    images: Sequence[np.ndarray],
    grids: Sequence[np.ndarray],
    labels: Sequence[tuple[str, str]],
    heading: str,
    path: Path,
) -> None:
    columns = min(4, len(images))
    n_rows = -(-len(images) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.2 * n_rows + 0.5), layout="constrained")
    figure.suptitle(heading, fontsize=10, parse_math=False)
    axes = figure.subplots(n_rows, 2 * columns, squeeze=False).reshape(n_rows * columns, 2)
    for axis in axes.flat:
        axis.set_axis_off()
    for pair, image, grid, (prompt, about) in zip(axes, images, grids, labels, strict=False):
        pair[0].imshow(image)
        pair[1].imshow(grid, cmap="viridis", interpolation="nearest")
        lines = textwrap.wrap(prompt, 34, max_lines=2, placeholder=" ...")
        for axis, text in zip(pair, ("\n".join(lines), about), strict=True):
            axis.set_title(text, fontsize=6, loc="left", parse_math=False)
    with matplotlib.rc_context({"savefig.dpi": 110}), writing(path) as file:
        figure.savefig(file, format=path.suffix[1:])
