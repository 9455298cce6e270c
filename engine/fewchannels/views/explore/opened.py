"""A run opened for viewing: data for one page, read on request, while a capture may still write.

Nothing here loads a whole store: a map is read with the chunk that contains it, an image with its task's part.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
from cachetools import LRUCache

from fewchannels.analyses.masks.units import read_masks
from fewchannels.errors import FewchannelsError, InputError
from fewchannels.runs.arrays import read
from fewchannels.runs.description import COMPARISON, SWEEP, read_description, read_sweep
from fewchannels.runs.layout import Layout, Track
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.parts import Parts, own_rows
from fewchannels.runs.results import Results
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.sql.limits import Limits
from fewchannels.runs.storage import FolderStorage, open_storage
from fewchannels.views.explore.under_way import UnderWay

TIMEOUT_S = 60.0
_MOST_BYTES = 2**28  # of an answer, shown or downloaded
_LOOK_AGAIN_S = 2.0
_LOOK_AGAIN_FAR_S = 10.0  # in a bucket, where every listing is a request
_TASKS_KEPT = 16
_SAMPLES_KEPT = 4  # scores of all channels: 20 MB each for FLUX.1 at 28 steps
_Value = TypeVar("_Value")


class _Recent(Generic[_Value]):
    """Cache of the last few objects that were read, by key; safe for several threads."""

    def __init__(self, most: int) -> None:
        self._lock = Lock()
        self._kept: LRUCache[Any, _Value] = LRUCache(most)

    def get(self, key: Any, make: Callable[[], _Value]) -> _Value:
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        made = make()
        with self._lock:
            self._kept[key] = made
        return made


class Opened:
    """A run or a sweep, in the current state of its ledger.

    Args:
        name: name in addresses.
        path: folder or URL.
        timeout_s: time limit of a query, in seconds.

    Raises:
        InputError: there is neither, or the time limit is not positive.
        StorageError: its description is damaged.

    Attributes:
        of: ``run`` or ``sweep``.
        description: ``run.json`` or ``sweep.json``.
        limits: limits of a query.
        under_way: running queries of users.
    """

    def __init__(self, name: str, path: str | Path, timeout_s: float = TIMEOUT_S) -> None:
        self.name, self.path = name, str(path)
        self.limits, self.under_way = Limits(n_bytes=_MOST_BYTES, seconds=timeout_s), UnderWay()
        self.storage = open_storage(path)
        if self.storage.exists(COMPARISON):
            raise InputError(
                f"{self.path!r} is a comparison of two runs; use fewchannels report for it, or pass the two runs: "
                "the explorer shows their samples side by side."
            )
        self.of = "sweep" if self.storage.exists(SWEEP) else "run"
        read_it = read_sweep if self.of == "sweep" else read_description
        self.description = read_it(self.storage)
        self._every_s = _LOOK_AGAIN_S if isinstance(self.storage, FolderStorage) else _LOOK_AGAIN_FAR_S
        self._lock, self._looked = Lock(), -math.inf
        self._catalog: Catalog | None = None
        self._seen: tuple[object, ...] = ()
        self._parts: _Recent[dict[Any, Any]] = _Recent(_TASKS_KEPT)

    @property
    def catalog(self) -> Catalog:
        """Catalog of the finished data, reopened if the ledger or the results have grown.

        Raises:
            StorageError: something is missing or damaged.
        """
        with self._lock:
            if time.monotonic() > self._looked + self._every_s or self._catalog is None:
                # The record of a rerun task differs, even if sizes are the same.
                seen = tuple(self.storage.list("ledger/").items()), tuple(self.storage.list("results/"))
                if self._catalog is None or seen != self._seen:
                    self._catalog = Catalog(self.path)
                    self._seen = seen
                self._looked = time.monotonic()
            return self._catalog

    def close(self) -> None:
        """Stop running queries, and release the catalog."""
        self.under_way.end()
        with self._lock:
            if self._catalog is not None:
                self._catalog.close()

    def state(self) -> dict[str, int]:
        """Counts: ``n_tasks``, ``n_tasks_done``, ``n_items`` (samples, or items of a sweep)."""
        whole = {"run": "n_samples", "sweep": "n_items"}[self.of]
        ((n_tasks, n_done, n_items),) = self.catalog.sql(
            f"select n_tasks, n_tasks_done, {whole} from {self.of}"
        ).fetchall()
        return {"n_tasks": n_tasks, "n_tasks_done": n_done, "n_items": n_items}

    def _rows(self, table: str, task: int) -> dict[str, list[Any]]:
        """One finished task's rows of a table that has images, as columns."""
        record = Ledger(self.storage).find(task)
        if record is None:
            raise InputError(f"task {task} of {self.name!r} no longer has a record; it may be about to be retried.")

        def load() -> dict[str, list[Any]]:
            if self.of == "run" and task in Parts(self.storage, {task: record}).compacted:
                text = f"select * from {table} where sample between $start and $stop - 1"
                return self.catalog.sql(text, {"start": record.start, "stop": record.stop}).arrow().to_pydict()
            return own_rows(self.storage, table, record).to_pydict()

        return self._parts.get((table, task, record.checksum), load)


