"""The Zarr store of a run: lay it out, write whole shards, read it back. See ``schemas/store.md``."""

import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.errors import ZarrUserWarning
from zarr.storage import LocalStore, MemoryStore, ObjectStore, WrapperStore

from fewchannels import machine
from fewchannels.errors import FewchannelsError, StorageError
from fewchannels.runs import shards
from fewchannels.runs.layout import ArrayPlan, Layout
from fewchannels.runs.storage import FolderStorage, ObjectStorage, Sink, Storage, Stored, open_storage

if TYPE_CHECKING:
    import xarray as xr

NAME = "activations.zarr"
_FILES_AT_ONCE = 3
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def lay_out(
    storage: Sink, layout: Layout, sample_ids: Sequence[str], earlier: Collection[str] = ()
) -> dict[str, Stored]:
    """Write every array's metadata, and the coordinates. Shards are not touched: safe to repeat, and to grow a run.

    Args:
        storage: storage of the run, or of a draft beside it.
        layout: the run's shape.
        sample_ids: sample ids, one per manifest row.
        earlier: keys of the run before it grows. Coordinates of samples get new keys, so that the old and the new
            metadata each refer to their own.

    Returns:
        The stored objects, by key, in the order in which readers may see them: the group's own metadata is last.
    """
    documents: dict[str, Any] = {}
    separator = "." if f"{NAME}/sample/c/0" in earlier else "/"
    group = zarr.create_group(MemoryStore(documents), zarr_format=3, attributes={"format_version": 2})
    compressors = [
        BloscCodec(typesize=4, cname="lz4", clevel=shards.LEVEL, shuffle="bitshuffle"),
        Crc32cCodec(),
    ]
    for array in layout.arrays():
        group.create_array(
            array.name,
            shape=array.shape,
            shards=array.shard,
            chunks=array.chunk,
            dtype=array.dtype,
            fill_value=array.fill,
            compressors=compressors,
            filters=None,
            dimension_names=array.dims,
            chunk_key_encoding={"name": "default", "separator": "."},  # one folder per array
        )
    for name, (dim, values) in _coordinates(layout, sample_ids).items():
        group.create_array(
            name,
            data=values,
            dimension_names=(dim,),
            compressors=None,
            chunk_key_encoding={"name": "default", "separator": separator if dim == "sample" else "/"},
        )
    group.attrs["coordinates"] = "sample_id block"
    with warnings.catch_warnings():
        # Readers without support for it ignore it; with it xarray opens the store in one read and no warning.
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=ZarrUserWarning)
        zarr.consolidate_metadata(group.store)
    return {
        f"{NAME}/{key}": storage.put(f"{NAME}/{key}", [documents[key].to_bytes()])
        for key in sorted(documents, key=_rank)
    }


def spare_keys() -> list[str]:
    """Keys that are no longer named by the metadata of a grown run, but may still be read by earlier readers."""
    return [f"{NAME}/{name}/c{separator}0" for name in ("sample", "sample_id") for separator in "/."]


def _rank(key: str) -> tuple[int, str]:
    """Sort key: values before the metadata that refer to them, and arrays' metadata before the group's copy."""
    return (2 if key == "zarr.json" else key.endswith("/zarr.json")), key


def _coordinates(layout: Layout, sample_ids: Sequence[str]) -> dict[str, tuple[str, np.ndarray]]:
    coordinates: dict[str, tuple[str, np.ndarray]] = {
        "sample": ("sample", np.arange(layout.n_samples, dtype=np.int64)),
        "sample_id": ("sample", np.array(sample_ids, dtype=np.dtypes.StringDType())),
        "step": ("step", np.array(layout.steps, dtype=np.int32)),
        "layer": ("layer", np.array([block.layer for block in layout.blocks], dtype=np.int32)),
        "block": ("layer", np.array([block.path for block in layout.blocks], dtype=np.dtypes.StringDType())),
        "channel": ("channel", np.arange(layout.n_channels, dtype=np.int32)),
    }
    if layout.has_ranks:
        coordinates["k"] = ("k", np.arange(layout.top_k, dtype=np.int32))
    if layout.controls:
        coordinates["control"] = ("control", np.array(layout.controls, dtype=np.dtypes.StringDType()))
    if layout.has_maps:
        coordinates["token"] = ("token", np.arange(layout.n_tokens, dtype=np.int32))
    return coordinates


def validate_region(array: ArrayPlan, start: int, stop: int, n_samples: int) -> None:
    """Check that samples ``[start, stop)`` are one whole shard of an array.

    Raises:
        ValueError: they are not, so writing them could overwrite another writer's samples.
    """
    length = array.shard[0]
    if start % length or not start < stop <= min(start + length, n_samples):
        raise ValueError(
            f"region [{start}, {stop}) of {array.name!r} is not a whole shard of {length} samples out of "
            f"{n_samples}; tasks start at a multiple of {length} (schemas/store.md, Regions)"
        )


