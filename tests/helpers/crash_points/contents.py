"""What a folder holds, byte by byte, and what readers find in it; times, hosts and attempts are left out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fewchannels.runs.arrays import open_dataset
from fewchannels.runs.description import SWEEP
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.storage import open_storage
from fewchannels.runs.upkeep.verify import verify
from fewchannels.tables import from_parquet

LOCKS = (".capture.lock", ".workers.lock", "lease.json")
FIELDS = {"created", "finished", "seconds", "host", "attempt"}
"""Of documents: what depends on the clock, the machine or how often it was tried; and the checksum over it."""
COLUMNS = ("seconds", "attempt", "peak_memory_bytes", "finished", "host")
"""Of tables: likewise."""
TIMED = ("samples/", "edits/")
"""Parts of these tables have such columns, so that their checksums differ."""
OWNED = ("samples", "cells", "edits", "tasks")
"""Tables that grow task by task; each row is a sample's, an item's or a task's."""

Contents = dict[str, Any]


def contents(folder: Path) -> Contents:
    """Every file by its name, temporary ones too, with all that must be the same whenever it is made again."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in LOCKS]
    return {path.relative_to(folder).as_posix(): _content(path) for path in paths}


def _content(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".json" and path.name != "zarr.json":
        return _plain(json.loads(data), of_edits=path.parent.name == "effects")
    if path.suffix == ".parquet":
        table = from_parquet(data)
        return repr(table.drop_columns([name for name in COLUMNS if name in table.column_names]).to_pylist())
    return data


def _plain(value: Any, *, of_edits: bool = False) -> Any:
    """A document's content; one about a sweep's edits names the checksums of their parts in its identity."""
    if isinstance(value, dict):
        if set(value) == {"n_bytes", "crc32c"}:
            return value
        return {
            name: "timed"
            if _is_timed(name, each) or (of_edits and name == "parts")
            else _plain(each, of_edits=of_edits)
            for name, each in value.items()
            if name not in FIELDS and name != "crc32c"
        }
    return [_plain(each, of_edits=of_edits) for each in value] if isinstance(value, list) else value


def _is_timed(name: str, value: Any) -> bool:
    """Whether this is the checksum of an object with times in it, or of a record."""
    if isinstance(value, dict) and set(value) == {"n_bytes", "crc32c"}:
        return name.startswith(TIMED)
    return name.isdecimal() and isinstance(value, str)


class Seen:
    """What readers find in a run or a sweep at one moment; nothing where there is neither.

    Attributes:
        rows: of every table, by table, as text that is equal where the values are.
        arrays: of every sample that is recorded, by sample.
        n_samples: of the run, by ``open_run(...).activations``.
        problems: that verification finds.
    """

    def __init__(self, place: Path) -> None:
        self.rows: dict[str, dict[str, list[str]]] = {}
        self.arrays: dict[str, dict[str, bytes]] = {}
        self.n_samples = 0
        self.problems: list[str] = []
        is_sweep, is_run = (place / SWEEP).exists(), (place / "run.json").exists()
        if not is_sweep and not is_run:
            return
        self.problems = [f"{each.key}: {each.kind}" for each in verify(open_storage(place)).problems]
        with Catalog(place) as catalog:
            for view in catalog.views:
                self.rows[view] = _by_owner(catalog.sql(f'select * from "{view}"').arrow())
        if is_run:
            self._read_arrays(place)

    def _read_arrays(self, place: Path) -> None:
        anybody = xr.open_zarr(place / "activations.zarr", chunks=None).load()  # as any reader does, at every moment
        data = open_dataset(open_storage(place)).load()
        self.n_samples = len(self.rows["manifest"])
        assert anybody.sizes["sample"] >= self.n_samples
        for sample in sorted(self.rows["samples"], key=int):
            at = int(sample)
            for each in (anybody, data):
                values = {
                    str(name): np.asarray(each[name].values[at]).tobytes()
                    for name in each.variables
                    if "sample" in each[name].dims and each[name].dtype != object
                }
                values["sample_id"] = str(each["sample_id"].values[at]).encode()
                assert self.arrays.setdefault(sample, values) == values


def _by_owner(table: Any) -> dict[str, list[str]]:
    """Rows by whose they are: a sample's, an item's, a task's; by all that they say where they are nobody's."""
    kept = [name for name in table.column_names if name not in COLUMNS]
    owner = next((name for name in ("sample", "item", "task") if name in kept), None)
    found: dict[str, list[str]] = {}
    for row in table.select(kept).to_pylist():
        found.setdefault(str(row[owner]) if owner else repr(row), []).append(repr(row))
    return {name: sorted(rows) for name, rows in found.items()}


def faults(now: Seen, old: Seen, new: Seen) -> Iterator[str]:
    """What is neither of the state before nor of the state after; nothing where all is one of the two.

    Tasks, samples and items are there whole or not at all, and those of before are all there still unless they were
    damaged; a table of an analysis is one of the two, or not there where none was.
    """
    for problem in set(now.problems) - {*old.problems, *new.problems}:
        yield f"verify finds {problem}"
    for table in now.rows.keys() - {"run", "sweep"}:
        before, after, rows = old.rows.get(table), new.rows.get(table), now.rows[table]
        if table in OWNED:
            for owner, each in rows.items():
                if each not in ((before or {}).get(owner), (after or {}).get(owner)):
                    yield f"{table} of {owner} is neither the old nor the new"
        elif rows not in (before, after):
            yield f"the table {table} is neither the old nor the new"
    for table in () if old.problems else OWNED:
        if lost := old.rows.get(table, {}).keys() - now.rows.get(table, {}).keys():
            yield f"{table} of {sorted(lost)} are lost"
    for sample, values in now.arrays.items():
        if values not in (old.arrays.get(sample), new.arrays.get(sample)):
            yield f"arrays of sample {sample} are neither the old nor the new"
    if now.n_samples not in (old.n_samples, new.n_samples, 0):
        yield f"{now.n_samples} samples are neither {old.n_samples} nor {new.n_samples}"
    if "samples" in now.rows and now.rows["cells"].keys() != now.rows["samples"].keys():
        yield "the samples of cells are not those of samples"
