"""The Zarr store of a run: create it once, write whole shards, read it back. See ``schemas/store.md``."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from zarr.errors import ZarrUserWarning

from engine.errors import StorageError
from engine.plan import ArrayPlan, Layout

NAME = "activations.zarr"


def create(run: Path, layout: Layout, sample_ids: Sequence[str]) -> None:
    """Create every array of a run, unwritten, with its dimension names and coordinates.

    Args:
        run: the run's folder; an earlier store in it is replaced.
        layout: the run's shape.
        sample_ids: one per manifest row.
    """
    group = zarr.create_group(run / NAME, zarr_format=3, overwrite=True, attributes={"format_version": 1})
    for array in layout.arrays():
        group.create_array(
            array.name,
            shape=array.shape,
            shards=array.shard,
            chunks=array.chunk,
            dtype=array.dtype,
            fill_value=-1 if array.dtype == "int32" else np.nan,
            compressors=None,
            filters=None,
            dimension_names=array.dims,
        )
    coordinates: dict[str, tuple[str, np.ndarray]] = {
        "sample": ("sample", np.arange(layout.n_samples, dtype=np.int64)),
        "sample_id": ("sample", np.array(sample_ids, dtype=np.dtypes.StringDType())),
        "step": ("step", np.array(layout.steps, dtype=np.int32)),
        "layer": ("layer", np.array([block.layer for block in layout.blocks], dtype=np.int32)),
        "block": ("layer", np.array([block.path for block in layout.blocks], dtype=np.dtypes.StringDType())),
        "channel": ("channel", np.arange(layout.n_channels, dtype=np.int32)),
        "k": ("k", np.arange(layout.top_k, dtype=np.int32)),
        "token": ("token", np.arange(layout.n_tokens, dtype=np.int32)),
    }
    for name, (dim, values) in coordinates.items():
        group.create_array(name, data=values, dimension_names=(dim,), compressors=None)
    group.attrs["coordinates"] = "sample_id block"
    with warnings.catch_warnings():
        # Readers without support for it ignore it; with it xarray opens the store in one read and no warning.
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=ZarrUserWarning)
        zarr.consolidate_metadata(group.store)


def validate_region(array: ArrayPlan, start: int, stop: int) -> None:
    """Check that samples ``[start, stop)`` are whole shards of an array.

    Raises:
        ValueError: they are not; writing them could lose another writer's samples.
    """
    length = array.shard[0]
    if start % length or (stop % length and stop != array.shape[0]) or not start < stop <= array.shape[0]:
        raise ValueError(
            f"region [{start}, {stop}) of {array.name!r} is not whole shards of {length} samples out of "
            f"{array.shape[0]}; tasks start at a multiple of {length} (schemas/store.md, Regions)"
        )


class Store:
    """An existing store, open for writing whole shards."""

    def __init__(self, run: Path, layout: Layout) -> None:
        self._folder = run / NAME
        self._plans = {array.name: array for array in layout.arrays()}
        # A chunk that equals the fill value must be stored all the same: it would look unfinished otherwise. Zarr keeps
        # this with the open array, not on disk, and open_array drops it when given as an argument.
        with zarr.config.set({"array.write_empty_chunks": True}):
            self._arrays = {
                name: zarr.open_array(self._folder / name, mode="r+", zarr_format=3) for name in self._plans
            }

    def write(self, start: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write every array's samples from ``start`` on and make them durable. Safe to repeat: it overwrites.

        Args:
            start: first sample.
            arrays: by name, ``(sample, step, layer, ...)``; all the store's arrays, equally long.

        Raises:
            ValueError: an array is missing, or the region is not whole shards.
            StorageError: the disk refused.
        """
        if arrays.keys() != self._plans.keys():
            raise ValueError(f"got arrays {sorted(arrays)}, the store has {sorted(self._plans)}")
        for name, values in arrays.items():
            stop = start + len(values)
            validate_region(self._plans[name], start, stop)
            try:
                self._arrays[name][start:stop] = values
                self._make_durable(name, start)
            except OSError as error:
                raise StorageError(
                    f"cannot write {name} samples [{start}, {stop}) to {self._folder}: {error}"
                ) from error

    def _make_durable(self, name: str, start: int) -> None:
        plan = self._plans[name]
        index = (start // plan.shard[0], *[0] * (len(plan.shape) - 1))
        path = self._folder / name / "c" / "/".join(map(str, index))
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_dataset(run: Path) -> xr.Dataset:
    """The run's arrays, labelled and lazy: values are read from disk when they are asked for."""
    return xr.open_zarr(run / NAME, chunks=None, zarr_format=3)