@dataclass(frozen=True)
class Cell:
    """One sample at one step and layer.

    Attributes:
        channels: ``(k,)`` int, channels whose maps are kept, largest score first.
        maps: ``(k, y, x)`` float32, signed values on the token grid.
        scores: ``(channel,)`` float32, of all channels.
    """

    channels: np.ndarray
    maps: np.ndarray
    scores: np.ndarray

    @property
    def median(self) -> float:
        """Lower median of the scores."""
        return float(np.sort(self.scores)[(len(self.scores) - 1) // 2])


class OpenedRun(Opened):
    """A run to view.

    Attributes:
        asked: SQL conditions that a user entered.
    """

    def __init__(self, name: str, path: str | Path, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__(name, path, timeout_s)
        self.asked: set[str] = set()
        self.layout = Layout.of(self.description)
        self.score = str(self.description["config"]["score"])
        self._masks: _Recent[dict[int, np.ndarray]] = _Recent(_TASKS_KEPT)
        self._samples: _Recent[dict[str, Any]] = _Recent(_TASKS_KEPT)
        self._scores: _Recent[np.ndarray] = _Recent(_SAMPLES_KEPT)

    @property
    def layers(self) -> list[int]:
        """Recorded layers."""
        return [block.layer for block in self.layout.blocks]

    @property
    def steps(self) -> list[int]:
        """Recorded steps."""
        return list(self.layout.steps)

    @property
    def branches(self) -> tuple[str, ...]:
        """Recorded guidance branches."""
        return self.layout.branches

    def sample(self, sample_id: str) -> dict[str, Any]:
        """A sample's row of ``samples``, without its image.

        Raises:
            InputError: no finished task has such a sample.
        """
        catalog = self.catalog
        return self._samples.get((catalog, sample_id), lambda: self._about(catalog, sample_id))

    def _about(self, catalog: Catalog, sample_id: str) -> dict[str, Any]:
        text = "select * exclude (image) from samples where sample_id = $id"
        found = catalog.sql(text, {"id": sample_id})
        row = found.fetchone()
        if row is None:
            raise InputError(
                f"no finished sample of {self.name!r} has the id {sample_id!r}; its task may not have run yet. "
                "The gallery shows the finished samples."
            )
        return dict(zip(found.columns, row, strict=True))

    def beside(self, sample: int) -> tuple[str | None, str | None]:
        """Ids of the finished samples before and after one in the manifest."""
        text = (
            "select (select arg_max(sample_id, sample) from samples where sample < $sample), "
            "(select arg_min(sample_id, sample) from samples where sample > $sample)"
        )
        before, after = self.catalog.sql(text, {"sample": sample}).fetchall()[0]
        return before, after

    def token_grid(self, about: dict[str, Any]) -> tuple[int, int]:
        """Recorded tokens along a sample's height and width."""
        pool = self.layout.pool
        return about["grid_height"] // pool, about["grid_width"] // pool

    def image(self, sample: int) -> bytes | None:
        """A sample's image, PNG bytes; None if it failed.

        Raises:
            InputError: its task has no record.
        """
        rows = self._rows("samples", sample // self.layout.shard_samples)
        return dict(zip(rows["sample"], rows["image"], strict=True)).get(sample)

    def mask(self, sample: int) -> np.ndarray | None:
        """The subject's mask ``(y, x)`` bool in pixels; None without one."""
        if "masks" not in self.catalog.results:
            return None
        task = sample // self.layout.shard_samples
        masks = self._masks.get(task, lambda: read_masks(Results(self.storage, "masks"), task))
        return masks.get(sample)

    def cell(self, about: dict[str, Any], step: int, layer: int, branch: str = "cond") -> Cell:
        """One sample at one step and layer, from the store.

        Args:
            about: result of :meth:`sample`.
            step: the step.
            layer: the layer.
            branch: branch of guidance.

        Raises:
            InputError: the run did not keep it.
        """
        self.check_kept(step, layer, branch)
        if not self.layout.has_maps:
            raise InputError(
                f"{self.name!r} has no token maps: it was captured with --top-k 0, or with only the text stream."
            )
        sample, prefix = about["sample"], Track("image", branch).prefix
        names = [prefix + name for name in ("massive_value", "massive_channel", self.score)]
        region = [self.steps.index(step)], [self.layers.index(layer)]
        found = read(self.storage, names, sample, sample + 1, region)
        values, channels, scores = (found[name][0, 0, 0] for name in names)
        height, width = self.token_grid(about)
        return Cell(channels, values[:, : height * width].reshape(-1, height, width), scores)

    def check_kept(self, step: int, layer: int, branch: str = "cond") -> None:
        """Refuse a cell that the store does not have.

        Raises:
            InputError: the run has not kept the step, the layer or the branch.
        """
        if step not in self.steps or layer not in self.layers or branch not in self.branches:
            raise InputError(
                f"{self.name!r} did not record step {step}, layer {layer}, branch {branch!r}; it has steps "
                f"{_listed(self.steps)}, layers {_listed(self.layers)}, branches {', '.join(self.branches)}."
            )

    def course(self, sample: int, channel: int, branch: str = "cond") -> np.ndarray:
        """One channel's score at every step and layer, ``(step, layer)`` float32.

        Args:
            sample: index on the store's sample axis.
            channel: index of the channel.
            branch: branch of guidance.
        """
        name = Track("image", branch).prefix + self.score
        scores = self._scores.get((sample, name), lambda: read(self.storage, [name], sample, sample + 1)[name][0])
        return scores[:, :, channel]


def _listed(numbers: list[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 8 else ", ".join(map(str, numbers))


class OpenedSweep(Opened):
    """A sweep to view."""

    def item(self, item: int) -> dict[str, list[Any]]:
        """Rows of ``edits`` of one item, with their images, as columns.

        Raises:
            InputError: no finished task has the item.
        """
        found = self.catalog.sql(
            "select task from tasks where start <= $item and $item < stop", {"item": item}
        ).fetchone()
        if found is None:
            raise InputError(f"no finished task of {self.name!r} has item {item}; run the sweep's command to resume.")
        rows = self._rows("edits", found[0])
        at = [i for i, each in enumerate(rows["item"]) if each == item]
        return {name: [values[i] for i in at] for name, values in rows.items()}


def open_places(paths: list[str], timeout_s: float = TIMEOUT_S) -> dict[str, Opened | str]:
    """Open runs and sweeps by short names of their own.

    Args:
        paths: folders or URLs.
        timeout_s: time limit of a query, in seconds.

    Returns:
        Each by its name: the last part of its path, with line breaks replaced, and a number if two have the same name.
        For one that cannot be opened, the reason.

    Raises:
        InputError: a URL cannot be that of a run, such as one with credentials, or the time limit is not positive.
    """
    Limits(seconds=timeout_s)  # a wrong time limit applies to all
    found: dict[str, Opened | str] = {}
    for path in paths:
        storage = open_storage(path)
        last = "".join(c if c.isprintable() else "_" for c in storage.name) or "run"  # routes match within one line
        name, n = last, 1
        while name in found:
            n += 1
            name = f"{last}-{n}"
        try:
            is_sweep = storage.exists(SWEEP)
            found[name] = (OpenedSweep if is_sweep else OpenedRun)(name, path, timeout_s)
        except FewchannelsError as error:
            found[name] = str(error)
    return found
