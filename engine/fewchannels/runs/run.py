"""A run on disk, for reading."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewchannels.errors import InputError
from fewchannels.runs.choices import choose_pool_side
from fewchannels.runs.description import read_description
from fewchannels.runs.layout import Track
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.opened import Opened, as_html
from fewchannels.runs.provenance import by_version
from fewchannels.settings.arguments import checked
from fewchannels.settings.units import size

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from PIL import Image


class StoredRun(Opened):
    """A run on disk, finished or not: what tasks had recorded when it was opened.

    Args:
        path: the run's folder or URL.

    Raises:
        InputError: there is no run.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, read_description)

    def __len__(self) -> int:
        """Samples of the manifest, finished or not."""
        return int(self.description["geometry"]["n_samples"])

    @property
    def layers(self) -> list[int]:
        """The layers that were recorded, ascending."""
        return [block["layer"] for block in self.description["geometry"]["blocks"]]

    @property
    def steps(self) -> list[int]:
        """The denoising steps that were recorded, ascending."""
        return list(self.description["config"]["steps"])

    @property
    def results(self) -> list[str]:
        """Labels of the finished results, whose tables are ``LABEL_TABLE``."""
        return list(self.catalog.results)

    @property
    def manifest(self) -> "pd.DataFrame":
        """The manifest, one row per sample, in its order."""
        return self.sql("select * from manifest").df()

    @property
    def samples(self) -> "pd.DataFrame":
        """One row per finished sample, without the images: see :meth:`image`."""
        return self.sql("select * exclude (image) from samples order by sample").df()

    @property
    def cells(self) -> "pd.DataFrame":
        """One row per (sample, step, layer, stream, branch) of finished samples; for large runs, query it instead."""
        return self.sql("select * from cells order by sample, stream, branch, step, layer").df()

    @cached_property
    def activations(self) -> "xr.Dataset":
        """The store as a lazy, labeled dataset; samples of unfinished tasks are NaN.

        The manifest's columns that are not empty are coordinates of ``sample``, for ``groupby``; a column with a name
        that the dataset already uses is called ``manifest_NAME``.
        """
        from fewchannels.runs.arrays import open_dataset

        data = open_dataset(self.storage, len(self))
        rows = self.manifest.set_index("sample_id").loc[data.sample_id.values.tolist()]
        columns = rows.dropna(axis="columns", how="all")
        taken = {*data.variables, *data.dims}
        named = {
            f"manifest_{name}" if name in taken else name: ("sample", columns[name].to_numpy()) for name in columns
        }
        return data.assign_coords(named)

    @checked
    def top(
        self, sample: int | str, layer: int, step: int = -1, *, stream: str = "image", branch: str = "cond"
    ) -> "pd.DataFrame":
        """The largest channels of a sample at one layer and step, largest first: rank, channel, score, ratio.

        Args:
            sample: the sample's index or id.
            layer: the layer; negative numbers count from the last recorded one.
            step: the step; negative numbers count from the last recorded one.
            stream: ``image`` or ``text``.
            branch: ``cond`` or ``uncond``.

        Raises:
            InputError: there is no such cell among the finished samples.
        """
        place, at, when = self._index(sample), self._layer(layer), self._step(step)
        found = self.sql(
            "select unnest(range(len(top_channels))) as rank, unnest(top_channels) as channel, "
            "unnest(top_scores) as score, unnest(top_scores) / median_score as ratio from cells "
            f"where sample = {place:d} and layer = {at:d} and step = {when:d} "
            f"and stream = {_quoted(stream)} and branch = {_quoted(branch)}"
        ).df()
        if found.empty:
            raise InputError(
                f"the run has no cell of sample {sample!r}, layer {layer}, step {step}, stream {stream} and branch "
                f"{branch}. It has layers {self.layers} and steps {self.steps}; the sample may not be finished."
            )
        return found

    @checked
    def map(
        self, sample: int | str, layer: int, step: int = -1, *, channel: int, branch: str = "cond"
    ) -> "xr.DataArray":
        """A channel's values over the grid of image tokens, ``(y, x)`` float32, signed.

        Args:
            sample: the sample's index or id.
            layer: the layer; negative numbers count from the last recorded one.
            step: the step; negative numbers count from the last recorded one.
            channel: one of the channels whose maps were recorded there: see :meth:`top`.
            branch: ``cond`` or ``uncond``.

        Raises:
            InputError: that map was not recorded.
        """
        import xarray as xr

        place, layer, at = self._index(sample), self._layer(layer), self._step(step)
        channels = self.top(place, layer, at, branch=branch).channel.tolist()
        name = Track("image", branch).prefix + "massive_value"
        if name not in self.activations:
            raise InputError("the run has no token maps (top_k 0). Capture again with top_k=12.")
        if channel not in channels:
            raise InputError(
                f"channel {channel} is not among the {len(channels)} largest of layer {layer} at step {at}, whose maps "
                f"were recorded: {', '.join(map(str, channels))}."
            )
        pool = choose_pool_side(self.description["config"].get("tokens", "all"))
        ((height, width),) = self.sql(
            f"select grid_height, grid_width from samples where sample = {place:d}"
        ).fetchall()
        height, width = height // pool, width // pool
        values = self.activations[name].sel(layer=layer, step=at).isel(sample=place, k=channels.index(channel)).values
        about = {"sample": place, "layer": layer, "step": at, "channel": channel}
        places = {"y": range(height), "x": range(width)}
        return xr.DataArray(values[: height * width].reshape(height, width), places | about, ("y", "x"))

    def _index(self, sample: int | str) -> int:
        """A sample's index on the store's axis, from its index or id."""
        if isinstance(sample, str):
            found = self.sql(f"select sample from samples where sample_id = {_quoted(sample)}").fetchone()
            if found is None:
                raise InputError(f"no finished sample has the id {sample!r}. {_LIST_THEM}")
            return int(found[0])
        if isinstance(sample, bool) or not -len(self) <= sample < len(self):
            raise InputError(f"sample is {sample!r}; the run has samples 0 to {len(self) - 1}.")
        return int(sample) % len(self)

    def _layer(self, layer: int) -> int:
        return _from_the_end("layer", layer, self.layers)

    def _step(self, step: int) -> int:
        return _from_the_end("step", step, self.steps)

    @checked
    def image(self, sample: int | str) -> "Image.Image":
        """The generated image of one sample.

        Args:
            sample: the sample's index or id.

        Raises:
            InputError: there is no such sample among the finished tasks, or it failed.
            StorageError: the image is damaged.
        """
        found = self.sql(f"select image from samples where sample = {self._index(sample):d}").fetchone()
        if found is None or found[0] is None:
            raise InputError(f"sample {sample!r} is not finished, or failed. {_LIST_THEM}")
        from fewchannels.runs.images import opened

        return opened(found[0])

    def _repr_html_(self) -> str:
        """A short table for notebooks."""
        about = self.summary()
        rows = {
            "run": self.storage.url,
            "model": about["model"]["name"],
            "samples": f"{about['n_done']:,} of {len(self):,}"
            + f", {about['n_failed']:,} failed" * bool(about["n_failed"]),
            "layers, steps": f"{len(self.layers)}, {len(self.steps)}",
            "size": size(about["bytes"]),
            "results": ", ".join(self.results) or "none",
        }
        return as_html(rows)

    def summary(self) -> dict[str, Any]:
        """Description and progress of the run: settings, counts, bytes and files on disk."""
        ((done, failed, truncated, seconds),) = self.sql(
            "select count(*) filter (status = 'done'), count(*) filter (status = 'failed'), "
            "count(*) filter (prompt_truncated), avg(seconds) from samples"
        ).fetchall()
        ((tasks_done,),) = self.sql("select count(*) from tasks").fetchall()
        files = self.storage.list()
        return self.description | {
            "n_samples": self.description["geometry"]["n_samples"],
            "n_done": done,
            "n_failed": failed,
            "n_truncated": truncated,
            "n_tasks_done": tasks_done,
            "computed_by": by_version(Ledger(self.storage).records(self.description["fingerprint"]).values()),
            "seconds_per_sample": seconds,
            "bytes": sum(files.values()),
            "files": len(files),
            "left_over": self.storage.left_over(),
        }


_LIST_THEM = "List them with: select sample, sample_id, status from samples."


def _from_the_end(name: str, value: int, recorded: list[int]) -> int:
    """A layer or step; negative ones count from the last recorded one."""
    if value >= 0:
        return int(value)
    if -value > len(recorded):
        raise InputError(f"{name} is {value}; the run has {len(recorded)} {name}s: {recorded}.")
    return recorded[value]


def _quoted(text: str) -> str:
    """A text in SQL."""
    return "'" + str(text).replace("'", "''") + "'"