class Store:
    """An initialized store, for writing whole shards.

    Args:
        storage: storage of the run, or of a draft beside it.
        layout: the run's shape.
        n_threads: number of compression threads; None for all CPUs that this process may use.
    """

    def __init__(self, storage: Sink, layout: Layout, n_threads: int | None = None) -> None:
        self._storage, self._layout, self._n_threads = storage, layout, n_threads or machine.processors()
        self._plans = {array.name: array for array in layout.arrays()}

    def write(self, start: int, arrays: Mapping[str, np.ndarray]) -> dict[str, Stored]:
        """Write every array's shard that begins at a sample, durably. Safe to repeat: it overwrites.

        Args:
            start: first sample.
            arrays: arrays by name, ``(sample, step, layer, ...)``; all the store's arrays, equally long. A partial
                shard is padded.

        Returns:
            The stored objects, by key.

        Raises:
            ValueError: an array is missing, or the region is not a whole shard.
            StorageError: writing failed.
        """
        if arrays.keys() != self._plans.keys():
            raise ValueError(f"got arrays {sorted(arrays)}, the store has {sorted(self._plans)}")
        for name, values in arrays.items():
            validate_region(self._plans[name], start, start + len(values), self._layout.n_samples)
        task = start // self._layout.shard_samples
        largest_first = sorted(arrays, key=lambda name: -arrays[name].nbytes)
        with ThreadPoolExecutor(self._n_threads) as compressing, ThreadPoolExecutor(_FILES_AT_ONCE) as writing:

            def put(name: str) -> tuple[str, Stored]:
                key = f"{NAME}/{self._plans[name].key(task)}"
                apply = partial(_map_ahead, compressing, self._n_threads + 1)
                return key, self._storage.put(key, shards.compress(arrays[name], self._plans[name], apply))

            return dict(writing.map(put, largest_first))


def _map_ahead(
    pool: Executor, most: int, work: Callable[[_Item], _Result], items: Sequence[_Item]
) -> Iterator[_Result]:
    """Like ``pool.map``, with a limit on unfinished and unconsumed items, which bounds the memory."""
    if len(items) == 1:  # passing it to a thread takes longer than it saves
        yield work(items[0])
        return
    waiting: deque[Future[_Result]] = deque()
    for item in items:
        if len(waiting) == most:
            yield waiting.popleft().result()
        waiting.append(pool.submit(work, item))
    while waiting:
        yield waiting.popleft().result()


def read(
    storage: Storage,
    names: Sequence[str],
    start: int,
    stop: int,
    region: tuple[Sequence[int], Sequence[int]] | None = None,
) -> dict[str, np.ndarray]:
    """Read samples ``[start, stop)`` of arrays, like any Zarr reader: ``(sample, step, layer, ...)`` each.

    Args:
        storage: storage of the run.
        names: selected names.
        start: first sample. The tasks of all these samples must be finished.
        stop: one past the last.
        region: positions on the step and on the layer axis, ascending; None for all. Other chunks are not read.

    Raises:
        StorageError: a shard is missing, or it or the metadata is damaged.
    """
    with _reading(storage):
        group = zarr.open_group(_zarr_store(storage, finished=True), mode="r", zarr_format=3)
        if region is None:
            return {name: np.asarray(group[name][start:stop]) for name in names}  # type: ignore[index]
        chosen = (slice(start, stop), *(_neighbors(positions) for positions in region))
        if all(isinstance(part, slice) for part in chosen):
            return {name: np.asarray(group[name][chosen]) for name in names}  # type: ignore[index]
        return {name: np.asarray(group[name].oindex[chosen]) for name in names}  # type: ignore[union-attr]


@contextmanager
def _reading(storage: Storage) -> Iterator[None]:
    try:
        yield
    except FewchannelsError:
        raise
    except Exception as error:  # each codec, and each field of the metadata, raises its own errors
        raise StorageError(
            f"the arrays of {storage.url!r} cannot be read: {error}. fewchannels runs verify {storage.url} lists the "
            "damage, and with --repair removes the damaged records."
        ) from None


def _neighbors(positions: Sequence[int]) -> slice | np.ndarray:
    """Convert consecutive positions to a slice, which Zarr reads four times as fast as a list."""
    first, last = positions[0], positions[-1]
    return slice(first, last + 1) if last - first == len(positions) - 1 else np.array(positions)


