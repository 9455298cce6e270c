"""A recording of a pipeline's own calls, in memory, with the same arrays and table as a run."""

import html
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewchannels.api.calls.recorded_call import MadeBy, RecordedCall
from fewchannels.errors import InputError
from fewchannels.runs.arrays import as_dataset
from fewchannels.runs.layout import Layout, Track
from fewchannels.settings.arguments import checked
from fewchannels.settings.units import size
from fewchannels.tables import from_parquet, schema, to_parquet

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure
    from PIL import Image

    from fewchannels.api.run import Run


class Recorded:
    """A recording of a pipeline's calls inside :func:`fewchannels.record`: hidden states, reduced as in a capture.

    Attributes:
        calls: the calls, in order.
        score: the statistic that ranks channels.
        made_by: pipeline and machine that made the calls; None before the context is entered.
    """

    def __init__(self, score: str) -> None:
        self.calls: list[RecordedCall] = []
        self.score = score
        self.made_by: MadeBy | None = None

    def add(self, call: RecordedCall) -> None:
        """Append a call."""
        self.calls.append(call)
        for name in ("activations", "cells", "layout"):
            self.__dict__.pop(name, None)

    @property
    def n_samples(self) -> int:
        """Number of recorded images."""
        return sum(len(call.prompts) for call in self.calls)

    @property
    def prompts(self) -> list[str | None]:
        """Each sample's prompt; None if the call had embeddings instead."""
        return [prompt for call in self.calls for prompt in call.prompts]

    @property
    def images(self) -> "list[Image.Image | None]":
        """Each sample's image; None if the pipeline returned no images."""
        return [image for call in self.calls for image in call.images]

    @property
    def sample_ids(self) -> list[str]:
        """Each sample's id: the manifest's id for its prompt and seed, or an id for its index if it has no seed."""
        return [each for call in self._some_calls() for each in call.ids]

    @cached_property
    def layout(self) -> Layout:
        """Shape of all calls together: the steps of any call, and the tokens of the largest image."""
        layouts = [call.layout for call in self._some_calls()]
        return replace(
            layouts[0],
            n_samples=self.n_samples,
            steps=tuple(sorted({step for each in layouts for step in each.steps})),
            n_tokens=max(each.n_tokens for each in layouts),
        )

    @cached_property
    def activations(self) -> "xr.Dataset":
        """The arrays, labeled like :attr:`fewchannels.Run.activations`: ``(sample, step, layer, ...)``.

        Steps that a call did not run, and tokens that its images do not have, are NaN. Prompts and seeds are
        coordinates of ``sample`` if every sample has one.
        """
        layout = self.layout
        arrays = {}
        for plan in layout.arrays():
            whole = np.full(plan.shape, plan.fill, np.dtype(plan.dtype))
            first = 0
            for call in self.calls:
                part = call.arrays[plan.name]
                at = [layout.steps.index(step) for step in call.layout.steps]
                within: tuple[Any, ...] = tuple(slice(n) for n in part.shape[2:])
                whole[(slice(first, first + len(part)), at, *within)] = part
                first += len(part)
            arrays[plan.name] = whole
        data = as_dataset(layout, self.sample_ids, arrays)
        seeds = [seed for call in self.calls for seed in call.seeds]
        about: dict[str, Any] = {}
        if None not in self.prompts:
            about["prompt"] = ("sample", np.array(self.prompts, object))
        if None not in seeds:
            about["seed"] = ("sample", np.array(seeds))
        return data.assign_coords(about)

    @cached_property
    def cells(self) -> "pd.DataFrame":
        """The table ``cells``: one row per (sample, step, layer, stream, branch), see ``schemas/cells.yaml``."""
        ids, parts, sample = self.sample_ids, [], 0
        for call in self.calls:
            for cells in call.cells:
                n = len(cells["step"])
                parts.append({"sample_id": np.full(n, ids[sample]), "sample": np.full(n, sample)} | cells)
                sample += 1
        columns = {name: np.concatenate([part[name] for part in parts]) for name in schema("cells").names}
        frame: pd.DataFrame = from_parquet(to_parquet("cells", columns)).to_pandas()
        return frame

    @checked
    def top(
        self, layer: int, step: int = -1, *, sample: int = 0, stream: str = "image", branch: str = "cond"
    ) -> "pd.DataFrame":
        """The largest channels at one layer and step, largest first: rank, channel, score, and ratio to the median.

        Args:
            layer: the layer; negative numbers count from the last recorded one.
            step: the step; negative numbers count from the last one that the sample ran.
            sample: index of the recorded sample; negative numbers count from the last one.
            stream: ``image`` or ``text``.
            branch: ``cond`` or ``uncond``.

        Raises:
            InputError: the requested data were not recorded.
        """
        import pandas as pd

        cell = self._cell(layer, step, sample, stream, branch)
        scores = np.asarray(cell["top_scores"])
        with np.errstate(divide="ignore", invalid="ignore"):  # half of the channels may be zero, after an edit
            ratio = scores / cell["median_score"]
        columns = {"channel": np.asarray(cell["top_channels"]), "score": scores, "ratio": ratio}
        return pd.DataFrame({"rank": np.arange(len(scores))} | columns)

    @checked
    def map(self, layer: int, step: int = -1, *, channel: int, sample: int = 0, branch: str = "cond") -> "xr.DataArray":
        """A channel's values over the grid of image tokens, ``(y, x)`` float32, signed.

        Args:
            layer: the layer; negative numbers count from the last recorded one.
            step: the step; negative numbers count from the last one that the sample ran.
            channel: one of the channels whose maps were recorded at this layer and step: see :meth:`top`.
            sample: index of the recorded sample; negative numbers count from the last one.
            branch: ``cond`` or ``uncond``.

        Raises:
            InputError: the map was not recorded.
        """
        import xarray as xr

        cell = self._cell(layer, step, sample, "image", branch)
        layer = int(cell["layer"])
        found, prefix = list(cell["top_channels"]), Track("image", branch).prefix
        if prefix + "massive_value" not in self.activations:
            raise InputError("no token maps were recorded (top_k is 0). Record again with top_k=12.")
        if channel not in found:
            raise InputError(
                f"channel {channel} is not among the {len(found)} largest of layer {layer} at step {cell['step']}, "
                f"whose maps were recorded: {', '.join(map(str, found))}. Record again with a larger top_k."
            )
        at = {"sample": self._place(sample), "k": found.index(channel)}
        values = self.activations[prefix + "massive_value"].sel(step=cell["step"], layer=layer).isel(at).values
        height, width = self._call(sample).token_grid
        about = {"sample": self._place(sample), "layer": layer, "step": int(cell["step"]), "channel": channel}
        grid = values[: height * width].reshape(height, width)
        places = {"y": np.arange(height), "x": np.arange(width)}
        return xr.DataArray(grid, places | about, ("y", "x"), f"channel {channel}")

    @checked
    def plot(
        self, layer: int | None = None, step: int = -1, *, k: int = 4, sample: int = 0, branch: str = "cond"
    ) -> "Figure":
        """Draw the channel landscape of all layers or, with a layer, the image beside its largest channels' maps.

        Args:
            layer: the layer; negative numbers count from the last recorded one. None draws the landscape of all layers.
            step: the step; negative numbers count from the last one that the sample ran.
            k: number of maps.
            sample: index of the recorded sample; negative numbers count from the last one.
            branch: ``cond`` or ``uncond``.

        Returns:
            A Matplotlib figure, which a notebook shows.

        Raises:
            InputError: the requested data were not recorded.
        """
        from fewchannels.analyses.figures.drawings import Images, Landscape
        from fewchannels.analyses.figures.still import drawn

        prompt = self.prompts[self._place(sample)] or f"sample {self._place(sample)}"
        if layer is None:
            layers = self.activations.layer.values
            at = self._cell(int(layers[0]), step, sample, "image", branch)["step"]
            scores = self.activations[Track("image", branch).prefix + self.score]
            values = scores.sel(step=at).isel(sample=self._place(sample)).values
            title = f"{self.score} of every channel at step {at}\n{prompt}"
            channels = range(values.shape[1])
            return drawn(
                Landscape(
                    values=values,
                    title=title,
                    rows=layers.tolist(),
                    columns=list(channels),
                    row="layer",
                    column="channel",
                    value=self.score,
                )
            )
        top = self.top(layer, step, sample=sample, branch=branch).head(k)
        maps = [self.map(layer, step, channel=int(each), sample=sample, branch=branch) for each in top["channel"]]
        image = self.images[self._place(sample)]
        names = [f"channel {row.channel}\n{row.ratio:.3g} x median" for row in top.itertuples()]
        title = f"Largest channels of layer {layer} at step {int(maps[0].step)}\n{prompt}"
        shown = [each.values for each in maps]
        if image is not None:
            shown, names = [np.asarray(image), *shown], ["image", *names]
        return drawn(Images(rows=[shown], labels=[""], columns=names, title=title))

    @checked
    def save(self, path: str | Path) -> "Run":
        """Write a run, which every command can read: queries, analyses, the report, the explorer.

        The run is identified by the current weights and settings of the pipeline, so save before you change them.
        Computing their digest takes a few seconds per 10 GB.

        Args:
            path: folder or URL of the run.

        Returns:
            The run, opened.

        Raises:
            InputError: a sample has no seed, no prompt or no image, two samples are identical, or the pipeline was
                deleted.
            RunConflictError: the location contains something else.
            StorageError: the run could not be written.
        """
        from fewchannels.api.calls.saving import save
        from fewchannels.api.run import Run

        self._some_calls()
        made_by = self.made_by
        assert made_by is not None
        pipeline = made_by.pipeline()
        if pipeline is None:
            raise InputError("the pipeline was deleted, so its weights cannot be identified. Save before deleting it.")
        save(self.calls, made_by, pipeline, self.score, self.layout, self.activations, path)
        return Run(path)

    def __repr__(self) -> str:
        if not self.calls:
            return "Recorded(no call yet)"
        layout = self.layout
        return (
            f"Recorded(samples={self.n_samples}, steps={len(layout.steps)}, layers={len(layout.blocks)}, "
            f"channels={layout.n_channels}, top_k={layout.top_k})"
        )

    def _repr_html_(self) -> str:
        """A short table for notebooks."""
        if not self.calls:
            return "<p>Recorded: no call yet. Call the pipeline inside <code>with fc.record(pipe)</code>.</p>"
        layout, last = self.layout, self.layout.blocks[len(self.layout.blocks) // 2].layer
        rows = []
        for i, prompt in enumerate(self.prompts[:10]):
            top = self.top(last, sample=i, stream=layout.streams[0], branch=layout.branches[0]).iloc[0]
            largest = f"{int(top['channel'])} ({top['ratio']:.3g} x median)"
            rows.append(f"<tr><td>{i}</td><td>{html.escape(prompt or '')}</td><td>{largest}</td></tr>")
        more = f"<p>and {self.n_samples - 10} more</p>" if self.n_samples > 10 else ""
        n_bytes = sum(values.nbytes for call in self.calls for values in call.arrays.values())
        table = (
            f"<p>{html.escape(repr(self))}, {size(n_bytes)}</p><table><thead><tr><th>sample</th><th>prompt</th>"
            f"<th>largest channel, layer {last}, last step</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        )
        return table + more

    def _some_calls(self) -> list[RecordedCall]:
        if not self.calls:
            raise InputError(
                "nothing was recorded: the pipeline was not called inside the context. Call it there, as in: "
                "with fc.record(pipe) as recorded: pipe('a cat')."
            )
        return self.calls

    def _place(self, sample: int) -> int:
        self._some_calls()
        if not -self.n_samples <= sample < self.n_samples:
            raise InputError(
                f"there is no sample {sample}. Choose one of the recorded samples, 0 to {self.n_samples - 1}."
            )
        return sample % self.n_samples

    def _call(self, sample: int) -> RecordedCall:
        place = self._place(sample)
        for call in self.calls:
            if place < len(call.prompts):
                return call
            place -= len(call.prompts)
        raise AssertionError("every sample belongs to a call")

    def _cell(self, layer: int, step: int, sample: int, stream: str, branch: str) -> "pd.Series[Any]":
        cells = self.cells
        mine = cells[(cells["sample"] == self._place(sample)) & (cells["stream"] == stream)]
        mine = mine[mine["branch"] == branch]
        steps = sorted(set(mine["step"]))
        layers = [block.layer for block in self.layout.blocks]
        if not steps:
            raise InputError(
                f"the {stream} stream of the {branch} branch was not recorded. Record a call that runs it, with "
                "streams and branches that include it."
            )
        step = steps[step] if -len(steps) <= step < 0 else step
        layer = layers[layer] if -len(layers) <= layer < 0 else layer
        for name, value, known in (("layer", layer, layers), ("step", step, steps)):
            if value not in known:
                raise InputError(f"{name} {value} was not recorded. Choose one of these: {', '.join(map(str, known))}.")
        found = mine[(mine["layer"] == layer) & (mine["step"] == step)]
        if found.empty:
            raise InputError(f"layer {layer} has no {stream} stream. Choose another layer.")
        return found.iloc[0]