def decompress(
    documents: Mapping[str, bytes], objects: Mapping[str, bytes], names: Sequence[str], start: int, stop: int
) -> dict[str, np.ndarray]:
    """Read samples ``[start, stop)`` of arrays from objects in memory, like any Zarr reader.

    Args:
        documents: the store's metadata, by key.
        objects: the shards, by key.
        names: selected names.
        start: first sample.
        stop: one past the last.

    Raises:
        ValueError: a shard is damaged.
    """
    held: dict[str, Any] = {
        key.removeprefix(f"{NAME}/"): default_buffer_prototype().buffer.from_bytes(data)
        for key, data in (documents | objects).items()  # type: ignore[operator]
    }
    group = zarr.open_group(MemoryStore(held), mode="r", zarr_format=3)
    return {name: np.asarray(group[name][start:stop]) for name in names}  # type: ignore[index]


def open_dataset(storage: Storage, n_samples: int | None = None) -> "xr.Dataset":
    """Open the run's arrays, labeled and lazy: values are read from the store when they are used.

    Args:
        storage: storage of the run.
        n_samples: number of samples to include; while a run grows, its arrays may already be longer.
    """
    import xarray as xr  # takes half a second to import; workers do not need it

    with _reading(storage):
        data = xr.open_zarr(_zarr_store(storage), chunks=None, zarr_format=3)
    return data if n_samples in (None, data.sizes["sample"]) else data.isel(sample=slice(n_samples))


def as_dataset(layout: Layout, sample_ids: Sequence[str], arrays: Mapping[str, np.ndarray]) -> "xr.Dataset":
    """Label arrays in memory like those of a run.

    Args:
        layout: shape of the arrays.
        sample_ids: id of each sample.
        arrays: all the layout's arrays by name, ``(sample, step, layer, ...)``.
    """
    import xarray as xr

    coordinates = {name: (dim, _plain(values)) for name, (dim, values) in _coordinates(layout, sample_ids).items()}
    data = {plan.name: (plan.dims, arrays[plan.name]) for plan in layout.arrays()}
    return xr.Dataset(data, coordinates, attrs={"format_version": 2})


def _plain(values: np.ndarray) -> np.ndarray:
    """Text as xarray reads it from a store."""
    return values.astype(object) if isinstance(values.dtype, np.dtypes.StringDType) else values


def _zarr_store(storage: Storage, finished: bool = False) -> WrapperStore[LocalStore | ObjectStore]:
    root = open_storage(storage.location(NAME))
    if isinstance(root, FolderStorage):
        return _Shards(_FolderStore(root), root, finished)
    assert isinstance(root, ObjectStorage)
    return _Shards(ObjectStore(root.store, read_only=True), root, finished)


class _Shards(WrapperStore[LocalStore | ObjectStore]):
    """A store for reading that reports an empty shard as damaged; Zarr would treat it as unwritten.

    Args:
        store: Zarr's store.
        storage: storage of the same location.
        finished: whether every shard was written, so that a missing one is an error.
    """

    def __init__(self, store: LocalStore | ObjectStore, storage: Storage, finished: bool) -> None:
        super().__init__(store)
        self._storage, self._finished = storage, finished

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        """Same as in Zarr."""
        found = await super().get(key, *args, **options)
        is_shard = key.rpartition("/")[2].startswith("c.")
        if is_shard and found is None and not self._storage.exists("zarr.json"):
            raise StorageError(f"{self._storage.url} is gone. Restore it, or open the run where it is now.")
        if is_shard and (self._finished if found is None else not len(found)):
            url, what = self._storage.location(key), "is missing" if found is None else "is empty"
            raise StorageError(
                f"{url} {what}, although its samples are finished. Restore it, or run fewchannels runs verify RUN "
                "--repair and capture again."
            )
        return found

    def with_read_only(self, read_only: bool = True) -> Self:
        """Return the store itself."""
        if not read_only:
            raise ValueError("this store is read-only")
        return self

    def _with_store(self, store: LocalStore | ObjectStore) -> Self:
        return type(self)(store, self._storage, self._finished)


class _FolderStore(LocalStore):
    """A folder's files as a store of Zarr, for reading; links are rejected, as by :class:`FolderStorage`."""

    def __init__(self, storage: FolderStorage) -> None:
        super().__init__(storage.path, read_only=True)
        self._storage = storage

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        """Same as in Zarr."""
        self._storage.location(key)
        return await super().get(key, *args, **options)

    async def get_partial_values(self, prototype: Any, key_ranges: Iterable[tuple[str, Any]]) -> list[Any]:
        """Same as in Zarr."""
        asked = list(key_ranges)
        for key, _ in asked:
            self._storage.location(key)
        return await super().get_partial_values(prototype, asked)
